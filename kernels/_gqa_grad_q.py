"""Sparse attention, gradient of the queries: a program per block of query rows and active head.

It walks the tiles of its list and works the weights out again from the log-sum-exp:
w = exp(s - lse), ds = w * (grad_out . v - delta).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from leeboard.kernels._common import PINNED, is_hip
from leeboard.kernels._gqa_scores import channels, in_spans, item_of, product, scores_of, softmax_of
from leeboard.kernels._gqa_tiles import ENTRY, Setting, head_lists, spans_of, work


def config(width: int, dtype: torch.dtype, *, hip: bool, spans: int) -> dict[str, int]:
    """Tile for heads of `width` channels and rows of `spans`, see `_gqa_forward.config`.

    Queries, their gradients and the sums of a tile fit the registers up to 128 channels; wider
    heads, and float32 without tensor cores, are read in chunks, see `product`.
    """
    wide = max(16, triton.next_power_of_2(width))
    if dtype.itemsize > 2:
        tile = (32, 32 if wide <= 128 else 16, 4, 1, min(32, wide))
    elif hip:
        tile = (64, 16, 4, 1, 0 if wide <= 128 else 64)
    else:
        tile = (64, 64 if spans else 32, 8, 2, 0) if wide <= 128 else (64, 32, 8, 1, 64)
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
def _query_tiles(
    query,
    queries,
    grad,
    grads,
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
    CHUNK: tl.constexpr,
):
    """sums [ROWS, WIDTH] + ds k over the tiles begin to end of the list."""
    FULL: tl.constexpr = D == WIDTH
    cols = tl.arange(0, WIDTH)
    for entry in range(begin, end):
        key = tl.load(entries + entry * ENTRY) * BLOCK + tl.arange(0, BLOCK)
        row = tl.minimum(key, keys - 1).to(tl.int64) if PARTIAL else key.to(tl.int64)
        at_k = k + row * k_row
        block = channels(at_k[:, None] + cols[None, :], (cols < D)[None, :], FULL)
        products = product(query, block, queries, at_k, D, CHUNK)
        scores, share = scores_of(products, scale, softcap)
        weights = softmax_of(scores, lse[:, None])
        if PARTIAL:
            first = tl.load(entries + entry * ENTRY + 1)
            last = tl.load(entries + entry * ENTRY + 2)
            seen = in_spans(begins, lengths, at[:, None], key[None, :], first, last, stride, SPANS)
            weights = tl.where(seen, weights, 0.0)
        if padding is not None:
            weights = tl.where((tl.load(padding + row) != 0)[None, :], 0.0, weights)
        at_v = v + row * v_row
        values = channels(at_v[:, None] + cols[None, :], (cols < D)[None, :], FULL)
        slope = weights * (product(grad, values, grads, at_v, D, CHUNK) - delta[:, None])
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
    row = tl.minimum(row, last_row - 1)
    at = table + row - first_row
    row = row.to(tl.int64)
    at_q = q + batch * q_batch + head * q_head + row * q_row
    query = channels(at_q[:, None] + cols[None, :], (cols < D)[None, :], FULL)
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
            at_q,
            grad,
            at_grad,
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
            CHUNK,
        )
    sums *= tl.cast(scale, tl.float32)
    to = (grad_q + batch * to_batch + head * to_head + row * to_row)[:, None] + cols[None, :]
    mask = live[:, None] if FULL else live[:, None] & (cols < D)[None, :]
    tl.store(to, sums.to(grad_q.dtype.element_ty), mask)


def grad_q(
    grad_out: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lse: torch.Tensor,
    delta: torch.Tensor,
    to: torch.Tensor,
    setting: Setting,
) -> None:
    """Writes the gradient of q for the active heads."""
    B, Hq, Lq, D = q.shape
    groups = k.shape[1]
    options = config(D, q.dtype, hip=is_hip(), spans=spans_of(setting.plans)) | setting.tile
    todo = work(*setting[:3], options["ROWS"], options["BLOCK"], q.device)
    active, listed, _ = head_lists(setting.heads, Hq, groups, q.device)
    programs = todo.blocks * active * B
    if programs == 0:
        return
    _sparse_gqa_grad_q_dot_kernel[(programs,)](
        grad_out,
        q,
        k,
        v,
        lse,
        delta,
        to,
        *todo[:4],
        listed,
        setting.padding,
        setting.scale,
        setting.softcap or None,
        todo.blocks,
        active,
        Lq,
        *grad_out.stride()[:3],
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        *to.stride()[:3],
        setting.padding_batch,
        HEADS=Hq,
        GROUP=Hq // groups,
        SPANS=todo.spans,
        D=D,
        **options,
    )
