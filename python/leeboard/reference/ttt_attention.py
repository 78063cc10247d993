"""Attention of a drafter's training unroll ("training-time test").

Step j of the unroll reads the states that step j - 1 left in the same rows, as drafting would: its
own keys lie one row deep. Li et al., 2025 (EAGLE-3, arXiv:2503.01840); grouped queries: Ainslie et
al., 2023, arXiv:2305.13245; windows with sink tokens: Xiao et al., 2023, arXiv:2309.17453.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def ttt_attention(
    q: Tensor,
    k: Tensor | Sequence[Tensor],
    v: Tensor | Sequence[Tensor],
    *,
    window: int | None = None,
    sinks: int = 0,
    cu_seqlens: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """One softmax over the keys of step 0 that a row sees and its own keys of the later steps.

    Weights are rounded to the dtype of v before they meet it; the result is rounded once.
    """
    if q.dim() == 5:
        outs = [
            ttt_attention(
                q[s],
                k[: s + 1],
                v[: s + 1],
                window=window,
                sinks=sinks,
                cu_seqlens=cu_seqlens,
                scale=scale,
            )
            for s in range(len(q))
        ]
        return torch.stack(outs)
    scores = ttt_attention_scores(q, k, window, sinks, cu_seqlens, scale)
    weights = scores.softmax(-1).to(q.dtype).to(scores.dtype)
    values = [_wide(one, q) for one in v]
    out = weights[..., : q.shape[2]] @ values[0]
    for j, own in enumerate(values[1:], start=q.shape[2]):
        out = out + weights[..., j, None] * own
    return out.to(q.dtype)


def ttt_attention_scores(
    q: Tensor,
    k: Tensor | Sequence[Tensor],
    window: int | None,
    sinks: int,
    cu_seqlens: Tensor | None,
    scale: float | None,
) -> Tensor:
    """[B, Hq, T, T + steps - 1]: of the keys of step 0, -inf out of sight, then the own ones."""
    scale = q.shape[3] ** -0.5 if scale is None else scale
    keys = [_wide(one, q) for one in k]
    queries = q.to(keys[0].dtype)
    seen = ttt_attention_sight(q, len(keys) - 1, window, sinks, cu_seqlens)
    first = (queries @ keys[0].mT * scale).masked_fill(~seen, float("-inf"))
    own = [(queries * key).sum(-1, keepdim=True) * scale for key in keys[1:]]
    return torch.cat((first, *own), -1)


def ttt_attention_sight(
    q: Tensor, step: int, window: int | None, sinks: int, cu_seqlens: Tensor | None
) -> Tensor:
    """bool [B or 1, 1, T, T]: whether row t of `step` sees the step-0 key of row c."""
    batch, _, rows, _ = q.shape
    t = torch.arange(rows, device=q.device)
    first = torch.zeros(1, rows, dtype=torch.int64, device=q.device)  # of each row's document
    if cu_seqlens is not None:
        cu = cu_seqlens.to(q.device, torch.int64)
        every = torch.arange(batch * rows, device=q.device)
        starts = cu[torch.bucketize(every, cu, right=True) - 1]
        first = (starts - every // max(rows, 1) * rows).view(batch, rows)
    seen = (t <= t[:, None]) & (t >= first[..., None])  # [B, T, T]
    if window is not None:
        near = t[:, None] + step - t < window
        seen = seen & (near | (t < first[..., None] + sinks))
    return seen[:, None]


def ttt_attention_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Sequence[Tensor],
    v: Sequence[Tensor],
    out: Tensor,
    lse: Tensor,
    *,
    window: int | None = None,
    sinks: int = 0,
    cu_seqlens: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Gradients of q [B, Hq, T, D] and of every k[s] and v[s], not yet rounded; no autograd.

    With p = exp(s - lse) and g of grad_out: dv = p^T g, ds = p (g v^T - sum(g out)), through the
    scale to q and k.
    """
    groups, rows = k[0].shape[1], q.shape[2]
    scores = ttt_attention_scores(q, k, window, sinks, cu_seqlens, scale)
    scale = q.shape[3] ** -0.5 if scale is None else scale
    weights = (scores - lse[..., None]).exp()
    queries, g = q.to(scores.dtype), grad_out.to(scores.dtype)
    delta = (g * out.to(scores.dtype)).sum(-1, keepdim=True)
    keys, values = ([_wide(one, q) for one in each] for each in (k, v))

    grads = weights[..., :rows] * (g @ values[0].mT - delta) * scale
    grad_q = grads @ keys[0]
    grad_k = [_in_groups(grads.mT @ queries, groups)]
    grad_v = [_in_groups(weights[..., :rows].mT @ g, groups)]
    for j, (key, value) in enumerate(zip(keys[1:], values[1:], strict=True), start=rows):
        weight = weights[..., j, None]
        grads = weight * ((g * value).sum(-1, keepdim=True) - delta) * scale
        grad_q = grad_q + grads * key
        grad_k.append(_in_groups(grads * queries, groups))
        grad_v.append(_in_groups(weight * g, groups))
    return grad_q, grad_k, grad_v


def _wide(t: Tensor, q: Tensor) -> Tensor:
    """One key-value head for each query head, [B, Hq, T, D], in the dtype of sums."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    return t.to(dtype).repeat_interleave(q.shape[1] // t.shape[1], 1)


def _in_groups(t: Tensor, groups: int) -> Tensor:
    """Sums over the query heads of each key-value head."""
    return t.reshape(t.shape[0], groups, t.shape[1] // groups, *t.shape[2:]).sum(2)
