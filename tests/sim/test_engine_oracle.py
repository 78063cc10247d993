"""Random programs against a second, slow account of the same rules.

Every pair of devices has a link of its own, so that nothing contends but a pair's own messages: then
a message's times follow from its two ranks alone, and an oracle can go from rank to rank, each as
far as it gets.
"""

from __future__ import annotations

import random
from collections import defaultdict, deque
from dataclasses import dataclass, field

import pytest

from leeboard import sim

LATENCY = 2e-3
BANDWIDTH = 1e6


@dataclass
class Oracle:
    """Times of a program of ("compute", s), ("send", to, bytes, tag), ("recv", from, tag)."""

    programs: list[list[tuple]]
    rendezvous: bool
    clock: list[float] = field(init=False)

    def __post_init__(self) -> None:
        ranks = len(self.programs)
        self.clock = [0.0] * ranks
        self.at = [0] * ranks
        self.free: dict[tuple[int, int], float] = defaultdict(float)
        # Of (source, target, tag): messages sent (when ready, bytes, when arrived), receives posted.
        self.sent: dict[tuple, deque] = defaultdict(deque)
        self.posted: dict[tuple, deque] = defaultdict(deque)
        self.done: dict[tuple, deque] = defaultdict(deque)

    def carry(self, pair: tuple[int, int], ready: float, size: int) -> tuple[float, float]:
        departed = max(ready, self.free[pair]) + size / BANDWIDTH
        self.free[pair] = departed
        return departed, departed + LATENCY

    def step(self, rank: int) -> bool:
        """One op of a rank, if it can be done yet."""
        kind, *rest = self.programs[rank][self.at[rank]]
        now = self.clock[rank]
        if kind == "compute":
            self.clock[rank] += rest[0]
        elif kind == "send":
            to, size, tag = rest
            key = (rank, to, tag)
            if not self.rendezvous:
                self.sent[key].append(self.carry((rank, to), now, size)[1])
            else:
                if not self.posted[key]:
                    return False
                word = self.posted[key].popleft() + LATENCY
                departed, arrived = self.carry((rank, to), max(now, word), size)
                self.sent[key].append(arrived)
                self.clock[rank] = departed
        else:
            source, tag = rest
            key = (source, rank, tag)
            if (rank, self.at[rank]) not in self.done:
                self.done[(rank, self.at[rank])] = deque([now])
                self.posted[key].append(now)
            if not self.sent[key]:
                return False
            self.clock[rank] = max(now, self.sent[key].popleft())
        self.at[rank] += 1
        return True

    def run(self) -> list[float]:
        moved = True
        while moved:
            moved = False
            for rank, program in enumerate(self.programs):
                while self.at[rank] < len(program) and self.step(rank):
                    moved = True
        assert all(a == len(p) for a, p in zip(self.at, self.programs, strict=True))
        return self.clock


def random_programs(seed: int, ranks: int, messages: int) -> list[list[tuple]]:
    """Sends and receives in one global order, so that blocking ones cannot deadlock."""
    rng = random.Random(seed)
    programs: list[list[tuple]] = [[] for _ in range(ranks)]
    for _ in range(messages):
        a, b = rng.sample(range(ranks), 2)
        tag = rng.randrange(2)
        for rank in (a, b):
            if rng.random() < 0.5:
                programs[rank].append(("compute", rng.randrange(5000) * 1e-6))
        programs[a].append(("send", b, rng.randrange(4000), tag))
        programs[b].append(("recv", a, tag))
    return programs


@pytest.mark.parametrize("network", ["flow", "alpha-beta"])
@pytest.mark.parametrize("rendezvous", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_random_programs_take_what_the_oracle_says(
    network: str, rendezvous: bool, seed: int
) -> None:
    programs = random_programs(seed, ranks=5, messages=120)
    built = sim.Program(5)
    for rank, ops in enumerate(programs):
        for kind, *rest in ops:
            if kind == "compute":
                built[rank].compute(seconds=rest[0])
            elif kind == "send":
                built[rank].send(rest[0], bytes=rest[1], tag=rest[2])
            else:
                built[rank].recv(rest[0], tag=rest[1])
    platform = sim.Platform.full(
        5,
        bandwidth=BANDWIDTH,
        latency=LATENCY,
        protocol=sim.Protocol(eager_limit=0 if rendezvous else "unlimited"),
    )
    expected = Oracle(programs, rendezvous).run()
    result = sim.run(built, platform, network=network)
    assert result.messages == 120
    assert result.ranks["finish"] == pytest.approx(expected, abs=1e-9)
