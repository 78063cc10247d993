"""RMSNorm as a module: `torch.nn.RMSNorm` on the fused op."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from leeboard.ops import rms_norm
from leeboard.ops.rms_norm import Rounding


class RMSNorm(torch.nn.RMSNorm):
    """Drop-in `torch.nn.RMSNorm` that runs `leeboard.ops.rms_norm`.

    y = x / sqrt(mean(x^2) + eps) * (weight + weight_offset), over the last dimension. It is a
    subclass, so `isinstance` checks hold and the state_dict is the same: one entry, `weight`.

    Args:
        normalized_shape: Size H of the last dimension, as an integer or a sequence of one.
        eps: Added to the mean square. None takes the machine epsilon of the type in which the
            norm is computed, as torch does: that of float32, or of float64 for float64 inputs.
        elementwise_affine: Whether there is a learnable weight `[H]`.
        device: Device of the weight.
        dtype: Data type of the weight.
        weight_offset: Constant added to the weight in the wide type; 1.0 in Gemma models. The
            weight starts at `1 - weight_offset`, so that a fresh module only normalises.
        rounding: `"after_weight"` rounds once, at the end (`torch.nn.RMSNorm`, Gemma).
            `"before_weight"` rounds the normed value to the type of the input and then
            multiplies (Llama, Mistral, Qwen).

    Input and output are `[..., H]`. The output has the type of the input, with one exception that
    the Llama family makes too: with `"before_weight"` and a weight of a wider type (a float32
    weight on bfloat16 inputs) the product, and so the output, has the wider type.

    Raises:
        ValueError: If `normalized_shape` has more than one dimension or is not positive, if
            `rounding` is unknown, or if the last dimension of an input is not H.

    Examples:
        >>> import leeboard.nn
        >>> leeboard.nn.RMSNorm(4096, weight_offset=1.0)
        RMSNorm((4096,), eps=1e-06, elementwise_affine=True, weight_offset=1.0)
    """

    weight_offset: float
    rounding: Rounding

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = 1e-6,
        elementwise_affine: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        weight_offset: float = 0.0,
        rounding: Rounding = "after_weight",
    ) -> None:
        if rounding not in get_args(Rounding):
            raise ValueError(f"rounding: got {rounding!r}, expected one of {get_args(Rounding)}")
        shape = _one_dimension(normalized_shape)
        super().__init__(shape, eps, elementwise_affine, device=device, dtype=dtype)
        self.weight_offset = float(weight_offset)
        self.rounding = rounding
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets the weight to `1 - weight_offset`, so that the gain is one."""
        # The constructor of torch calls this before the offset is known.
        offset = getattr(self, "weight_offset", 0.0)
        if self.elementwise_affine:
            torch.nn.init.constant_(self.weight, 1.0 - offset)

    def forward(self, x: Tensor) -> Tensor:
        """Normalises `x` over its last dimension.

        Args:
            x: `[..., H]`, any floating-point type.

        Returns:
            `[..., H]`; for its type see the class.

        Raises:
            ValueError: If the last dimension of `x` is not H.
        """
        size = self.normalized_shape[0]
        if x.ndim == 0 or x.shape[-1] != size:
            raise ValueError(f"x: got shape {tuple(x.shape)}, expected [..., {size}]")
        if self._left_to_autocast(x):
            return super().forward(x)
        eps = self.eps
        if eps is None:
            eps = torch.finfo(torch.promote_types(x.dtype, torch.float32)).eps
        weight: Tensor = self.weight
        if self.elementwise_affine and weight.dtype != x.dtype:
            if (
                self.rounding == "before_weight"
                and torch.promote_types(x.dtype, weight.dtype) != x.dtype
            ):
                return rms_norm(x, None, eps) * (weight + self.weight_offset)
            weight = weight.to(torch.promote_types(x.dtype, torch.float32))
        return rms_norm(x, weight, eps, weight_offset=self.weight_offset, rounding=self.rounding)

    def _left_to_autocast(self, x: Tensor) -> bool:
        # Autocast on accelerators widens torch's own norm to float32; the model classes with an
        # offset or an early rounding spell their arithmetic out and are not touched by it.
        return (
            not x.is_cpu
            and self.weight_offset == 0.0
            and self.rounding == "after_weight"
            and torch.amp.is_autocast_available(x.device.type)
            and torch.is_autocast_enabled(x.device.type)
        )

    def extra_repr(self) -> str:
        """What torch shows, then the offset and the rounding where they are not the default."""
        text = super().extra_repr()
        if self.weight_offset != 0.0:
            text += f", weight_offset={self.weight_offset}"
        if self.rounding != "after_weight":
            text += f", rounding={self.rounding!r}"
        return text


def _one_dimension(normalized_shape: int | Sequence[int]) -> tuple[int]:
    expected = "expected a positive integer or a sequence of one"
    sizes = normalized_shape if isinstance(normalized_shape, Sequence) else (normalized_shape,)
    try:
        shape = tuple(operator.index(size) for size in sizes)
    except TypeError:
        raise TypeError(f"normalized_shape: got {normalized_shape!r}, {expected}") from None
    if len(shape) != 1 or shape[0] < 1:
        raise ValueError(
            f"normalized_shape: got {normalized_shape!r}, {expected} (only the last dimension "
            "is normalised)"
        )
    return shape
