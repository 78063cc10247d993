"""What lies between two steps of a drafter's chain (EAGLE-3, arXiv:2503.01840)."""

from __future__ import annotations

import torch
from torch import Tensor

from leeboard.reference.rms_norm import rms_norm


def drafter_glue(
    x: Tensor,
    token: Tensor,
    embedding: Tensor,
    norm_weight: Tensor,
    hidden_weight: Tensor,
    input_weight: Tensor,
    eps: float = 1e-6,
    *,
    norm_output: bool = True,
) -> tuple[Tensor, Tensor]:
    """(joined [..., 2H], state [..., H]) of the residual stream x [..., H] that a step left.

    state = rms_norm(x, norm_weight) with `norm_output` (post-norm, arXiv:2605.09992), else x;
    joined = [rms_norm(embedding[token], input_weight); rms_norm(state, hidden_weight)]. Computed in
    float32 (float64 for float64 inputs); each output is rounded once.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    h = x.to(wide)
    state = rms_norm(h, norm_weight.to(wide), eps) if norm_output else h
    entered = rms_norm(embedding[token].to(wide), input_weight.to(wide), eps)
    hidden = rms_norm(state, hidden_weight.to(wide), eps)
    return torch.cat((entered, hidden), dim=-1).to(x.dtype), state.to(x.dtype)
