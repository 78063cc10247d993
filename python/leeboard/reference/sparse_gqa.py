"""Grouped-query attention under a structured pattern.

Scaled dot-product attention: Vaswani et al., 2017, arXiv:1706.03762; grouped queries: Ainslie et
al., 2023, arXiv:2305.13245; bands with sink tokens: Beltagy et al., 2020, arXiv:2004.05150, and
Xiao et al., 2023, arXiv:2309.17453; the most peaked queries: Zhou et al., 2021, arXiv:2012.07436;
capped scores: Gemma Team, 2024, arXiv:2408.00118; sinks as learned logits: OpenAI, 2025,
arXiv:2508.10925; rounding of the weights: Dao et al., 2022, arXiv:2205.14135.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

INFINITY = float("inf")


def sparse_gqa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Any,
    *,
    scale: float | None = None,
    active_heads: Sequence[int] | None = None,
    key_padding: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    softcap: float | None = None,
    sink_logits: Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(cap(scale * q k^T) over the keys that the pattern shows) v, for each segment.

    The unnormalised weights exp(s - max s) are rounded to the dtype of v before they meet it, their
    sum is not; the result is rounded once.
    """
    out, lse, _ = sparse_gqa_parts(
        q,
        k,
        v,
        pattern,
        scale=scale,
        active_heads=active_heads,
        key_padding=key_padding,
        cu_seqlens=cu_seqlens,
        cu_seqlens_k=cu_seqlens_k,
        softcap=softcap,
        sink_logits=sink_logits,
    )
    return (out, lse) if return_lse else out


