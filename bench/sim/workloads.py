"""Logical workloads: what every simulator is given, and when it has to end.

All run on devices around one switch, with full-duplex links of `bandwidth`, `latency` from device
to device, and messages that leave without a handshake.
"""

from __future__ import annotations

import dataclasses
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
    all-reduce of ranks * bytes. all_to_all: every rank gives every other one message, all at once; no
    two of a rank's are of one size, and if `uneven`, no two at all.
    """

    kind: Kind
    ranks: int
    rounds: int = 1
    bytes: int = 4
    latency: float = 1e-3
    bandwidth: float = 125e6
    uneven: bool = False

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
        """all_to_all: bytes from row to column, [ranks, ranks]."""
        rank = np.arange(self.ranks)
        ahead = (rank[None, :] - rank[:, None]) % self.ranks
        sizes = 100_000 + 10_000 * ahead.astype(np.uint64)
        if self.uneven:
            order = np.random.default_rng(self.ranks).permutation(ahead.size)
            sizes = 100_000 + 977 * order.astype(np.uint64).reshape(ahead.shape)
        sizes[ahead == 0] = 0
        return sizes

    def scaled(self, messages: int) -> Workload:
        """The same with as many rounds as make about so many messages."""
        once = dataclasses.replace(self, rounds=1).messages
        return dataclasses.replace(self, rounds=max(1, round(messages / once)))


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
