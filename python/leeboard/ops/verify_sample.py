"""Lossless verification of a draft by rejection sampling: checks, dispatch and fake tensors."""

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
    check_distributions,
    check_outputs,
    check_parents,
    check_tree,
    check_uniforms,
    empty,
    write,
)


def verify_sample(
    draft_tokens: Tensor,
    target_probs: Tensor,
    draft_probs: Tensor | None = None,
    *,
    parents: Tensor | None = None,
    uniforms: Tensor | None = None,
    generator: torch.Generator | None = None,
    validate: bool | None = None,
    out: Sequence[Tensor] | None = None,
) -> Outputs:
    """Accept a part of a draft and sample the next token, so that the output is the target's own.

    The tokens path + next_token are distributed exactly as if the target had sampled them one
    after the other, whatever the drafter proposed.

    Without `draft_probs`, the target-only rule (EAGLE's evaluate_posterior) for drafts that are a
    deterministic function of the context, such as the drafter's top k: at a node, try the
    children in order; accept x with probability p(x), else set p(x) = 0 and renormalise; with no
    child left, draw next_token from what remains. A second child with the same token is never
    accepted, which keeps the rule lossless for equal siblings.

    With `draft_probs`, the p/q rule (Leviathan et al., 2023; Chen et al., 2023) for a chain whose
    tokens were drawn from q: accept x with probability min(1, p(x) / q(x)); on rejection draw
    next_token from norm(max(p - q, 0)), or from p where rounding leaves that zero everywhere;
    after N acceptances draw it from the last p.

    Probabilities are converted to integers, round(p * 2^51), and summed exactly; each row counts
    relative to its own sum. So every backend and thread count gives the same tokens for the same
    `uniforms`, a token with p = 0 is never emitted, and the draw never runs past the end. What
    rounding to 2^-51 moves is below V * 2^-52 in total.

    Args:
        draft_tokens: int64 [B, N], ids of the vocabulary, N >= 0.
        target_probs: [B, N + 1, V], V >= 1: the target's probabilities after the root, then after
            each node; float32, bfloat16, float16 (float64 by the reference).
        draft_probs: [B, N, V] of the same dtype: the probabilities that draft i was drawn from.
            Chains only. Or None.
        parents: int64 [N] or [B, N]: the node that each node follows, -1 for the root; a parent
            precedes its child. None is the chain -1, 0, 1, ...
        uniforms: float32 or float64 [B, N + 1] of [0, 1): column i tests node i, column N draws
            next_token. None draws float64. float32 numbers have 24 bits, so tokens much rarer
            than 2^-24 come out too often or never.
        generator: Where `uniforms` come from when they are drawn; None is torch's default.
        validate: Whether values are checked before anything is computed. True reads every row
            once, and on GPUs waits for the result. None checks on CPUs only. Nothing is checked
            under compilation and tracing. Unchecked, negative numbers and NaN count as 0, numbers
            above 2 as 2, an id outside of the vocabulary as a token with p = 0, and a node whose
            parent does not precede it is not accepted.
        out: (accepted, next_token), with `parents` also path, to write and return.

    Returns:
        (accepted int64 [B], next_token int64 [B]), and with `parents` also path int64 [B, N]: the
        accepted nodes in order, padded with -1 (`verify_greedy` tells how to use it). Inference
        only.

    Raises:
        TypeError, ValueError: For an argument that does not fit, `parents` together with
            `draft_probs`, a probability that is negative or not finite, a row whose sum is off by
            more than 2 eps + V (2^-27 + s) (eps and s: epsilon and smallest subnormal of the
            dtype, float32's for float64), a token or parent or uniform out of range. The
            message names argument, place and value.
        RuntimeError: If an input requires grad while grad mode is on, or a forced backend cannot
            run.
    """
    sequences, nodes = check_tree(draft_tokens, parents)
    vocabulary = _check_probabilities(draft_tokens, target_probs, draft_probs, parents)
    if uniforms is not None:
        _check.companion(
            "uniforms", uniforms, "draft_tokens", draft_tokens, (torch.float32, torch.float64)
        )
        if not uniforms.is_floating_point():
            raise ValueError(
                f"uniforms: dtype {uniforms.dtype} was given; expected float32 or float64"
            )
        _check.shape(
            "uniforms", uniforms, (sequences, nodes + 1), "a test of every draft and a final draw"
        )
        if generator is not None:
            raise ValueError("generator: it was given together with uniforms; expected one of them")
    _check.no_grad(
        "verify_sample",
        "is inference-only",
        target_probs=target_probs,
        draft_probs=draft_probs,
        uniforms=uniforms,
    )
    if out is not None:
        check_outputs("verify_sample", out, draft_tokens, parents is not None)
    wanted = draft_tokens.device.type == "cpu" if validate is None else validate
    if wanted and values_visible(draft_tokens, target_probs, draft_probs, parents, uniforms):
        if parents is not None:
            check_parents(parents)
        _check.token_ids("draft_tokens", draft_tokens, vocabulary)
        if uniforms is not None:
            check_uniforms(uniforms)
        check_distributions("target_probs", target_probs)
        if draft_probs is not None:
            check_distributions("draft_probs", draft_probs)
    if uniforms is None:
        uniforms = torch.rand(
            (sequences, nodes + 1),
            dtype=torch.float64,
            device=draft_tokens.device,
            generator=generator,
        )
    if out is None and takes_reference("verify_sample"):
        return reference.verify_sample(
            draft_tokens, target_probs, draft_probs, parents=parents, uniforms=uniforms
        )
    run = _forward
    if direct_level(target_probs, draft_tokens, draft_probs, parents, uniforms) is None:
        run = torch.ops.leeboard.verify_sample
    found = run(draft_tokens, target_probs, draft_probs, parents, uniforms)
    results = found[: 2 if parents is None else 3]
    return results if out is None else write(tuple(out), results)


