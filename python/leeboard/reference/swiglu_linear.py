"""The gated feed-forward block of Llama (SwiGLU: Shazeer, 2020, arXiv:2002.05202)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from leeboard.reference._quantized import Weight
from leeboard.reference.qlinear import qlinear


def swiglu_linear(
    x: Tensor,
    gate: Weight,
    up: Weight,
    down: Weight,
    *,
    norm_weight: Tensor | None = None,
    eps: float = 1e-6,
    residual: Tensor | None = None,
) -> Tensor:
    """out = residual + down (silu(gate n) * (up n)), n = rms_norm(x, norm_weight) or x.

    Everything is computed in float32 (float64 for float64 inputs) and rounded once, to x's dtype.
    """
    h = x.to(torch.promote_types(x.dtype, torch.float32))
    gated = F.silu(qlinear(h, gate, norm_weight=norm_weight, eps=eps))
    return qlinear(
        gated * qlinear(h, up, norm_weight=norm_weight, eps=eps), down, residual=residual
    ).to(x.dtype)
