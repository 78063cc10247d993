"""Train-time-test attention: sparse attention over the keys of step 0, and every row's own keys.

q, out, grad_out and grad_q are [B, Hq, T, D]; k, v, grad_k and grad_v lists of [B, Hkv, T, D], one
for each step; channels are contiguous, other strides free. lse is contiguous float32 [B, Hq, T].
`plans` is one plan for all batches, or with cu (first row of each document, and the end) one for
each document and B = 1.

The keys of step 0 go through the kernels of sparse attention, which leave a normalised float32
result and its log-sum-exp; the own keys join them here, and the result is rounded once. The
backward starts from the log-sum-exp of all keys, so the two parts only add. Sums are float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from leeboard.kernels import _gqa_backward, _gqa_forward
from leeboard.kernels._common import PINNED, device_of
from leeboard.kernels._gqa_tiles import Plan

Tensors = Sequence[torch.Tensor]


def config(width: int) -> dict[str, int]:
    """Tile for heads of `width` channels: 16 elements a thread of each operand, two 128-bit loads of
    a 16-bit type.
    """
    wide = triton.next_power_of_2(width)
    return {"ROWS": max(1, 2048 // wide), "WIDTH": wide, "num_warps": 4, **PINNED}


@triton.jit
def _place(rows, HEADS: tl.constexpr, ROWS: tl.constexpr):
    """(batch, head, rows, whether they exist) of this program; the last row stands in beyond it."""
    blocks = tl.cdiv(rows, ROWS)
    pair = tl.program_id(0) // blocks
    row = tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)
    live = row < rows
    row = tl.minimum(row, rows - 1).to(tl.int64)
    return (pair // HEADS).to(tl.int64), (pair % HEADS).to(tl.int64), row, live


@triton.jit
def _rows_at(t, batch, head, row, strides):
    """Pointers [ROWS, 1] to the rows' first channels."""
    return (t + batch * strides[0] + head * strides[1] + row * strides[2])[:, None]


