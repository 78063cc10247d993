"""Argument checks shared by this package."""

from __future__ import annotations

import torch
from torch import Tensor


def positive_int(name: str, value: object) -> None:
    """Raise ValueError unless `value` is an integer (not a bool) of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: got {value!r}, expected a positive integer")


def finite_rows(fused: Tensor, last: Tensor) -> None:
    """Raise ValueError unless the rows of fused [B, T, H] up to last [B] are finite."""
    bad = ~fused.isfinite().all(dim=-1)
    bad &= torch.arange(fused.shape[1], device=fused.device) <= last[:, None]
    if bool(bad.any()):
        raise ValueError(
            "target: its hidden states are not finite, or overflow when the drafter fuses them in "
            f"{fused.dtype}; expected finite states"
        )
