"""A linear layer over a list of panels: rows of its weight that are listed, or columns.

One launch. A program per block of outputs (and of rows) reads the listed part of the weight, once:
up to `STREAM_ROWS` rows through the plain cores, else by `tl.dot`. Listed rows: an output block whose
entries are all padding writes zeros and reads nothing. Listed columns: the sum ends with the last
entry that names a panel, and has the order of the list.
"""

from __future__ import annotations

from typing import Literal

import torch
import triton
import triton.language as tl

from leeboard.kernels._common import (
    STREAM_ROWS,
    block_offsets,
    device_of,
    dot_product,
    split_product,
    stream_product,
    tile_index,
)
from leeboard.kernels._panels import VECTOR, list_end, listed, run_of, store_tile, tile_for


@triton.jit
def _with_offset(sums, bias, channels, there):
    """sums + bias where there is a channel, else zero."""
    if bias is not None:
        sums += tl.load(bias + channels, there, other=0.0).to(tl.float32)[None, :]
    return tl.where(there[None, :], sums, 0.0)


@triton.jit
def _panel_outputs_stream_kernel(
    x,
    weight,
    panels,
    bias,
    residual,
    out,
    M,
    n,
    size,
    K,
    x_stride,
    weight_stride,
    residual_stride,
    out_stride,
    PANEL: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    rows = tl.arange(0, ROWS)
    row_at = tl.minimum(rows, M - 1).to(tl.int64)[:, None, None]
    places = tl.program_id(0) * FEATURES + tl.arange(0, FEATURES)
    channels, there = listed(panels, places, n, size, PANEL, 1)
    sums = tl.zeros([ROWS, FEATURES], tl.float32)
    if tl.max(there.to(tl.int32), 0) > 0:
        feature_at = tl.where(there, channels, 0).to(tl.int64)[None, :, None]
        sums, _ = stream_product(
            x + row_at * x_stride,
            None,
            weight + feature_at * weight_stride,
            K,
            ROWS,
            FEATURES,
            BLOCK,
        )
    sums = _with_offset(sums, bias, channels, there)
    store_tile(
        sums, rows, rows < M, places, places < n * PANEL, residual, residual_stride, out, out_stride
    )


@triton.jit
def _panel_outputs_dot_kernel(
    x,
    weight,
    panels,
    bias,
    residual,
    out,
    M,
    n,
    size,
    K,
    x_stride,
    weight_stride,
    residual_stride,
    out_stride,
    PANEL: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row_block, place_block = tile_index(tl.program_id(0), M, n * PANEL, ROWS, FEATURES)
    rows, row_at = block_offsets(row_block, M, ROWS)
    places = place_block * FEATURES + tl.arange(0, FEATURES)
    channels, there = listed(panels, places, n, size, PANEL, 1)
    sums = tl.zeros([ROWS, FEATURES], tl.float32)
    if tl.max(there.to(tl.int32), 0) > 0:
        feature_at = tl.where(there, channels, 0).to(tl.int64)[None, :]
        sums = dot_product(
            sums,
            x + row_at[:, None] * x_stride,
            None,
            None,
            weight + feature_at * weight_stride,
            K,
            BLOCK,
        )
    sums = _with_offset(sums, bias, channels, there)
    store_tile(
        sums, rows, rows < M, places, places < n * PANEL, residual, residual_stride, out, out_stride
    )


@triton.jit
def _panel_inputs_stream_kernel(
    x,
    weight,
    panels,
    bias,
    residual,
    out,
    M,
    N,
    n,
    size,
    x_stride,
    weight_stride,
    residual_stride,
    out_stride,
    PANEL: tl.constexpr,
    RUN: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    rows = tl.arange(0, ROWS)
    row_at = tl.minimum(rows, M - 1).to(tl.int64)[:, None, None]
    features, feature_at = block_offsets(tl.program_id(0), N, FEATURES)
    x += row_at * x_stride
    weight += feature_at[None, :, None] * weight_stride
    sums = tl.zeros([ROWS, FEATURES, BLOCK], tl.float32)
    for start in range(0, list_end(panels, n) * PANEL, BLOCK):
        places = start + tl.arange(0, BLOCK)
        channels, there = listed(panels, places, n, size, PANEL, RUN)
        places, channels = places[None, None, :], channels[None, None, :]
        there = there[None, None, :]
        row = tl.load(x + places, there, other=0.0).to(tl.float32)
        weights = tl.load(weight + channels, there, other=0.0, eviction_policy="evict_first")
        sums += row * weights.to(tl.float32)
    total = tl.sum(sums, 2)
    total = _with_offset(total, bias, features, features < N)
    store_tile(
        total, rows, rows < M, features, features < N, residual, residual_stride, out, out_stride
    )


@triton.jit
def _panel_inputs_dot_kernel(
    x,
    weight,
    panels,
    bias,
    residual,
    out,
    M,
    N,
    n,
    size,
    x_stride,
    weight_stride,
    residual_stride,
    out_stride,
    PANEL: tl.constexpr,
    RUN: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row_block, feature_block = tile_index(tl.program_id(0), M, N, ROWS, FEATURES)
    rows, row_at = block_offsets(row_block, M, ROWS)
    features, feature_at = block_offsets(feature_block, N, FEATURES)
    x += row_at[:, None] * x_stride
    weight += feature_at[None, :] * weight_stride
    SPLIT: tl.constexpr = x.dtype.element_ty != weight.dtype.element_ty
    sums = tl.zeros([ROWS, FEATURES], tl.float32)
    for start in range(0, list_end(panels, n) * PANEL, BLOCK):
        places = start + tl.arange(0, BLOCK)
        channels, there = listed(panels, places, n, size, PANEL, RUN)
        row = tl.load(x + places[None, :], there[None, :], other=0.0)
        weights = tl.load(weight + channels[:, None], there[:, None], other=0.0)
        sums = split_product(sums, row, weights, SPLIT)
    sums = _with_offset(sums, bias, features, features < N)
    store_tile(
        sums, rows, rows < M, features, features < N, residual, residual_stride, out, out_stride
    )


def forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    panels: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    out: torch.Tensor,
    *,
    panel: int,
    over: Literal["outputs", "inputs"],
) -> None:
    """out = residual + x W^T + bias, over the panels of W [N, K] that `panels` lists.

    Listed outputs: x is [M, K], out and residual are [M, n * panel]. Listed inputs: x is
    [M, n * panel], out and residual are [M, N]. `panels` is int32 [n]; None is every panel. The rows
    of x, W, residual and out have any stride. Sums are float32; the result is rounded once.
    """
    if over == "inputs":
        join(x, weight, panels, bias, residual, out, panel=panel)
        return
    M, K = x.shape
    if out.numel() == 0:
        return
    size = weight.shape[0]
    n = triton.cdiv(size, panel) if panels is None else panels.shape[0]
    tile = tile_for(M, K, weight.dtype, aligned=True, wide=False)
    kernel, grid = _panel_outputs_stream_kernel, triton.cdiv(n * panel, tile["FEATURES"])
    if M > STREAM_ROWS:
        kernel, grid = _panel_outputs_dot_kernel, grid * triton.cdiv(M, tile["ROWS"])
    with device_of(x):
        kernel[(grid,)](
            x,
            weight,
            panels,
            bias,
            residual,
            out,
            M,
            n,
            size,
            K,
            x.stride(0),
            weight.stride(0),
            0 if residual is None else residual.stride(0),
            out.stride(0),
            PANEL=panel,
            **tile,
        )


def join(
    x: torch.Tensor,
    weight: torch.Tensor,
    panels: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    out: torch.Tensor,
    *,
    panel: int,
) -> None:
    """`forward` over listed inputs; x may be float32 where the weight is of 16 bits.

    It then enters in two terms of the weight's dtype; with float16 and more than `STREAM_ROWS` rows
    it may not leave that dtype's range.
    """
    M = x.shape[0]
    if out.numel() == 0:
        return
    N, size = weight.shape
    n = triton.cdiv(size, panel) if panels is None else panels.shape[0]
    run = VECTOR if panels is None else run_of(panel)
    wide = x.dtype != weight.dtype
    # Loads of 128 bits: the ragged end of a size that is no multiple of 16 cuts through them.
    aligned = run * weight.element_size() >= 16 and size % VECTOR == 0
    tile = tile_for(M, max(1, n * panel), weight.dtype, aligned=aligned, wide=wide)
    kernel, grid = _panel_inputs_stream_kernel, triton.cdiv(N, tile["FEATURES"])
    if M > STREAM_ROWS:
        kernel, grid = _panel_inputs_dot_kernel, grid * triton.cdiv(M, tile["ROWS"])
        if wide and tile["ROWS"] == 16 and tile["num_stages"] > 3:
            # Rows of float32 in two terms and a residual fill the registers.
            tile |= {"num_warps": 8, "num_stages": 3}
    with device_of(x):
        kernel[(grid,)](
            x,
            weight,
            panels,
            bias,
            residual,
            out,
            M,
            N,
            n,
            size,
            x.stride(0),
            weight.stride(0),
            0 if residual is None else residual.stride(0),
            out.stride(0),
            PANEL=panel,
            RUN=run,
            **tile,
        )
