"""First-order saliency of prunable units, for each sample of a batch."""

from __future__ import annotations

import torch
from torch import Tensor


def unit_saliency(activation: Tensor, grad: Tensor, *, width: int = 1) -> Tensor:
    """s[b, u] = | sum over tokens t and the unit's channels c of a[b, t, c] dL/da[b, t, c] |.

    `activation` and `grad` are [B, ..., C]; unit u is the channels [u * width, (u + 1) * width).
    That is |dL_b / dg_u| at g_u = 1 for a gate g_u on the unit (Michel et al., 2019,
    arXiv:1905.10650; Molchanov et al., 2017, arXiv:1611.06440). The result is [B, C / width], in
    float32 (float64 for float64 inputs).
    """
    wide = torch.promote_types(activation.dtype, torch.float32)
    product = activation.to(wide) * grad.to(wide)
    batch, channels = product.shape[0], product.shape[-1]
    tokens = product.numel() // max(1, batch * channels)
    return product.reshape(batch, tokens, channels // width, width).sum((1, 3)).abs()
