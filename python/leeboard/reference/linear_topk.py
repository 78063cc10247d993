"""The most likely tokens of a language-model head, without keeping its logits."""

from __future__ import annotations

import torch
from torch import Tensor

from leeboard.reference._quantized import Weight
from leeboard.reference.qlinear import qlinear


def linear_topk(
    x: Tensor, weight: Weight, k: int, *, d2t: Tensor | None = None, logsumexp: bool = False
) -> tuple[Tensor, ...]:
    """The k largest x . weight[v], largest first: (index [..., k], value [..., k]).

    With d2t an index v becomes v + d2t[v]; with `logsumexp` also log sum_v exp(x . weight[v]) [...].
    Products are accumulated in float32 (float64 for float64 inputs) and not rounded before the
    comparison; equal values come in the order of v; NaN counts as the largest value.
    """
    logits = qlinear(x.to(torch.promote_types(x.dtype, torch.float32)), weight)
    value, index = logits.sort(dim=-1, descending=True, stable=True)
    value, index = value[..., :k], index[..., :k]
    index = index if d2t is None else index + d2t[index]
    return (index, value, logits.logsumexp(-1)) if logsumexp else (index, value)
