"""Greedy verification of a draft: checks, dispatch and fake tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from leeboard import _C, reference
from leeboard.ops import _check
from leeboard.ops._library import as_matrix, choose, define, kernels, run_kernel, takes_reference
from leeboard.ops._state import direct_level, state, values_visible
from leeboard.ops._verify import (
    Outputs,
    check_outputs,
    check_parents,
    check_tree,
    empty,
    write,
)


def verify_greedy(
    draft_tokens: Tensor,
    target_tokens: Tensor,
    *,
    parents: Tensor | None = None,
    out: Sequence[Tensor] | None = None,
) -> Outputs:
    """How much of a draft the target's greedy decoding would have written, and what comes next.

    A chain of N drafts: accepted = the number of leading drafts equal to the target's tokens,
    next_token = target_tokens[b, accepted]. A tree: from the root, go to the first child (lowest
    index) whose token is the target's token after the current node, until there is none.

    `path` holds the accepted nodes in order. If the target's forward pass over the tree wrote
    the keys and values of [root token, node 0, ..., node N - 1] to the rows past .. past + N of
    its cache, then the rows to keep are past and past + 1 + path[b, :accepted[b]]: moving these
    to past .. past + accepted[b] makes the cache that decoding token by token would have left
    (next_token has no row yet). The target's hidden states are picked in the same way.

    Args:
        draft_tokens: int64 [B, N], N >= 0.
        target_tokens: int64 [B, N + 1]: the target's token after the root, then after each node.
        parents: int64 [N] or [B, N]: the node that each node follows, -1 for the root; a parent
            precedes its child. None is the chain -1, 0, 1, ...
        out: (accepted, next_token), with `parents` also path, to write and return.

    Returns:
        (accepted int64 [B], next_token int64 [B]), and with `parents` also path int64 [B, N],
        padded with -1. Any ids can be tokens. On GPUs and under compilation the order of parents
        is not checked; a node whose parent does not precede it is then never accepted.

    Raises:
        TypeError, ValueError: For an argument that does not fit; the message names it.
        RuntimeError: If a forced backend cannot run.
    """
    sequences, nodes = check_tree(draft_tokens, parents)
    _check.integers("target_tokens", target_tokens, "draft_tokens", draft_tokens)
    _check.shape(
        "target_tokens",
        target_tokens,
        (sequences, nodes + 1),
        "a token after the root and one after every draft",
    )
    if out is not None:
        check_outputs("verify_greedy", out, draft_tokens, parents is not None)
    if parents is not None and values_visible(parents) and parents.device.type == "cpu":
        check_parents(parents)
    if out is None and takes_reference("verify_greedy"):
        return reference.verify_greedy(draft_tokens, target_tokens, parents=parents)
    run = _forward
    if direct_level(draft_tokens, target_tokens, parents) is None:
        run = torch.ops.leeboard.verify_greedy
    results = run(draft_tokens, target_tokens, parents)[: 2 if parents is None else 3]
    return results if out is None else write(tuple(out), results)


def _forward(
    draft_tokens: Tensor, target_tokens: Tensor, parents: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    backend = choose("verify_greedy", [draft_tokens], dtypes=(torch.int64,))
    accepted, next_token, path = _fake(draft_tokens, target_tokens, parents)
    if accepted.numel() == 0:
        return accepted, next_token, path
    if backend == "reference":
        exact = reference.verify_greedy(draft_tokens, target_tokens, parents=parents)
        for result, value in zip((accepted, next_token, path), exact, strict=False):
            result.copy_(value)
    elif backend == "triton":
        table = None if parents is None else as_matrix(parents)
        kernels("verify_greedy").forward(
            as_matrix(draft_tokens), as_matrix(target_tokens), table, accepted, next_token, path
        )
    else:
        run_kernel(
            _C.verify_greedy_forward,
            [draft_tokens, target_tokens, parents],
            [accepted, next_token, None if parents is None else path],
            state().level,
        )
    return accepted, next_token, path


def _fake(
    draft_tokens: Tensor, target_tokens: Tensor, parents: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    return empty(draft_tokens, parents is not None)


define(
    "verify_greedy(Tensor draft_tokens, Tensor target_tokens, Tensor? parents) "
    "-> (Tensor, Tensor, Tensor)",
    _forward,
    _fake,
    row_arguments=(),
)
