"""What the verification rules share: draft trees, probabilities as integers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Probabilities become integer multiples of 2^-51. Integers are summed without rounding, so that
# every order of summation, on any device, gives the same token.
UNIT = 2.0**51


def tree(draft_tokens: Tensor, parents: Tensor | None) -> Tensor:
    """Parents [B, N] of the nodes; without any, the chain -1, 0, 1, ..."""
    if parents is None:
        count = draft_tokens.shape[1]
        parents = torch.arange(-1, count - 1, device=draft_tokens.device)
    return parents.expand_as(draft_tokens)


def summary(draft_tokens: Tensor, taken: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(number of accepted nodes [B], their indices in order, padded with -1 [B, N])."""
    mask = torch.stack(list(taken), dim=1) if taken else draft_tokens.bool()
    accepted = mask.sum(dim=1)
    order = torch.argsort((~mask).long(), dim=1, stable=True)
    depth = torch.arange(mask.shape[1], device=mask.device)
    return accepted, torch.where(depth < accepted[:, None], order, -1)


def masses(probs: Tensor) -> Tensor:
    """round(p * 2^51), ties to even, of p clamped to [0, 2]; NaN counts as 0."""
    wide = probs.double()
    return (torch.where(wide > 0, wide, 0.0).clamp(max=2.0) * UNIT).round().long()


def draw(uniforms: Tensor, total: Tensor) -> Tensor:
    """floor(u * total), an integer of [0, total)."""
    wide = uniforms.double()
    wide = torch.where(wide > 0, wide, 0.0).clamp(max=1.0)
    return torch.minimum((wide * total.double()).long(), total - 1).clamp(min=0)


def pick(row: Tensor, uniforms: Tensor) -> Tensor:
    """Inverse CDF: the first token whose cumulative mass exceeds the draw; row is [B, V]."""
    bound = draw(uniforms, row.sum(dim=1))
    return (row.cumsum(dim=1) <= bound[:, None]).sum(dim=1).clamp(max=row.shape[1] - 1)
