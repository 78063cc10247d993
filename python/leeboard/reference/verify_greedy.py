"""Greedy verification: how much of a draft the target would have written itself."""

from __future__ import annotations

import torch
from torch import Tensor

from leeboard.reference._verify import summary, tree


def verify_greedy(
    draft_tokens: Tensor, target_tokens: Tensor, *, parents: Tensor | None = None
) -> tuple[Tensor, ...]:
    """(accepted [B], next_token [B]), and with `parents` also path [B, N].

    From the root, go to the first child whose token is the target's token after the current node
    (target_tokens[b, 0] after the root, target_tokens[b, 1 + i] after node i), until there is
    none; next_token is the target's token there. Without parents, node i is the child of i - 1.
    """
    parent = tree(draft_tokens, parents)
    node = torch.full_like(target_tokens[:, 0], -1)
    taken = []
    # A parent precedes its child, so one pass meets every child of the node that is current.
    for i in range(draft_tokens.shape[1]):
        wanted = target_tokens.gather(1, node[:, None] + 1)[:, 0]
        taken.append((parent[:, i] == node) & (draft_tokens[:, i] == wanted))
        node = torch.where(taken[-1], i, node)
    next_token = target_tokens.gather(1, node[:, None] + 1)[:, 0]
    accepted, path = summary(draft_tokens, taken)
    return (accepted, next_token) if parents is None else (accepted, next_token, path)
