"""What the ranks of a folded run are told of the time.

Among the ranks that run, collectives of copies cost nothing, so their own clock is early. The run
is therefore made twice: the trace of the first, laid out for all ranks, tells when each reading of
a clock was, and the second answers with that.
"""

from __future__ import annotations

import io
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from leeboard.sim.ops import OP, OpKind

if TYPE_CHECKING:
    from typing_extensions import Self

    from leeboard.sim.distributed.expand import Ops
    from leeboard.sim.distributed.fold import FoldCore

# How often a program runs at most whose ways depend on what it is told.
PASSES = 3
_NO_SLOT = -1
# Above the names of a program's own marks.
_FIRST = 1 << 30
_UNSETTLED = (
    f"fold: what the ranks do depends on the times they read, and changed in each of {PASSES} runs: "
    "in the last, the times that they read are those of the run before; the result's are its own"
)


class Readings:
    """Readings of the ranks' clocks, in order.

    Args:
        times: By rank, what its readings are answered with, in picoseconds. Later ones go on from
            the last of them by the rank's own clock.

    Attributes:
        told: By rank, what its readings were answered with.
        places: By rank, how many of its ops were over at each of them.
    """

    def __init__(self, times: Mapping[int, Sequence[int]] | None = None) -> None:
        self.told: dict[int, list[int]] = {}
        self.places: dict[int, list[int]] = {}
        self._times = times or {}
        self._ahead: dict[int, int] = {}

    def read(self, rank: int, place: int, clock: int) -> int:
        """Answer a reading.

        Args:
            rank: Whose.
            place: How many of the rank's ops are over.
            clock: The time among the ranks that run.
        """
        told, times = self.told.setdefault(rank, []), self._times.get(rank, ())
        if len(told) < len(times):
            time = times[len(told)]
            self._ahead[rank] = time - clock
        else:
            time = max(clock + self._ahead.get(rank, 0), told[-1] if told else 0)
        told.append(time)
        self.places.setdefault(rank, []).append(place)
        return time


def times(core: FoldCore) -> dict[int, list[int]]:
    """When the readings of a run were, once all its ranks had run.

    Raises:
        FoldError: A witness did something else than its representative.
    """
    heard = core.heard
    places = heard.places(core.readings.places)
    if not any(map(any, places.values())):
        # Before anything else.
        return core.readings.told
    # A class has the marks of all that ran of it; each has its place for a name.
    home = core.mesh.representatives
    by_class: dict[int, list[int]] = {}
    for rank, own in places.items():
        by_class.setdefault(int(home[rank]), []).extend(own)
    lists = {
        rank: _marked(ops, np.unique(by_class.get(rank, [])).astype(np.int64))
        for rank, ops in heard.lists.items()
        if rank == home[rank]
    }
    raw = core.replay(heard.expanded(lists), sorted(places))
    if raw["status"] != "done":
        return core.readings.told
    marks = raw["marks"]
    ranks, names = np.asarray(marks["rank"]), np.asarray(marks["name"]).astype(np.int64) - _FIRST
    found: dict[int, list[int]] = {}
    for rank, own in places.items():
        mine = (ranks == rank) & (names >= 0)
        # They came in the order of the rank's ops.
        at = np.asarray(marks["at"])[mine]
        found[rank] = at[np.searchsorted(names[mine], own)].tolist()
    return found


def _marked(ops: Ops, places: Any) -> Ops:
    marks = np.zeros(len(places), OP)
    marks["kind"], marks["slot"], marks["a"] = OpKind.MARK, _NO_SLOT, _FIRST + places
    return np.asarray(np.insert(ops, places, marks))


def same(core: FoldCore, other: FoldCore, measured: bool) -> bool:
    """Whether the ranks of two runs did the same and read their clocks at the same places.

    Args:
        core: One run.
        other: The other.
        measured: Whether times of computing are measured, and so never quite the same.
    """
    mine, others = core.heard, other.heard
    places = mine.places(core.readings.places)
    if places != others.places(other.readings.places) or mine.groups != others.groups:
        return False
    return all(
        np.array_equal(_compared(ops, measured), _compared(others.lists[rank], measured))
        for rank, ops in mine.lists.items()
    )


def _compared(ops: Ops, measured: bool) -> Ops:
    if measured:
        ops = ops.copy()
        ops["a"][ops["kind"] == OpKind.DELAY] = 0
    return ops


class Pass(Protocol):
    """A run of the ranks: its engine."""

    @property
    def live(self) -> Any: ...


P = TypeVar("P", bound=Pass)


def settled(once: Callable[[Readings, Held], P], measured: bool) -> tuple[P, P, tuple[str, ...]]:
    """Run until what ranks are told is what their run turns out to be.

    What they print is held back until then.

    Args:
        once: Runs the ranks with these answers and these streams.
        measured: See `same`.

    Returns:
        The run that the answers are from; the one whose output was shown, which did the same; and
        no notes. If there are no such runs: twice the last one, and a note.
    """
    before: P | None = None
    answers: dict[int, list[int]] = {}
    with Held() as held:
        for _ in range(PASSES):
            # Of the pass before: it was told wrong times.
            held.drop()
            current = once(Readings(answers), held)
            core: FoldCore = current.live
            if not core.ended():
                return current, current, ()
            if before is not None and same(core, before.live, measured):
                return before, current, ()
            answers = times(core)
            if answers == core.readings.told:
                return current, current, ()
            before = current
    return current, current, (_UNSETTLED,)


class Held:
    """What ranks print, held back until the context is left.

    Attributes:
        out: For their `sys.stdout`.
        err: For their `sys.stderr`.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[Any, bytes]] = []
        # The same in all passes: a library may keep them, as handlers of `logging` do.
        self._streams = [_Kept(self._kept, target) for target in (sys.stdout, sys.stderr)]
        self.out, self.err = map(_text, self._streams)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Show what is kept, and from now on everything at once."""
        for stream in self._streams:
            stream.hold = False
        for target, pieces in itertools.groupby(self._kept, key=lambda entry: entry[0]):
            _show(target, b"".join(data for _, data in pieces))
        self.drop()

    def drop(self) -> None:
        """Forget what is kept."""
        self._kept.clear()


class _Kept(io.RawIOBase):
    """Where a stream's bytes are kept; else it is like the stream that they are for."""

    def __init__(self, kept: list[tuple[Any, bytes]], target: Any) -> None:
        self.target, self.hold = target, True
        self._all = kept

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return bool(self.target.isatty())

    def fileno(self) -> int:
        return int(self.target.fileno())

    def write(self, data: Any, /) -> int:
        if self.hold:
            self._all.append((self.target, bytes(data)))
        else:
            _show(self.target, bytes(data))
        return len(data)


def _text(raw: _Kept) -> io.TextIOWrapper:
    errors = getattr(raw.target, "errors", None) or "replace"
    # Without a buffer, so that what goes to the two streams stays in order.
    return io.TextIOWrapper(
        raw,  # type: ignore[arg-type]
        _encoding(raw.target),
        errors,
        newline="\n",
        write_through=True,
    )


def _encoding(target: Any) -> str:
    return getattr(target, "encoding", None) or "utf-8"


def _show(target: Any, data: bytes) -> None:
    target.write(data.decode(_encoding(target), "replace"))
    target.flush()
