"""The largest logit of a language-model head and its index; the logits are never written.

First kernel: a program per block of vocabulary entries (and of rows) computes its logits in
float32 and keeps one 64-bit key a row; `keys` [N, blocks] is all that reaches memory. Second
kernel: a program per row takes the largest key. Every weight is read once per block of rows.
A key holds the logit's bits, rearranged so that integers compare as the floats do and NaN is the
largest, above the complement of the index: the largest key is the largest logit and, among
equals, the lowest index, in any order of reduction.
"""

from __future__ import annotations

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
    stream_product,
    tile_index,
)

# Keys that the second kernel reads at once: 16 for each of its threads.
REDUCE_BLOCK = 4096


@triton.jit
def _encode(logits, index, mask):
    """The keys of float32 `logits`; entries outside `mask` get the smallest key."""
    # The two zeros are equal and must have equal keys.
    bits = tl.where(logits == 0.0, 0.0, logits).to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    # NaN is what no comparison holds for; its bits may have either sign.
    number = (logits < 0.0) | (logits >= 0.0)
    ordered = tl.where(number, ordered, 0x7FFFFFFF)
    keys = (ordered.to(tl.int64) << 32) | (0xFFFFFFFF - index.to(tl.int64))
    return tl.where(mask, keys, -0x7FFFFFFFFFFFFFFF)


@triton.jit
def _decode(keys):
    """(float32 logit, int64 index) of a key."""
    ordered = (keys >> 32).to(tl.int32)
    value = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    return value, 0xFFFFFFFF - (keys & 0xFFFFFFFF)


@triton.jit
def _linear_argmax_stream_kernel(
    x,
    weight,
    keys,
    N,
    V,
    H,
    x_stride,
    weight_stride,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    rows = tl.arange(0, ROWS)
    row_at = tl.minimum(rows, N - 1).to(tl.int64)[:, None, None]
    entries, entry_at = block_offsets(tl.program_id(0), V, FEATURES)
    w = weight + entry_at[None, :, None] * weight_stride
    logits, _ = stream_product(x + row_at * x_stride, None, w, H, ROWS, FEATURES, BLOCK)
    best = tl.max(_encode(logits, entries[None, :], entries[None, :] < V), 1)
    tl.store(keys + rows * tl.num_programs(0) + tl.program_id(0), best, rows < N)


@triton.jit
def _linear_argmax_dot_kernel(
    x,
    weight,
    keys,
    N,
    V,
    H,
    x_stride,
    weight_stride,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row_block, entry_block = tile_index(tl.program_id(0), N, V, ROWS, FEATURES)
    rows, row_at = block_offsets(row_block, N, ROWS)
    entries, entry_at = block_offsets(entry_block, V, FEATURES)
    h = x + row_at[:, None] * x_stride
    w = weight + entry_at[None, :] * weight_stride
    logits = dot_product(tl.zeros([ROWS, FEATURES], tl.float32), h, None, None, w, H, BLOCK)
    best = tl.max(_encode(logits, entries[None, :], entries[None, :] < V), 1)
    tl.store(keys + rows * tl.cdiv(V, FEATURES) + entry_block, best, rows < N)


@triton.jit
def _linear_argmax_reduce_kernel(keys, d2t, index, value, BLOCKS, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    best = tl.full([BLOCK], -0x7FFFFFFFFFFFFFFF, tl.int64)
    for start in range(0, BLOCKS, BLOCK):
        at = start + cols
        key = tl.load(keys + row * BLOCKS + at, at < BLOCKS, other=-0x7FFFFFFFFFFFFFFF)
        best = tl.maximum(best, key)
    top, entry = _decode(tl.max(best, 0))
    if d2t is not None:
        entry += tl.load(d2t + entry)
    tl.store(index + row, entry)
    tl.store(value + row, top)


config = product_config


def forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    index: torch.Tensor,
    value: torch.Tensor,
    d2t: torch.Tensor | None,
) -> None:
    """index [N] int64 and value [N] float32 of the largest of x [N, H] . weight [V, H]^T.

    Ties go to the lowest index; NaN counts as the largest value, as in `torch.max`. With `d2t`
    [V] int64 the index becomes v + d2t[v]. `x` and `weight` may have any row stride; V < 2^32.
    """
    N, H = x.shape
    V = weight.shape[0]
    if N == 0:
        return
    tile = config(N, H, x.dtype, hip=is_hip())
    blocks = triton.cdiv(V, tile["FEATURES"])
    keys = torch.empty(N, blocks, dtype=torch.int64, device=x.device)
    kernel, grid = _linear_argmax_stream_kernel, blocks
    if N > STREAM_ROWS:
        kernel, grid = _linear_argmax_dot_kernel, triton.cdiv(N, tile["ROWS"]) * blocks
    with device_of(x):
        kernel[(grid,)](x, weight, keys, N, V, H, x.stride(0), weight.stride(0), **tile)
        _linear_argmax_reduce_kernel[(N,)](
            keys,
            d2t,
            index,
            value,
            blocks,
            BLOCK=min(REDUCE_BLOCK, triton.next_power_of_2(blocks)),
            num_warps=8,
            **PINNED,
        )
