"""Parts of a program: a rank, a group of ranks, a queue of requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from leeboard.sim.builder import Builder
from leeboard.sim.handles import Handle
from leeboard.sim.op_list import Own, Shared
from leeboard.sim.workload import Arrivals

if TYPE_CHECKING:
    from leeboard.sim.program import Program


class Slots:
    """Small numbers in use."""

    def __init__(self) -> None:
        self.used: set[int] = set()
        # None below is free.
        self.low = 0

    def add(self, slot: int) -> None:
        """Use a slot."""
        self.used.add(slot)

    def discard(self, slot: int) -> None:
        """Give a slot back."""
        self.used.discard(slot)
        self.low = min(self.low, slot)


class RankState:
    """What is known of a rank that has ops of its own."""

    def __init__(self, shared: Shared) -> None:
        self.ops = Own(shared)
        # Slots in use and handles that nobody has waited for.
        self.slots = Slots()
        self.pending: dict[Handle, None] = {}


@dataclass(frozen=True, eq=False)
class Queue:
    """Where requests arrive; made by `Program.arrivals`.

    Attributes:
        number: Index among the program's queues.
        name: For people.
        arrivals: How requests come.
    """

    number: int
    name: str
    arrivals: Arrivals


class Rank(Builder):
    """One rank of a program."""

    def __init__(self, program: Program, rank: int) -> None:
        self._program = program
        self._ranks = (rank,)
        self._label = f"program[{rank}]"

    def __repr__(self) -> str:
        return f"<{self._label} of {self._program!r}>"


class Group(Builder):
    """Some ranks of a program: a communicator, and a short way to tell each the same.

    Attributes:
        number: Of the group in the program; 0 is all ranks in order.
        ranks: Its members in order.
        positions: Index of each member.
    """

    def __init__(self, program: Program, number: int, ranks: tuple[int, ...]) -> None:
        self._program = program
        self._ranks = ranks if number > 0 else None
        self.number = number
        self.positions = {rank: i for i, rank in enumerate(ranks)}
        text = ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
        self._label = f"program.group([{text}])"

    @property
    def ranks(self) -> tuple[int, ...]:
        """The members in order."""
        return tuple(self._members())

    def __len__(self) -> int:
        return len(self.positions)

    def __repr__(self) -> str:
        return self._label

    def _among(self, name: str, group: Group | Sequence[int] | None) -> Group | None:
        return super()._among(name, self if group is None else group)
