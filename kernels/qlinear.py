"""A linear layer with a norm before and a residual after, on weights in any format.

One launch. A program per block of output features (and of rows) reads its weights once: up to
`STREAM_ROWS` rows through the plain cores, else by `tl.dot`. The row's reciprocal RMS is found on
the way, so the normed row is never written. One launch also serves several matrices that share
their input, as a drafter's queries, keys and values do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from leeboard.kernels._common import (
    STREAM_ROWS,
    block_offsets,
    device_of,
    is_hip,
    tile_index,
)
from leeboard.kernels._weights import (
    Stored,
    dot_weights,
    product_options,
    stored,
    stream_weights,
    weight_config,
)

if TYPE_CHECKING:
    from leeboard.reference import Weight


@triton.jit
def _store(sums, rows, features, N, F, residual, residual_stride, out, out_stride):
    """Adds the residual to a tile, rounds it once and writes it."""
    mask = (rows[:, None] < N) & (features[None, :] < F)
    rows = rows[:, None].to(tl.int64)
    if residual is not None:
        at = residual + rows * residual_stride + features[None, :]
        sums += tl.load(at, mask, other=0.0).to(tl.float32)
    tl.store(out + rows * out_stride + features[None, :], sums.to(out.dtype.element_ty), mask)


@triton.jit
def _stream_tile(
    tile,
    x,
    gamma,
    data,
    scales,
    residual,
    out,
    N,
    F,
    K,
    x_stride,
    stride,
    scale_stride,
    residual_stride,
    out_stride,
    eps,
    FORMAT: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One tile of the product with one matrix."""
    rows = tl.arange(0, ROWS)
    row_at = tl.minimum(rows, N - 1).to(tl.int64)[:, None, None]
    features, feature_at = block_offsets(tile, F, FEATURES)
    feature_at = feature_at[None, :, None]
    sums = stream_weights(
        x + row_at * x_stride,
        gamma,
        data + feature_at * stride,
        None if scales is None else scales + feature_at * scale_stride,
        K,
        eps,
        FORMAT,
        ROWS,
        FEATURES,
        BLOCK,
    )
    _store(sums, rows, features, N, F, residual, residual_stride, out, out_stride)


@triton.jit
def _qlinear_stream_kernel(
    x,
    gamma,
    data,
    scales,
    residual,
    out,
    N,
    features_of,
    K,
    x_stride,
    strides,
    scale_strides,
    residual_stride,
    out_strides,
    eps,
    MATRICES: tl.constexpr,
    FORMAT: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tile = tl.program_id(0)
    for i in tl.static_range(MATRICES):
        tiles = tl.cdiv(N, ROWS) * tl.cdiv(features_of[i], FEATURES)
        # With one matrix the compiler sees that every tile is its.
        if ((tile >= 0) & (tile < tiles)) | (MATRICES == 1):
            _stream_tile(
                tile,
                x,
                gamma,
                data[i],
                None if scales is None else scales[i],
                residual,
                out[i],
                N,
                features_of[i],
                K,
                x_stride,
                strides[i],
                scale_strides[i],
                residual_stride,
                out_strides[i],
                eps,
                FORMAT,
                ROWS,
                FEATURES,
                BLOCK,
            )
        tile -= tiles


@triton.jit
def _dot_tile(
    tile,
    x,
    gamma,
    data,
    scales,
    residual,
    out,
    N,
    F,
    K,
    x_stride,
    stride,
    scale_stride,
    residual_stride,
    out_stride,
    eps,
    FORMAT: tl.constexpr,
    OPERAND: tl.constexpr,
    EARLY: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One tile of the product with one matrix."""
    row_block, feature_block = tile_index(tile, N, F, ROWS, FEATURES)
    rows, row_at = block_offsets(row_block, N, ROWS)
    features, feature_at = block_offsets(feature_block, F, FEATURES)
    feature_at = feature_at[None, :]
    sums = dot_weights(
        x + row_at[:, None] * x_stride,
        gamma,
        data + feature_at * stride,
        None if scales is None else scales + feature_at * scale_stride,
        K,
        eps,
        FORMAT,
        OPERAND,
        EARLY,
        ROWS,
        FEATURES,
        BLOCK,
    )
    _store(sums, rows, features, N, F, residual, residual_stride, out, out_stride)


@triton.jit
def _qlinear_dot_kernel(
    x,
    gamma,
    data,
    scales,
    residual,
    out,
    N,
    features_of,
    K,
    x_stride,
    strides,
    scale_strides,
    residual_stride,
    out_strides,
    eps,
    MATRICES: tl.constexpr,
    FORMAT: tl.constexpr,
    OPERAND: tl.constexpr,
    EARLY: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tile = tl.program_id(0)
    for i in tl.static_range(MATRICES):
        tiles = tl.cdiv(N, ROWS) * tl.cdiv(features_of[i], FEATURES)
        # With one matrix the compiler sees that every tile is its.
        if ((tile >= 0) & (tile < tiles)) | (MATRICES == 1):
            _dot_tile(
                tile,
                x,
                gamma,
                data[i],
                None if scales is None else scales[i],
                residual,
                out[i],
                N,
                features_of[i],
                K,
                x_stride,
                strides[i],
                scale_strides[i],
                residual_stride,
                out_strides[i],
                eps,
                FORMAT,
                OPERAND,
                EARLY,
                ROWS,
                FEATURES,
                BLOCK,
            )
        tile -= tiles


config = weight_config


def forward(
    x: torch.Tensor,
    weight: Weight,
    out: torch.Tensor,
    norm_weight: torch.Tensor | None,
    eps: float,
    residual: torch.Tensor | None,
) -> None:
    """out [N, F] = residual + n weight^T, n = rms_norm(x [N, K], norm_weight) or x.

    `weight` is a matrix [F, K] or a `QuantizedWeight`; `x`, `out` and `residual` have any row
    stride. Sums are float32; the result is rounded once.
    """
    project(x, [stored(weight)], [out], norm_weight, eps, residual, x.dtype)


def project(
    x: torch.Tensor,
    weights: Sequence[Stored],
    outs: Sequence[torch.Tensor],
    norm_weight: torch.Tensor | None,
    eps: float,
    residual: torch.Tensor | None,
    storage: torch.dtype,
) -> None:
    """`forward` for several matrices in one launch.

    They share format and dtype; `storage` is the model's dtype, where x may be wider.
    """
    N, K = x.shape
    first = weights[0]
    if N == 0 or all(w.rows == 0 for w in weights):
        return
    tile = product_options(x, first, storage, norm=norm_weight is not None, hip=is_hip())
    if x.dtype != storage and first.format == "plain" and tile["ROWS"] == 16 and not is_hip():
        # Rows of float32 enter in two terms, which together with a residual fill the registers.
        tile |= {"num_warps": 8, "num_stages": 3}
    kernel = _qlinear_stream_kernel if N <= STREAM_ROWS else _qlinear_dot_kernel
    blocks = sum(triton.cdiv(w.rows, tile["FEATURES"]) for w in weights)
    with device_of(x):
        kernel[(triton.cdiv(N, tile["ROWS"]) * blocks,)](
            x,
            norm_weight,
            tuple(w.data for w in weights),
            None if first.scales is None else tuple(w.scales for w in weights),
            residual,
            tuple(outs),
            N,
            tuple(w.rows for w in weights),
            K,
            x.stride(0),
            tuple(w.stride for w in weights),
            tuple(w.scale_stride for w in weights),
            0 if residual is None else residual.stride(0),
            tuple(out.stride(0) for out in outs),
            float(eps),
            MATRICES=len(weights),
            **tile,
        )
