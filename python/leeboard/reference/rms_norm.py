"""Root-mean-square normalisation (Zhang and Sennrich, 2019, arXiv:1910.07467)."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(
    x: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-6,
    *,
    weight_offset: float = 0.0,
    rounding: str = "after_weight",
) -> Tensor:
    """y = x / sqrt(mean(x^2) + eps) * (weight + weight_offset), over the last dimension."""
    wide = torch.promote_types(x.dtype, torch.float32)
    h = x.to(wide)
    y = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + eps)
    if weight is None:
        return y.to(x.dtype)
    gain = weight.to(wide) + weight_offset
    if rounding == "before_weight":
        return y.to(x.dtype) * gain.to(x.dtype)
    return (y * gain).to(x.dtype)


def rms_norm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-6,
    *,
    weight_offset: float = 0.0,
    rounding: str = "after_weight",
    grad_residual: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Gradients of `rms_norm` in closed form: (grad_x, grad_weight).

    With r = 1 / sqrt(mean(x^2) + eps) and g = grad * (weight + weight_offset):
    grad_x = r g - r^3 x mean(g x) [+ grad_residual]; grad_weight = sum over rows of grad * x r.
    Rounding steps count as the identity. `grad_residual` is what flows into x from elsewhere:
    with it this is the backward of `add_rms_norm` too, x being the new residual.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    h, dy = x.to(wide), grad.to(wide)
    r = torch.rsqrt(h.square().mean(-1, keepdim=True) + eps)
    g = dy if weight is None else dy * (weight.to(wide) + weight_offset)
    grad_x = r * g - r.pow(3) * h * (g * h).mean(-1, keepdim=True)
    if grad_residual is not None:
        grad_x = grad_x + grad_residual.to(wide)
    if weight is None:
        return grad_x.to(x.dtype), None
    normed = h * r
    if rounding == "before_weight":
        normed = normed.to(x.dtype).to(wide)
    grad_weight = (dy * normed).reshape(-1, x.shape[-1]).sum(0).to(weight.dtype)
    return grad_x.to(x.dtype), grad_weight
