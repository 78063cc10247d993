"""Per-state RMSNorm of captured target states, concatenation and projection (EAGLE-3.1 fusion)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from leeboard.reference.rms_norm import rms_norm


def aux_norm_linear(
    hiddens: Sequence[Tensor],
    gammas: Sequence[Tensor] | None,
    weight: Tensor,
    eps: float = 1e-6,
) -> Tensor:
    """out = [rms_norm(h_0, gamma_0); rms_norm(h_1, gamma_1); ...] weight^T."""
    scales = [None] * len(hiddens) if gammas is None else gammas
    normed = [rms_norm(h, g, eps) for h, g in zip(hiddens, scales, strict=True)]
    return F.linear(torch.cat(normed, dim=-1), weight)
