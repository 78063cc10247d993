"""RMSNorm forward and backward.

Forward: a program holds one row (several, if they are short) in registers: one read of `x`, one
write of `out`. Rows beyond `FORWARD_LIMIT` columns are walked twice in blocks of 4096.
Backward: a program owns a fixed run of rows, reads `grad` and `x` once and writes `grad_x`; its
share of the weight gradient stays in registers and is written once, as a row of a float32 scratch
[programs, H] that a second kernel sums in fixed order. No atomics, and the number of programs
depends on the shape alone: equal inputs give equal bits. Wide rows take two passes and keep the
share in the scratch row itself.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from leeboard.kernels._common import (
    PINNED,
    apply_weight,
    device_of,
    reciprocal_rms,
    row_config,
)

FORWARD_LIMIT = 16384
# Four operands and the weight gradient are live at once: half as many columns fit.
BACKWARD_LIMIT = 8192


@triton.jit
def _rms_norm_forward_kernel(
    x,
    weight,
    out,
    N,
    H,
    x_stride,
    out_stride,
    eps,
    weight_offset,
    BEFORE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    cols = tl.arange(0, BLOCK)[None, :]
    dtype: tl.constexpr = out.dtype.element_ty
    x += rows * x_stride
    out += rows * out_stride
    if ONE_BLOCK:
        mask = (rows < N) & (cols < H)
        h = tl.load(x + cols, mask, other=0.0).to(tl.float32)
        y = h * reciprocal_rms(tl.sum(h * h, 1, keep_dims=True), H, eps)
        y = apply_weight(y, weight, cols < H, cols, weight_offset, dtype, BEFORE)
        tl.store(out + cols, y, mask)
    else:
        squares = tl.zeros([ROWS, BLOCK], tl.float32)
        for start in range(0, H, BLOCK):
            mask = (rows < N) & (start + cols < H)
            h = tl.load(x + start + cols, mask, other=0.0).to(tl.float32)
            squares += h * h
        r = reciprocal_rms(tl.sum(squares, 1, keep_dims=True), H, eps)
        for start in range(0, H, BLOCK):
            at = start + cols
            mask = (rows < N) & (at < H)
            y = tl.load(x + at, mask, other=0.0).to(tl.float32) * r
            y = apply_weight(y, weight, at < H, at, weight_offset, dtype, BEFORE)
            tl.store(out + at, y, mask)


@triton.jit
def _load_operands(x, grad, weight, mask, cols, H, weight_offset):
    """x, grad and grad * (weight + weight_offset) of a tile, in float32."""
    h = tl.load(x + cols, mask, other=0.0).to(tl.float32)
    dy = tl.load(grad + cols, mask, other=0.0).to(tl.float32)
    g = dy
    if weight is not None:
        gain = tl.load(weight + cols, cols < H, other=0.0).to(tl.float32)
        g = dy * (gain + tl.cast(weight_offset, tl.float32))
    return h, dy, g


@triton.jit
def _store_grad_x(grad_x, grad_residual, mask, cols, h, g, r, projection):
    """r (g - x projection) [+ grad_residual], with projection = r^2 mean(g x)."""
    dx = r * (g - h * projection)
    if grad_residual is not None:
        dx += tl.load(grad_residual + cols, mask, other=0.0).to(tl.float32)
    tl.store(grad_x + cols, dx.to(grad_x.dtype.element_ty), mask)


@triton.jit
def _weight_share(h, dy, r, dtype: tl.constexpr, BEFORE: tl.constexpr):
    """grad * x r, the summand of the weight gradient."""
    normed = h * r
    if BEFORE:
        normed = normed.to(dtype).to(tl.float32)
    return dy * normed


@triton.jit
def _rms_norm_backward_kernel(
    grad,
    x,
    weight,
    grad_residual,
    grad_x,
    partial,
    N,
    H,
    TILES,
    grad_stride,
    x_stride,
    residual_stride,
    grad_x_stride,
    eps,
    weight_offset,
    BEFORE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)[None, :]
    dtype: tl.constexpr = x.dtype.element_ty
    share = tl.zeros([ROWS, BLOCK], tl.float32)
    for tile in range(TILES):
        rows = (program * TILES + tile) * ROWS + tl.arange(0, ROWS)[:, None]
        x_rows = x + rows * x_stride
        grad_rows = grad + rows * grad_stride
        grad_x_rows = grad_x + rows * grad_x_stride
        residual_rows = grad_residual
        if grad_residual is not None:
            residual_rows = grad_residual + rows * residual_stride
        if ONE_BLOCK:
            mask = (rows < N) & (cols < H)
            h, dy, g = _load_operands(x_rows, grad_rows, weight, mask, cols, H, weight_offset)
            r = reciprocal_rms(tl.sum(h * h, 1, keep_dims=True), H, eps)
            projection = r * r * (tl.sum(g * h, 1, keep_dims=True) / H)
            _store_grad_x(grad_x_rows, residual_rows, mask, cols, h, g, r, projection)
            if partial is not None:
                share += _weight_share(h, dy, r, dtype, BEFORE)
        else:
            squares = tl.zeros([ROWS, BLOCK], tl.float32)
            products = tl.zeros([ROWS, BLOCK], tl.float32)
            for start in range(0, H, BLOCK):
                at = start + cols
                mask = (rows < N) & (at < H)
                h, dy, g = _load_operands(x_rows, grad_rows, weight, mask, at, H, weight_offset)
                squares += h * h
                products += g * h
            r = reciprocal_rms(tl.sum(squares, 1, keep_dims=True), H, eps)
            projection = r * r * (tl.sum(products, 1, keep_dims=True) / H)
            for start in range(0, H, BLOCK):
                at = start + cols
                mask = (rows < N) & (at < H)
                h, dy, g = _load_operands(x_rows, grad_rows, weight, mask, at, H, weight_offset)
                _store_grad_x(grad_x_rows, residual_rows, mask, at, h, g, r, projection)
                if partial is not None:
                    slot = partial + program * H + at
                    old = tl.load(slot, (at < H) & (tile > 0), other=0.0)
                    tl.store(slot, old + _weight_share(h, dy, r, dtype, BEFORE), at < H)
            # The next row reads the slots back, possibly in other threads.
            tl.debug_barrier()
    if partial is not None and ONE_BLOCK:
        at = program * H + tl.arange(0, BLOCK)
        tl.store(partial + at, tl.sum(share, 0), tl.arange(0, BLOCK) < H)


@triton.jit
def _column_sum_kernel(partial, out, P, H, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    rows = tl.arange(0, ROWS)[:, None]
    cols = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    sums = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in range(0, P, ROWS):
        at = (start + rows).to(tl.int64) * H + cols[None, :]
        sums += tl.load(partial + at, (start + rows < P) & (cols[None, :] < H), other=0.0)
    tl.store(out + cols, tl.sum(sums, 0).to(out.dtype.element_ty), cols < H)


def config(columns: int, *, backward: bool = False) -> dict[str, int]:
    """Tile sizes and warps for rows of `columns` elements (see `row_config`)."""
    if not backward:
        return row_config(columns, FORWARD_LIMIT)
    # Every element of an unaligned row has an address of its own: half the registers are left.
    return row_config(columns, BACKWARD_LIMIT if columns % 16 == 0 else BACKWARD_LIMIT // 2)


def backward_tiles(rows: int, tile_rows: int) -> int:
    """Row tiles per program of the backward pass.

    Few programs keep the scratch small (each writes H floats), many keep the device busy: 16 tiles
    each, but between 128 and 512 programs. A function of the shape, never of the device.
    """
    tiles = triton.cdiv(rows, tile_rows)
    return triton.cdiv(tiles, max(128, min(512, tiles // 16)))


def forward(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    out: torch.Tensor,
    eps: float,
    weight_offset: float,
    rounding: str,
) -> None:
    """out = rms_norm(x) for `x`, `out` [N, H] (any row stride) and `weight` [H] or None."""
    N, H = x.shape
    if x.numel() == 0:
        return
    tile = config(H)
    with device_of(x):
        _rms_norm_forward_kernel[(triton.cdiv(N, tile["ROWS"]),)](
            x,
            weight,
            out,
            N,
            H,
            x.stride(0),
            out.stride(0),
            float(eps),
            float(weight_offset),
            BEFORE=rounding == "before_weight",
            **tile,
        )


def backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    grad_x: torch.Tensor,
    grad_weight: torch.Tensor | None,
    eps: float,
    weight_offset: float,
    rounding: str,
    grad_residual: torch.Tensor | None,
) -> None:
    """Writes `grad_x` [N, H] and, unless None, `grad_weight` [H].

    `grad`, `x` and `grad_residual` (added to `grad_x`, or None) are [N, H] with any row stride.
    """
    N, H = x.shape
    if x.numel() == 0:
        if grad_weight is not None:
            grad_weight.zero_()
        return
    tile = config(H, backward=True)
    tiles = 1 if grad_weight is None else backward_tiles(N, tile["ROWS"])
    programs = triton.cdiv(N, tiles * tile["ROWS"])
    partial = None
    if grad_weight is not None:
        partial = torch.empty(programs, H, dtype=torch.float32, device=x.device)
    with device_of(x):
        _rms_norm_backward_kernel[(programs,)](
            grad,
            x,
            weight,
            grad_residual,
            grad_x,
            partial,
            N,
            H,
            tiles,
            grad.stride(0),
            x.stride(0),
            0 if grad_residual is None else grad_residual.stride(0),
            grad_x.stride(0),
            float(eps),
            float(weight_offset),
            BEFORE=rounding == "before_weight",
            **tile,
        )
        if grad_weight is not None:
            _column_sum_kernel[(triton.cdiv(H, 32),)](
                partial, grad_weight, programs, H, ROWS=32, BLOCK=32, num_warps=4, **PINNED
            )
