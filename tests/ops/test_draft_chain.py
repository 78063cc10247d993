"""`draft_chain` beyond the contract: real proportions, trees, borders of blocks, what it leaves alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import draft_inputs
import leeboard.ops
from harness import Sample
from leeboard import reference
from leeboard.ops import Draft, DrafterWeights, draft_chain
from leeboard.reference.decode_attention import rotated

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LONG: dict[str, Any] = {"positions": 1300, "capacity": 1200, "lengths": (1100, 513, 511)}

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


def split(**options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of the drafter, and of the call."""
    calls = ("batch", "steps", "lengths", "capacity", "topk", "nodes")
    made = {k: v for k, v in options.items() if k not in calls}
    return made, {k: v for k, v in options.items() if k in calls}


def sample(dtype: torch.dtype, form: str | None = None, **options: Any) -> Sample:
    made, called = split(**options)
    weights = draft_inputs.drafter(dtype, **made)
    if form is not None:
        weights = draft_inputs.quantised(weights, form)
    return draft_inputs.call(weights, **called)


def assert_right_chain(call: Sample, draft: Draft) -> None:
    """Step by step in float64, along the tokens that were drafted: each is the best one, as far as
    float32 can tell, and its score is what the paths add up to.
    """
    double = call.in_double()
    weights, state, token, k, v, lengths, steps = double.args
    caches = [c.nan_to_num(0.0) for c in (k, v)]
    total = torch.zeros(state.shape[0], dtype=torch.float64)
    logits_of = head_of(weights)
    eps = 1e-3 if call.args[1].dtype == torch.float32 else 5e-2
    for step in range(steps):
        found = reference.draft_chain(weights, state, token, *caches, lengths, 1)
        hidden = found.states[:, 0]
        logits = logits_of(hidden)
        names = target_tokens(weights, logits.shape[1])
        chosen = torch.searchsorted(names, draft.tokens[:, step].contiguous())
        assert torch.equal(names[chosen], draft.tokens[:, step])
        mine = logits.gather(1, chosen[:, None])[:, 0]
        spread = logits.std(1)
        assert bool((logits.amax(1) - mine <= eps * spread).all()), step
        total += mine - logits.logsumexp(1)
        assert torch.allclose(draft.scores[:, step].double(), total, atol=eps * (step + 1))
        if step + 1 < steps:
            caches = append(weights, state, token, caches, lengths)
            state, token, lengths = hidden, draft.tokens[:, step], lengths + 1


def head_of(weights: DrafterWeights) -> Any:
    matrix = weights.head
    if not isinstance(matrix, Tensor):
        matrix = matrix.dequantize(torch.float64)
    assert weights.norm_output, "the fed-back state is what the head takes"
    return lambda hidden: hidden @ matrix.double().mT


def target_tokens(weights: DrafterWeights, vocabulary: int) -> Tensor:
    ids = torch.arange(vocabulary)
    return ids if weights.d2t is None else ids + weights.d2t


def append(
    weights: DrafterWeights, state: Tensor, token: Tensor, caches: list[Tensor], lengths: Tensor
) -> list[Tensor]:
    """The caches with the row of (state, token) behind each length."""
    joined, _ = reference.drafter_glue(
        state,
        token,
        weights.embedding,
        weights.norm,
        weights.hidden_norm,
        weights.input_norm,
        weights.eps,
        norm_output=False,
    )
    width = weights.head_dim
    k, v = (
        reference.qlinear(joined, m).view(state.shape[0], -1, 1, width)
        for m in (weights.k, weights.v)
    )
    k = rotated(k, weights.cos, weights.sin, lengths[:, None])
    grown = []
    for cache, row in zip(caches, (k, v), strict=True):
        cache = cache.clone()
        cache[torch.arange(len(lengths)), :, lengths] = row[:, :, 0].to(cache.dtype)
        grown.append(cache)
    return grown


@dtypes
@pytest.mark.parametrize("form", [None, "int8", "int4"])
def test_a_chain_of_real_proportions(dtype: torch.dtype, form: str | None, isa: str) -> None:
    call = sample(
        dtype,
        form,
        hidden=256,
        inner=896,
        heads=8,
        width=32,
        vocabulary=2000,
        draft_vocabulary=1000,
        steps=6,
        **{**LONG, "capacity": 1206},
    )
    with leeboard.ops.backend("cpu"):
        assert_right_chain(call, draft_chain(*call.args))
