"""Weights in any format as arguments of ops: checks, and the tensors that they are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from leeboard.ops import _check
from leeboard.ops._library import as_matrix
from leeboard.ops._state import Backend
from leeboard.reference import QuantizedWeight, Weight
from leeboard.reference._quantized import FORMATS, GROUP, Format

PLAIN = "plain"
_STORAGE: dict[Format, tuple[torch.dtype, torch.dtype]] = {
    "int8": (torch.int8, torch.float32),
    "int4": (torch.uint8, torch.bfloat16),
    "fp8": (torch.float8_e4m3fn, torch.float32),
}


def check_weight(
    name: str,
    weight: object,
    like: Tensor,
    rows: int | None,
    columns: int,
    expected: str = "",
) -> int:
    """A matrix [N, columns], N == rows unless that is None, on the device of `like`; returns N.

    A plain tensor has the dtype of `like`, or bfloat16 where that is float32. A QuantizedWeight goes
    with any dtype; its parts must fit its format.

    Args:
        name: The argument's name.
        weight: What was given.
        like: The activations, called x.
        rows: N, if it is known.
        columns: K.
        expected: The shape in words, for the message.
    """
    if isinstance(weight, QuantizedWeight):
        _check_parts(name, weight, like)
        shape: Sequence[int] = weight.shape
    else:
        if not isinstance(weight, Tensor):
            raise TypeError(
                f"{name}: expected a torch.Tensor or a QuantizedWeight, got {type(weight).__name__}"
            )
        also = (torch.bfloat16,) if like.dtype == torch.float32 else ()
        _check.companion(name, weight, "x", like, also)
        shape = tuple(weight.shape)
    given = rows if rows is not None else (shape[0] if len(shape) == 2 else -1)
    if len(shape) != 2 or shape[1] != columns or shape[0] != given or shape[0] == 0:
        expected = expected or f"[{'N' if rows is None else rows}, {columns}]"
        raise ValueError(f"{name}: shape {list(shape)} was given; expected {expected}")
    return shape[0]


def _check_parts(name: str, weight: QuantizedWeight, like: Tensor) -> None:
    if weight.format not in FORMATS:
        raise ValueError(
            f"{name}.format: {weight.format!r} was given; expected one of {', '.join(FORMATS)}"
        )
    _check.integer(f"{name}.columns", weight.columns, 1)
    for part, value, dtype in zip(
        ("data", "scales"), (weight.data, weight.scales), _STORAGE[weight.format], strict=True
    ):
        _check.tensor(f"{name}.{part}", value)
        if value.device != like.device:
            raise ValueError(
                f"{name}.{part}: device {value.device} was given; "
                f"expected {like.device}, the device of x"
            )
        if value.dtype != dtype:
            raise ValueError(
                f"{name}.{part}: dtype {value.dtype} was given; expected {dtype} "
                f"in the format {weight.format}"
            )
        _check.layout(f"{name}.{part}", value)
    if weight.data.dim() != 2:
        raise ValueError(
            f"{name}.data: shape {list(weight.data.shape)} was given; expected 2 dimensions"
        )
    rows, groups = weight.data.shape[0], -(-weight.columns // GROUP)
    width, scales = weight.columns, [rows]
    if weight.format == "int4":
        width, scales = groups * GROUP // 2, [rows, groups]
    meaning = f"{rows} rows of {weight.columns} columns in the format {weight.format}"
    _check.shape(f"{name}.data", weight.data, (rows, width), meaning)
    _check.shape(f"{name}.scales", weight.scales, scales, meaning)


def named_parts(name: str, weight: Weight) -> dict[str, Tensor]:
    """The tensors of a weight, by what messages call them."""
    if isinstance(weight, QuantizedWeight):
        return {f"{name}.data": weight.data, f"{name}.scales": weight.scales}
    return {name: weight}


def to_arguments(weights: Sequence[Weight]) -> tuple[list[Tensor], list[str]]:
    """Weights in the words of a registered op: their tensors one after another, and their formats."""
    tensors: list[Tensor] = []
    formats: list[str] = []
    for weight in weights:
        if isinstance(weight, QuantizedWeight):
            tensors += (weight.data, weight.scales)
            formats.append(weight.format)
        else:
            tensors.append(weight)
            formats.append(PLAIN)
    return tensors, formats


def from_arguments(
    tensors: Sequence[Tensor], formats: Sequence[str], columns: Sequence[int | None]
) -> list[Weight]:
    """Weights from the arguments of a registered op; None for columns is as many as data has."""
    rest = iter(tensors)
    weights: list[Weight] = []
    for text, width in zip(formats, columns, strict=True):
        data = next(rest)
        if text == PLAIN:
            weights.append(data)
            continue
        found = [known for known in FORMATS if known == text]
        if not found:
            raise ValueError(
                f"format: {text!r} was given; expected one of {', '.join((PLAIN, *FORMATS))}"
            )
        stored = data.shape[1] * (2 if text == "int4" else 1)
        size = stored if width is None else width
        weights.append(QuantizedWeight(found[0], data, next(rest), size))
    return weights


def to_kernel(weight: Weight) -> tuple[list[Tensor | None], str]:
    """[data, scales or None] and the format, as the compiled kernels take a weight."""
    if isinstance(weight, QuantizedWeight):
        return [weight.data, weight.scales], weight.format
    return [weight, None], PLAIN


def to_triton(weight: Weight) -> Weight:
    """The weight as the Triton kernels take it: rows with unit stride, parts without gaps."""
    if isinstance(weight, QuantizedWeight):
        data, scales = (t.as_subclass(Tensor).contiguous() for t in (weight.data, weight.scales))
        return QuantizedWeight(weight.format, data, scales, weight.columns)
    return as_matrix(weight)


def refusals(*formats: str) -> Mapping[Backend, str]:
    """Why a backend takes no weights of these formats."""
    if "fp8" in formats:
        return {"cpu": "the cpu kernels take int8 and int4 weights, not fp8"}
    return {}
