"""The critical path: the chain of things that, each waiting for the one before, made the makespan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leeboard.sim.records import (
    INSTANTS,
    NO_RECORD,
    PICOSECONDS,
    Kind,
    kind_name,
)
from leeboard.sim.table import Table, aligned, text_of

# What a stretch of the path is made of.
COMPUTE = "compute"
TRANSFER = "transfer"
CONTENTION = "contention"
HANDSHAKE = "handshake"
REQUESTS = "no request"
OTHER = "other"
_KINDS = (COMPUTE, TRANSFER, CONTENTION, HANDSHAKE, REQUESTS, OTHER)
_LONGEST_PATTERN = 8
_LINES, _FIRST = 24, 12


@dataclass(frozen=True)
class Segment:
    """A stretch of the critical path; times in seconds, `bytes` of a message.

    `what` is "compute", "message", "send", "all_reduce", ...; "handshake" before a message that was
    ready but had to be asked for; "nothing recorded" elsewhere where the record before had ended
    and the next had not begun. A message's time is `ideal`, what latency and
    transfer take on an idle network, and `contention`, all the rest: sharing links, queueing.
    """

    what: str
    rank: int
    start: float
    end: float
    # The rank that a message goes to, or that a rank's own time is about; -1: none.
    peer: int = -1
    tag: int = 0
    bytes: int = 0
    ideal: float = 0.0
    contention: float = 0.0
    # Index into the records, and into the ops of the trace; -1: none.
    record: int = -1
    op: int = -1

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.end - self.start

    @property
    def where(self) -> str:
        """ "rank 3", or "rank 3 -> rank 4" for a message."""
        if self.what == "message":
            return f"rank {self.rank} -> rank {self.peer}"
        return f"rank {self.rank}"

    @property
    def parts(self) -> dict[str, float]:
        """Seconds by kind: compute, transfer, contention, handshake, no request, other."""
        if self.what == "message":
            return {TRANSFER: self.ideal, CONTENTION: self.contention}
        kinds = {"compute": COMPUTE, "handshake": HANDSHAKE, "waiting for a request": REQUESTS}
        return {kinds.get(self.what, OTHER): self.duration}


@dataclass(frozen=True)
class Repeat:
    """`times` turns of a run of segments that differ only in ranks and times."""

    times: int
    segments: tuple[Segment, ...]

    @property
    def pattern(self) -> int:
        """Segments in one turn."""
        return len(self.segments) // self.times


class CriticalPath(Sequence[Segment]):
    """The segments, from the start of the run to its end, without gaps.

    Iterate over it for the segments; `print` it for a summary.
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        self._segments = tuple(segments)

    def __len__(self) -> int:
        return len(self._segments)

    def __getitem__(self, index: Any) -> Any:
        return self._segments[index]

    @property
    def duration(self) -> float:
        """Seconds: the makespan."""
        return self._segments[-1].end if self._segments else 0.0

    def totals(self) -> dict[str, float]:
        """Seconds by kind: compute, transfer, contention, handshake, no request, other (own time of
        sends, receives and the like, and what no record explains). They add up to the makespan."""
        sums = dict.fromkeys(_KINDS, 0.0)
        for segment in self._segments:
            for kind, part in segment.parts.items():
                sums[kind] += part
        return sums

    def by_rank(self) -> dict[int, float]:
        """Seconds of the path on each rank (a message counts where it comes from), most first."""
        sums: dict[int, float] = {}
        for segment in self._segments:
            sums[segment.rank] = sums.get(segment.rank, 0.0) + segment.duration
        return dict(sorted(sums.items(), key=lambda item: -item[1]))

    def top(self, n: int = 10) -> list[Segment]:
        """The `n` longest segments, longest first."""
        return sorted(self._segments, key=lambda s: (-s.duration, s.start))[:n]

    def merged(self) -> list[Repeat]:
        """Neighbours that repeat, as one: runs of a pattern of up to 8 segments."""
        found = []
        begin = 0
        keys = [(s.what, s.bytes, s.tag if s.what != "message" else 0) for s in self._segments]
        while begin < len(keys):
            times, length = _longest_run(keys, begin)
            end = begin + times * length
            found.append(Repeat(times, self._segments[begin:end]))
            begin = end
        return found

    def table(self) -> Table:
        """A row per segment."""
        names = ("start", "end", "what", "rank", "peer", "tag", "bytes", "ideal", "contention")
        columns = {name: [getattr(s, name) for s in self._segments] for name in names}
        units = dict.fromkeys(("start", "end", "ideal", "contention"), "s")
        return Table(columns, {**units, "bytes": "B"})

    def __str__(self) -> str:
        if not self._segments:
            return "no critical path: nothing took time"
        total = self.duration or 1.0
        lines = [f"critical path: {text_of(self.duration, 's')} in {len(self):,} segments"]
        lines += [
            f"  {kind:<11} {text_of(part, 's'):>10} {text_of(part / total, '%'):>8}"
            for kind, part in self.totals().items()
            if part
        ]
        repeats = self.merged()
        whole = len(repeats) <= _LINES
        rows = [_line(repeat) for repeat in (repeats if whole else repeats[:_FIRST])]
        lines += ["", aligned(("from", "for", "what", "where"), rows)]
        if not whole:
            lines += [f"... {len(repeats) - _FIRST:,} more lines", "", "the longest segments:"]
            rows = [_line(Repeat(1, (segment,))) for segment in self.top(_LINES - _FIRST)]
            lines.append(aligned(("from", "for", "what", "where"), rows))
        return "\n".join(lines)


