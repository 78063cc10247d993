"""Sparse attention, gradients of keys and values: a program per block of keys and key-value head.

It walks the list of the query blocks that see its keys once for every active head of the group, one
after another: no atomics, equal inputs give equal bits. Its tiles are transposed, keys by rows.
Formulas: see `_gqa_grad_q.py`; dv is the sum of w * grad_out.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from leeboard.kernels._common import PINNED, is_hip
from leeboard.kernels._gqa_scores import channels, in_spans, item_of, product, scores_of, softmax_of
from leeboard.kernels._gqa_tiles import ENTRY, Setting, head_lists, spans_of, work


def config(width: int, dtype: torch.dtype, *, hip: bool, spans: int) -> dict[str, int]:
    """Tile for heads of `width` channels; see `_gqa_grad_q.config`.

    Two sums of the tile's keys are in registers: few rows are left for the scores.
    """
    wide = max(16, triton.next_power_of_2(width))
    if dtype.itemsize > 2:
        tile = (16, 32, 4, 1, min(32, wide)) if wide <= 128 else (16, 16, 8, 1, 16)
    elif hip:
        tile = (16, 64, 4, 1, 0) if wide <= 128 else (16, 32, 4, 1, 128)
    else:
        tile = (32 if spans else 16, 64, 8, 2, 0) if wide <= 128 else (16, 64, 8, 1, 64)
    rows, keys, warps, stages, chunk = tile
    return {
        "ROWS": rows,
        "BLOCK": keys,
        "WIDTH": wide,
        "CHUNK": chunk,
        "num_warps": warps,
        "num_stages": stages,
        **PINNED,
    }


@triton.jit
def _key_tiles(
    block,
    blocks,
    values,
    others,
    q,
    q_row,
    grad_out,
    grad_row,
    lse,
    delta,
    rows,
    hidden,
    entries,
    begin,
    end,
    begins,
    lengths,
    key,
    table,
    scale,
    softcap,
    grad_k,
    grad_v,
    PARTIAL: tl.constexpr,
    SPANS: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """grad_k, grad_v [BLOCK, WIDTH] after the tiles begin to end of the list."""
    FULL: tl.constexpr = D == WIDTH
    cols = tl.arange(0, WIDTH)
    for entry in range(begin, end):
        row = tl.load(entries + entry * ENTRY) * ROWS + tl.arange(0, ROWS)
        live = row < rows
        row = tl.minimum(row, rows - 1)
        place = row.to(tl.int64)
        at_q = q + place * q_row
        query = channels(at_q[:, None] + cols[None, :], (cols < D)[None, :], FULL)
        products = product(block, query, blocks, at_q, D, CHUNK)
        scores, share = scores_of(products, scale, softcap)
        # A row beyond the last weighs nothing.
        log = tl.load(lse + row, live, other=-float("inf"))
        weights = softmax_of(scores, log[None, :])
        if PARTIAL:
            first = tl.load(entries + entry * ENTRY + 1)
            last = tl.load(entries + entry * ENTRY + 2)
            seen = in_spans(
                begins, lengths, (table + row)[None, :], key[:, None], first, last, rows, SPANS
            )
            weights = tl.where(seen, weights, 0.0)
        if hidden is not None:
            weights = tl.where(hidden[:, None], 0.0, weights)
        at_grad = grad_out + place * grad_row
        grad = channels(at_grad[:, None] + cols[None, :], (cols < D)[None, :], FULL)
        grad_v = tl.dot(weights.to(grad.dtype), grad, grad_v, input_precision="ieee")
        shift = tl.load(delta + row)
        slope = weights * (product(values, grad, others, at_grad, D, CHUNK) - shift[None, :])
        if softcap is not None:
            slope *= 1.0 - share * share
        grad_k = tl.dot(slope.to(query.dtype), query, grad_k, input_precision="ieee")
    return grad_k, grad_v


@triton.jit
def _sparse_gqa_grad_kv_dot_kernel(
    grad_out,
    q,
    k,
    v,
    lse,
    delta,
    grad_k,
    grad_v,
    items,
    entries,
    begins,
    lengths,
    heads,
    starts,
    padding,
    scale,
    softcap,
    blocks,
    groups,
    queries,
    grad_batch,
    grad_head,
    grad_row,
    q_batch,
    q_head,
    q_row,
    k_batch,
    k_head,
    k_row,
    v_batch,
    v_head,
    v_row,
    gk_batch,
    gk_head,
    gk_row,
    gv_batch,
    gv_head,
    gv_row,
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
    batch, group, first_key, last_key, first_row, rows, begin, middle, end, table, origin = item_of(
        items, blocks, groups
    )

    cols = tl.arange(0, WIDTH)
    key = first_key + tl.arange(0, BLOCK)
    live = key < last_key
    place = tl.minimum(key, last_key - 1).to(tl.int64)
    # Spans count from the segment's first key.
    own = key - origin
    at_k = k + batch * k_batch + group * k_head + place * k_row
    block = channels(at_k[:, None] + cols[None, :], (cols < D)[None, :], FULL)
    at_v = v + batch * v_batch + group * v_head + place * v_row
    values = channels(at_v[:, None] + cols[None, :], (cols < D)[None, :], FULL)
    hidden = None
    if padding is not None:
        hidden = tl.load(padding + batch * padding_batch + place) != 0

    sum_k = tl.zeros([BLOCK, WIDTH], tl.float32)
    sum_v = tl.zeros([BLOCK, WIDTH], tl.float32)
    first_head, last_head = group * GROUP, group * GROUP + GROUP
    if heads is not None:
        first_head = tl.load(starts + group).to(tl.int64)
        last_head = tl.load(starts + group + 1).to(tl.int64)
    for one in range(first_head, last_head):
        head = one
        if heads is not None:
            head = tl.load(heads + one).to(tl.int64)
        at_log = (batch * HEADS + head) * queries + first_row
        for PARTIAL in tl.static_range(2):
            sum_k, sum_v = _key_tiles(
                block,
                at_k,
                values,
                at_v,
                q + batch * q_batch + head * q_head + first_row * q_row,
                q_row,
                grad_out + batch * grad_batch + head * grad_head + first_row * grad_row,
                grad_row,
                lse + at_log,
                delta + at_log,
                rows,
                hidden,
                entries,
                middle if PARTIAL else begin,
                end if PARTIAL else middle,
                begins,
                lengths,
                own,
                table,
                scale,
                softcap,
                sum_k,
                sum_v,
                PARTIAL,
                SPANS,
                D,
                ROWS,
                WIDTH,
                CHUNK,
            )
    sum_k *= tl.cast(scale, tl.float32)
    mask = live[:, None] if FULL else live[:, None] & (cols < D)[None, :]
    to_k = grad_k + batch * gk_batch + group * gk_head + place * gk_row
    tl.store(to_k[:, None] + cols[None, :], sum_k.to(grad_k.dtype.element_ty), mask)
    to_v = grad_v + batch * gv_batch + group * gv_head + place * gv_row
    tl.store(to_v[:, None] + cols[None, :], sum_v.to(grad_v.dtype.element_ty), mask)


def grad_kv(
    grad_out: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lse: torch.Tensor,
    delta: torch.Tensor,
    to_k: torch.Tensor,
    to_v: torch.Tensor,
    setting: Setting,
) -> None:
    """Writes the gradients of k and v; zeros where no head of a group is active."""
    B, Hq, Lq, D = q.shape
    groups = k.shape[1]
    options = config(D, q.dtype, hip=is_hip(), spans=spans_of(setting.plans)) | setting.tile
    todo = work(*setting[:3], options["ROWS"], options["BLOCK"], q.device, by_keys=True)
    _, listed, starts = head_lists(setting.heads, Hq, groups, q.device)
    programs = todo.blocks * groups * B
    if programs == 0:
        return
    _sparse_gqa_grad_kv_dot_kernel[(programs,)](
        grad_out,
        q,
        k,
        v,
        lse,
        delta,
        to_k,
        to_v,
        *todo[:4],
        listed,
        starts,
        setting.padding,
        setting.scale,
        setting.softcap or None,
        todo.blocks,
        groups,
        Lq,
        *grad_out.stride()[:3],
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        *to_k.stride()[:3],
        *to_v.stride()[:3],
        setting.padding_batch,
        HEADS=Hq,
        GROUP=Hq // groups,
        SPANS=todo.spans,
        D=D,
        **options,
    )