@triton.jit
def _ttt_attention_merge_kernel(
    q,
    own_k,
    own_v,
    first,
    first_lse,
    out,
    lse,
    scale,
    rows,
    q_strides,
    k_strides,
    v_strides,
    first_strides,
    out_strides,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    STEPS: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    batch, head, row, live = _place(rows, HEADS, ROWS)
    cols = tl.arange(0, WIDTH)[None, :]
    inside = cols < D
    query = tl.load(_rows_at(q, batch, head, row, q_strides) + cols, inside, other=0.0)
    query = query.to(tl.float32)
    sums = tl.load(_rows_at(first, batch, head, row, first_strides) + cols, inside, other=0.0)
    at = (batch * HEADS + head) * rows + row
    most = tl.load(first_lse + at)
    # A row may see no key of step 0.
    total = tl.where(most == -float("inf"), 0.0, 1.0)
    for j in tl.static_range(STEPS):
        key = tl.load(
            _rows_at(own_k[j], batch, head // GROUP, row, k_strides) + cols, inside, other=0.0
        )
        score = tl.sum(query * key.to(tl.float32), 1) * tl.cast(scale, tl.float32)
        peak = tl.maximum(most, score)
        keep, weight = tl.exp(most - peak), tl.exp(score - peak)
        value = tl.load(
            _rows_at(own_v[j], batch, head // GROUP, row, v_strides) + cols, inside, other=0.0
        )
        sums = sums * keep[:, None] + weight[:, None] * value.to(tl.float32)
        total = total * keep + weight
        most = peak
    result = (sums / total[:, None]).to(out.dtype.element_ty)
    tl.store(_rows_at(out, batch, head, row, out_strides) + cols, result, live[:, None] & inside)
    tl.store(lse + at, most + tl.log(total), live)


@triton.jit
def _share(query, grad, key, value, log, delta, scale):
    """(weight, slope) [ROWS] of an own key, see `_gqa_grad_q.py`; the scale is left out."""
    score = tl.sum(query * key, 1) * tl.cast(scale, tl.float32)
    weight = tl.exp(score - log)
    return weight, weight * (tl.sum(grad * value, 1) - delta)


@triton.jit
def _ttt_attention_grad_q_kernel(
    grad_out,
    q,
    own_k,
    own_v,
    out,
    lse,
    first,
    grad_q,
    scale,
    rows,
    grad_strides,
    q_strides,
    k_strides,
    v_strides,
    out_strides,
    first_strides,
    to_strides,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    STEPS: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    batch, head, row, live = _place(rows, HEADS, ROWS)
    cols = tl.arange(0, WIDTH)[None, :]
    inside = cols < D
    query = tl.load(_rows_at(q, batch, head, row, q_strides) + cols, inside, other=0.0)
    query = query.to(tl.float32)
    grad = tl.load(_rows_at(grad_out, batch, head, row, grad_strides) + cols, inside, other=0.0)
    grad = grad.to(tl.float32)
    result = tl.load(_rows_at(out, batch, head, row, out_strides) + cols, inside, other=0.0)
    delta = tl.sum(grad * result.to(tl.float32), 1)
    log = tl.load(lse + (batch * HEADS + head) * rows + row)
    # Of the keys of step 0, scaled.
    sums = tl.load(_rows_at(first, batch, head, row, first_strides) + cols, inside, other=0.0)
    for j in tl.static_range(STEPS):
        key = tl.load(
            _rows_at(own_k[j], batch, head // GROUP, row, k_strides) + cols, inside, other=0.0
        ).to(tl.float32)
        value = tl.load(
            _rows_at(own_v[j], batch, head // GROUP, row, v_strides) + cols, inside, other=0.0
        ).to(tl.float32)
        _, slope = _share(query, grad, key, value, log, delta, scale)
        sums += (slope * tl.cast(scale, tl.float32))[:, None] * key
    to = _rows_at(grad_q, batch, head, row, to_strides) + cols
    tl.store(to, sums.to(grad_q.dtype.element_ty), live[:, None] & inside)


@triton.jit
def _ttt_attention_grad_own_kernel(
    grad_out,
    q,
    own_k,
    own_v,
    out,
    lse,
    grad_k,
    grad_v,
    scale,
    rows,
    grad_strides,
    q_strides,
    k_strides,
    v_strides,
    out_strides,
    to_k_strides,
    to_v_strides,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    STEPS: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    batch, group, row, live = _place(rows, HEADS // GROUP, ROWS)
    cols = tl.arange(0, WIDTH)[None, :]
    inside = cols < D
    for j in tl.static_range(STEPS):
        key = tl.load(
            _rows_at(own_k[j], batch, group, row, k_strides) + cols, inside, other=0.0
        ).to(tl.float32)
        value = tl.load(
            _rows_at(own_v[j], batch, group, row, v_strides) + cols, inside, other=0.0
        ).to(tl.float32)
        sum_k = tl.zeros([ROWS, WIDTH], tl.float32)
        sum_v = tl.zeros([ROWS, WIDTH], tl.float32)
        for head in range(group * GROUP, group * GROUP + GROUP):
            query = tl.load(_rows_at(q, batch, head, row, q_strides) + cols, inside, other=0.0).to(
                tl.float32
            )
            grad = tl.load(
                _rows_at(grad_out, batch, head, row, grad_strides) + cols, inside, other=0.0
            ).to(tl.float32)
            result = tl.load(
                _rows_at(out, batch, head, row, out_strides) + cols, inside, other=0.0
            ).to(tl.float32)
            log = tl.load(lse + (batch * HEADS + head) * rows + row)
            weight, slope = _share(query, grad, key, value, log, tl.sum(grad * result, 1), scale)
            sum_k += slope[:, None] * query
            sum_v += weight[:, None] * grad
        sum_k *= tl.cast(scale, tl.float32)
        mask = live[:, None] & inside
        to_k = _rows_at(grad_k[j], batch, group, row, to_k_strides) + cols
        tl.store(to_k, sum_k.to(grad_k[j].dtype.element_ty), mask)
        to_v = _rows_at(grad_v[j], batch, group, row, to_v_strides) + cols
        tl.store(to_v, sum_v.to(grad_v[j].dtype.element_ty), mask)


def _later(tensors: Tensors) -> tuple[tuple[torch.Tensor, ...], tuple[int, ...]]:
    """The tensors of the later steps and the strides that they share; copies where they do not."""
    own = tuple(tensors[1:])
    if len({t.stride() for t in own}) > 1:
        own = tuple(t.contiguous() for t in own)
    return own, own[0].stride()[:3]


def forward(
    q: torch.Tensor,
    k: Tensors,
    v: Tensors,
    out: torch.Tensor,
    lse: torch.Tensor,
    plans: Sequence[Plan],
    cu: list[int] | None,
    scale: float,
    tile: dict[str, int] | None = None,
) -> None:
    """Writes the attention of q to `out`, and the log-sum-exp of its scores to `lse`.

    Shapes and strides: see this module. `tile` replaces sizes of the tile over step-0 keys.
    """
    B, Hq, T, D = q.shape
    steps = len(k) - 1
    first = torch.empty_like(q, dtype=torch.float32) if steps else out
    rest = (plans, cu, cu, None, None, None, scale, 0.0, tile)
    _gqa_forward.forward(q, k[0], v[0], first, lse, *rest)
    if steps == 0 or q.numel() == 0:
        return
    own_k, k_strides = _later(k)
    own_v, v_strides = _later(v)
    options = config(D)
    with device_of(q):
        _ttt_attention_merge_kernel[(triton.cdiv(T, options["ROWS"]) * B * Hq,)](
            q,
            own_k,
            own_v,
            first,
            lse,
            out,
            lse,
            scale,
            T,
            q.stride()[:3],
            k_strides,
            v_strides,
            first.stride()[:3],
            out.stride()[:3],
            HEADS=Hq,
            GROUP=Hq // k[0].shape[1],
            STEPS=steps,
            D=D,
            **options,
        )


def backward(
    grad_out: torch.Tensor,
    q: torch.Tensor,
    k: Tensors,
    v: Tensors,
    out: torch.Tensor,
    lse: torch.Tensor,
    grad_q: torch.Tensor,
    grad_k: Tensors,
    grad_v: Tensors,
    plans: Sequence[Plan],
    cu: list[int] | None,
    scale: float,
    tile: dict[str, int] | None = None,
) -> None:
    """Writes the gradients of q and of every key and value.

    Shapes and strides: see this module. `tile` replaces sizes of the tiles over step-0 keys.
    """
    B, Hq, T, D = q.shape
    groups, steps = k[0].shape[1], len(k) - 1
    first = torch.empty_like(q, dtype=torch.float32) if steps else grad_q
    rest = (plans, cu, cu, None, None, scale, 0.0, tile)
    _gqa_backward.backward(
        grad_out, None, q, k[0], v[0], out, lse, first, grad_k[0], grad_v[0], *rest
    )
    if steps == 0 or q.numel() == 0:
        return
    own_k, k_strides = _later(k)
    own_v, v_strides = _later(v)
    to_k, to_k_strides = _later(grad_k)
    to_v, to_v_strides = _later(grad_v)
    sizes = {"HEADS": Hq, "GROUP": Hq // groups, "STEPS": steps, "D": D, **config(D)}
    blocks = triton.cdiv(T, sizes["ROWS"]) * B
    strides = [t.stride()[:3] for t in (grad_out, q)]
    with device_of(q):
        _ttt_attention_grad_q_kernel[(blocks * Hq,)](
            grad_out,
            q,
            own_k,
            own_v,
            out,
            lse,
            first,
            grad_q,
            scale,
            T,
            *strides,
            k_strides,
            v_strides,
            out.stride()[:3],
            first.stride()[:3],
            grad_q.stride()[:3],
            **sizes,
        )
        _ttt_attention_grad_own_kernel[(blocks * groups,)](
            grad_out,
            q,
            own_k,
            own_v,
            out,
            lse,
            to_k,
            to_v,
            scale,
            T,
            *strides,
            k_strides,
            v_strides,
            out.stride()[:3],
            to_k_strides,
            to_v_strides,
            **sizes,
        )
    for made, to in zip((*to_k, *to_v), (*grad_k[1:], *grad_v[1:]), strict=True):
        if made is not to:
            to.copy_(made)
