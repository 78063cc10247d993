"""The most likely token of a language-model head, without keeping its logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def linear_argmax(x: Tensor, weight: Tensor, *, d2t: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(argmax_v, max_v) of x . weight[v]; with d2t the index becomes v + d2t[v].

    Products are accumulated in float32 (float64 for float64 inputs) and not rounded before the
    comparison; ties go to the lowest v.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    value, index = F.linear(x.to(wide), weight.to(wide)).max(dim=-1)
    return (index if d2t is None else index + d2t[index]), value
