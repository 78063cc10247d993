"""A linear layer with a norm before and a residual after, on weights in any format."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from leeboard.reference._quantized import Weight, as_matrix
from leeboard.reference.rms_norm import rms_norm


def qlinear(
    x: Tensor,
    weight: Weight,
    *,
    norm_weight: Tensor | None = None,
    eps: float = 1e-6,
    residual: Tensor | None = None,
) -> Tensor:
    """out = residual + n weight^T, n = rms_norm(x, norm_weight) if there is a norm, else x.

    Everything is computed in float32 (float64 for float64 inputs) and rounded once, to x's dtype.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    h = x.to(wide)
    if norm_weight is not None:
        h = rms_norm(h, norm_weight.to(wide), eps)
    out = F.linear(h, as_matrix(weight, wide))
    return (out if residual is None else out + residual.to(wide)).to(x.dtype)
