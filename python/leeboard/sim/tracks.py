"""Slices of a timeline on tracks: what a rank or one of its streams did, one thing after another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from leeboard.sim.records import Kind

# Of the kinds of records that take a rank's time.
SLICES = (
    Kind.COMPUTE,
    Kind.SEND,
    Kind.RECV,
    Kind.WAIT,
    Kind.COLLECTIVE,
    Kind.TAKE,
    Kind.SYNC,
    Kind.SLEEP,
)


@dataclass(frozen=True)
class Track:
    """Records of one rank and stream that do not overlap, in order of time.

    `lane` counts from 0 where a stream's records do overlap; `records` are indices [N].
    """

    rank: int
    stream: int
    lane: int
    records: np.ndarray


def tracks(records: np.ndarray) -> list[Track]:
    """The records that take a rank's time, by rank, stream and lane."""
    rows = np.flatnonzero(np.isin(records["kind"], np.asarray(SLICES, np.uint8)))
    chosen = records[rows]
    order = np.lexsort((chosen["start"], chosen["stream"], chosen["rank"]))
    rows, chosen = rows[order], chosen[order]
    key = chosen["rank"].astype(np.int64) << 8 | chosen["stream"]
    cuts = np.flatnonzero(np.diff(key, prepend=-1)).tolist()
    found = []
    for begin, end in zip(cuts, [*cuts[1:], len(rows)], strict=True):
        rank, stream = int(chosen["rank"][begin]), int(chosen["stream"][begin])
        for lane, part in enumerate(_lanes(records, rows[begin:end])):
            found.append(Track(rank, stream, lane, part))
    return found


def _lanes(records: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    start, end = records["start"][rows], records["end"][rows]
    if np.all(start[1:] >= end[:-1]):
        yield rows
        return
    lanes: list[list[int]] = []
    ends: list[int] = []
    for row, begun, over in zip(rows.tolist(), start.tolist(), end.tolist(), strict=True):
        free = next((i for i, until in enumerate(ends) if until <= begun), len(lanes))
        if free == len(lanes):
            lanes.append([])
            ends.append(0)
        lanes[free].append(row)
        ends[free] = over
    yield from (np.array(lane) for lane in lanes)


def marks_in_force(records: np.ndarray) -> np.ndarray:
    """Of each record the last mark that it began under: its number, or -1.

    A stream's own marks count first, then those of its rank's own thread.
    """
    own = _last_marks(records, records["stream"])
    main = np.where((records["kind"] == Kind.MARK) & (records["stream"] != 0), 1, 0)
    return np.where(own >= 0, own, _last_marks(records, main))


def _last_marks(records: np.ndarray, among: np.ndarray) -> np.ndarray:
    """The last mark of the same rank and of the same value of `among`."""
    order = np.lexsort((records["kind"] != Kind.MARK, records["start"], among, records["rank"]))
    ordered, among = records[order], among[order]
    at = np.where(ordered["kind"] == Kind.MARK, np.arange(len(ordered)), -1)
    last = np.maximum.accumulate(at) if len(at) else at
    same = (ordered["rank"][last] == ordered["rank"]) & (among[last] == among)
    found = np.full(len(records), -1, np.int64)
    found[order] = np.where((last >= 0) & same, ordered["tag"][last], -1)
    return found
