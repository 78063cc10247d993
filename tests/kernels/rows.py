"""Inputs and outputs of kernel tests: rows apart from each other, outputs poisoned."""

from __future__ import annotations

import torch

ROUNDINGS = ("after_weight", "before_weight")


def rows(N: int, H: int, dtype: torch.dtype, device: str, *, gap: int = 0) -> torch.Tensor:
    """Normal values [N, H], with `gap` NaNs between the rows."""
    storage = torch.full((N, H + gap), float("nan"), dtype=dtype, device=device)
    storage[:, :H] = torch.randn(N, H, device=device)
    return storage[:, :H]


def poisoned(N: int, H: int, dtype: torch.dtype, device: str, *, gap: int = 0) -> torch.Tensor:
    """An output [N, H] whose every element, and the `gap` after each row, is NaN."""
    return torch.full((N, H + gap), float("nan"), dtype=dtype, device=device)[:, :H]


def assert_gaps_untouched(tensor: torch.Tensor) -> None:
    """Nothing was written between the rows of a tensor made with a gap."""
    N, H = tensor.shape
    width = tensor.stride(0)
    assert width > H
    storage = tensor.as_strided((N, width), (width, 1))
    assert storage[:, H:].isnan().all()
