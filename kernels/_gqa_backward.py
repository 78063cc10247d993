"""Sparse attention, backward: the rows' share of the softmax's gradient, then queries, then keys.

No atomics anywhere: equal inputs give equal bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from leeboard.kernels._common import PINNED, device_of
from leeboard.kernels._gqa_grad_kv import grad_kv as write_grad_kv
from leeboard.kernels._gqa_grad_q import grad_q as write_grad_q
from leeboard.kernels._gqa_tiles import Plan, Setting, clear_idle, head_lists

DELTA_ROWS = 32


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
    pair = tl.program_id(0) // blocks
    batch, head = (pair // active).to(tl.int64), (pair % active).to(tl.int64)
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
    plans: Sequence[Plan],
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
    setting = Setting.of(plans, cu_q, cu_k, heads, padding, scale, softcap, tile)
    clear_idle(grad_q, heads, 0.0)
    # delta = sum(grad_out * out) - grad_lse
    delta = torch.empty_like(lse)
    active, listed, _ = head_lists(heads, Hq, k.shape[1], q.device)
    programs = triton.cdiv(Lq, DELTA_ROWS) * active * B
    with device_of(q):
        if programs:
            _sparse_gqa_delta_kernel[(programs,)](
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
                ROWS=DELTA_ROWS,
                WIDTH=triton.next_power_of_2(D),
                num_warps=4,
                **PINNED,
            )
        write_grad_q(grad_out, q, k, v, lse, delta, grad_q, setting)
        write_grad_kv(grad_out, q, k, v, lse, delta, grad_k, grad_v, setting)
