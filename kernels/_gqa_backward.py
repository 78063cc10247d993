"""Sparse attention, backward, without atomics: equal inputs give equal bits.

First kernel: delta = sum(grad_out * out) - grad_lse for every row. Second: a program per block of
query rows and active head walks the tiles of its list and writes grad_q. Third: a program per block
of keys and key-value head walks the transposed list once for every active head of the group and
writes grad_k and grad_v; its tiles are transposed, keys by rows. Both work the weights out again
from the log-sum-exp: w = exp(s - lse), ds = w * (grad_out . v - delta).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from leeboard.kernels._common import PINNED, device_of, is_hip
from leeboard.kernels._gqa_forward import UNROLLED
from leeboard.kernels._gqa_scores import LOG2_E, channels, in_spans, scores_of
from leeboard.kernels._gqa_tiles import ENTRY, ITEM, Work, clear_idle, head_lists, work

if TYPE_CHECKING:
    from leeboard.ops._attention_plan import AttentionPlan


def config(width: int, dtype: torch.dtype, *, hip: bool, by_keys: bool) -> dict[str, int]:
    """Tile of the second kernel, or of the third, for heads of `width` channels."""
    wide = max(16, triton.next_power_of_2(width))
    if dtype.itemsize > 2:
        tile = (32, 32, 4, 1) if wide <= 64 else (16, 16, 4, 1)
    elif by_keys:
        tile = (32, 64, 4, 2) if wide <= 128 else (32, 64, 8, 1)
    else:
        tile = (64, 64, 4, 2) if wide <= 128 else (64, 32, 8, 1)
    rows, keys, warps, stages = tile
    return {
        "ROWS": rows,
        "BLOCK": keys,
        "WIDTH": wide,
        "num_warps": warps,
        "num_stages": 1 if hip else stages,
        **PINNED,
    }


@triton.jit
def _sparse_gqa_delta_kernel(
    grad_out,
    out,
    grad_lse,
    delta,
    active,
    heads,
    queries,
    grad_batch,
    grad_head,
    grad_row,
    out_batch,
    out_head,
    out_row,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    blocks = tl.cdiv(queries, ROWS)
    pair = (tl.program_id(0) // blocks).to(tl.int64)
    batch, head = pair // active, pair % active
    if heads is not None:
        head = tl.load(heads + head).to(tl.int64)
    cols = tl.arange(0, WIDTH)
    row = tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)
    mask = (row < queries)[:, None] & (cols < D)[None, :]
    place = row.to(tl.int64)[:, None]
    at_grad = grad_out + batch * grad_batch + head * grad_head + place * grad_row + cols[None, :]
    at_out = out + batch * out_batch + head * out_head + place * out_row + cols[None, :]
    grad = tl.load(at_grad, mask, other=0.0).to(tl.float32)
    result = tl.sum(grad * tl.load(at_out, mask, other=0.0).to(tl.float32), 1)
    at = (batch * HEADS + head) * queries + row
    if grad_lse is not None:
        result -= tl.load(grad_lse + at, row < queries, other=0.0)
    tl.store(delta + at, result, row < queries)


@triton.jit
def _softmax_of(scores, lse):
    """The weights of a softmax whose log-sum-exp is known; zero for rows that see nothing."""
    log = tl.where(lse == -float("inf"), float("inf"), lse * LOG2_E)
    return tl.exp2(scores - log)


@triton.jit
def _query_tiles(
    query,
    grad,
    lse,
    delta,
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
    sums,
    PARTIAL: tl.constexpr,
    SPANS: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """sums [ROWS, WIDTH] + ds k over the tiles begin to end of the list."""
    FULL: tl.constexpr = D == WIDTH
    cols = tl.arange(0, WIDTH)
    for entry in range(begin, end):
        key = tl.load(entries + entry * ENTRY) * BLOCK + tl.arange(0, BLOCK)
        row = tl.minimum(key, keys - 1).to(tl.int64) if PARTIAL else key.to(tl.int64)
        at_k = (k + row * k_row)[:, None] + cols[None, :]
        block = channels(at_k, (cols < D)[None, :], FULL)
        products = tl.dot(query, tl.trans(block), input_precision="ieee")
        scores, share = scores_of(products, scale, softcap)
        weights = _softmax_of(scores, lse[:, None])
        if PARTIAL:
            first = tl.load(entries + entry * ENTRY + 1)
            last = tl.load(entries + entry * ENTRY + 2)
            seen = in_spans(
                begins, lengths, at[:, None], key[None, :], first, last, stride, SPANS
            )
            weights = tl.where(seen, weights, 0.0)
        if padding is not None:
            weights = tl.where((tl.load(padding + row) != 0)[None, :], 0.0, weights)
        at_v = (v + row * v_row)[None, :] + cols[:, None]
        values = channels(at_v, (cols < D)[:, None], FULL)
        slope = weights * (tl.dot(grad, values, input_precision="ieee") - delta[:, None])
        if softcap is not None:
            slope *= 1.0 - share * share
        sums = tl.dot(slope.to(block.dtype), block, sums, input_precision="ieee")
    return sums


@triton.jit
def _sparse_gqa_grad_q_dot_kernel(
    grad_out,
    q,
    k,
    v,
    lse,
    delta,
    grad_q,
    items,
    entries,
    begins,
    lengths,
    heads,
    padding,
    scale,
    softcap,
    blocks,
    active,
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
    to_batch,
    to_head,
    to_row,
    padding_batch,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    SPANS: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
):
    FULL: tl.constexpr = D == WIDTH
    item = items + tl.program_id(0) % blocks * ITEM
    pair = (tl.program_id(0) // blocks).to(tl.int64)
    batch, head = pair // active, pair % active
    if heads is not None:
        head = tl.load(heads + head).to(tl.int64)
    first_row, last_row = tl.load(item), tl.load(item + 1)
    first_key, keys = tl.load(item + 2).to(tl.int64), tl.load(item + 3)
    begin, middle, end = tl.load(item + 4), tl.load(item + 5), tl.load(item + 6)
    stride = tl.load(item + 8)

    cols = tl.arange(0, WIDTH)
    row = first_row + tl.arange(0, ROWS)
    live = row < last_row
    row = tl.minimum(row, last_row - 1)
    at = tl.load(item + 7) + row - first_row
    row = row.to(tl.int64)
    at_q = (q + batch * q_batch + head * q_head + row * q_row)[:, None] + cols[None, :]
    query = channels(at_q, (cols < D)[None, :], FULL)
    at_grad = grad_out + batch * grad_batch + head * grad_head + row * grad_row
    grad = channels(at_grad[:, None] + cols[None, :], (cols < D)[None, :], FULL)
    at_log = (batch * HEADS + head) * queries + row
    log, shift = tl.load(lse + at_log), tl.load(delta + at_log)
    k += batch * k_batch + head // GROUP * k_head + first_key * k_row
    v += batch * v_batch + head // GROUP * v_head + first_key * v_row
    if padding is not None:
        padding += batch * padding_batch + first_key

    sums = tl.zeros([ROWS, WIDTH], tl.float32)
    for PARTIAL in tl.static_range(2):
        sums = _query_tiles(
            query,
            grad,
            log,
            shift,
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
            sums,
            PARTIAL,
            SPANS,
            D,
            BLOCK,
            WIDTH,
        )
    sums *= tl.cast(scale, tl.float32)
    to = (grad_q + batch * to_batch + head * to_head + row * to_row)[:, None] + cols[None, :]
    mask = live[:, None] if FULL else live[:, None] & (cols < D)[None, :]
    tl.store(to, sums.to(grad_q.dtype.element_ty), mask)


@triton.jit
def _key_tiles(
    block,
    values,
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
):
    """grad_k, grad_v [BLOCK, WIDTH] after the tiles begin to end of the list."""
    FULL: tl.constexpr = D == WIDTH
    cols = tl.arange(0, WIDTH)
    for entry in range(begin, end):
        row = tl.load(entries + entry * ENTRY) * ROWS + tl.arange(0, ROWS)
        live = row < rows
        row = tl.minimum(row, rows - 1)
        place = row.to(tl.int64)
        at_q = (q + place * q_row)[:, None] + cols[None, :]
        query = channels(at_q, (cols < D)[None, :], FULL)
        products = tl.dot(block, tl.trans(query), input_precision="ieee")
        scores, share = scores_of(products, scale, softcap)
        # A row beyond the last weighs nothing.
        log = tl.load(lse + row, live, other=-float("inf"))
        weights = _softmax_of(scores, log[None, :])
        if PARTIAL:
            first = tl.load(entries + entry * ENTRY + 1)
            last = tl.load(entries + entry * ENTRY + 2)
            seen = in_spans(
                begins, lengths, (table + row)[None, :], key[:, None], first, last, rows, SPANS
            )
            weights = tl.where(seen, weights, 0.0)
        if hidden is not None:
            weights = tl.where(hidden[:, None], 0.0, weights)
        at_grad = (grad_out + place * grad_row)[:, None] + cols[None, :]
        grad = channels(at_grad, (cols < D)[None, :], FULL)
        grad_v = tl.dot(weights.to(grad.dtype), grad, grad_v, input_precision="ieee")
        shift = tl.load(delta + row)
        slope = weights * (
            tl.dot(values, tl.trans(grad), input_precision="ieee") - shift[None, :]
        )
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
):
    FULL: tl.constexpr = D == WIDTH
    item = items + tl.program_id(0) % blocks * ITEM
    pair = (tl.program_id(0) // blocks).to(tl.int64)
    batch, group = pair // groups, pair % groups
    first_key, last_key = tl.load(item), tl.load(item + 1)
    first_row, rows = tl.load(item + 2).to(tl.int64), tl.load(item + 3)
    begin, middle, end = tl.load(item + 4), tl.load(item + 5), tl.load(item + 6)
    table = tl.load(item + 7)

    cols = tl.arange(0, WIDTH)
    key = first_key + tl.arange(0, BLOCK)
    live = key < last_key
    place = tl.minimum(key, last_key - 1).to(tl.int64)
    # Spans count from the segment's first key.
    own = key - tl.load(item + 8)
    at_k = (k + batch * k_batch + group * k_head + place * k_row)[:, None] + cols[None, :]
    block = channels(at_k, (cols < D)[None, :], FULL)
    at_v = (v + batch * v_batch + group * v_head + place * v_row)[:, None] + cols[None, :]
    values = channels(at_v, (cols < D)[None, :], FULL)
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
                values,
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
            )
    sum_k *= tl.cast(scale, tl.float32)
    mask = live[:, None] if FULL else live[:, None] & (cols < D)[None, :]
    to_k = grad_k + batch * gk_batch + group * gk_head + place * gk_row
    tl.store(to_k[:, None] + cols[None, :], sum_k.to(grad_k.dtype.element_ty), mask)
    to_v = grad_v + batch * gv_batch + group * gv_head + place * gv_row
    tl.store(to_v[:, None] + cols[None, :], sum_v.to(grad_v.dtype.element_ty), mask)


def backward(
    grad_out: torch.Tensor,
    grad_lse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    grad_q: torch.Tensor,
    grad_k: torch.Tensor,
    grad_v: torch.Tensor,
    plans: Sequence[AttentionPlan],
    cu_q: list[int] | None,
    cu_k: list[int] | None,
    heads: tuple[int, ...] | None,
    padding: torch.Tensor | None,
    scale: float,
    softcap: float,
    tile: dict[str, int] | None = None,
) -> None:
    """Writes the gradients of q, k and v.

    Shapes and strides: see `leeboard.kernels.sparse_gqa`. `tile` replaces sizes of the tiles.
    """
    B, Hq, Lq, D = q.shape
    groups = k.shape[1]
    clear_idle(grad_q, heads, 0.0)
    active, listed, starts = Hq, None, None
    if heads is not None:
        active = len(heads)
        listed, starts = head_lists(heads, Hq // groups, groups, q.device)
    padding = None if padding is None else padding.view(torch.uint8)
    padding_batch = 0 if padding is None else padding.stride(0)
    delta = torch.empty_like(lse)
    by_rows, by_keys = (
        config(D, q.dtype, hip=is_hip(), by_keys=each) | (tile or {}) for each in (False, True)
    )

    def todo(options: dict[str, int], *, keys: bool) -> Work:
        sizes = options["ROWS"], options["BLOCK"]
        return work(plans, cu_q, cu_k, *sizes, q.device, by_keys=keys)

    with device_of(q):
        if active * Lq * B:
            rows = 32
            _sparse_gqa_delta_kernel[(triton.cdiv(Lq, rows) * active * B,)](
                grad_out,
                out,
                grad_lse,
                delta,
                active,
                listed,
                Lq,
                *grad_out.stride()[:3],
                *out.stride()[:3],
                HEADS=Hq,
                D=D,
                ROWS=rows,
                WIDTH=by_rows["WIDTH"],
                num_warps=4,
                **PINNED,
            )
        of_rows = todo(by_rows, keys=False)
        if of_rows.blocks * active * B:
            _sparse_gqa_grad_q_dot_kernel[(of_rows.blocks * active * B,)](
                grad_out,
                q,
                k,
                v,
                lse,
                delta,
                grad_q,
                of_rows.items,
                of_rows.entries,
                of_rows.begins,
                of_rows.lengths,
                listed,
                padding,
                scale,
                softcap or None,
                of_rows.blocks,
                active,
                Lq,
                *grad_out.stride()[:3],
                *q.stride()[:3],
                *k.stride()[:3],
                *v.stride()[:3],
                *grad_q.stride()[:3],
                padding_batch,
                HEADS=Hq,
                GROUP=Hq // groups,
                SPANS=of_rows.spans if of_rows.spans <= UNROLLED else 0,
                D=D,
                **by_rows,
            )
        of_keys = todo(by_keys, keys=True)
        if of_keys.blocks * groups * B:
            _sparse_gqa_grad_kv_dot_kernel[(of_keys.blocks * groups * B,)](
                grad_out,
                q,
                k,
                v,
                lse,
                delta,
                grad_k,
                grad_v,
                of_keys.items,
                of_keys.entries,
                of_keys.begins,
                of_keys.lengths,
                listed,
                starts,
                padding,
                scale,
                softcap or None,
                of_keys.blocks,
                groups,
                Lq,
                *grad_out.stride()[:3],
                *q.stride()[:3],
                *k.stride()[:3],
                *v.stride()[:3],
                *grad_k.stride()[:3],
                *grad_v.stride()[:3],
                padding_batch,
                HEADS=Hq,
                GROUP=Hq // groups,
                SPANS=of_keys.spans if of_keys.spans <= UNROLLED else 0,
                D=D,
                **by_keys,
            )
