"""Checks of panel_ffn's arguments."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from leeboard.ops import _check
from leeboard.ops._panels import check_panels
from leeboard.reference import FeedForwardWeights

# What the compiled kernel calls them.
ACTIVATIONS = {"gelu": 0, "gelu_tanh": 1, "relu": 2, "silu": 3, "identity": 4}
NORMS = {None: 0, "layer_norm": 1, "rms_norm": 2}


def code(codes: dict[Any, int], name: object) -> int | None:
    return codes.get(name) if name is None or type(name) is str else None


def check_arguments(
    x: Tensor,
    weights: FeedForwardWeights,
    panels: Tensor | None,
    bias: Tensor | None,
    gates: Tensor | None,
    residual: Tensor | None,
) -> tuple[tuple[int, ...], float]:
    """Raises for what does not fit; returns the shape of the result, and eps."""
    width = _check.rows("x", x)
    if not isinstance(weights, FeedForwardWeights):
        raise TypeError(f"weights: expected a FeedForwardWeights, got {type(weights).__name__}")
    _check.companion("weights.up", weights.up, "x", x)
    if weights.up.dim() != 2 or weights.up.shape[1] != width or weights.up.shape[0] == 0:
        raise ValueError(
            f"weights.up: shape {list(weights.up.shape)} was given; expected [F, {width}], F >= 1"
        )
    hidden = weights.up.shape[0]
    _check.companion("weights.down", weights.down, "x", x)
    if weights.down.dim() != 2 or weights.down.shape[1] != hidden or weights.down.shape[0] == 0:
        raise ValueError(
            f"weights.down: shape {list(weights.down.shape)} was given; "
            f"expected [d_out, {hidden}], d_out >= 1"
        )
    shape = (*x.shape[:-1], weights.down.shape[0])
    sizes = {
        "gate": (hidden, width),
        "up_bias": (hidden,),
        "gate_bias": (hidden,),
        "down_bias": shape[-1:],
        "norm_weight": (width,),
        "norm_bias": (width,),
    }
    for name, size in sizes.items():
        _check_optional(f"weights.{name}", getattr(weights, name), x, size)
    if weights.gate is None and weights.gate_bias is not None:
        raise ValueError("weights.gate_bias: given without weights.gate; expected None")
    eps = _check_options(weights)
    check_panels(panels, weights.panel, x, hidden)
    _check_optional("bias", bias, x, shape[-1:])
    if gates is not None:
        _check.companion("gates", gates, "x", x)
        if gates.dim() == 2 and x.dim() >= 2:
            _check.shape("gates", gates, (x.shape[0], hidden), "samples of x and channels")
        else:
            _check.shape("gates", gates, (hidden,), "the channels")
    _check_optional("residual", residual, x, shape)
    return shape, eps


def _check_optional(name: str, value: Tensor | None, x: Tensor, size: tuple[int, ...]) -> None:
    if value is not None:
        _check.companion(name, value, "x", x)
        _check.shape(name, value, size, "to go with x and the weights")


def _check_options(weights: FeedForwardWeights) -> float:
    if code(ACTIVATIONS, weights.activation) is None:
        raise ValueError(
            f"weights.activation: {weights.activation!r} was given; "
            f"expected one of {', '.join(ACTIVATIONS)}"
        )
    if code(NORMS, weights.norm) is None:
        raise ValueError(
            f"weights.norm: {weights.norm!r} was given; expected 'layer_norm', 'rms_norm' or None"
        )
    if weights.norm is None and weights.norm_weight is not None:
        raise ValueError("weights.norm_weight: given without weights.norm; expected None")
    if weights.norm != "layer_norm" and weights.norm_bias is not None:
        raise ValueError("weights.norm_bias: given without a layer norm; expected None")
    return _check.epsilon(weights.eps)
