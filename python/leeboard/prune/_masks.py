"""Masks of present modalities: checks, and the distinct ones of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def checked_present(present: Tensor | None, rows: int, modalities: Sequence[str]) -> Tensor:
    """bool [rows, M] on the CPU; None means that all are present.

    Raises:
        TypeError: It is no bool tensor.
        ValueError: Its shape is another one, or a sample has no modality.
    """
    count = len(modalities)
    if present is None:
        return torch.ones(rows, count, dtype=torch.bool, device="cpu")
    given: Any = present
    if not isinstance(given, Tensor) or given.dtype != torch.bool:
        got = getattr(given, "dtype", type(given).__name__)
        raise TypeError(f"present: got {got}, expected a bool tensor [{rows}, {count}]")
    if present.shape != (rows, count):
        raise ValueError(
            f"present: got shape {list(present.shape)}, expected [{rows}, {count}] for "
            f"{rows} samples and the modalities {', '.join(modalities)}"
        )
    mask = present.detach().cpu()
    if not bool(mask.any(1).all()):
        row = int((~mask.any(1)).nonzero()[0])
        raise ValueError(f"present: sample {row} has no modality, expected at least one")
    return mask


def distinct(mask: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct rows of a bool [B, M], in a fixed order, and for each sample which it has."""
    count = mask.shape[1]
    if count > 62:
        rows, which = torch.unique(mask, dim=0, return_inverse=True)
        return rows, which
    # As numbers: sorting those takes a tenth of the time.
    bits = 1 << torch.arange(count - 1, -1, -1, device=mask.device)
    codes, which = torch.unique((mask * bits).sum(1), return_inverse=True)
    return (codes[:, None] & bits) != 0, which


def row_of(present: Sequence[str], modalities: Sequence[str]) -> Tensor:
    """bool [M] on the CPU for names."""
    return torch.tensor([m in present for m in modalities], dtype=torch.bool, device="cpu")


def names_of(row: Tensor, modalities: Sequence[str]) -> tuple[str, ...]:
    """The names of the modalities in a bool [M]."""
    return tuple(m for m, there in zip(modalities, row.tolist(), strict=True) if there)
