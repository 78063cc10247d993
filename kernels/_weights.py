"""Products with weight matrices in any format, and the tiles for them.

int8, fp8 and int4 are widened in registers and never written back; the products are summed
unscaled, per row (int8, fp8) or per group of 128 columns (int4), and then scaled. With a norm the
rows enter times its gain, and their reciprocal RMS, found on the way, scales the finished sums.
Only float16 operands, which x times a gain may leave, read their row twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl

from leeboard.kernels._common import (
    PINNED,
    STREAM_ROWS,
    product_config,
    reciprocal_rms,
    split_product,
    stream_product,
    widened,
)

if TYPE_CHECKING:
    from leeboard.reference import Weight

# Columns of int4 that share a scale, and the 32-bit words that hold them.
GROUP = 128
WORDS = 16

_OPERANDS = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


class Stored(NamedTuple):
    """A weight matrix [rows, columns] as kernels take it."""

    data: torch.Tensor
    scales: torch.Tensor | None
    stride: int
    scale_stride: int
    rows: int
    columns: int
    format: str


def _has_fp8() -> bool:
    """Whether the target converts float8 e4m3 by itself."""
    if triton.knobs.runtime.interpret:
        return False
    target = triton.runtime.driver.active.get_current_target()
    return target.backend == "cuda" and target.arch >= 89


def stored(weight: Weight) -> Stored:
    """The same of a tensor [N, K], or of a `QuantizedWeight`; rows may have any stride."""
    if isinstance(weight, torch.Tensor):
        return Stored(weight, None, weight.stride(0), 0, *weight.shape, "plain")
    data, scales, form = weight.data, weight.scales, weight.format
    if form == "int4":
        # 16-bit patterns, which are widened exactly everywhere, the interpreter included.
        data, scales = data.view(torch.int32), scales.view(torch.int16)
    elif form == "fp8" and not _has_fp8():
        data = data.view(torch.uint8)
    stride = scales.stride(0) if scales.shape[0] > 1 else 0
    return Stored(data, scales, data.stride(0), stride, *weight.shape, form)


def weight_config(
    rows: int, columns: int, dtype: torch.dtype, form: str, *, hip: bool, wide: bool = False
) -> dict[str, int]:
    """`product_config` for weights of a format.

    `dtype` is that of the operands of `tl.dot`, `wide` whether rows enter in two terms of it, or
    weights are widened to it: both take registers, hence fewer features or more warps. A byte
    holds a value where a 16-bit type holds half of one, so a vector has twice the columns and a
    streaming program half the features. A block of int4 is one of 32-bit words where weights are
    streamed, else a group.
    """
    plain = form == "plain"
    if rows <= STREAM_ROWS and not plain:
        threads = 4 * (64 if hip else 32)
        if form == "int4":
            words = triton.cdiv(columns, GROUP) * WORDS
            features = 4 if dtype.itemsize == 2 else 2
            tile = {"FEATURES": features, "BLOCK": min(4 * threads, triton.next_power_of_2(words))}
        else:
            vector = 16 if columns % 16 == 0 else 4
            block = min(vector * threads, triton.next_power_of_2(columns))
            tile = {"FEATURES": 2, "BLOCK": block}
        return {"ROWS": triton.next_power_of_2(rows), **tile, "num_warps": 4, **PINNED}
    tile = product_config(rows, columns, dtype, hip=hip)
    if rows <= STREAM_ROWS or (plain and not wide):
        return tile
    if form == "int4":
        tile |= {"ROWS": min(tile["ROWS"], 64), "BLOCK": GROUP, "num_stages": 2}
        tile["FEATURES"] = min(tile["FEATURES"], 32)
    elif tile["ROWS"] == 16 and hip and not plain:
        tile["BLOCK"] = 128
    tile["FEATURES"] = min(tile["FEATURES"], 64)
    if not plain:
        # On AMD int4 goes 16 columns at a time, which are few elements for as many threads.
        few = hip and form == "int4"
        tile["num_warps"] = (4 if tile["ROWS"] == 16 else 8) // (2 if few else 1)
    return tile


def product_options(
    x: torch.Tensor, weight: Stored, storage: torch.dtype, *, norm: bool, hip: bool
) -> dict[str, object]:
    """Tile and options of a kernel that multiplies rows x [N, K] with `weight`.

    `storage` is the dtype of the model, in which the operands of `tl.dot` are; x may be wider.
    """
    dtype = storage if weight.scales is not None else weight.data.dtype
    N, K = x.shape
    wide = norm or x.dtype != dtype or weight.scales is not None
    options = {"FORMAT": weight.format} | weight_config(
        N, K, dtype, weight.format, hip=hip, wide=wide
    )
    if N > STREAM_ROWS:
        options |= {"OPERAND": _OPERANDS[dtype], "EARLY": dtype == torch.float16}
        if weight.format == "int4" and (hip or x.dtype == torch.float32):
            # Then the operands of a product over a whole group would fill the registers.
            options["FORMAT"] = "int4 by 16"
    return options


@triton.jit
def _bfloat16_bits(bits):
    """float32 of the bits of bfloat16."""
    return (bits.to(tl.int32) << 16).to(tl.float32, bitcast=True)


@triton.jit
def stream_weights(
    x,
    gamma,
    data,
    scales,
    K,
    eps,
    FORMAT: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """n w^T [ROWS, FEATURES] on the plain cores, n = rms_norm(x, gamma) or, without a gain, x.

    `x` [ROWS, 1, 1] and `data`, `scales` [1, FEATURES, 1] point at the first column of each row.
    """
    if FORMAT == "int4":
        words_in_row = tl.cdiv(K, 128) * 16
        sums = tl.zeros([ROWS, FEATURES, BLOCK], tl.float32)
        squares = tl.zeros([ROWS, 1, BLOCK], tl.float32)
        for start in range(0, words_in_row, BLOCK):
            at = start + tl.arange(0, BLOCK)[None, None, :]
            inside = at < words_in_row
            words = tl.load(data + at, inside, other=0, eviction_policy="evict_first")
            part = tl.zeros([ROWS, FEATURES, BLOCK], tl.float32)
            for nibble in tl.static_range(8):
                cols = at // 16 * 128 + 16 * nibble + at % 16
                row = tl.load(x + cols, cols < K, other=0.0).to(tl.float32)
                if gamma is not None:
                    squares += row * row
                    row *= tl.load(gamma + cols, cols < K, other=0.0).to(tl.float32)
                part += row * (((words >> (4 * nibble)) & 15) - 8).to(tl.float32)
            sums += part * _bfloat16_bits(tl.load(scales + at // 16, inside, other=0))
        total, square = tl.sum(sums, 2), tl.sum(squares, 2)
    else:
        total, square = stream_product(x, gamma, data, K, ROWS, FEATURES, BLOCK)
        if scales is not None:
            total *= tl.load(scales).reshape(1, FEATURES)
    if gamma is not None:
        total *= reciprocal_rms(square, K, eps)
    return total


@triton.jit
def _row_scales(x, K, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Reciprocal RMS [ROWS, 1] of the rows that `x` [ROWS, 1] points at."""
    squares = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in range(0, K, BLOCK):
        cols = start + tl.arange(0, BLOCK)[None, :]
        row = tl.load(x + cols, cols < K, other=0.0).to(tl.float32)
        squares += row * row
    return reciprocal_rms(tl.sum(squares, 1, keep_dims=True), K, eps)


