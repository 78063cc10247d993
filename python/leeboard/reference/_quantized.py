"""Weight matrices in few bits: the formats, and what each stored value means."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Format = Literal["int8", "int4", "fp8"]
FORMATS: tuple[Format, ...] = get_args(Format)

# Columns of int4 that share a scale. A group is 16 little-endian words of 32 bits; nibble s of word
# l is column 16 s + l, so that a vector of words yields 16 neighbouring columns at each shift.
GROUP = 128
_WORDS = 16
_NIBBLES = 8

_FP8 = torch.float8_e4m3fn


@dataclass(frozen=True)
class QuantizedWeight:
    """A matrix [N, K] in a few bits a value.

    Attributes:
        format: "int8" (symmetric, one float32 scale per row), "fp8" (float8 e4m3, one float32 scale
            per row) or "int4" (value (nibble - 8) * scale, one bfloat16 scale per row and 128
            columns).
        data: int8 [N, K], float8_e4m3fn [N, K], or uint8 [N, 64 ceil(K / 128)].
        scales: float32 [N], or bfloat16 [N, ceil(K / 128)] for int4.
        columns: K.
    """

    format: Format
    data: Tensor
    scales: Tensor
    columns: int

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K) of the matrix that it stands for."""
        return self.data.shape[0], self.columns

    @property
    def device(self) -> torch.device:
        """Where the stored values are."""
        return self.data.device

    @property
    def nbytes(self) -> int:
        """Bytes of the values and their scales."""
        return self.data.nbytes + self.scales.nbytes

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix [N, K] that is multiplied with, in `dtype` (exact in float32)."""
        scales = self.scales.to(dtype)
        if self.format != "int4":
            return self.data.to(dtype) * scales[:, None]
        n = self.data.shape[0]
        pieces = self.data.view(n, -1, _WORDS, _NIBBLES // 2)
        nibbles = torch.stack((pieces & 0xF, pieces >> 4), dim=-1).view(n, -1, _WORDS, _NIBBLES)
        values = nibbles.transpose(-1, -2).reshape(n, -1, GROUP).to(dtype) - 8.0
        return (values * scales[:, :, None]).reshape(n, -1)[:, : self.columns]


Weight: TypeAlias = Tensor | QuantizedWeight


def _rebuilt(parts: Iterable[Any], context: tuple[Format, int]) -> QuantizedWeight:
    data, scales = parts
    return QuantizedWeight(context[0], data, scales, context[1])


pytree.register_pytree_node(
    QuantizedWeight,
    lambda w: ([w.data, w.scales], (w.format, w.columns)),
    _rebuilt,
    serialized_type_name="leeboard.QuantizedWeight",
)


def as_matrix(weight: Weight, dtype: torch.dtype) -> Tensor:
    """The matrix [N, K] that a weight stands for."""
    return weight.dequantize(dtype) if isinstance(weight, QuantizedWeight) else weight.to(dtype)


def quantize_weight(weight: Tensor, format: Format) -> QuantizedWeight:  # noqa: A002
    """Rounds a matrix to the nearest values of a format.

    Scales are the smallest that clip nothing: max |w| / 127 per row (int8), max |w| / 448 per row
    (fp8), max |w| / 7 per group (int4; rounded to bfloat16 upwards, so that nothing is clipped).

    Args:
        weight: [N, K] floating-point, finite, N, K >= 1.
        format: "int8", "int4" or "fp8".

    Raises:
        ValueError: For another format or shape, or a value that is not finite.
    """
    if format not in FORMATS:
        raise ValueError(f"format: {format!r} was given; expected one of {', '.join(FORMATS)}")
    if weight.dim() != 2 or 0 in weight.shape or not weight.is_floating_point():
        raise ValueError(
            f"weight: {weight.dtype} {list(weight.shape)} was given; expected a floating-point "
            "matrix [N, K] with N, K >= 1"
        )
    w = weight.detach().float()
    if not bool(w.isfinite().all()):
        raise ValueError("weight: it holds NaN or infinity; expected finite values")
    n, columns = w.shape
    if format == "int4":
        groups = -(-columns // GROUP)
        w = torch.nn.functional.pad(w, (0, groups * GROUP - columns)).view(n, groups, GROUP)
        scales = _bfloat16_above(w.abs().amax(-1) / 7.0)
        divisor = torch.where(scales == 0, 1.0, scales.float())
        levels = (w / divisor[:, :, None]).round().clamp(-8, 7).to(torch.int64) + 8
        levels = levels.view(n, groups, _NIBBLES, _WORDS).transpose(-1, -2)
        data = levels[..., 0::2] | levels[..., 1::2] << 4
        return QuantizedWeight("int4", data.to(torch.uint8).reshape(n, -1), scales, columns)
    peak = w.abs().amax(-1)
    largest = 127.0 if format == "int8" else torch.finfo(_FP8).max
    scales = peak / largest
    scaled = w / torch.where(scales == 0, 1.0, scales)[:, None]
    scaled = scaled.clamp(-largest, largest)
    data = scaled.round().to(torch.int8) if format == "int8" else scaled.to(_FP8)
    return QuantizedWeight(format, data, scales, columns)


def _bfloat16_above(x: Tensor) -> Tensor:
    """The smallest bfloat16 that is not below x >= 0."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0xFFFF) >> 16 << 16).view(torch.float32).to(torch.bfloat16)
