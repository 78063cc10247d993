"""Sparse attention, forward: a program per block of query rows and active head.

It walks the tiles of its list with a running softmax, full ones first and without a mask, then the
partial ones; scores are kept in units of log 2. Programs of one head are neighbours, so its keys
and values are found in the L2 cache again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from leeboard.kernels._common import PINNED, device_of, is_hip
from leeboard.kernels._gqa_scores import (
    LN_2,
    LOG2_E,
    channels,
    in_spans,
    item_of,
    product,
    scores_of,
)
from leeboard.kernels._gqa_tiles import (
    ENTRY,
    Plan,
    Setting,
    clear_idle,
    head_lists,
    spans_of,
    work,
)


def config(width: int, dtype: torch.dtype, *, hip: bool, spans: int) -> dict[str, int]:
    """Tile for heads of `width` channels and rows of `spans`, see `spans_of`.

    128 x 64 is FlashAttention's on Hopper; wide heads keep fewer rows, so that their sums stay in
    registers, as do masks in a loop over spans. On AMD tiles are small because every mask there
    takes scalar registers. float32 has no tensor cores on NVIDIA: its rows are read in chunks, see
    `product`.
    """
    wide = max(16, triton.next_power_of_2(width))
    if dtype.itemsize > 2:
        tile = (32, 32, 4, 1) if wide <= 128 else (32, 16, 4, 1)
    elif hip:
        tile = (64, 16, 4, 1)
    else:
        tile = (128, 64, 8, 3) if wide <= 128 and spans else (64, 32, 8, 3 if wide <= 128 else 2)
    rows, keys, warps, stages = tile
    return {
        "ROWS": rows,
        "BLOCK": keys,
        "WIDTH": wide,
        "CHUNK": min(32, wide) if dtype.itemsize > 2 else 0,
        "num_warps": warps,
        "num_stages": stages,
        **PINNED,
    }


@triton.jit
def _over_tiles(
    query,
    queries,
    k,
    k_row,
    v,
    v_row,
    keys,
    padding,
    entries,
    begin,
    end,
    begins,
    lengths,
    at,
    stride,
    scale,
    softcap,
    most,
    total,
    sums,
    PARTIAL: tl.constexpr,
    SPANS: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """The running softmax after the tiles begin to end of the list."""
    FULL: tl.constexpr = D == WIDTH
    cols = tl.arange(0, WIDTH)
    for entry in range(begin, end):
        key = tl.load(entries + entry * ENTRY) * BLOCK + tl.arange(0, BLOCK)
        # The last key stands in for those beyond it: only full tiles have none.
        row = tl.minimum(key, keys - 1).to(tl.int64) if PARTIAL else key.to(tl.int64)
        at_k = k + row * k_row
        block = channels(at_k[:, None] + cols[None, :], (cols < D)[None, :], FULL)
        products = product(query, block, queries, at_k, D, CHUNK)
        scores, _ = scores_of(products, scale, softcap)
        if PARTIAL:
            first = tl.load(entries + entry * ENTRY + 1)
            last = tl.load(entries + entry * ENTRY + 2)
            seen = in_spans(begins, lengths, at[:, None], key[None, :], first, last, stride, SPANS)
            scores = tl.where(seen, scores, -float("inf"))
        if padding is not None:
            hidden = tl.load(padding + row) != 0
            scores = tl.where(hidden[None, :], -float("inf"), scores)
        peak = tl.maximum(most, tl.max(scores, 1))
        # Nothing seen yet: any base does, but infinity less infinity is no number.
        base = tl.where(peak == -float("inf"), 0.0, peak)
        weights = tl.exp2(scores - base[:, None])
        keep = tl.exp2(most - base)
        total = total * keep + tl.sum(weights, 1)
        at_v = (v + row * v_row)[:, None] + cols[None, :]
        values = channels(at_v, (cols < D)[None, :], FULL)
        sums = tl.dot(
            weights.to(values.dtype), values, sums * keep[:, None], input_precision="ieee"
        )
        most = peak
    return most, total, sums


@triton.jit
def _sparse_gqa_forward_dot_kernel(
    q,
    k,
    v,
    out,
    lse,
    items,
    entries,
    begins,
    lengths,
    heads,
    padding,
    sinks,
    scale,
    softcap,
    blocks,
    active,
    queries,
    q_batch,
    q_head,
    q_row,
    k_batch,
    k_head,
    k_row,
    v_batch,
    v_head,
    v_row,
    out_batch,
    out_head,
    out_row,
    padding_batch,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    SPANS: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
):
    FULL: tl.constexpr = D == WIDTH
    batch, head, first_row, last_row, first_key, keys, begin, middle, end, table, stride = item_of(
        items, blocks, active
    )
    if heads is not None:
        head = tl.load(heads + head).to(tl.int64)

    cols = tl.arange(0, WIDTH)
    row = first_row + tl.arange(0, ROWS)
    live = row < last_row
    # The last row stands in for those beyond it.
    row = tl.minimum(row, last_row - 1)
    at = table + row - first_row
    row = row.to(tl.int64)
    at_q = q + batch * q_batch + head * q_head + row * q_row
    query = channels(at_q[:, None] + cols[None, :], (cols < D)[None, :], FULL)
    k += batch * k_batch + head // GROUP * k_head + first_key * k_row
    v += batch * v_batch + head // GROUP * v_head + first_key * v_row
    if padding is not None:
        padding += batch * padding_batch + first_key

    most = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, WIDTH], tl.float32)
    for PARTIAL in tl.static_range(2):
        most, total, sums = _over_tiles(
            query,
            at_q,
            k,
            k_row,
            v,
            v_row,
            keys,
            padding,
            entries,
            middle if PARTIAL else begin,
            end if PARTIAL else middle,
            begins,
            lengths,
            at,
            stride,
            scale,
            softcap,
            most,
            total,
            sums,
            PARTIAL,
            SPANS,
            D,
            BLOCK,
            WIDTH,
            CHUNK,
        )
    if sinks is not None:
        sink = tl.load(sinks + head).to(tl.float32) * LOG2_E
        peak = tl.maximum(most, sink)
        base = tl.where(peak == -float("inf"), 0.0, peak)
        keep = tl.exp2(most - base)
        total = total * keep + tl.exp2(sink - base)
        sums *= keep[:, None]
        most = peak
    # Rows that see nothing: zero, and -inf.
    dead = total == 0.0
    mass = tl.where(dead, 1.0, total)
    result = sums / mass[:, None]
    at_out = (out + batch * out_batch + head * out_head + row * out_row)[:, None] + cols[None, :]
    mask = live[:, None] if FULL else live[:, None] & (cols < D)[None, :]
    tl.store(at_out, result.to(out.dtype.element_ty), mask)
    log = tl.where(dead, -float("inf"), (most + tl.log2(mass)) * LN_2)
    tl.store(lse + (batch * HEADS + head) * queries + row, log, live)


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    plans: Sequence[Plan],
    cu_q: list[int] | None,
    cu_k: list[int] | None,
    heads: tuple[int, ...] | None,
    padding: torch.Tensor | None,
    sink_logits: torch.Tensor | None,
    scale: float,
    softcap: float,
    tile: dict[str, int] | None = None,
) -> None:
    """Writes the attention of q to `out`, and the log-sum-exp of its scores to `lse`.

    Shapes and strides: see `leeboard.kernels.sparse_gqa`. `tile` replaces sizes of the tile.
    """
    B, Hq, Lq, D = q.shape
    groups = k.shape[1]
    setting = Setting.of(plans, cu_q, cu_k, heads, padding, scale, softcap, tile)
    clear_idle(out, heads, 0.0)
    clear_idle(lse, heads, -float("inf"))
    options = config(D, q.dtype, hip=is_hip(), spans=spans_of(plans)) | setting.tile
    todo = work(*setting[:3], options["ROWS"], options["BLOCK"], q.device)
    active, listed, _ = head_lists(heads, Hq, groups, q.device)
    programs = todo.blocks * active * B
    if programs == 0:
        return
    with device_of(q):
        _sparse_gqa_forward_dot_kernel[(programs,)](
            q,
            k,
            v,
            out,
            lse,
            *todo[:4],
            listed,
            setting.padding,
            sink_logits,
            scale,
            softcap or None,
            todo.blocks,
            active,
            Lq,
            *q.stride()[:3],
            *k.stride()[:3],
            *v.stride()[:3],
            *out.stride()[:3],
            setting.padding_batch,
            HEADS=Hq,
            GROUP=Hq // groups,
            SPANS=todo.spans,
            D=D,
            **options,
        )
