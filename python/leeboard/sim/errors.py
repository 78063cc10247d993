"""What can go wrong in a simulated run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class SimulationError(RuntimeError):
    """A program that cannot run as it stands: the message names the rank and the op."""


class CollectiveMismatchError(SimulationError):
    """Ranks of a group call different collectives where they should call the same."""


@dataclass(frozen=True)
class Blocked:
    """A rank (or one of its streams) that waits for something that never happens.

    Attributes:
        rank: Which one.
        stream: 0 for the rank's own thread; 255 for a collective that runs beside it.
        op: Index of the op in the trace.
        waits_for: What the op is and whom it waits for.
        since: Simulated time in seconds at which the wait began.
    """

    rank: int
    stream: int
    op: int
    waits_for: str
    since: float

    def __str__(self) -> str:
        where = f"rank {self.rank}" + (f" stream {self.stream}" if self.stream else "")
        return f"{where} waits for {self.waits_for} since {self.since:.9g} s"


class DeadlockError(SimulationError):
    """Nothing can happen any more, and ranks still wait.

    Attributes:
        blocked: Every rank and stream that waits, in order of rank.
        failed: (rank, seconds) of ranks whose device stopped for good, which may be the cause.
        down: (name, seconds) of links that are down for good, which may be it, too.
        notes: What else may explain it, a line each.
    """

    def __init__(
        self,
        blocked: Sequence[Blocked],
        failed: Sequence[tuple[int, float]],
        down: Sequence[tuple[str, float]] = (),
        notes: Sequence[str] = (),
    ) -> None:
        self.blocked = tuple(blocked)
        self.failed = tuple(failed)
        self.down = tuple(down)
        self.notes = tuple(notes)
        shown = 20
        lines = [f"deadlock: {len(self.blocked)} of the program's threads wait for ever"]
        lines += [f"  {entry}" for entry in self.blocked[:shown]]
        if len(self.blocked) > shown:
            lines.append(f"  and {len(self.blocked) - shown} more (see .blocked)")
        lines += [f"  rank {rank}'s device stopped at {at:.9g} s" for rank, at in self.failed]
        lines += [f"  {name} is down since {at:.9g} s" for name, at in self.down[:shown]]
        if len(self.down) > shown:
            lines.append(f"  and {len(self.down) - shown} more links (see .down)")
        lines += [f"  {note}" for note in self.notes]
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.blocked, self.failed, self.down, self.notes)