def _line(repeat: Repeat) -> tuple[str, str, str, str]:
    first = repeat.segments[: repeat.pattern]
    what = ", ".join(_describe(segment) for segment in first)
    if repeat.times > 1:
        what = f"({what})" if len(first) > 1 else what
        what += f" x {repeat.times:,}"
    contention = sum(segment.contention for segment in repeat.segments)
    if contention:
        what += f", {text_of(contention, 's')} of it contention"
    places = list(dict.fromkeys(segment.where for segment in repeat.segments))
    where = ", ".join(places[:3]) + (f", ... ({len(places)} places)" if len(places) > 3 else "")
    start, end = repeat.segments[0].start, repeat.segments[-1].end
    return text_of(start, "s"), text_of(end - start, "s"), what, where


def _describe(segment: Segment) -> str:
    if segment.what == "message":
        return f"message of {text_of(segment.bytes, 'B')}"
    return segment.what


def _longest_run(keys: Sequence[object], begin: int) -> tuple[int, int]:
    """(times, length) of the repetition from `begin` on that covers most; shortest pattern first."""
    best = (1, 1)
    for length in range(1, min(_LONGEST_PATTERN, (len(keys) - begin) // 2) + 1):
        pattern = keys[begin : begin + length]
        times = 1
        while keys[begin + times * length : begin + (times + 1) * length] == pattern:
            times += 1
        if times > 1 and times * length > best[0] * best[1]:
            best = (times, length)
    return best


def critical_path(records: np.ndarray) -> CriticalPath:
    """Walk back from the record that ends last, from each to the one whose end let it end.

    Args:
        records: RECORD array of shape [N], in order of creation.

    Returns:
        Segments that cover 0 to the makespan; none if nothing took time.
    """
    took_time = ~np.isin(records["kind"], np.asarray(INSTANTS, np.uint8))
    if not took_time.any():
        return CriticalPath(())
    last = int(np.argmax(np.where(took_time, records["end"], 0)))
    return CriticalPath([*_walk(records, last)][::-1])


def _walk(records: np.ndarray, current: int) -> Iterator[Segment]:
    """Segments from the last to the first."""
    until = int(records["end"][current])
    # Every step goes to another record; a longer walk would go in circles.
    for _ in range(len(records)):
        record = records[current]
        start, prev = int(record["start"]), int(record["prev"])
        since = min(int(records["end"][prev]), until) if prev < len(records) else 0
        # What began after its predecessor ended: from there on; else from the predecessor's end.
        begun = min(max(start, since), until)
        if begun < until and record["kind"] not in INSTANTS:
            yield _segment(record, current, begun, until)
            until = begun
        if since < until:
            yield Segment(
                "handshake" if record["kind"] == Kind.MESSAGE else "nothing recorded",
                int(record["rank"]),
                since / PICOSECONDS,
                until / PICOSECONDS,
            )
        until = since
        if prev == NO_RECORD or prev >= len(records) or until == 0:
            return
        current = prev


def _segment(record: np.void, index: int, begun: int, until: int) -> Segment:
    kind = int(record["kind"])
    ideal = min(int(record["ideal"]), until - begun) if kind == Kind.MESSAGE else 0
    contention = until - begun - ideal if kind == Kind.MESSAGE else 0
    return Segment(
        what=kind_name(kind, int(record["flags"])),
        rank=int(record["rank"]),
        start=begun / PICOSECONDS,
        end=until / PICOSECONDS,
        peer=int(record["peer"]),
        tag=int(record["tag"]),
        bytes=int(record["bytes"]),
        ideal=ideal / PICOSECONDS,
        contention=contention / PICOSECONDS,
        record=index,
        op=int(record["op"]),
    )
