"""Logical workloads: what every simulator is given, and when it has to end.

All run on devices around one switch, with full-duplex links of `bandwidth`, `latency` from device
to device, and messages that leave without a handshake.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["ping_pong", "ring", "all_to_all"]


@dataclass(frozen=True)
class Workload:
    """What the ranks do.

    ping_pong: ranks 2i and 2i + 1 send `bytes` to and fro, `rounds` times. ring: every rank sends
    `bytes` to the next and receives from the one before, 2 (ranks - 1) times a round: a ring
    all-reduce of ranks * bytes. all_to_all: every rank gives every other one message of a size of
    its own, all at once.
    """

    kind: Kind
    ranks: int
    rounds: int = 1
    bytes: int = 4
    latency: float = 1e-3
    bandwidth: float = 125e6

    @property
    def steps(self) -> int:
        """Messages of each rank."""
        if self.kind == "ping_pong":
            return self.rounds
        return (self.ranks - 1) * (2 * self.rounds if self.kind == "ring" else 1)

    @property
    def messages(self) -> int:
        return self.ranks * self.steps

    @property
    def end(self) -> float | None:
        """When the last rank has finished, seconds; None where sharing makes it hard to say."""
        message = self.latency + self.bytes / self.bandwidth
        if self.kind == "ping_pong":
            return 2 * self.rounds * message
        return self.steps * message if self.kind == "ring" else None

    def sizes(self) -> NDArray[np.uint64]:
        """all_to_all: bytes from row to column, all different, [ranks, ranks]."""
        off = ~np.eye(self.ranks, dtype=bool)
        sizes = np.zeros((self.ranks, self.ranks), np.uint64)
        order = np.random.default_rng(self.ranks).permutation(off.sum())
        sizes[off] = 100_000 + 977 * order.astype(np.uint64)
        return sizes

    def scaled(self, messages: int) -> Workload:
        """The same with as many rounds as make about so many messages."""
        once = Workload(self.kind, self.ranks).messages
        return Workload(
            self.kind,
            self.ranks,
            max(1, round(messages / once)),
            self.bytes,
            self.latency,
            self.bandwidth,
        )


@dataclass(frozen=True)
class Outcome:
    """What a simulator said, and the seconds that it needed."""

    end: float
    seconds: float

    def check(self, workload: Workload, expected: float | None = None) -> None:
        """Raise AssertionError unless the simulated end is right."""
        right = workload.end if expected is None else expected
        if right is None:
            raise ValueError(f"nothing to check {workload} against")
        assert abs(self.end - right) <= 1e-6 * right, (
            f"{workload}: ends at {self.end!r} s, not {right!r}"
        )
