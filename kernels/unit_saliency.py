"""Saliency of units: |sum over tokens and a unit's channels of activation * gradient|.

Two launches. A program of the first owns a run of tokens of one sample and a block of channels: it
reads both tensors once and writes its sums as a row of a float32 scratch [B, runs, C]. A program of
the second adds the rows and the channels of its units. No atomics, and the cut depends on the shape
alone: equal inputs give equal bits. Sums are trees: rows of a tile side by side, then runs, then
channels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from leeboard.kernels._common import PINNED, device_of


@triton.jit
def _unit_saliency_sum_kernel(
    activation,
    grad,
    partial,
    T,
    C,
    runs,
    activation_batch,
    activation_stride,
    grad_batch,
    grad_stride,
    TILES: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    sample, run = program // runs, program % runs
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    activation += sample * activation_batch + cols
    grad += sample * grad_batch + cols
    sums = tl.zeros([ROWS, BLOCK], tl.float32)
    for tile in range(TILES):
        tokens = (run * TILES + tile) * ROWS + tl.arange(0, ROWS)[:, None]
        mask = (tokens < T) & (cols < C)
        a = tl.load(activation + tokens * activation_stride, mask, other=0.0)
        g = tl.load(grad + tokens * grad_stride, mask, other=0.0)
        sums += a.to(tl.float32) * g.to(tl.float32)
    tl.store(partial + program * C + cols, tl.sum(sums, 0, keep_dims=True), cols < C)


@triton.jit
def _unit_saliency_join_kernel(
    partial,
    out,
    runs,
    U,
    width,
    out_stride,
    UNITS: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
):
    blocks = tl.cdiv(U, UNITS)
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    units = (tl.program_id(0) % blocks).to(tl.int64) * UNITS + tl.arange(0, UNITS)
    channels = tl.arange(0, CHANNELS)
    rows = tl.arange(0, ROWS)
    partial += sample * runs * U * width + units[:, None, None] * width
    total = tl.zeros([UNITS, CHANNELS, ROWS], tl.float32)
    for start in range(0, width, CHANNELS):
        column = start + channels[None, :, None]
        for first in range(0, runs, ROWS):
            row = first + rows[None, None, :]
            mask = (units[:, None, None] < U) & (column < width) & (row < runs)
            total += tl.load(partial + row.to(tl.int64) * U * width + column, mask, other=0.0)
    sums = tl.sum(tl.sum(total, 2), 1)
    tl.store(out + sample * out_stride + units, tl.abs(sums), units < U)


def config(tokens: int, channels: int, itemsize: int) -> dict[str, int]:
    """Tile and run of the first launch.

    Eight rows of channels are in flight, 128 bits a thread and row. A run is 16 tiles or, of few
    tokens, fewer, so that they still make several programs.
    """
    block = min(128 * (16 // itemsize), triton.next_power_of_2(channels))
    tiles = triton.cdiv(max(tokens, 1), 8)
    return {
        "TILES": min(16, triton.next_power_of_2(triton.cdiv(tiles, 4))),
        "ROWS": 8,
        "BLOCK": block,
        "num_warps": 4,
        **PINNED,
    }


def join_config(runs: int, width: int) -> dict[str, int]:
    """Tile of the second launch: 512 numbers, most of them neighbours of a unit or units."""
    channels = min(32, triton.next_power_of_2(width))
    rows = min(16, triton.next_power_of_2(runs))
    return {
        "UNITS": max(1, 512 // (channels * rows)),
        "CHANNELS": channels,
        "ROWS": rows,
        "num_warps": 4,
        **PINNED,
    }


def forward(activation: torch.Tensor, grad: torch.Tensor, out: torch.Tensor, width: int) -> None:
    """out [B, C / width] float32 of `activation` and `grad` [B, T, C].

    Samples and tokens have any stride; `width` divides C.
    """
    B, T, C = activation.shape
    if out.numel() == 0:
        return
    tile = config(T, C, activation.element_size())
    runs = triton.cdiv(max(T, 1), tile["TILES"] * tile["ROWS"])
    partial = torch.empty(B, runs, C, dtype=torch.float32, device=activation.device)
    join = join_config(runs, width)
    with device_of(activation):
        _unit_saliency_sum_kernel[(B * runs, triton.cdiv(C, tile["BLOCK"]))](
            activation,
            grad,
            partial,
            T,
            C,
            runs,
            activation.stride(0),
            activation.stride(1),
            grad.stride(0),
            grad.stride(1),
            **tile,
        )
        _unit_saliency_join_kernel[(B * triton.cdiv(C // width, join["UNITS"]),)](
            partial, out, runs, C // width, width, out.stride(0), **join
        )
