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

# Up to this many rows a product streams its weights through the plain cores: every further row
# costs one multiply-add per weight, which stops hiding behind memory at about this count.
STREAM_ROWS = 4

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


def stream_config(rows: int) -> dict[str, int]:
    """Tile of a product with at most `STREAM_ROWS` rows: 16 to 32 partial sums a thread.

    8 features by 512 columns are 8 KB of 16-bit weights in flight per program; a model's usual
    4096 features make 512 programs, several for every multiprocessor.
    """
    padded = triton.next_power_of_2(rows)
    return {
        "ROWS": padded,
        "FEATURES": 8 if padded < 4 else 4,
        "BLOCK": 512,
        "num_warps": 4 if padded == 1 else 8,
        **PINNED,
    }


def dot_config(rows: int, dtype: torch.dtype, hip: bool) -> dict[str, int]:
    """Tile of a product that uses `tl.dot`.

    Few rows are limited by the weights' bandwidth: narrow feature blocks, deep pipelines. Many
    rows are limited by arithmetic: 128 x 128, the Hopper and MI300 warp-group tile. float32 runs
    in full precision without tensor cores on NVIDIA and keeps smaller tiles. On AMD one stage
    less, because a stage there is a buffer beyond the one in registers and 64 KB hold them all.
    """
    if dtype == torch.float32:
        tile = (16, 32, 64, 4, 3) if rows <= 16 else (64, 64, 32, 8, 3)
    elif rows <= 16:
        tile = (16, 32, 128, 4, 4)
    elif rows <= 64:
        tile = (64, 64, 64, 4, 4)
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


@triton.jit
def apply_weight(y, weight, mask, offsets, weight_offset, dtype: tl.constexpr, BEFORE: tl.constexpr):
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
def stream_product(
    h,
    gamma,
    w,
    row_mask,
    feature_mask,
    K,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """(h * gamma) w^T [ROWS, FEATURES] and the rows' sums of squares [ROWS, 1].

    `h` [ROWS, 1, 1] and `w` [1, FEATURES, 1] point at the first column of each row. Partial sums
    stay with their thread until the end: no reduction inside the loop.
    """
    sums = tl.zeros([ROWS, FEATURES, BLOCK], tl.float32)
    squares = tl.zeros([ROWS, 1, BLOCK], tl.float32)
    for start in range(0, K, BLOCK):
        cols = start + tl.arange(0, BLOCK)[None, None, :]
        row = tl.load(h + cols, row_mask & (cols < K), other=0.0).to(tl.float32)
        weights = tl.load(
            w + cols, feature_mask & (cols < K), other=0.0, eviction_policy="evict_first"
        )
        squares += row * row
        if gamma is not None:
            row *= tl.load(gamma + cols, cols < K, other=0.0).to(tl.float32)
        sums += row * weights.to(tl.float32)
    return tl.sum(sums, 2), tl.sum(squares, 2)


@triton.jit
def dot_product(sums, h, scale, gamma, w, row_mask, feature_mask, K, BLOCK: tl.constexpr):
    """sums + (h * scale * gamma) w^T, with the scaled rows rounded to the storage type first.

    `h` [ROWS, 1] and `w` [1, FEATURES] point at the first column of each row; `scale` is
    [ROWS, 1] float32 or None. float32 is multiplied in full precision, never in tf32.
    """
    for start in range(0, K, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        row = tl.load(h + cols[None, :], row_mask & (cols[None, :] < K), other=0.0)
        weights = tl.load(w + cols[:, None], feature_mask & (cols[:, None] < K), other=0.0)
        if scale is not None:
            normed = row.to(tl.float32) * scale
            if gamma is not None:
                gain = tl.load(gamma + cols[None, :], cols[None, :] < K, other=0.0)
                normed *= gain.to(tl.float32)
            row = normed.to(weights.dtype)
        sums = tl.dot(row, weights, sums, input_precision="ieee")
    return sums


@triton.jit
def tile_index(N, F, ROWS: tl.constexpr, FEATURES: tl.constexpr):
    """(row block, feature block) of this program.

    Neighbours share a weight block, in groups of eight row blocks, so weights and rows are both
    found in the L2 cache again.
    """
    return tl.swizzle2d(
        tl.program_id(0) // tl.cdiv(F, FEATURES),
        tl.program_id(0) % tl.cdiv(F, FEATURES),
        tl.cdiv(N, ROWS),
        tl.cdiv(F, FEATURES),
        8,
    )
