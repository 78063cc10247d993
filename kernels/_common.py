"""What the kernels share: launch configuration, RMSNorm row pieces, matrix-product inner loops.

Row offsets are 64-bit everywhere (`tl.program_id` is widened before it meets a stride), arithmetic
is float32 whatever the storage type, and every tile is masked, so any size is legal. An absent
weight is passed as `None`, which Triton turns into a compile-time constant.
"""

from __future__ import annotations

import contextlib

import torch
import triton
import triton.language as tl

# Up to this many rows a product streams its weights through the plain cores. With more, either the
# sums fill the registers or the rows become a large share of the loads, and `tl.dot` needs less of
# both. The bound follows from counting, not from a measurement.
STREAM_ROWS = 2

# Contraction of a*b+c is pinned: its default changes between Triton releases.
PINNED = {"enable_fp_fusion": True}


def is_hip() -> bool:
    """Whether kernels compile for AMD, whose shared memory is 64 KB."""
    return torch.version.hip is not None


def device_of(tensor: torch.Tensor) -> contextlib.AbstractContextManager[object]:
    """Makes the tensor's device current, which is where Triton launches."""
    return torch.cuda.device_of(tensor) if tensor.is_cuda else contextlib.nullcontext()


def row_config(columns: int, limit: int) -> dict[str, int]:
    """Tile of a kernel that works on whole rows.

    A row of up to `limit` columns is one block that is read once. Wider rows are walked in blocks
    of 4096. Short rows share a program until it holds 1024 elements. 16 elements a thread: two
    128-bit loads of a 16-bit type, and room for several operands in registers.
    """
    block = triton.next_power_of_2(columns) if columns <= limit else 4096
    rows = max(1, min(16, 1024 // block))
    warps = max(1, min(16, rows * block // 512))
    return {
        "ROWS": rows,
        "BLOCK": block,
        "ONE_BLOCK": columns <= limit,
        "num_warps": warps,
        **PINNED,
    }


def stream_config(rows: int, columns: int, dtype: torch.dtype, hip: bool) -> dict[str, int]:
    """Tile of a product with at most `STREAM_ROWS` rows.

    A block of columns is one 128-bit vector for each thread, so rows, weights and sums lie in the
    same threads and nothing moves between them in the loop. Four features: 8 KB of weights in
    flight per program, and for the usual 4096 features 1024 programs, several for every
    multiprocessor. Rows that are not a multiple of 16 long cannot be loaded as vectors and need
    an address for every element: half as many.
    """
    threads = 4 * (64 if hip else 32)
    vector = (16 if columns % 16 == 0 else 8) // dtype.itemsize
    return {
        "ROWS": triton.next_power_of_2(rows),
        "FEATURES": 4,
        "BLOCK": min(threads * vector, triton.next_power_of_2(columns)),
        "num_warps": 4,
        **PINNED,
    }


def dot_config(rows: int, columns: int, dtype: torch.dtype, hip: bool) -> dict[str, int]:
    """Tile of a product that uses `tl.dot`.

    Few rows are limited by the weights' bandwidth: narrow feature blocks, deep pipelines. Many
    rows are limited by arithmetic: 128 x 128, the Hopper and MI300 warp-group tile. float32 runs
    in full precision without tensor cores on NVIDIA and keeps smaller tiles; so do rows that are
    not a multiple of 16 long, whose every element needs an address of its own. On AMD one stage
    less, because a stage there is a buffer beyond the one in registers and 64 KB hold them all.
    """
    aligned = columns % 16 == 0
    if rows <= 16:
        deep = aligned and dtype.itemsize == 2 and not hip
        tile = (16, 32, 128, 4, 4) if deep else (16, 32, 64, 4, 3)
    elif dtype.itemsize > 2:
        tile = (64, 64, 32, 8, 3)
    elif rows <= 64 or not aligned:
        tile = (64, 64, 64 if aligned else 32, 4, 4)
    else:
        tile = (128, 128, 64, 8, 3)
    block_rows, features, block, warps, stages = tile
    return {
        "ROWS": block_rows,
        "FEATURES": features,
        "BLOCK": block,
        "num_warps": warps,
        "num_stages": 2 if hip else stages,
        **PINNED,
    }


def product_config(rows: int, columns: int, dtype: torch.dtype, *, hip: bool) -> dict[str, int]:
    """`stream_config` up to `STREAM_ROWS` rows, else `dot_config`."""
    choose = stream_config if rows <= STREAM_ROWS else dot_config
    return choose(rows, columns, dtype, hip)


@triton.jit
def apply_weight(
    y, weight, mask, offsets, weight_offset, dtype: tl.constexpr, BEFORE: tl.constexpr
):
    """y * (weight + weight_offset) in `dtype`; BEFORE rounds y and the gain before the product."""
    if weight is not None:
        gain = tl.load(weight + offsets, mask, other=0.0).to(tl.float32)
        gain += tl.cast(weight_offset, tl.float32)
        if BEFORE:
            # Two 11-bit significands multiply exactly in float32, so rounding once at the end
            # gives the product of the storage type.
            y = y.to(dtype).to(tl.float32)
            gain = gain.to(dtype).to(tl.float32)
        y = y * gain
    return y.to(dtype)


@triton.jit
def reciprocal_rms(squares, H, eps):
    """1 / sqrt(squares / H + eps)."""
    return tl.rsqrt(squares / H + tl.cast(eps, tl.float32))


@triton.jit
def widened(values):
    """float32 of stored values; unsigned bytes are the bits of float8 e4m3, none of them NaN."""
    if values.dtype == tl.uint8:
        bits = values.to(tl.int32)
        # The exponent's bias is 7 there and 127 here.
        size = ((bits & 0x7F) << 20).to(
            tl.float32, bitcast=True
        ) * 1329227995784915872903807060280344576.0
        return tl.where(bits > 127, -size, size)
    return values.to(tl.float32)


@triton.jit
def split_product(sums, a, b, SPLIT: tl.constexpr):
    """sums + a b for float32 a; with SPLIT, a in two terms of the 16-bit type of b."""
    if SPLIT:
        high = a.to(b.dtype)
        low = (a - high.to(tl.float32)).to(b.dtype)
        sums = tl.dot(high, b, tl.dot(low, b, sums))
    else:
        sums = tl.dot(a, b, sums, input_precision="ieee")
    return sums


@triton.jit
def stream_product(h, gamma, w, K, ROWS: tl.constexpr, FEATURES: tl.constexpr, BLOCK: tl.constexpr):
    """(h * gamma) w^T [ROWS, FEATURES] and the rows' sums of squares [ROWS, 1].

    `h` [ROWS, 1, 1] and `w` [1, FEATURES, 1] point at the first column of each row. Partial sums
    stay with their thread until the end: no reduction inside the loop.
    """
    sums = tl.zeros([ROWS, FEATURES, BLOCK], tl.float32)
    squares = tl.zeros([ROWS, 1, BLOCK], tl.float32)
    for start in range(0, K, BLOCK):
        cols = start + tl.arange(0, BLOCK)[None, None, :]
        row = tl.load(h + cols, cols < K, other=0.0).to(tl.float32)
        weights = tl.load(w + cols, cols < K, other=0.0, eviction_policy="evict_first")
        squares += row * row
        if gamma is not None:
            row *= tl.load(gamma + cols, cols < K, other=0.0).to(tl.float32)
        sums += row * widened(weights)
    return tl.sum(sums, 2), tl.sum(squares, 2)


@triton.jit
def dot_product(sums, h, scale, gamma, w, K, BLOCK: tl.constexpr):
    """sums + (h * scale * gamma) w^T, with the scaled rows rounded to the storage type first.

    `h` [ROWS, 1] and `w` [1, FEATURES] point at the first column of each row; `scale` is
    [ROWS, 1] float32 or None. float32 is multiplied in full precision, never in tf32.
    """
    for start in range(0, K, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        row = tl.load(h + cols[None, :], cols[None, :] < K, other=0.0)
        weights = tl.load(w + cols[:, None], cols[:, None] < K, other=0.0)
        if scale is not None:
            normed = row.to(tl.float32) * scale
            if gamma is not None:
                gain = tl.load(gamma + cols[None, :], cols[None, :] < K, other=0.0)
                normed *= gain.to(tl.float32)
            row = normed.to(weights.dtype)
        sums = tl.dot(row, weights, sums, input_precision="ieee")
    return sums


@triton.jit
def block_offsets(block, size, SIZE: tl.constexpr):
    """(64-bit indices of a block, the same clamped to the last one).

    The products load clamped indices instead of masking both sides of a tile: what the repeated
    last row yields is never stored.
    """
    index = block.to(tl.int64) * SIZE + tl.arange(0, SIZE)
    return index, tl.minimum(index, size - 1)


@triton.jit
def tile_index(tile, N, F, ROWS: tl.constexpr, FEATURES: tl.constexpr):
    """(row block, feature block) of the tile with a number.

    Neighbours share a weight block, in groups of eight row blocks, so weights and rows are both
    found in the L2 cache again.
    """
    return tl.swizzle2d(
        tile // tl.cdiv(F, FEATURES),
        tile % tl.cdiv(F, FEATURES),
        tl.cdiv(N, ROWS),
        tl.cdiv(F, FEATURES),
        8,
    )
