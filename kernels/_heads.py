"""The best entries of a language-model head per block of its vocabulary; no logits are written.

A program per block of vocabulary entries (and of rows) computes its logits in float32 and keeps
64-bit keys, the best of each row; besides, where the log-sum-exp is wanted, the largest logit and
the sum of exponentials relative to it. A key holds the logit's bits, rearranged so that integers
compare as the floats do and NaN is the largest, above the complement of the index: the largest key
is the largest logit and, among equals, the lowest index, in any order of reduction.
"""

from __future__ import annotations

from typing import NamedTuple

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
    stream_weights,
)


@triton.jit
def encode(logits, index, mask):
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
def decode(keys):
    """(float32 logit, int64 index) of a key."""
    ordered = (keys >> 32).to(tl.int32)
    value = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    return value, 0xFFFFFFFF - (keys & 0xFFFFFFFF)


@triton.jit
def without_infinity(peak):
    """A base for exponentials: `peak`, or zero where infinity less infinity would be no number."""
    return tl.where(tl.abs(peak) == float("inf"), 0.0, peak)


@triton.jit
def _keep(
    logits,
    rows,
    entries,
    N,
    V,
    keys,
    peaks,
    totals,
    block,
    blocks,
    KEEP: tl.constexpr,
    FEATURES: tl.constexpr,
):
    """Writes what a block of logits [ROWS, FEATURES] leaves."""
    inside = entries[None, :] < V
    found = encode(logits, entries[None, :], inside)
    at = rows.to(tl.int64) * blocks + block
    if KEEP == FEATURES:
        each = tl.arange(0, FEATURES)[None, :]
        tl.store(keys + at[:, None] * KEEP + each, found, (rows < N)[:, None])
    else:
        for i in range(KEEP):
            best = tl.max(found, 1)
            tl.store(keys + at * KEEP + i, best, rows < N)
            found = tl.where(found == best[:, None], -0x7FFFFFFFFFFFFFFF, found)
    if totals is not None:
        logits = tl.where(inside, logits, -float("inf"))
        # NaN makes the sum NaN, whatever the base.
        peak = tl.max(tl.maximum(logits, -float("inf")), 1)
        total = tl.sum(tl.exp(logits - without_infinity(peak)[:, None]), 1)
        tl.store(peaks + at, peak, rows < N)
        tl.store(totals + at, total, rows < N)


@triton.jit
def _head_stream_kernel(
    x,
    gamma,
    data,
    scales,
    keys,
    peaks,
    totals,
    N,
    V,
    H,
    x_stride,
    stride,
    scale_stride,
    eps,
    KEEP: tl.constexpr,
    FORMAT: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    rows = tl.arange(0, ROWS)
    row_at = tl.minimum(rows, N - 1).to(tl.int64)[:, None, None]
    entries, entry_at = block_offsets(tl.program_id(0), V, FEATURES)
    entry_at = entry_at[None, :, None]
    logits = stream_weights(
        x + row_at * x_stride,
        gamma,
        data + entry_at * stride,
        None if scales is None else scales + entry_at * scale_stride,
        H,
        eps,
        FORMAT,
        ROWS,
        FEATURES,
        BLOCK,
    )
    block, blocks = tl.program_id(0), tl.num_programs(0)
    _keep(logits, rows, entries, N, V, keys, peaks, totals, block, blocks, KEEP, FEATURES)


@triton.jit
def _head_dot_kernel(
    x,
    gamma,
    data,
    scales,
    keys,
    peaks,
    totals,
    N,
    V,
    H,
    x_stride,
    stride,
    scale_stride,
    eps,
    KEEP: tl.constexpr,
    FORMAT: tl.constexpr,
    OPERAND: tl.constexpr,
    EARLY: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row_block, block = tile_index(tl.program_id(0), N, V, ROWS, FEATURES)
    rows, row_at = block_offsets(row_block, N, ROWS)
    entries, entry_at = block_offsets(block, V, FEATURES)
    entry_at = entry_at[None, :]
    logits = dot_weights(
        x + row_at[:, None] * x_stride,
        gamma,
        data + entry_at * stride,
        None if scales is None else scales + entry_at * scale_stride,
        H,
        eps,
        FORMAT,
        OPERAND,
        EARLY,
        ROWS,
        FEATURES,
        BLOCK,
    )
    blocks = tl.cdiv(V, FEATURES)
    _keep(logits, rows, entries, N, V, keys, peaks, totals, block, blocks, KEEP, FEATURES)


@triton.jit
def joined_sums(peaks, totals, row, blocks, BLOCK: tl.constexpr):
    """The log-sum-exp of a row from its blocks' largest logits and sums."""
    peak = tl.full([BLOCK], -float("inf"), tl.float32)
    for start in range(0, blocks, BLOCK):
        at = start + tl.arange(0, BLOCK)
        each = tl.load(peaks + row * blocks + at, at < blocks, other=-float("inf"))
        peak = tl.maximum(peak, each)
    base = without_infinity(tl.max(peak, 0))
    sums = tl.zeros([BLOCK], tl.float32)
    for start in range(0, blocks, BLOCK):
        at = start + tl.arange(0, BLOCK)
        each = tl.load(peaks + row * blocks + at, at < blocks, other=-float("inf"))
        total = tl.load(totals + row * blocks + at, at < blocks, other=0.0)
        sums += total * tl.exp(each - base)
    total = tl.sum(sums, 0)
    return tl.where(total == 0.0, -float("inf"), base + tl.log(tl.where(total == 0.0, 1.0, total)))


class Best(NamedTuple):
    """What the blocks of a vocabulary leave of N rows.

    Attributes:
        keys: int64 [N, blocks * kept].
        peaks, totals: float32 [N, blocks], or None.
        blocks: How many there are.
    """

    keys: torch.Tensor
    peaks: torch.Tensor | None
    totals: torch.Tensor | None
    blocks: int


def best_of_blocks(
    x: torch.Tensor,
    weight: Stored,
    keep: int,
    storage: torch.dtype,
    *,
    logsumexp: bool,
    norm_weight: torch.Tensor | None = None,
    eps: float = 0.0,
) -> Best:
    """The `keep` best entries of every block for rows x [N, H], N >= 1; one launch."""
    N, H = x.shape
    tile = product_options(x, weight, storage, norm=norm_weight is not None, hip=is_hip())
    if keep > 1 and tile["ROWS"] == 64:
        # Keys are twice as wide as logits, and stay in registers until the last is kept.
        tile["FEATURES"] = min(tile["FEATURES"], 32)
    blocks = triton.cdiv(weight.rows, tile["FEATURES"])
    keep = min(keep, tile["FEATURES"])
    keys = torch.empty(N, blocks * keep, dtype=torch.int64, device=x.device)
    peaks = totals = None
    if logsumexp:
        peaks, totals = torch.empty(2, N, blocks, dtype=torch.float32, device=x.device).unbind()
    kernel, grid = _head_stream_kernel, blocks
    if N > STREAM_ROWS:
        kernel, grid = _head_dot_kernel, triton.cdiv(N, tile["ROWS"]) * blocks
    with device_of(x):
        kernel[(grid,)](
            x,
            norm_weight,
            weight.data,
            weight.scales,
            keys,
            peaks,
            totals,
            N,
            weight.rows,
            H,
            x.stride(0),
            weight.stride,
            weight.scale_stride,
            float(eps),
            KEEP=keep,
            **tile,
        )
    return Best(keys, peaks, totals, blocks)
