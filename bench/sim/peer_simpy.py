"""SimPy on the logical workloads: processes, one store a rank, one process a message."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Generator
from typing import Any

from bench.sim.workloads import Outcome, Workload


def installed() -> bool:
    return importlib.util.find_spec("simpy") is not None


def run(workload: Workload) -> Outcome:
    """Simulate it. No link is shared in these workloads, so a message is a timeout."""
    import simpy

    env = simpy.Environment()
    boxes = [simpy.Store(env) for _ in range(workload.ranks)]
    takes = workload.latency + workload.bytes / workload.bandwidth

    def message(target: int) -> Generator[Any, Any, None]:
        yield env.timeout(takes)
        yield boxes[target].put(None)

    def ping(me: int, other: int) -> Generator[Any, Any, None]:
        for _ in range(workload.rounds):
            env.process(message(other))
            yield boxes[me].get()

    def pong(me: int, other: int) -> Generator[Any, Any, None]:
        for _ in range(workload.rounds):
            yield boxes[me].get()
            env.process(message(other))

    def step(me: int) -> Generator[Any, Any, None]:
        for _ in range(workload.steps):
            env.process(message((me + 1) % workload.ranks))
            yield boxes[me].get()

    if workload.kind == "ping_pong":
        for first in range(0, workload.ranks, 2):
            env.process(ping(first, first + 1))
            env.process(pong(first + 1, first))
    elif workload.kind == "ring":
        for me in range(workload.ranks):
            env.process(step(me))
    else:
        raise ValueError(f"workload: got {workload.kind}; SimPy has no network that shares links")
    start = time.perf_counter()
    env.run()
    return Outcome(env.now, time.perf_counter() - start)
