"""Sets of keys as spans: for each row the ascending, disjoint intervals [begin, end) that it sees.

Rows are stored one after another: row i owns spans[offsets[i] : offsets[i + 1]].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from leeboard.ops._numpy import Integers, np

Spans = tuple[Integers, Integers]


def from_columns(begins: Integers, ends: Integers) -> Spans:
    """Rows [L, C] of intervals that are in order and apart; empty ones are left out."""
    kept = ends > begins
    offsets = np.zeros(len(kept) + 1, np.int64)
    np.cumsum(kept.sum(1), out=offsets[1:])
    return offsets, np.stack((begins[kept], ends[kept]), 1)


def repeated(blocks: Spans, size: int, rows: int) -> Spans:
    """Each block's spans for `size` rows, `rows` in all: the last block may have fewer."""
    offsets, spans = blocks
    block = np.arange(rows) // size
    counts = np.diff(offsets)[block]
    result = np.zeros(rows + 1, np.int64)
    np.cumsum(counts, out=result[1:])
    # Where in its block's list each span stands.
    inner = np.arange(result[-1]) - np.repeat(result[:-1], counts)
    return result, spans[np.repeat(offsets[block], counts) + inner]


def union(parts: Sequence[Spans], keys: int) -> Spans:
    """Row by row, what any part sees."""
    return _swept(parts, keys, 1)


def intersection(parts: Sequence[Spans], keys: int) -> Spans:
    """Row by row, what every part sees."""
    return _swept(parts, keys, len(parts))


def joined(begins: Integers, ends: Integers, keys: int) -> Spans:
    """Rows [L, C] of intervals in any order, which may overlap or be empty."""
    columns = [from_columns(begins[:, [c]], ends[:, [c]]) for c in range(begins.shape[1])]
    return union(columns, keys)


def _swept(parts: Sequence[Spans], keys: int, needed: int) -> Spans:
    """Where at least `needed` of the parts see a key.

    All rows lie on one line, one free place apart, so that a single sweep over begins and ends
    serves them all.
    """
    rows = len(parts[0][0]) - 1
    stride = keys + 1
    begins, ends = [], []
    for offsets, spans in parts:
        place = np.repeat(np.arange(rows) * stride, np.diff(offsets))
        begins.append(spans[:, 0] + place)
        ends.append(spans[:, 1] + place)
    count = sum(map(len, begins))
    at = np.concatenate(begins + ends)
    step = np.ones(2 * count, np.int64)
    step[count:] = -1
    # At one place begins come before ends for a union, so that touching spans become one, and
    # after them for an intersection, so that none is empty.
    first_begin = needed == 1
    order = np.argsort(2 * at + ((step < 0) == first_begin), kind="stable")
    at, depth = at[order], np.cumsum(step[order])
    inside = depth >= needed
    before = np.zeros_like(inside)
    before[1:] = inside[:-1]
    begin, end = at[inside & ~before], at[before & ~inside]
    row = begin // stride
    offsets = np.zeros(rows + 1, np.int64)
    np.cumsum(np.bincount(row, minlength=rows), out=offsets[1:])
    return offsets, np.stack((begin, end), 1) - (row * stride)[:, None]


def tokens(spans: Spans) -> int:
    """Keys in all rows together."""
    pairs: Any = spans[1]
    return int((pairs[:, 1] - pairs[:, 0]).sum())
