"""Drafts, trees and outputs for the tests of the verification kernels."""

from __future__ import annotations

import torch


def integers(B: int, N: int, stop: int, device: str) -> torch.Tensor:
    return torch.randint(0, stop, (B, N), device=device)


def apart(t: torch.Tensor) -> torch.Tensor:
    """The same rows with three large numbers after each."""
    wide = torch.full((t.shape[0], t.shape[1] + 3), 1 << 40, dtype=t.dtype, device=t.device)
    wide[:, : t.shape[1]] = t
    return wide[:, : t.shape[1]]


def trees(B: int, N: int, kind: str, device: str) -> torch.Tensor | None:
    """Parents: None for a "chain", [N] for a "shared" tree, [B, N] where each has its "own"."""
    if kind == "chain":
        return None
    count = B if kind == "own" else 1
    rows = [[int(torch.randint(-1, i, ())) if i else -1 for i in range(N)] for _ in range(count)]
    table = torch.tensor(rows, dtype=torch.int64, device=device).view(count, N)
    return table if kind == "own" else table[0]


def outputs(B: int, N: int, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """accepted, next_token and path, poisoned."""
    first, second, path = (
        torch.full(size, -99, dtype=torch.int64, device=device) for size in ((B,), (B,), (B, N))
    )
    return first, second, path


def assert_equal_outputs(found: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...]):
    """Every output, the path too where there is one."""
    for got, right in zip(found, expected, strict=False):
        assert torch.equal(got, right)
