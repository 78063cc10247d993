"""The gated feed-forward block of Llama, in two launches, on weights in any format.

First launch: norm, gate and up projections of a block of hidden channels, and their SwiGLU, which
is written in float32 as the reference keeps it. Second launch: down projection and residual
(`qlinear.py`). Every weight is read once per block of rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from leeboard.kernels import qlinear
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
def _store_gated(gate, up, rows, features, N, F, out):
    """Writes silu(gate) * up to out [N, F] float32."""
    gated = gate / (1.0 + tl.exp(-gate)) * up
    at = out + rows[:, None].to(tl.int64) * F + features[None, :]
    tl.store(at, gated, (rows[:, None] < N) & (features[None, :] < F))


@triton.jit
def _swiglu_stream_kernel(
    x,
    gamma,
    gate,
    gate_scales,
    up,
    up_scales,
    out,
    N,
    F,
    K,
    x_stride,
    gate_stride,
    gate_scale_stride,
    up_stride,
    up_scale_stride,
    eps,
    FORMAT: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    rows = tl.arange(0, ROWS)
    row_at = tl.minimum(rows, N - 1).to(tl.int64)[:, None, None]
    features, feature_at = block_offsets(tl.program_id(0), F, FEATURES)
    feature_at = feature_at[None, :, None]
    x += row_at * x_stride
    gates = stream_weights(
        x,
        gamma,
        gate + feature_at * gate_stride,
        None if gate_scales is None else gate_scales + feature_at * gate_scale_stride,
        K,
        eps,
        FORMAT,
        ROWS,
        FEATURES,
        BLOCK,
    )
    ups = stream_weights(
        x,
        gamma,
        up + feature_at * up_stride,
        None if up_scales is None else up_scales + feature_at * up_scale_stride,
        K,
        eps,
        FORMAT,
        ROWS,
        FEATURES,
        BLOCK,
    )
    _store_gated(gates, ups, rows, features, N, F, out)


@triton.jit
def _swiglu_dot_kernel(
    x,
    gamma,
    gate,
    gate_scales,
    up,
    up_scales,
    out,
    N,
    F,
    K,
    x_stride,
    gate_stride,
    gate_scale_stride,
    up_stride,
    up_scale_stride,
    eps,
    FORMAT: tl.constexpr,
    OPERAND: tl.constexpr,
    EARLY: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row_block, feature_block = tile_index(tl.program_id(0), N, F, ROWS, FEATURES)
    rows, row_at = block_offsets(row_block, N, ROWS)
    features, feature_at = block_offsets(feature_block, F, FEATURES)
    feature_at = feature_at[None, :]
    x += row_at[:, None] * x_stride
    gates = dot_weights(
        x,
        gamma,
        gate + feature_at * gate_stride,
        None if gate_scales is None else gate_scales + feature_at * gate_scale_stride,
        K,
        eps,
        FORMAT,
        OPERAND,
        EARLY,
        ROWS,
        FEATURES,
        BLOCK,
    )
    ups = dot_weights(
        x,
        gamma,
        up + feature_at * up_stride,
        None if up_scales is None else up_scales + feature_at * up_scale_stride,
        K,
        eps,
        FORMAT,
        OPERAND,
        EARLY,
        ROWS,
        FEATURES,
        BLOCK,
    )
    _store_gated(gates, ups, rows, features, N, F, out)


config = weight_config


def forward(
    x: torch.Tensor,
    gate: Weight,
    up: Weight,
    down: Weight,
    out: torch.Tensor,
    norm_weight: torch.Tensor | None,
    eps: float,
    residual: torch.Tensor | None,
) -> None:
    """out [N, H] = residual + down (silu(gate n) * (up n)), n = rms_norm(x, norm_weight) or x.

    x is [N, K], `gate` and `up` are [I, K] of one format, `down` is [H, I]; rows of x, out and
    residual have any stride. The gated values are float32; with float16 weights and more than
    `STREAM_ROWS` rows they may not leave float16's range.
    """
    feed_forward(
        x, stored(gate), stored(up), stored(down), out, norm_weight, eps, residual, x.dtype
    )


def feed_forward(
    x: torch.Tensor,
    gate: Stored,
    up: Stored,
    down: Stored,
    out: torch.Tensor,
    norm_weight: torch.Tensor | None,
    eps: float,
    residual: torch.Tensor | None,
    storage: torch.dtype,
) -> None:
    """`forward`; `storage` is the model's dtype, where x may be wider."""
    N, K = x.shape
    if N == 0 or down.rows == 0:
        return
    tile = product_options(x, gate, storage, norm=norm_weight is not None, hip=is_hip())
    blocks = triton.cdiv(gate.rows, tile["FEATURES"])
    kernel, grid = _swiglu_stream_kernel, blocks
    if N > STREAM_ROWS:
        kernel, grid = _swiglu_dot_kernel, triton.cdiv(N, tile["ROWS"]) * blocks
    gated = torch.empty(N, gate.rows, dtype=torch.float32, device=x.device)
    with device_of(x):
        kernel[(grid,)](
            x,
            norm_weight,
            gate.data,
            gate.scales,
            up.data,
            up.scales,
            gated,
            N,
            gate.rows,
            K,
            x.stride(0),
            gate.stride,
            gate.scale_stride,
            up.stride,
            up.scale_stride,
            float(eps),
            **tile,
        )
    qlinear.project(gated, [down], [out], None, eps, residual, storage)
