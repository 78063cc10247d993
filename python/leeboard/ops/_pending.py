"""Ops that are being written: their references under their public names. To be removed."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from leeboard import reference
from leeboard.ops import linear_argmax as _linear_argmax
from leeboard.reference import QuantizedWeight, draft_chain, qlinear, swiglu_linear

__all__ = ["draft_chain", "linear_argmax", "qlinear", "swiglu_linear"]


def linear_argmax(x: Tensor, weight: Any, *, d2t: Tensor | None = None) -> tuple[Tensor, ...]:
    """`leeboard.ops.linear_argmax`, on weights in any format."""
    if isinstance(weight, QuantizedWeight):
        return reference.linear_argmax(x, weight, d2t=d2t)
    return _linear_argmax.linear_argmax(x, weight, d2t=d2t)