def _check_probabilities(
    draft_tokens: Tensor, target_probs: object, draft_probs: object, parents: object
) -> int:
    """Shapes and types; returns V."""
    vocabulary = _check.rows("target_probs", target_probs)
    assert isinstance(target_probs, Tensor)
    _check.companion(
        "target_probs", target_probs, "draft_tokens", draft_tokens, _check.FLOAT_DTYPES
    )
    sequences, nodes = draft_tokens.shape
    _check.shape(
        "target_probs",
        target_probs,
        (sequences, nodes + 1, vocabulary),
        "a row after the root and one after every draft",
    )
    if draft_probs is None:
        return vocabulary
    _check.companion("draft_probs", draft_probs, "target_probs", target_probs)
    assert isinstance(draft_probs, Tensor)
    _check.shape(
        "draft_probs", draft_probs, (sequences, nodes, vocabulary), "a row for every draft"
    )
    if parents is not None:
        raise ValueError(
            "draft_probs: they were given together with parents; expected None: trees are "
            "verified by the target-only rule, the p/q rule is for chains"
        )
    return vocabulary


def _forward(
    draft_tokens: Tensor,
    target_probs: Tensor,
    draft_probs: Tensor | None,
    parents: Tensor | None,
    uniforms: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    given = [target_probs] if draft_probs is None else [target_probs, draft_probs]
    backend = choose("verify_sample", given)
    accepted, next_token, path = _fake(draft_tokens, target_probs, draft_probs, parents, uniforms)
    if accepted.numel() == 0:
        return accepted, next_token, path
    if backend == "reference":
        exact = reference.verify_sample(
            draft_tokens, target_probs, draft_probs, parents=parents, uniforms=uniforms
        )
        for result, value in zip((accepted, next_token, path), exact, strict=False):
            result.copy_(value)
    elif backend == "triton":
        kernels("verify_sample").forward(
            as_matrix(draft_tokens),
            as_matrix(target_probs),
            None if draft_probs is None else as_matrix(draft_probs),
            None if parents is None else as_matrix(parents),
            as_matrix(uniforms).double(),
            accepted,
            next_token,
            path,
        )
    else:
        run_kernel(
            _C.verify_sample_forward,
            [draft_tokens, target_probs, draft_probs, parents, uniforms.double()],
            [accepted, next_token, None if parents is None else path],
            state().level,
        )
    return accepted, next_token, path


def _fake(
    draft_tokens: Tensor,
    target_probs: Tensor,
    draft_probs: Tensor | None,
    parents: Tensor | None,
    uniforms: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return empty(draft_tokens, parents is not None)


define(
    "verify_sample(Tensor draft_tokens, Tensor target_probs, Tensor? draft_probs, Tensor? parents, "
    "Tensor uniforms) -> (Tensor, Tensor, Tensor)",
    _forward,
    _fake,
    row_arguments=(),
)
