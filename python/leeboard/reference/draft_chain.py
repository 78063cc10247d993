"""A whole chain (or tree) of drafter steps.

EAGLE-3 (arXiv:2503.01840) with the post-norm feedback of arXiv:2605.09992; the tree grows and is cut
back as in EAGLE-2 (arXiv:2406.16858).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from leeboard.reference._drafter import DrafterWeights, feedback
from leeboard.reference.decode_attention import rotated
from leeboard.reference.drafter_glue import drafter_glue
from leeboard.reference.linear_topk import linear_topk
from leeboard.reference.qlinear import qlinear
from leeboard.reference.rms_norm import rms_norm
from leeboard.reference.swiglu_linear import swiglu_linear


class Draft(NamedTuple):
    """What a drafter proposes; node i's parent comes before it.

    Attributes:
        tokens: int64 [B, N] of the target's vocabulary. A chain has N = steps nodes in order.
        parents: int64 [B, N], -1 for children of the root (the given token).
        scores: float32 [B, N], the log-probability of the path from the root to the node.
        states: [B, R, H], the fed-back state after each row that was computed: the root's, then
            those of each further step, `topk` a step.
    """

    tokens: Tensor
    parents: Tensor
    scores: Tensor
    states: Tensor


def draft_chain(
    weights: DrafterWeights,
    state: Tensor,
    token: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    steps: int,
    *,
    topk: int = 1,
    nodes: int | None = None,
) -> Draft:
    """Runs `steps` drafter steps from (state [B, H], token [B]) at cache row lengths[b].

    Step 1 is one row; its `topk` best tokens are the first level. Every further step runs the `topk`
    best nodes of the level before, by the log-probability of their paths, and scores `topk` children
    of each; after the last step the `nodes` best of all nodes are kept, in the order in which they
    arose. A row of step j has rotary position lengths[b] + j - 1 and sees the cached rows within
    its window, its ancestors and itself. Equal scores: the earlier node wins.

    Computed in float32 (float64 for float64 states), unrounded from step to step; keys and values
    are rounded to the dtype of the cache, states and scores once.
    """
    wide = torch.promote_types(state.dtype, torch.float32)
    batch = state.shape[0]
    each = torch.arange(batch, device=state.device)[:, None]
    fed, tokens = state.to(wide)[:, None], token[:, None]  # [B, R, H], [B, R]
    total = torch.zeros(batch, 1, dtype=wide, device=state.device)
    keys: list[Tensor] = []
    values: list[Tensor] = []
    states: list[Tensor] = []
    # Which own rows (columns so far) the rows of the current step see, [B, R, rows].
    ancestors = torch.zeros(batch, 1, 0, dtype=torch.bool, device=state.device)
    of_row = torch.full((batch, 1), -1, device=state.device)  # nodes that the rows stand for
    found: list[tuple[Tensor, Tensor, Tensor]] = []  # tokens, parents, scores [B, new]
    made = 0
    for step in range(steps):
        rows = tokens.shape[1]
        itself = torch.eye(rows, dtype=torch.bool, device=state.device).expand(batch, -1, -1)
        ancestors = torch.cat((ancestors, itself), dim=-1)
        x = _layer(weights, fed, tokens, k_cache, v_cache, lengths, step, keys, values, ancestors)
        hidden = rms_norm(x, weights.norm.to(wide), weights.eps)
        fed = feedback(hidden, x, weights.norm_output)
        states.append(fed)
        index, logit, lse = linear_topk(hidden, weights.head, topk, d2t=weights.d2t, logsumexp=True)
        score = (total[..., None] + (logit - lse[..., None])).flatten(1)  # [B, R topk]
        parents = of_row[..., None].expand(-1, -1, topk).flatten(1)
        found.append((index.flatten(1), parents, score))
        best = score.sort(dim=-1, descending=True, stable=True).indices[:, :topk]
        of_row, row = made + best, best // topk
        made += score.shape[1]
        tokens, total = index.flatten(1)[each, best], score[each, best]
        fed, ancestors = fed[each, row], ancestors[each, row]
    every = [torch.cat(parts, dim=1) for parts in zip(*found, strict=True)]
    kept = every[2].sort(dim=-1, descending=True, stable=True).indices
    kept = kept[:, : steps * topk if nodes is None else nodes].sort(dim=-1).values
    renamed = torch.full((batch, made + 1), -1, device=state.device)
    renamed.scatter_(1, kept, torch.arange(kept.shape[1], device=state.device).expand_as(kept))
    parents = every[1][each, kept]
    return Draft(
        every[0][each, kept],
        renamed.gather(1, torch.where(parents < 0, made, parents)),
        every[2][each, kept],
        torch.cat(states, dim=1).to(state.dtype),
    )


def _layer(
    weights: DrafterWeights,
    fed: Tensor,
    tokens: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    step: int,
    keys: list[Tensor],
    values: list[Tensor],
    ancestors: Tensor,
) -> Tensor:
    """The residual stream [B, R, H] after the decoder layer; adds the rows' keys and values."""
    w, wide = weights, fed.dtype
    batch, rows = tokens.shape
    joined, _ = drafter_glue(
        fed, tokens, w.embedding, w.norm, w.hidden_norm, w.input_norm, w.eps, norm_output=False
    )
    heads, kv_heads, width = w.q.shape[0] // w.head_dim, k_cache.shape[1], w.head_dim
    at = (lengths + step)[:, None].expand(-1, rows)
    q, k, v = (
        qlinear(joined, m).view(batch, rows, m.shape[0] // width, width).transpose(1, 2)
        for m in (w.q, w.k, w.v)
    )
    keys.append(rotated(k, w.cos, w.sin, at).to(k_cache.dtype))
    values.append(v.to(v_cache.dtype))
    every_key = torch.cat((k_cache, *keys), dim=2).to(wide)
    cached = torch.arange(k_cache.shape[2], device=fed.device)
    valid = cached < lengths[:, None]
    # What lies beyond a cache's length may be anything, NaN included.
    every_value = torch.cat(
        (v_cache.masked_fill(~valid[:, None, :, None], 0.0), *values), dim=2
    ).to(wide)
    if w.window is not None:
        near = (lengths + step)[:, None] - cached < w.window
        valid = valid & (near | (cached < w.sinks))
    seen = torch.cat((valid[:, None].expand(-1, rows, -1), ancestors), dim=-1)
    grouped = rotated(q, w.cos, w.sin, at).reshape(batch, kv_heads, heads // kv_heads, rows, width)
    scores = grouped @ every_key.mT[:, :, None] * width**-0.5
    weight = scores.masked_fill(~seen[:, None, None], float("-inf")).softmax(-1)
    attended = (weight @ every_value[:, :, None]).reshape(batch, heads, rows, width)
    residual = joined[..., fed.shape[-1] :] if w.norm_before_residual else fed
    r = qlinear(attended.transpose(1, 2).flatten(2), w.o, residual=residual)
    return swiglu_linear(r, w.gate, w.up, w.down, norm_weight=w.post_norm, eps=w.eps, residual=r)
