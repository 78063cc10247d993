"""What computing was charged for: by op, and how much of it was known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from leeboard.sim.parts import Device
from leeboard.sim.table import aligned, text_of

if TYPE_CHECKING:
    from leeboard.sim.distributed.compute.mode import Call

EXACT = "measured"
ESTIMATED = "estimated"
FALLBACK = "roofline"

_SHOWN = 8


@dataclass(frozen=True)
class Found:
    """What a table says of a call.

    Attributes:
        source: EXACT, ESTIMATED or FALLBACK.
        picoseconds: How long it takes; None: the table does not know.
    """

    source: str
    picoseconds: int | None


ROOFLINE = Found(FALLBACK, None)


class Tally:
    """Counts of one rank.

    Attributes:
        device: That the rank runs on; None: not known.
        note: How its times came about, in words.
        stretches: Of measured time.
        picoseconds: That were measured in them, scaled.
        calls: How often each call was made, by what the table said of it.
    """

    def __init__(self) -> None:
        self.device: Device | None = None
        self.note = ""
        self.stretches = 0
        self.picoseconds = 0
        self.calls: dict[Call, list[Any]] = {}

    def count(self, call: Call, found: Found = ROOFLINE) -> None:
        """One more call."""
        entry = self.calls.get(call)
        if entry is None:
            self.calls[call] = [1, found]
        else:
            entry[0] += 1


@dataclass(frozen=True)
class OpTotal:
    """All calls of an op together.

    Attributes:
        name: As in "aten.mm.default".
        calls: How many.
        seconds: They took on their devices, jitter and stragglers apart.
        flops: Of them.
        bytes: Of them.
        known: Whether there is a formula for the op; otherwise its flops are a guess.
        sources: Calls by where their times came from.
    """

    name: str
    calls: int
    seconds: float
    flops: int
    bytes: int
    known: bool
    sources: dict[str, int]


@dataclass(frozen=True)
class Report:
    """What computing was charged for in a run; `print(report)` sums it up.

    Attributes:
        mode: "measured", "profiled", "roofline" or "none".
        notes: How times came about, a line for each kind of device.
        ops: By time, the longest first; empty where ops were not seen.
        seconds: Of computing, all ranks that ran together (of a folded run: the representatives).
        ranks: How many ran.
    """

    mode: str
    notes: tuple[str, ...]
    ops: tuple[OpTotal, ...]
    seconds: float
    ranks: int

    @property
    def unknown(self) -> list[OpTotal]:
        """Ops without a formula: one FLOP an element and their traffic were counted."""
        return [op for op in self.ops if not op.known]

    @property
    def fallbacks(self) -> list[OpTotal]:
        """Of a profiled run: ops that the table did not know."""
        return [op for op in self.ops if self.mode == "profiled" and op.sources.get(FALLBACK)]

    def sources(self) -> dict[str, int]:
        """Calls by where their times came from."""
        total: Counter[str] = Counter()
        for op in self.ops:
            total.update(op.sources)
        return dict(total)

    def metadata(self) -> dict[str, str]:
        """For a trace's metadata: what its compute times are."""
        shown = {"compute": self.mode}
        if self.notes:
            shown["compute.devices"] = "; ".join(self.notes)
        if self.mode == "profiled":
            shown["compute.calls"] = _counts(self.sources())
        return shown

    def __str__(self) -> str:
        of = "1 rank" if self.ranks == 1 else f"{self.ranks:,} ranks together"
        took = f", {text_of(self.seconds, 's')} of {of}" if self.ranks else ""
        lines = [f"{'compute':<15} {self.mode}{took}"]
        lines += [f"  {note}" for note in self.notes]
        if self.mode == "profiled":
            lines.append(f"  calls: {_counts(self.sources())}")
            lines += _named("not in the profile, by roofline", self.fallbacks)
        lines += _named("without a formula, taken for memory traffic", self.unknown)
        if self.ops:
            head = ("op", "calls", "time", "share", "flops", "bytes")
            lines.append(aligned(head, [self._row(op) for op in self.ops[:_SHOWN]]))
        if len(self.ops) > _SHOWN:
            lines.append(f"... and {len(self.ops) - _SHOWN:,} more")
        return "\n".join(lines)

    def _row(self, op: OpTotal) -> tuple[str, ...]:
        share = op.seconds / self.seconds if self.seconds else 0.0
        time, size = text_of(op.seconds, "s"), text_of(op.bytes, "B")
        return op.name, f"{op.calls:,}", time, text_of(share, "%"), f"{op.flops:.4g}", size


def _counts(sources: dict[str, int]) -> str:
    order = (EXACT, ESTIMATED, FALLBACK)
    return ", ".join(f"{sources.get(name, 0):,} {name}" for name in order)


def _named(what: str, ops: list[OpTotal]) -> list[str]:
    if not ops:
        return []
    names = ", ".join(f"{op.name} ({op.calls:,})" for op in ops[:_SHOWN])
    more = f" and {len(ops) - _SHOWN:,} more" if len(ops) > _SHOWN else ""
    return [f"  {what}: {names}{more}"]


def report(mode: str, tallies: Iterable[Tally]) -> Report:
    """Add up what meters counted.

    Args:
        mode: What the meters were.
        tallies: Theirs.
    """
    notes: dict[str, None] = {}
    totals: dict[str, list[Any]] = {}
    seconds, ranks = 0.0, 0
    for tally in tallies:
        ranks += 1
        seconds += tally.picoseconds * 1e-12
        if tally.note:
            notes[tally.note] = None
        for call, (count, found) in tally.calls.items():
            took = count * _seconds(call, found, tally.device)
            seconds += took
            total = totals.setdefault(str(call.rule.func), [0, 0.0, 0, 0, call, Counter()])
            total[0] += count
            total[1] += took
            total[2] += count * call.cost.flops
            total[3] += count * call.cost.bytes
            total[5][found.source] += count
    ops = [
        OpTotal(name, calls, took, flops, size, call.rule.known, dict(sources))
        for name, (calls, took, flops, size, call, sources) in totals.items()
    ]
    ops.sort(key=lambda op: (-op.seconds, op.name))
    return Report(mode, tuple(notes), tuple(ops), seconds, ranks)


def _seconds(call: Call, found: Found, device: Device | None) -> float:
    if device is None:
        return 0.0 if found.picoseconds is None else found.picoseconds * 1e-12
    if found.picoseconds is not None:
        return found.picoseconds * 1e-12 / device.speed + device.overhead
    cost = call.cost
    if not cost.flops and not cost.bytes:
        return 0.0
    return device.seconds(cost.flops, cost.bytes, cost.precision)
