"""The most likely token of a language-model head, without keeping its logits."""

from __future__ import annotations

import torch
from torch import Tensor

from leeboard.reference._quantized import Weight
from leeboard.reference.qlinear import qlinear


def linear_argmax(
    x: Tensor, weight: Weight, *, d2t: Tensor | None = None, logsumexp: bool = False
) -> tuple[Tensor, ...]:
    """(argmax_v, max_v) of x . weight[v]; with d2t the index becomes v + d2t[v].

    With `logsumexp` also log sum_v exp(x . weight[v]). Products are accumulated in float32 (float64
    for float64 inputs) and not rounded before the comparison; ties go to the lowest v.
    """
    logits = qlinear(x.to(torch.promote_types(x.dtype, torch.float32)), weight)
    value, index = logits.max(dim=-1)
    index = index if d2t is None else index + d2t[index]
    return (index, value, logits.logsumexp(-1)) if logsumexp else (index, value)
