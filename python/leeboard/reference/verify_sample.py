"""Lossless verification by rejection sampling: the output is distributed as the target's own."""

from __future__ import annotations

import torch
from torch import Tensor

from leeboard.reference._verify import draw, masses, pick, summary, tree


def verify_sample(
    draft_tokens: Tensor,
    target_probs: Tensor,
    draft_probs: Tensor | None = None,
    *,
    parents: Tensor | None = None,
    uniforms: Tensor,
) -> tuple[Tensor, ...]:
    """(accepted [B], next_token [B]), and with `parents` also path [B, N].

    Target-only rule (draft_probs None; EAGLE's evaluate_posterior): at a node with the target's
    distribution p, try the children in order; accept x with probability p(x), else set p(x) = 0
    and renormalise. When no child is left, draw next_token from what remains of p.
    p/q rule (a chain drawn from q; Leviathan et al., 2023): accept x with probability
    min(1, p(x) / q(x)); else draw next_token from norm(max(p - q, 0)), or from p where that is
    zero everywhere. After the last draft it comes from the last p.

    Rows count relative to their own sum. Every comparison is one of integers (see
    `leeboard.reference._verify`): uniforms[b, i] tests node i, uniforms[b, N] draws next_token.
    """
    nodes = draft_tokens.shape[1]
    if draft_probs is not None:
        row, taken = _walk_ratio(draft_tokens, target_probs, draft_probs, uniforms)
    else:
        row, taken = _walk_target(draft_tokens, target_probs, tree(draft_tokens, parents), uniforms)
    next_token = pick(row, uniforms[:, nodes])
    accepted, path = summary(draft_tokens, taken)
    return (accepted, next_token) if parents is None else (accepted, next_token, path)


def _mass_of(row: Tensor, tokens: Tensor) -> Tensor:
    """row[b, tokens[b]]; an id outside of the vocabulary has none."""
    size = row.shape[1]
    inside = (tokens >= 0) & (tokens < size)
    return torch.where(inside, row.gather(1, tokens.clamp(0, size - 1)[:, None])[:, 0], 0)


def _walk_target(
    draft_tokens: Tensor, target_probs: Tensor, parent: Tensor, uniforms: Tensor
) -> tuple[Tensor, list[Tensor]]:
    rows = masses(target_probs)
    row, node = rows[:, 0], torch.full_like(draft_tokens[:, :1].sum(dim=1), -1)
    vocabulary = torch.arange(rows.shape[2], device=rows.device)
    taken = []
    for i in range(draft_tokens.shape[1]):
        token, child = draft_tokens[:, i], parent[:, i] == node
        hit = draw(uniforms[:, i], row.sum(dim=1)) < _mass_of(row, token)
        taken.append(child & hit)
        row = torch.where(child[:, None] & (vocabulary == token[:, None]), 0, row)
        row = torch.where(taken[-1][:, None], rows[:, i + 1], row)
        node = torch.where(taken[-1], i, node)
    return row, taken


def _walk_ratio(
    draft_tokens: Tensor, target_probs: Tensor, draft_probs: Tensor, uniforms: Tensor
) -> tuple[Tensor, list[Tensor]]:
    row, alive, taken = masses(target_probs[:, 0]), None, []
    for i in range(draft_tokens.shape[1]):
        p, q = masses(target_probs[:, i]), masses(draft_probs[:, i])
        # A row without any mass, which is no distribution, counts as zeros.
        p_total, q_total = (row.sum(dim=1).clamp(min=1).double() for row in (p, q))
        a = _mass_of(p, draft_tokens[:, i]).double() / p_total
        b = _mass_of(q, draft_tokens[:, i]).double() / q_total
        hit = ((a >= b) & (a > 0)) | (uniforms[:, i].double() * b < a)
        residual = masses(p.double() / p_total[:, None] - q.double() / q_total[:, None])
        rejected = torch.where((residual.sum(dim=1) > 0)[:, None], residual, p)
        following = torch.where(hit[:, None], masses(target_probs[:, i + 1]), rejected)
        if alive is None:
            row, alive = following, hit
        else:
            row, alive = torch.where(alive[:, None], following, row), alive & hit
        taken.append(alive)
    return row, taken
