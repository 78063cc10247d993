"""RMSNorm of one to eight captured states, concatenation and projection, without the normed copy.

out = sum_i r_i (W_i diag gamma_i) h_i, where W_i [H, Ht] are the column blocks of the weight and
r_i the reciprocal RMS of a row of h_i. Both paths read every weight once per block of rows.
Up to `STREAM_ROWS` rows: one launch, a program per block of output features streams its weights
through the plain cores for all rows at once and finds r_i on the way; nothing but `out` is written.
More rows: a first kernel writes r [n, N] (float32), then `tl.dot` tiles scale and round the
rows between load and product, so the operands are those of the reference, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from leeboard.kernels._common import (
    PINNED,
    STREAM_ROWS,
    block_offsets,
    device_of,
    dot_product,
    is_hip,
    product_config,
    reciprocal_rms,
    row_config,
    stream_product,
    tile_index,
)


@triton.jit
def _aux_norm_linear_stream_kernel(
    hiddens,
    gammas,
    weight,
    out,
    N,
    F,
    H,
    hidden_strides,
    weight_stride,
    out_stride,
    eps,
    STATES: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    rows = tl.arange(0, ROWS)
    row_at = tl.minimum(rows, N - 1).to(tl.int64)[:, None, None]
    features, feature_at = block_offsets(tl.program_id(0), F, FEATURES)
    weight += feature_at[None, :, None] * weight_stride
    total = tl.zeros([ROWS, FEATURES], tl.float32)
    for i in tl.static_range(STATES):
        h = hiddens[i] + row_at * hidden_strides[i]
        gamma = None
        if gammas is not None:
            gamma = gammas[i]
        sums, squares = stream_product(h, gamma, weight + i * H, H, ROWS, FEATURES, BLOCK)
        total += sums * reciprocal_rms(squares, H, eps)
    tl.store(
        out + rows[:, None].to(tl.int64) * out_stride + features[None, :],
        total.to(out.dtype.element_ty),
        (rows[:, None] < N) & (features[None, :] < F),
    )


@triton.jit
def _row_scale_kernel(
    hiddens,
    scales,
    N,
    H,
    hidden_strides,
    eps,
    STATES: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    cols = tl.arange(0, BLOCK)[None, :]
    for i in tl.static_range(STATES):
        if tl.program_id(1) == i:
            h = hiddens[i] + rows * hidden_strides[i]
            squares = tl.zeros([ROWS, BLOCK], tl.float32)
            for start in range(0, H, BLOCK):
                mask = (rows < N) & (start + cols < H)
                value = tl.load(h + start + cols, mask, other=0.0).to(tl.float32)
                squares += value * value
            r = reciprocal_rms(tl.sum(squares, 1, keep_dims=True), H, eps)
            tl.store(scales + i * N + rows, r, rows < N)


@triton.jit
def _aux_norm_linear_dot_kernel(
    hiddens,
    gammas,
    scales,
    weight,
    out,
    N,
    F,
    H,
    hidden_strides,
    weight_stride,
    out_stride,
    STATES: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row_block, feature_block = tile_index(tl.program_id(0), N, F, ROWS, FEATURES)
    rows, row_at = block_offsets(row_block, N, ROWS)
    features, feature_at = block_offsets(feature_block, F, FEATURES)
    weight += feature_at[None, :] * weight_stride
    sums = tl.zeros([ROWS, FEATURES], tl.float32)
    for i in tl.static_range(STATES):
        h = hiddens[i] + row_at[:, None] * hidden_strides[i]
        scale = tl.load(scales + i * N + row_at[:, None])
        gamma = None
        if gammas is not None:
            gamma = gammas[i]
        sums = dot_product(sums, h, scale, gamma, weight + i * H, H, BLOCK)
    tl.store(
        out + rows[:, None] * out_stride + features[None, :],
        sums.to(out.dtype.element_ty),
        (rows[:, None] < N) & (features[None, :] < F),
    )


config = product_config


def forward(
    hiddens: Sequence[torch.Tensor],
    gammas: Sequence[torch.Tensor] | None,
    weight: torch.Tensor,
    out: torch.Tensor,
    eps: float,
) -> None:
    """out [N, F] = [rms_norm(h_0, gamma_0); ...] weight^T.

    `hiddens` are n tensors [N, H] with any row stride, `gammas` n of [H] or None, `weight`
    [F, n * H] with any row stride.
    """
    N, H = hiddens[0].shape
    F = weight.shape[0]
    states = len(hiddens)
    if out.numel() == 0:
        return
    tile = config(N, H, out.dtype, hip=is_hip())
    pointers = tuple(hiddens)
    strides = tuple(h.stride(0) for h in hiddens)
    gains = None if gammas is None else tuple(gammas)
    with device_of(out):
        if N <= STREAM_ROWS:
            _aux_norm_linear_stream_kernel[(triton.cdiv(F, tile["FEATURES"]),)](
                pointers,
                gains,
                weight,
                out,
                N,
                F,
                H,
                strides,
                weight.stride(0),
                out.stride(0),
                float(eps),
                STATES=states,
                **tile,
            )
            return
        scales = torch.empty(states, N, dtype=torch.float32, device=out.device)
        norm = row_config(H, 4096)
        _row_scale_kernel[(triton.cdiv(N, norm["ROWS"]), states)](
            pointers,
            scales,
            N,
            H,
            strides,
            float(eps),
            STATES=states,
            ROWS=norm["ROWS"],
            BLOCK=norm["BLOCK"],
            num_warps=norm["num_warps"],
            **PINNED,
        )
        tiles = triton.cdiv(N, tile["ROWS"]) * triton.cdiv(F, tile["FEATURES"])
        _aux_norm_linear_dot_kernel[(tiles,)](
            pointers,
            gains,
            scales,
            weight,
            out,
            N,
            F,
            H,
            strides,
            weight.stride(0),
            out.stride(0),
            STATES=states,
            **tile,
        )
