"""A linear layer whose weight is kept in a few bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from leeboard.ops import QuantizedWeight, qlinear, quantize_weight


class QuantizedLinear(nn.Module):
    """`torch.nn.Linear` without bias, for inference, on a `leeboard.ops.QuantizedWeight`.

    The buffers `data` and `scales` are the weight. Changes of dtype (`.to(torch.bfloat16)`) leave
    them alone: the layer takes and returns rows of any floating-point type.

    Args:
        weight: The weight [out_features, in_features].

    Examples:
        >>> layer = QuantizedLinear.from_linear(torch.nn.Linear(256, 64, bias=False), "int8")
        >>> layer
        QuantizedLinear(in_features=256, out_features=64, format=int8)
    """

    data: Tensor
    scales: Tensor

    def __init__(self, weight: QuantizedWeight) -> None:
        super().__init__()
        self.format = weight.format
        self.out_features, self.in_features = weight.shape
        self.register_buffer("data", weight.data)
        self.register_buffer("scales", weight.scales)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        format: Literal["int8", "int4", "fp8"],  # noqa: A002
    ) -> QuantizedLinear:
        """The layer in a few bits; `linear` stays as it is.

        Raises:
            ValueError: It has a bias, the format is unknown, or the weight is not finite.
        """
        if getattr(linear, "bias", None) is not None:
            raise ValueError("linear: it has a bias, expected none")
        return cls(quantize_weight(linear.weight, format))

    @property
    def weight(self) -> QuantizedWeight:
        """The weight, for the ops; shares the buffers."""
        return QuantizedWeight(self.format, self.data, self.scales, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        """x weight^T, [..., out_features] of x's dtype, of x [..., in_features].

        Raises:
            RuntimeError: x requires grad while grad mode is on.
        """
        if x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError("QuantizedLinear is inference-only: use torch.no_grad()")
        return qlinear(x, self.weight)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # Moves, but no casts: rounded scales would mean other weights, and float8 is a float.
        def move(t: Tensor) -> Tensor:
            moved = fn(t)
            return moved if moved.dtype == t.dtype else t.to(moved.device)

        return super()._apply(move, recurse)  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        """Sizes and format."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"format={self.format}"
        )
