"""`draft_chain` beyond the contract: real proportions, trees, borders of blocks, what it leaves alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

import draft_inputs
import leeboard.ops
from harness import Sample, assert_same, run, run_reference
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


@dtypes
@pytest.mark.parametrize("topk", [1, 3])
def test_inputs_are_left_alone(dtype: torch.dtype, topk: int) -> None:
    call = sample(dtype, steps=3, topk=topk)
    before = call.copied()
    run("draft_chain", call)
    assert_same(call.tensors(), before.tensors())


@dtypes
def test_a_sequence_does_not_depend_on_the_others(dtype: torch.dtype, isa: str) -> None:
    call = sample(dtype, vocabulary=300, topk=2, steps=3, **LONG)
    weights, *rows, steps = call.args
    together = draft_chain(weights, *rows, steps, topk=2)
    for b in (0, 1, 2):
        alone = draft_chain(weights, *(t[b : b + 1] for t in rows), steps, topk=2)
        assert_same(alone, [y[b : b + 1] for y in together])


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("topk", [1, 4])
def test_bits_do_not_depend_on_threads(threads: int, topk: int) -> None:
    """More threads than processors included."""
    call = sample(
        torch.bfloat16, hidden=256, inner=512, heads=8, width=32, vocabulary=1000, topk=topk, **LONG
    )
    torch.set_num_threads(2)
    expected = run("draft_chain", call)
    torch.set_num_threads(threads)
    for _ in range(3):
        assert_same(run("draft_chain", call), expected)


def test_a_longer_chain_begins_like_a_shorter_one() -> None:
    call = sample(torch.float32, steps=7)
    long = draft_chain(*call.args)
    for steps in range(1, 7):
        short = draft_chain(*call.args[:-1], steps)
        assert torch.equal(short.tokens, long.tokens[:, :steps])
        assert_same([short.states], [long.states[:, :steps]])


@pytest.mark.parametrize("topk", [2, 5])
def test_a_tree_is_well_formed(topk: int) -> None:
    """Parents first, scores falling along a path, and the chain among its paths."""
    call = sample(torch.float32, steps=4, topk=topk, vocabulary=97)
    chain = draft_chain(*call.args)
    tree = draft_chain(*call.args, topk=topk, nodes=topk + 3 * topk * topk)
    for b in range(3):
        parents, scores = tree.parents[b].tolist(), tree.scores[b].tolist()
        assert all(parent < i for i, parent in enumerate(parents))
        assert all(s <= scores[p] for s, p in zip(scores, parents, strict=True) if p >= 0)
        siblings = [(p, t) for p, t in zip(parents, tree.tokens[b].tolist(), strict=True)]
        assert len(set(siblings)) == len(siblings)
        node = -1
        for step in range(4):
            children = [i for i, p in enumerate(parents) if p == node]
            best = max(children, key=lambda i: scores[i])
            assert tree.tokens[b, best] == chain.tokens[b, step]
            if not any(p == best for p in parents):
                break
            node = best


@pytest.mark.parametrize("nodes", [1, 3, 8, 20])
def test_fewer_nodes_are_the_best_of_more(nodes: int) -> None:
    call = sample(torch.float32, steps=3, topk=4)
    every = draft_chain(*call.args, topk=4, nodes=36)
    some = draft_chain(*call.args, topk=4, nodes=nodes)
    best = every.scores.sort(1, descending=True).values[:, :nodes]
    assert torch.equal(some.scores.sort(1, descending=True).values, best)


@pytest.mark.parametrize("changed", ["q", "o", "down", "head"])
@pytest.mark.parametrize("form", ["int8", "int4"])
def test_formats_may_be_mixed(changed: str, form: str) -> None:
    call = sample(torch.bfloat16, hidden=136, inner=200, heads=4, width=34, vocabulary=150)
    weights = draft_inputs.quantised(call.args[0], form, only=(changed,))
    mixed = Sample((weights, *call.args[1:]))
    with leeboard.ops.backend("cpu"):
        assert_right_chain(mixed, draft_chain(*mixed.args))


def test_float32_activations_with_bfloat16_weights() -> None:
    call = sample(torch.float32)
    halves = {n: getattr(call.args[0], n).bfloat16() for n in draft_inputs.MATRICES}
    mixed = Sample((dataclasses.replace(call.args[0], **halves), *call.args[1:]))
    with leeboard.ops.backend("cpu"):
        assert_same([draft_chain(*mixed.args).tokens], [run_reference("draft_chain", mixed)[0]])


def test_fp8_goes_to_the_reference() -> None:
    call = sample(torch.float32)
    few = Sample((draft_inputs.quantised(call.args[0], "fp8"), *call.args[1:]))
    assert_same(draft_chain(*few.args), run_reference("draft_chain", few))
    with (
        leeboard.ops.backend("cpu"),
        pytest.raises(RuntimeError, match=r"backend 'cpu' is forced, but its kernels take no fp8"),
    ):
        draft_chain(*few.args)


def test_not_a_number_in_the_weights_shows() -> None:
    """It is the largest logit, as in torch.max, and nothing is read out of place."""
    call = sample(torch.float32)
    weights = call.args[0]
    for name in ("head", "down", "q", "post_norm"):
        broken = getattr(weights, name).clone()
        broken.view(-1)[0] = float("nan")
        draft = draft_chain(dataclasses.replace(weights, **{name: broken}), *call.args[1:])
        assert draft.scores.isnan().any(), name
        assert bool(((draft.tokens >= 0) & (draft.tokens < 61)).all())