def sparse_gqa_parts(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Any,
    *,
    scale: float | None = None,
    active_heads: Sequence[int] | None = None,
    key_padding: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    softcap: float | None = None,
    sink_logits: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, log-sum-exp, and of a TopU the chosen rows of each segment and head.

    These are int64 [segments, Hq, pattern.queries(Lq)], ascending, padded with -1; empty for other
    patterns.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    B, Hq, Lq, D = q.shape
    Hkv, Lk = k.shape[1:3]
    scale = D**-0.5 if scale is None else scale
    heads = torch.arange(Hq) if active_heads is None else torch.tensor(list(active_heads))
    heads = heads.to(q.device, torch.int64)
    groups = heads // max(Hq // Hkv, 1)
    # One key-value head for each active query head, [B, n, L, D].
    queries = q.index_select(1, heads).to(wide)
    keys, values = (t.to(wide).index_select(1, groups) for t in (k, v))
    sinks = None if sink_logits is None else sink_logits.to(wide)[heads][:, None]

    batches = _segments(B, Lq, Lk, cu_seqlens, cu_seqlens_k)
    if pattern.kind == "top_u" and cu_seqlens is None:
        batches = [(slice(b, b + 1), slice(0, Lq), slice(0, Lk)) for b in range(B)]
    parts = []
    for batch, rows, columns in batches:
        part = (queries[batch, :, rows], keys[batch, :, columns], values[batch, :, columns])
        padding = None if key_padding is None else key_padding[batch, columns]
        attend = _top_u if pattern.kind == "top_u" else _masked
        parts.append(attend(*part, pattern, padding, scale, softcap, sinks, v.dtype))
    together = 2 if cu_seqlens is not None else 0
    if parts:
        out, lse = (torch.cat([part[i] for part in parts], together) for i in range(2))
    else:
        out, lse = queries, queries.sum(-1)

    chosen = torch.empty(0, dtype=torch.int64, device=q.device)
    if pattern.kind == "top_u":
        chosen = torch.full((len(parts), Hq, pattern.queries(Lq)), -1, device=q.device)
        for s, (_, _, rows_of_heads) in enumerate(parts):
            chosen[s, heads, : rows_of_heads.shape[-1]] = rows_of_heads
    if active_heads is not None:
        out = out.new_zeros(B, Hq, Lq, D).index_copy(1, heads, out)
        lse = lse.new_full((B, Hq, Lq), -INFINITY).index_copy(1, heads, lse)
    return out.to(q.dtype), lse, chosen


def sparse_gqa_backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    pattern: Any,
    *,
    scale: float | None = None,
    active_heads: Sequence[int] | None = None,
    key_padding: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v under any pattern but TopU, not yet rounded; no autograd.

    With p = exp(s - lse): dv = p^T g, ds = p (g v^T - sum(g out) + grad_lse), through the cap and
    the scale to q and k.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    B, Hq, Lq, D = q.shape
    Hkv, Lk = k.shape[1:3]
    scale = D**-0.5 if scale is None else scale
    heads = torch.arange(Hq) if active_heads is None else torch.tensor(list(active_heads))
    heads = heads.to(q.device, torch.int64)
    groups = heads // max(Hq // Hkv, 1)
    queries, g, results, logs = (t.index_select(1, heads).to(wide) for t in (q, grad_out, out, lse))
    keys, values = (t.to(wide).index_select(1, groups) for t in (k, v))
    delta = (g * results).sum(-1)
    if grad_lse is not None:
        delta = delta - grad_lse.index_select(1, heads).to(wide)

    grad_q, grad_k, grad_v = (t.new_zeros(t.shape, dtype=wide) for t in (q, k, v))
    for batch, rows, columns in _segments(B, Lq, Lk, cu_seqlens, cu_seqlens_k):
        seen = pattern.dense_mask(rows.stop - rows.start, columns.stop - columns.start, q.device)
        if key_padding is not None:
            seen = seen & ~key_padding[batch, None, None, columns]
        x, y, z = queries[batch, :, rows], keys[batch, :, columns], values[batch, :, columns]
        scores = x @ y.mT * scale
        slope = torch.ones_like(scores)
        if softcap is not None:
            share = (scores / softcap).tanh()
            scores, slope = softcap * share, 1.0 - share * share
        at = (batch, slice(None), rows)
        # exp(-inf) where a row sees nothing: its log-sum-exp is -inf too, or the sink's.
        weights = (scores - logs[at][..., None]).masked_fill(~seen, -INFINITY).exp()
        grad_scores = weights * (g[at] @ z.mT - delta[at][..., None]) * slope * scale
        grad_q[batch, :, rows] = grad_q[batch, :, rows].index_copy(1, heads, grad_scores @ y)
        grad_k[batch, :, columns] = _in_groups(grad_scores.mT @ x, groups, Hkv)
        grad_v[batch, :, columns] = _in_groups(weights.mT @ g[at], groups, Hkv)
    return grad_q, grad_k, grad_v


def _in_groups(t: Tensor, groups: Tensor, count: int) -> Tensor:
    """Sums over the heads [B, n, L, D] of each group, [B, count, L, D]."""
    return t.new_zeros(t.shape[0], count, *t.shape[2:]).index_add(1, groups, t)


def _segments(
    B: int, Lq: int, Lk: int, cu_seqlens: Tensor | None, cu_seqlens_k: Tensor | None
) -> list[tuple[slice, slice, slice]]:
    """Batches, rows and keys of each independent part; all batches are one without `cu_seqlens`."""
    if cu_seqlens is None:
        return [(slice(0, B), slice(0, Lq), slice(0, Lk))]
    at = cu_seqlens.tolist()
    at_k = at if cu_seqlens_k is None else cu_seqlens_k.tolist()
    return [
        (slice(0, 1), slice(at[s], at[s + 1]), slice(at_k[s], at_k[s + 1]))
        for s in range(len(at) - 1)
    ]


def _masked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Any,
    padding: Tensor | None,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    seen = pattern.dense_mask(q.shape[2], k.shape[2], q.device)  # [Lq, Lk]
    if padding is not None:
        seen = seen & ~padding[:, None, None, :]
    out, lse = _attend(q, k, v, seen, scale, softcap, sinks, dtype)
    return out, lse, torch.empty(0)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seen: Tensor,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """q [B, n, L, D] over k, v [B, n, Lk, D]; a row that sees nothing gives zeros and -inf."""
    scores = q @ k.mT * scale
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    scores = scores.masked_fill(~seen, -INFINITY)
    dead = ~seen.any(-1)  # [..., L]
    # The maximum cancels: it has no gradient.
    peak = scores.detach().amax(-1) if k.shape[2] else scores.detach().sum(-1)
    peak = peak.masked_fill(dead, 0.0)
    weights = (scores - peak[..., None]).exp()
    mass = weights.sum(-1).masked_fill(dead, 1.0)
    out = (weights.to(dtype).to(q.dtype) @ v) / mass[..., None]
    lse = peak + mass.log()
    if sinks is None:
        return out, lse.masked_fill(dead, -INFINITY)
    total = _log_add(lse.masked_fill(dead, -INFINITY), sinks)
    # What the sinks leave of the softmax. A backward has the rounded result only: the derivative
    # in this share, exp(log_share), takes it from there.
    log_share = (lse - total.masked_fill(dead, 0.0)).masked_fill(dead, 0.0)[..., None]
    known = log_share.detach()
    out = out * known.exp()
    return out + out.detach().to(dtype).to(q.dtype) * (log_share - known), total


def _log_add(a: Tensor, b: Tensor) -> Tensor:
    """log(exp(a) + exp(b)); -inf where both are, with zero gradients."""
    peak = torch.maximum(a, b).detach()
    nothing = peak == -INFINITY
    peak = peak.masked_fill(nothing, 0.0)
    mass = ((a - peak).exp() + (b - peak).exp()).masked_fill(nothing, 1.0)
    return (peak + mass.log()).masked_fill(nothing, -INFINITY)


def _top_u(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Any,
    padding: Tensor | None,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """One segment: q [1, n, L, D] over k, v [1, n, Lk, D]."""
    visible = torch.arange(k.shape[2], device=k.device)
    if padding is not None:
        visible = visible[~padding[0]]
    k, v = k[:, :, visible], v[:, :, visible]
    n, rows = k.shape[2], q.shape[2]
    if n == 0 or rows == 0:
        every = torch.ones_like(q, dtype=torch.bool)
        lse = q.sum(-1).masked_fill(every[..., 0], -INFINITY)
        return q.masked_fill(every, 0.0), lse, q.new_zeros((q.shape[1], 0), dtype=torch.int64)
    sample = torch.tensor(pattern.sampled(n), device=q.device)
    scores = q.detach() @ k.detach()[:, :, sample].mT * scale
    peakedness = scores.amax(-1) - scores.mean(-1)  # [1, n, L]
    order = peakedness.argsort(dim=-1, descending=True, stable=True)
    chosen = order[..., : pattern.queries(rows)].sort(-1).values

    wide = chosen[..., None].expand(*chosen.shape, q.shape[3])
    seen = torch.ones(1, n, dtype=torch.bool, device=q.device)
    best, best_lse = _attend(q.gather(2, wide), k, v, seen, scale, softcap, sinks, dtype)
    out = v.mean(2, keepdim=True).expand(*q.shape).scatter(2, wide, best)
    lse = torch.full_like(peakedness, math.log(n)).scatter(2, chosen, best_lse)
    return out, lse, chosen[0]
