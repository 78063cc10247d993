"""leeboard on the logical workloads, by its public interface."""

from __future__ import annotations

import time
from typing import Literal

from bench.sim.workloads import Outcome, Workload
from leeboard.sim import Platform, Program, Trace, replay

Network = Literal["flow", "alpha-beta"]


def platform(workload: Workload) -> Platform:
    """A star without protocol: no handshake, no overhead, all of the bandwidth."""
    return Platform.star(
        workload.ranks,
        bandwidth=workload.bandwidth,
        latency=workload.latency,
        protocol="ideal",
    )


def trace(workload: Workload) -> Trace:
    """The workload as sends and receives, no collectives."""
    program = Program(workload.ranks)
    if workload.kind == "ping_pong":
        for first in range(0, workload.ranks, 2):
            a, b = program[first], program[first + 1]
            with a.loop(workload.rounds):
                a.send(first + 1, workload.bytes)
                a.recv(first + 1)
            with b.loop(workload.rounds):
                b.recv(first)
                b.send(first, workload.bytes)
    elif workload.kind == "ring":
        for me, rank in enumerate(program):
            with rank.loop(workload.steps):
                sent = rank.isend((me + 1) % workload.ranks, workload.bytes)
                rank.recv((me - 1) % workload.ranks)
                rank.wait(sent)
    else:
        sizes = workload.sizes()
        for me, rank in enumerate(program):
            others = [other for other in range(workload.ranks) if other != me]
            for other in others:
                rank.irecv(other)
            for other in others:
                rank.isend(other, int(sizes[me, other]))
            rank.wait_all()
    return program.trace()


def run(
    workload: Workload, network: Network, *, compiled: Trace | None = None, repeats: int = 3
) -> Outcome:
    """Simulate it; the seconds are the best of a few replays of the compiled trace.

    Neither timeline nor link use is kept, as the peers keep none.
    """
    compiled = trace(workload) if compiled is None else compiled
    where = platform(workload)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = replay(compiled, where, network=network, timeline=False, links=False)
        seconds.append(time.perf_counter() - start)
    return Outcome(result.makespan, min(seconds))
