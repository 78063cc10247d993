"""A rank whose engine only keeps what it is told."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any


class FakeRank:
    """A rank with a core that collects delays and compute ops."""

    def __init__(self, number: int = 0) -> None:
        self.number = number
        self.core = self
        self.meter: Any = None
        self.computed: list[tuple[int, int, int]] = []
        self.delays: list[int] = []
        self.memory: list[int] = []

    def compute(self, rank: int, flops: int, size: int, precision: int = 0) -> None:
        assert rank == self.number
        assert flops or size
        self.computed.append((flops, size, precision))

    def alloc(self, rank: int, size: int) -> None:
        assert rank == self.number
        self.memory.append(size)

    def free(self, rank: int, size: int) -> None:
        assert rank == self.number
        self.memory.append(-size)

    def delay(self, rank: int, picoseconds: int) -> None:
        assert rank == self.number
        self.delays.append(picoseconds)


def metered(meter: Any, run: Callable[[], object]) -> FakeRank:
    """Run something as the program of a rank."""
    rank = FakeRank()
    rank.meter = meter
    with ExitStack() as stack:
        for mode in meter.modes():
            stack.enter_context(mode)
        meter.resume(rank)
        run()
        meter.flush(rank)
    return rank
