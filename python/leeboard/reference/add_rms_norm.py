"""Residual addition followed by RMSNorm."""

from __future__ import annotations

from torch import Tensor

from leeboard.reference.rms_norm import rms_norm


def add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-6,
    *,
    weight_offset: float = 0.0,
    rounding: str = "after_weight",
) -> tuple[Tensor, Tensor]:
    """(rms_norm(s), s) with s = x + residual rounded to the storage type first."""
    new_residual = x + residual
    normed = rms_norm(new_residual, weight, eps, weight_offset=weight_offset, rounding=rounding)
    return normed, new_residual
