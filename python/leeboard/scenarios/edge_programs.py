"""What sensor nodes and a hub do with windows that arrive, in each placement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from leeboard.sim import ArrivalTimes, Program

if TYPE_CHECKING:
    from leeboard.scenarios.edge_plans import EdgeCandidate, Sensor

EdgePlacement = Literal["node", "hub", "split"]
EDGE_PLACEMENTS: dict[EdgePlacement, str] = {
    "node": "the whole model on one sensor node; the other sensors' windows are sent to it",
    "hub": "the whole model on the hub; all windows are sent to it",
    "split": "each sensor's encoder on its node, the fusion on the hub",
}


def arrivals(rate: float, windows: int, kind: str, seed: int) -> ArrivalTimes:
    """When windows are complete, for all sensors alike: "periodic" or "poisson"."""
    if kind == "periodic":
        gaps = np.full(windows, 1.0 / rate)
    else:
        gaps = np.random.default_rng(seed).exponential(1.0 / rate, windows)
    return ArrivalTimes([float(t) for t in np.cumsum(gaps)])


@dataclass(frozen=True)
class Wiring:
    """Who is where.

    Attributes:
        nodes: Device of each sensor node (ranks 0, 1, ...) and the sensors on it; the hub is the
            last rank.
        host: Sensor nodes from the one that should run a whole model down.
        answer: Bytes of an answer.
    """

    nodes: Mapping[str, tuple[str, ...]]
    host: Sequence[str]
    answer: int = 16

    def of(self, candidate: EdgeCandidate) -> dict[int, tuple[str, ...]]:
        """Ranks of the nodes that a plan uses, and which of its sensors they have."""
        found = {}
        for rank, sensors in enumerate(self.nodes.values()):
            used = tuple(s for s in sensors if s in candidate.sensors)
            if used:
                found[rank] = used
        return found

    def runs(self, candidate: EdgeCandidate) -> int:
        """Rank of the node that runs the whole model."""
        ranks = self.of(candidate)
        names = list(self.nodes)
        return next(names.index(n) for n in self.host if names.index(n) in ranks)


def program(
    wiring: Wiring,
    sensors: Mapping[str, Sensor],
    candidate: EdgeCandidate,
    placement: EdgePlacement,
    times: ArrivalTimes,
) -> tuple[Program, int]:
    """The program, and the number of the queue whose latency is that of an answer at the hub.

    A window arrives at all nodes at once. Each node takes its part from a queue of its own; the part
    that is received last carries the request to the answer.
    """
    made = Program(len(wiring.nodes) + 1)
    ranks = wiring.of(candidate)
    hub, count = len(wiring.nodes), len(times.times)
    queues = {rank: made.arrivals(times, name=f"windows of rank {rank}") for rank in ranks}
    raw = {rank: sum(sensors[s].raw for s in used) for rank, used in ranks.items()}
    if placement == "node":
        host = wiring.runs(candidate)
        made[host].alloc(round(candidate.bytes))
        others = [rank for rank in ranks if rank != host]
        for rank in others:
            with made[rank].serve(queues[rank]):
                made[rank].send(host, round(raw[rank]))
        with made[host].loop(count):
            for rank in others:
                made[host].recv(rank)
                made[host].done(queues[rank])
            made[host].take(queues[host])
            made[host].compute(seconds=candidate.seconds)
            made[host].send(hub, wiring.answer)
        with made[hub].loop(count):
            made[hub].recv(host)
            made[hub].done(queues[host])
        return made, queues[host].number
    encoders = (candidate.encoders or {}) if placement == "split" else {}
    shares = {r: sum(encoders.get(s, 0.0) for s in used) for r, used in ranks.items()}
    whole = candidate.seconds or 1.0
    made[hub].alloc(round(candidate.bytes * (1.0 - sum(shares.values()) / whole)))
    for rank, used in ranks.items():
        size = raw[rank]
        if placement == "split":
            made[rank].alloc(round(candidate.bytes * shares[rank] / whole))
            size = sum(sensors[s].features for s in used)
        with made[rank].serve(queues[rank]):
            if placement == "split":
                made[rank].compute(seconds=shares[rank])
            made[rank].send(hub, round(size))
    last = max(ranks)
    with made[hub].loop(count):
        for rank in ranks:
            made[hub].recv(rank)
            if rank != last:
                made[hub].done(queues[rank])
        made[hub].compute(seconds=candidate.fusion if placement == "split" else candidate.seconds)
        made[hub].done(queues[last])
    return made, queues[last].number