@triton.jit
def _entering(row, gamma, cols, K, scale, OPERAND: tl.constexpr):
    """A block of rows as it enters a product: as stored if that is exact, else float32."""
    if gamma is not None:
        row = row.to(tl.float32) * tl.load(gamma + cols, cols < K, other=0.0).to(tl.float32)
        if scale is not None:
            row *= scale
    elif row.dtype != OPERAND:
        row = row.to(tl.float32)
    return row


@triton.jit
def dot_weights(
    x,
    gamma,
    data,
    scales,
    K,
    eps,
    FORMAT: tl.constexpr,
    OPERAND: tl.constexpr,
    EARLY: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The same by `tl.dot`; `x` is [ROWS, 1], `data` and `scales` are [1, FEATURES].

    Operands are of the dtype OPERAND: weights exactly, rows in two terms unless x is of it and has
    no norm. float32 is multiplied in full precision. With EARLY the reciprocal RMS scales the rows
    and not the sums.
    """
    sums = tl.zeros([ROWS, FEATURES], tl.float32)
    squares = tl.zeros([ROWS, 1], tl.float32)
    NORM: tl.constexpr = gamma is not None
    SPLIT: tl.constexpr = (tl.float32 != OPERAND) & (NORM | (x.dtype.element_ty != OPERAND))
    scale = None
    if NORM and EARLY:
        scale = _row_scales(x, K, eps, ROWS, BLOCK)
    for start in range(0, K, BLOCK):
        inner = start + tl.arange(0, BLOCK)
        cols = inner[None, :]
        row = tl.load(x + cols, cols < K, other=0.0)
        if NORM and not EARLY:
            wide = row.to(tl.float32)
            squares += tl.sum(wide * wide, 1, keep_dims=True)
        row = _entering(row, gamma, cols, K, scale, OPERAND)
        if (FORMAT == "int4") | (FORMAT == "int4 by 16"):
            group = start // 128
            words = tl.load(data + group * 16 + tl.arange(0, 16)[:, None])
            part = tl.zeros([ROWS, FEATURES], tl.float32)
            if FORMAT == "int4 by 16":
                for nibble in range(8):
                    piece = start + 16 * nibble + tl.arange(0, 16)[None, :]
                    values = tl.load(x + piece, piece < K, other=0.0)
                    values = _entering(values, gamma, piece, K, scale, OPERAND)
                    weights = (((words >> (4 * nibble)) & 15) - 8).to(tl.float32).to(OPERAND)
                    part = split_product(part, values, weights, SPLIT)
            else:
                shifts = 4 * tl.arange(0, 8)[:, None, None]
                nibbles = (words[None, :, :] >> shifts) & 15
                weights = (nibbles.reshape(BLOCK, FEATURES) - 8).to(tl.float32).to(OPERAND)
                part = split_product(part, row, weights, SPLIT)
            sums += part * _bfloat16_bits(tl.load(scales + group))
        else:
            weights = tl.load(data + inner[:, None], inner[:, None] < K, other=0.0)
            if FORMAT != "plain":
                weights = widened(weights).to(OPERAND)
            sums = split_product(sums, row, weights, SPLIT)
    if (FORMAT == "int8") | (FORMAT == "fp8"):
        sums *= tl.load(scales)
    if NORM and not EARLY:
        sums *= reciprocal_rms(squares, K, eps)
    return sums
