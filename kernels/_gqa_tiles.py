"""Which tiles of the scores a pattern touches, as the kernels read them.

The scores of a segment are cut in tiles of query rows by keys. A tile is full where every row sees
every key, and needs no mask; partial where some do; the others are left out. Partial tiles work
their mask out from the rows' spans. Nothing here has a size of rows x keys, only of tiles.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import triton.language as tl

# Numbers of an item, and of an entry.
ITEM, ENTRY = tl.constexpr(9), tl.constexpr(3)
# Rows with no more spans than this have their masks unrolled.
UNROLLED = 2


class Plan(Protocol):
    """What the kernels read of a plan; see `leeboard.ops._attention_plan`."""

    @property
    def queries(self) -> int: ...
    @property
    def keys(self) -> int: ...
    @property
    def offsets(self) -> Any: ...
    @property
    def spans(self) -> Any: ...
    @property
    def cache(self) -> dict[Any, Any]: ...


@dataclass(frozen=True, eq=False)
class _Dense:
    queries: int
    keys: int
    offsets: Any
    spans: Any
    cache: dict[Any, Any] = field(default_factory=dict)


@functools.lru_cache(256)
def dense(queries: int, keys: int) -> Plan:
    """The plan of rows that see every key."""
    rows = queries if keys else 0
    offsets = np.minimum(np.arange(queries + 1), rows)
    return _Dense(queries, keys, offsets, np.tile(np.array([0, keys]), (rows, 1)))


class Lists(NamedTuple):
    """For each block of one side, the blocks of the other: full ones first, all ascending.

    Attributes:
        begin, middle, end: int64 [blocks]; entries begin to middle are full, middle to end partial.
        entries: int32 [n, ENTRY]: the other side's block, and for partial tiles the first and last
            column (exclusive) of the table of spans that reaches into it.
    """

    begin: Any
    middle: Any
    end: Any
    entries: Any


class Tiles(NamedTuple):
    """A plan in tiles.

    Attributes:
        by_rows, by_keys: What a block of rows sees; what a block of keys is seen by.
        table: int32 [2, K, queries]: first key and length of each row's spans, K at most; shorter
            rows are padded with empty ones.
    """

    by_rows: Lists
    by_keys: Lists
    table: Any


class Work(NamedTuple):
    """What a launch works on; all but `spans` and `blocks` are int32 on the device.

    Attributes:
        items: [blocks, ITEM], longest first: first row (or key) of a tile and the end of its
            segment, the segment's first key (or row) and how many it has, the tile's entries (begin,
            middle, end), where its rows' spans start in `begins`, rows (or first key) of the segment.
        entries: Those of every segment.
        begins, lengths: The tables of spans.
        spans: See `spans_of`.
        blocks: How many items there are.
    """

    items: torch.Tensor
    entries: torch.Tensor
    begins: torch.Tensor
    lengths: torch.Tensor
    spans: int
    blocks: int


class Setting(NamedTuple):
    """What the kernels of one call share; see `leeboard.kernels.sparse_gqa`."""

    plans: Sequence[Plan]
    cu_q: Sequence[int] | None
    cu_k: Sequence[int] | None
    heads: tuple[int, ...] | None
    padding: torch.Tensor | None
    padding_batch: int
    scale: float
    softcap: float
    tile: dict[str, int]

    @staticmethod
    def of(
        plans: Sequence[Plan],
        cu_q: Sequence[int] | None,
        cu_k: Sequence[int] | None,
        heads: tuple[int, ...] | None,
        padding: torch.Tensor | None,
        scale: float,
        softcap: float,
        tile: dict[str, int] | None,
    ) -> Setting:
        """With the padding as bytes."""
        stride = 0 if padding is None else padding.stride(0)
        padding = None if padding is None else padding.view(torch.uint8)
        return Setting(plans, cu_q, cu_k, heads, padding, stride, scale, softcap, tile or {})


def _covered(shape: tuple[int, int], tile: Any, first: Any, last: Any, step: Any) -> Any:
    """[row blocks, key blocks + 1]: the sum of `step` over the spans that reach into each tile."""
    size = shape[0] * shape[1]
    begins = np.bincount(tile + first, np.broadcast_to(step, tile.shape), size)
    ends = np.bincount(tile + last + 1, np.broadcast_to(step, tile.shape), size)
    return np.cumsum((begins - ends).reshape(shape), 1)


def _lists(full: Any, touched: Any, low: Any, high: Any) -> Lists:
    """The lists of each row of these matrices."""
    block, other = np.nonzero(touched)
    partial = ~full[block, other]
    order = np.lexsort((other, partial, block))
    block, other = block[order], other[order]
    counts = touched.sum(1)
    end = np.cumsum(counts)
    begin = end - counts
    columns = (other, low[block, other], high[block, other])
    return Lists(begin, begin + full.sum(1), end, np.stack(columns, 1).astype(np.int32))


def tiles(plan: Plan, rows: int, keys: int) -> Tiles:
    """A plan in tiles of `rows` by `keys`; kept by the plan."""
    kept = plan.cache.get((rows, keys))
    if kept is not None:
        return kept  # type: ignore[no-any-return]
    counts = np.diff(plan.offsets)
    begins, ends = plan.spans.reshape(-1, 2).T
    row = np.repeat(np.arange(plan.queries), counts)
    column = np.arange(len(row)) - np.repeat(plan.offsets[:-1], counts)
    widest = int(counts.max(initial=0))
    table = np.zeros((2, max(widest, 1), plan.queries), np.int32)
    table[0, column, row] = begins
    table[1, column, row] = ends - begins

    # One more column takes the ends of spans that reach the last block.
    shape = (-(-plan.queries // rows), -(-plan.keys // keys) + 1)
    tile = row // rows * shape[1]
    first, last = begins // keys, (ends - 1) // keys
    seen = _covered(shape, tile, first, last, keys).reshape(-1)
    seen -= np.bincount(tile + first, begins - first * keys, len(seen))
    seen -= np.bincount(tile + last, (last + 1) * keys - ends, len(seen))
    pairs = seen.reshape(shape)[:, :-1]
    height = np.minimum(rows, plan.queries - np.arange(shape[0]) * rows)
    touched = pairs > 0
    full = touched & (pairs == height[:, None] * keys)
    low, high = np.zeros((2, *pairs.shape), np.int64)
    if (touched & ~full).any():
        low[:] = widest
        for c in range(widest):
            mine = column == c
            reached = _covered(shape, tile[mine], first[mine], last[mine], 1)[:, :-1] > 0
            low[reached] = np.minimum(low[reached], c)
            high[reached] = c + 1
    found = Tiles(_lists(full, touched, low, high), _lists(full.T, touched.T, low.T, high.T), table)
    plan.cache[rows, keys] = found
    return found


def spans_of(plans: Sequence[Plan]) -> int:
    """Most spans of a row; 0 where they are many, or plans differ in it."""
    found = set()
    for plan in plans:
        if "widest" not in plan.cache:
            plan.cache["widest"] = max(1, int(np.diff(plan.offsets).max(initial=0)))
        found.add(plan.cache["widest"])
    most = max(found, default=0)
    return 0 if most > UNROLLED or len(found) > 1 else most


def work(
    plans: Sequence[Plan],
    cu_q: Sequence[int] | None,
    cu_k: Sequence[int] | None,
    rows: int,
    keys: int,
    device: torch.device,
    *,
    by_keys: bool = False,
) -> Work:
    """The items of all segments, or of every batch alike; those of a single plan are kept by it."""
    if cu_q is None or cu_k is None:
        (plan,) = plans
        name = (rows, keys, device, by_keys)
        if name not in plan.cache:
            plan.cache[name] = _packed([plan], [0], [0], rows, keys, device, by_keys)
        return plan.cache[name]  # type: ignore[no-any-return]
    return _packed(plans, cu_q, cu_k, rows, keys, device, by_keys)


def _packed(
    plans: Sequence[Plan],
    first_rows: Sequence[int],
    first_keys: Sequence[int],
    rows: int,
    keys: int,
    device: torch.device,
    by_keys: bool,
) -> Work:
    items, entries, tables = (
        [],
        [np.zeros((0, ENTRY.value), np.int32)],
        [np.zeros((2, 1), np.int32)],
    )
    # Where each plan's entries and spans start: segments of equal lengths share them.
    places: dict[int, tuple[int, int]] = {}
    entry = at = 0
    for plan, row, key in zip(plans, first_rows, first_keys, strict=False):
        cut = tiles(plan, rows, keys)
        lists = cut.by_keys if by_keys else cut.by_rows
        if id(plan) not in places:
            places[id(plan)] = entry, at
            entries.append(lists.entries)
            tables.append(cut.table.reshape(2, -1))
            entry, at = entry + len(lists.entries), at + tables[-1].shape[1]
        start, table = places[id(plan)]
        item = np.empty((len(lists.begin), ITEM.value), np.int64)
        mine = np.arange(len(item)) * (keys if by_keys else rows)
        own, other = (key, row) if by_keys else (row, key)
        item[:, 0] = own + mine
        item[:, 1] = own + (plan.keys if by_keys else plan.queries)
        item[:, 2] = other
        item[:, 3] = plan.queries if by_keys else plan.keys
        item[:, 4:7] = np.stack((lists.begin, lists.middle, lists.end), 1) + start
        item[:, 7] = table + (0 if by_keys else mine)
        item[:, 8] = key if by_keys else plan.queries
        items.append(item)
    every = np.concatenate(items) if items else np.empty((0, ITEM.value), np.int64)
    # The longest first: the device is not left waiting for a late one.
    every = every[np.argsort(every[:, 4] - every[:, 6], kind="stable")]
    begins, lengths = np.concatenate(tables[1:] + tables[:1], 1)
    parts = (every, np.concatenate(entries), begins, lengths)
    tensors = (torch.tensor(part.astype(np.int32)).to(device) for part in parts)
    return Work(*tensors, spans_of(plans), len(every))


def head_lists(
    heads: tuple[int, ...] | None, count: int, groups: int, device: torch.device
) -> tuple[int, torch.Tensor | None, torch.Tensor | None]:
    """How many of `count` query heads are active, which, and where those of each of the key-value
    heads begin [groups + 1]; the lists int32, None where all are.
    """
    if heads is None:
        return count, None, None
    return len(heads), *_on_device(heads, count // groups, groups, device)


@functools.lru_cache(256)
def _on_device(
    heads: tuple[int, ...], group: int, groups: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    starts = np.searchsorted(np.array(heads, np.int64), np.arange(groups + 1) * group)
    active = torch.tensor(heads, dtype=torch.int32).to(device)
    return active, torch.tensor(starts, dtype=torch.int32).to(device)


def clear_idle(tensor: torch.Tensor, heads: tuple[int, ...] | None, value: float) -> None:
    """Fills the heads (dimension 1) that are not active."""
    if heads is None:
        return
    before = 0
    for head in (*heads, tensor.shape[1]):
        if head > before:
            tensor[:, before:head].fill_(value)
        before = head + 1
