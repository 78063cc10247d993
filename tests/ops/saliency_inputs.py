"""Inputs of unit_saliency for the contract tests, valid and not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

import leeboard.ops
from harness import Sample

SHAPES: dict[str, tuple[tuple[int, ...], int]] = {
    # (shape, width of a unit)
    "plain": ((3, 5, 24), 4),
    "many": ((3, 400, 512), 8),
    "one-token": ((5, 24), 3),
    "4-d": ((2, 3, 4, 24), 6),
    "5-d": ((2, 1, 3, 2, 17), 1),
    "no-samples": ((0, 4, 12), 3),
    "no-tokens": ((3, 0, 12), 3),
    "no-tokens-4-d": ((3, 2, 0, 12), 1),
    "one-channel": ((3, 7, 1), 1),
    "one-unit": ((3, 7, 100), 100),
    # A chunk of tokens of the kernels, one more, and many.
    "T128": ((2, 128, 33), 11),
    "T129": ((2, 129, 33), 1),
    "T700": ((1, 700, 40), 8),
    "C4097": ((2, 9, 4097), 1),
    "C5000-one-unit": ((2, 3, 5000), 5000),
}
SCALES = {"huge": 1e25, "large": 1e4, "small": 1e-6, "vanishing": 1e-30}


def normal(dtype: torch.dtype, *shape: int, scale: float = 1.0) -> Tensor:
    scale = min(scale, torch.finfo(dtype).max / 8)
    return (torch.randn(shape, dtype=torch.float64) * scale).to(dtype)


def call(shape: tuple[int, ...], width: int, scale: float = 1.0) -> Callable[[torch.dtype], Sample]:
    def build(dtype: torch.dtype) -> Sample:
        tensors = tuple(normal(dtype, *shape, scale=scale) for _ in range(2))
        return Sample(tensors, {"width": width})

    return build


def special(dtype: torch.dtype) -> Sample:
    """NaN, infinities of one sign and of both, each in a sample of its own."""
    a, g = normal(dtype, 6, 5, 24), normal(dtype, 6, 5, 24).abs()
    a[0, 2, 3] = float("nan")
    a[1, 0, 7], a[2, 4, 0] = float("inf"), float("-inf")
    a[3, 1, 4], a[3, 2, 4] = float("inf"), float("-inf")
    a[4, 1, 4], g[4, 1, 4] = float("inf"), 0.0
    return Sample((a, g), {"width": 4})


def samples() -> dict[str, Callable[[torch.dtype], Sample]]:
    table = {name: call(shape, width) for name, (shape, width) in SHAPES.items()}
    table |= {name: call((3, 40, 24), 4, scale) for name, scale in SCALES.items()}
    table["special"] = special
    table["default-width"] = lambda dtype: Sample(call((2, 4, 9), 1)(dtype).args)
    return table


def bad_calls() -> dict[str, tuple[Callable[[], object], type[Exception], str]]:
    """Calls that must raise, the error and its message."""
    a = torch.ones(2, 5, 8)

    def bad(
        error: type[Exception],
        match: str,
        activation: Any = a,
        grad: Any = a,
        **options: Any,
    ) -> tuple[Callable[[], object], type[Exception], str]:
        def call() -> object:
            return leeboard.ops.unit_saliency(activation, grad, **options)

        return call, error, match

    grad = a.clone().requires_grad_()
    return {
        "activation-list": bad(TypeError, r"activation: expected a torch.Tensor, got list", [1.0]),
        "activation-numpy": bad(TypeError, r"activation: .*, got ndarray", np.ones((2, 5, 8))),
        "activation-none": bad(TypeError, r"activation: .*, got NoneType", None),
        "activation-int": bad(ValueError, r"activation: dtype torch.int64 .* expected", a.long()),
        "activation-complex": bad(ValueError, r"activation: dtype torch.complex64", a.cfloat()),
        "activation-0d": bad(ValueError, r"activation: .*0-dimensional", torch.ones(())),
        "activation-1d": bad(
            ValueError, r"activation: shape \[8\] was given; expected \[B, \.\.\., C\]", a[0, 0]
        ),
        "activation-C0": bad(ValueError, r"activation: shape \[2, 5, 0\]", a[..., :0]),
        "activation-sparse": bad(ValueError, r"activation: layout torch.sparse", a.to_sparse()),
        "activation-grad": bad(
            RuntimeError, r"activation: requires grad, but unit_saliency has no gradient", grad
        ),
        "grad-none": bad(TypeError, r"grad: expected a torch.Tensor, got NoneType", a, None),
        "grad-shape": bad(
            ValueError, r"grad: shape \[2, 1, 8\] was given; expected \[2, 5, 8\]", a, a[:, :1]
        ),
        "grad-flat": bad(ValueError, r"grad: shape \[10, 8\] was given", a, a.flatten(0, 1)),
        "grad-dtype": bad(
            ValueError, r"grad: dtype torch.float16 .* expected torch.float32", a, a.half()
        ),
        "grad-device": bad(ValueError, r"grad: device meta .* expected cpu", a, a.to("meta")),
        "grad-sparse": bad(ValueError, r"grad: layout torch.sparse_coo", a, a.to_sparse()),
        "grad-grad": bad(
            RuntimeError, r"grad: requires grad, but unit_saliency has no gradient", a, grad
        ),
        "width-zero": bad(ValueError, r"width: 0 was given; expected at least 1", width=0),
        "width-negative": bad(ValueError, r"width: -4 was given; expected at least 1", width=-4),
        "width-odd": bad(
            ValueError, r"width: 3 was given; expected a divisor of 8, the last dim", width=3
        ),
        "width-wide": bad(ValueError, r"width: 16 was given; expected a divisor of 8", width=16),
        "width-float": bad(TypeError, r"width: expected an integer, got float", width=2.0),
        "width-bool": bad(TypeError, r"width: expected an integer, got bool", width=True),
        "width-none": bad(TypeError, r"width: expected an integer, got NoneType", width=None),
        "out-shape": bad(
            ValueError,
            r"out: shape \[2, 8\] was given; expected \[2, 4\]",
            width=2,
            out=torch.ones(2, 8),
        ),
        "out-dtype": bad(
            ValueError,
            r"out: dtype torch.bfloat16 was given; expected torch.float32",
            a.bfloat16(),
            a.bfloat16(),
            out=torch.ones(2, 8).bfloat16(),
        ),
        "out-pair": bad(TypeError, r"out: expected a torch.Tensor, got tuple", out=(a, a)),
    }
