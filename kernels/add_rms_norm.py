"""Residual addition and RMSNorm in one pass.

A program holds one row (several, if they are short): it reads `x` and `residual` once and writes
the sum and its norm. The sum is rounded to the storage type before it is normalised, as the
separate operations would. Rows beyond `FORWARD_LIMIT` columns are walked twice in blocks of 4096;
the second walk reads the sum back. The backward pass is `rms_norm.backward` with `grad_residual`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from leeboard.kernels._common import apply_weight, device_of, reciprocal_rms, row_config

FORWARD_LIMIT = 16384


@triton.jit
def _add_and_store(x, residual, new_residual, mask, cols):
    """The rounded sum of a tile, in float32, after storing it."""
    total = tl.load(x + cols, mask, other=0.0).to(tl.float32)
    total += tl.load(residual + cols, mask, other=0.0).to(tl.float32)
    rounded = total.to(new_residual.dtype.element_ty)
    tl.store(new_residual + cols, rounded, mask)
    return rounded.to(tl.float32)


@triton.jit
def _add_rms_norm_forward_kernel(
    x,
    residual,
    weight,
    normed,
    new_residual,
    N,
    H,
    x_stride,
    residual_stride,
    normed_stride,
    new_residual_stride,
    eps,
    weight_offset,
    BEFORE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    cols = tl.arange(0, BLOCK)[None, :]
    dtype: tl.constexpr = normed.dtype.element_ty
    x += rows * x_stride
    residual += rows * residual_stride
    normed += rows * normed_stride
    new_residual += rows * new_residual_stride
    if ONE_BLOCK:
        mask = (rows < N) & (cols < H)
        s = _add_and_store(x, residual, new_residual, mask, cols)
        y = s * reciprocal_rms(tl.sum(s * s, 1, keep_dims=True), H, eps)
        y = apply_weight(y, weight, cols < H, cols, weight_offset, dtype, BEFORE)
        tl.store(normed + cols, y, mask)
    else:
        squares = tl.zeros([ROWS, BLOCK], tl.float32)
        for start in range(0, H, BLOCK):
            mask = (rows < N) & (start + cols < H)
            s = _add_and_store(x, residual, new_residual, mask, start + cols)
            squares += s * s
        r = reciprocal_rms(tl.sum(squares, 1, keep_dims=True), H, eps)
        # The sums are read back, possibly in other threads than stored them.
        tl.debug_barrier()
        for start in range(0, H, BLOCK):
            at = start + cols
            mask = (rows < N) & (at < H)
            y = tl.load(new_residual + at, mask, other=0.0).to(tl.float32) * r
            y = apply_weight(y, weight, at < H, at, weight_offset, dtype, BEFORE)
            tl.store(normed + at, y, mask)


def config(columns: int) -> dict[str, int]:
    """Tile sizes and warps for rows of `columns` elements (see `row_config`)."""
    return row_config(columns, FORWARD_LIMIT)


def forward(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor | None,
    normed: torch.Tensor,
    new_residual: torch.Tensor,
    eps: float,
    weight_offset: float,
    rounding: str,
) -> None:
    """new_residual = x + residual; normed = rms_norm(new_residual). All [N, H], any row stride."""
    N, H = x.shape
    if x.numel() == 0:
        return
    tile = config(H)
    with device_of(x):
        _add_rms_norm_forward_kernel[(triton.cdiv(N, tile["ROWS"]),)](
            x,
            residual,
            weight,
            normed,
            new_residual,
            N,
            H,
            x.stride(0),
            residual.stride(0),
            normed.stride(0),
            new_residual.stride(0),
            float(eps),
            float(weight_offset),
            BEFORE=rounding == "before_weight",
            **tile,
        )
