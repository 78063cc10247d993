"""Handles of operations under way, and the loops that limit where they may be waited for."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from leeboard.sim.ops import ProgramError


@dataclass
class Ranks:
    """A set of ranks that may be all of them."""

    everyone: bool = False
    some: set[int] = field(default_factory=set)

    def add(self, ranks: Collection[int] | None) -> None:
        """Add ranks; None: all."""
        if ranks is None:
            self.everyone = True
        else:
            self.some.update(ranks)

    def meets(self, ranks: Collection[int] | None) -> bool:
        """Whether any of the ranks (None: all) is in the set."""
        if self.everyone:
            return True
        return bool(self.some) if ranks is None else any(r in self.some for r in ranks)

    def covers(self, ranks: Collection[int] | None, count: int) -> bool:
        """Whether all of the ranks (None: all `count` of them) are in the set."""
        if self.everyone:
            return True
        if ranks is None:
            return len(self.some) == count
        return all(r in self.some for r in ranks)


Scope = tuple[int, ...] | None


def touch(a: Scope, b: Scope) -> bool:
    """Whether two sets of ranks (None: all) have one in common."""
    return a is None or b is None or not set(a).isdisjoint(b)


@dataclass(eq=False)
class Loop:
    """A loop that is being built.

    Attributes:
        ranks: Whose; None: all ranks'.
        times: Rounds.
        what: How it was made, for people.
        made: Handles that were made inside it.
    """

    ranks: Scope
    times: int
    what: str
    made: list[Handle] = field(default_factory=list)


@dataclass(eq=False)
class Handle:
    """An operation under way, to be waited for: what `isend`, `irecv` and `async_op=True` return.

    Attributes:
        ranks: Whose it is; None: every rank has one.
        slot: Its number on the rank.
        what: How it was made, for people.
        stream: The stream it is queued on; -1 for a collective beside the rank's own thread.
    """

    ranks: Scope
    slot: int
    what: str
    stream: int
    program: object
    loops: tuple[Loop, ...]
    waited: Ranks = field(default_factory=Ranks)
    # Known to be over because its stream is, though nobody waited for it by name.
    settled: Ranks = field(default_factory=Ranks)

    def __repr__(self) -> str:
        return f"<handle of {self.what}>"

    def check_wait(self, where: str, program: object, ranks: Scope, loops: list[Loop]) -> None:
        """Raise ProgramError if these ranks' own threads cannot wait for it here.

        Args:
            where: The call, for the error.
            program: Whose call it is.
            ranks: Who waits.
            loops: All that are open.
        """
        self.check_owner(where, program, ranks)
        self.check_waited(where, ranks)
        for loop in loops:
            if loop.times != 1 and touch(loop.ranks, ranks) and loop not in self.loops:
                raise ProgramError(
                    f"{where}: handle: {self!r} was made outside of {loop.what}, each round of "
                    "which would wait for it"
                )

    def check_waited(self, where: str, ranks: Scope) -> None:
        """Raise ProgramError if one of these ranks has waited for it."""
        if self.waited.meets(ranks):
            raise ProgramError(f"{where}: handle: {self!r} has been waited for already")

    def check_owner(self, where: str, program: object, ranks: Scope) -> None:
        """Raise ProgramError if it is not these ranks' handle."""
        if self.program is not program:
            raise ProgramError(f"{where}: handle: {self!r} belongs to another program")
        if self.ranks is not None and (ranks is None or not set(ranks) <= set(self.ranks)):
            raise ProgramError(f"{where}: handle: {self!r} belongs to another rank")

    def check_closed(self, loop: Loop, count: int) -> None:
        """Raise ProgramError if the loop's next round would find it under way.

        Args:
            loop: The loop that closes.
            count: Ranks of the program.
        """
        if loop.times != 1 and not self.over(loop.ranks, count):
            raise ProgramError(
                f"{loop.what}: {self!r} is not waited for inside the loop, whose next round makes "
                "it again"
            )

    def over(self, ranks: Scope, count: int) -> bool:
        """Whether it is known to be over on those of these ranks whose it is.

        Args:
            ranks: None: all.
            count: Ranks of the program.
        """
        mine = self.ranks
        if ranks is not None:
            mine = ranks if mine is None else tuple(set(ranks) & set(mine))
        known = Ranks(
            self.waited.everyone or self.settled.everyone, self.waited.some | self.settled.some
        )
        return known.covers(mine, count)
