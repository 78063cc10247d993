"""Sparse attention: against torch's own, identities, what is not read, choices of TopU."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import leeboard.ops
from harness import (
    Sample,
    assert_gradients_match,
    assert_matches,
    assert_same,
    gradients,
    many,
    run,
    wants_gradient,
)
from leeboard import reference
from leeboard.ops import _check, sparse_gqa
from leeboard.ops.patterns import Band, Blocks, Causal, Dense, Modality, Pattern, TopU
from sparse_inputs import arguments, heads_of, normal, packed, peaked, samples, sinks_of

NAME = "sparse_gqa"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BACKENDS = ("reference", "cpu", "triton")

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
backends = pytest.mark.parametrize("backend", BACKENDS)


def call(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, **options: Any) -> Sample:
    return Sample((q, k, v, pattern), options)


# --- numbers ---


@pytest.mark.parametrize(
    "pattern",
    [
        Dense(),
        Causal(),
        Band(5),
        Band(3, sinks=2, causal=False),
        Modality.of_lengths((11, 9, 20), 4),
        Blocks([[0, 2], [1], [0, 1, 2]], 16),
        Causal() & Blocks([[0, 2], [1], [0, 1, 2]], 16),
        Band(2) | Modality.of_lengths((30, 10), 2, 3),
    ],
    ids=str,
)
def test_against_torch(pattern: Pattern) -> None:
    """An implementation that shares nothing with the reference but the mask."""
    q, k, v = heads_of(torch.float32, 2, (6, 2), (40, 40), 24)
    expected = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=pattern.dense_mask(40), enable_gqa=True
    )
    torch.testing.assert_close(sparse_gqa(q, k, v, pattern), expected)


@st.composite
def lengths(draw: st.DrawFn, least: int) -> list[int]:
    return draw(st.lists(st.integers(least, 23), min_size=1, max_size=4))


def draw_pattern(draw: st.DrawFn, queries: int, keys: int) -> Pattern:
    kinds = ["dense", "causal", "band", "blocks", "both"]
    kind = draw(st.sampled_from([*kinds, "modality"] if queries == keys > 0 else kinds))
    if kind == "dense":
        return Dense()
    if kind == "causal":
        return Causal()
    band = Band(draw(st.integers(1, 20)), draw(st.integers(0, 4)), draw(st.booleans()))
    if kind == "band":
        return band
    if kind == "modality":
        cut = draw(st.integers(1, queries))
        parts = (cut, queries - cut) if cut < queries else (cut,)
        return Modality.of_lengths(parts, draw(st.integers(1, 9)), draw(st.integers(0, 2)))
    block = draw(st.integers(1, 19))
    numbers = st.lists(st.integers(0, max(keys - 1, 0) // block), unique=True).map(sorted)
    count = -(-queries // block) if keys else 0
    if not count:
        return band
    blocks = Blocks(draw(st.lists(numbers, min_size=count, max_size=count)), block)
    return blocks if kind == "blocks" else blocks | band


@st.composite
def calls(draw: st.DrawFn) -> Sample:
    """Any options together, batches or sequences in a row."""
    torch.manual_seed(draw(st.integers(0, 1 << 31)))
    dtype = draw(st.sampled_from(DTYPES))
    groups, ratio = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    heads = groups * ratio
    channels = draw(st.one_of(st.integers(1, 40), st.sampled_from([64, 80, 96, 128, 200, 256])))
    options: dict[str, Any] = {"return_lse": draw(st.booleans())}
    if draw(st.booleans()):
        rows, keys = draw(lengths(0)), draw(lengths(0))
        keys = (keys * 4)[: len(rows)]
        bounds = [list(itertools.accumulate(counts, initial=0)) for counts in (rows, keys)]
        options["cu_seqlens"], options["cu_seqlens_k"] = map(torch.tensor, bounds)
        batch, queries, key_rows = 1, bounds[0][-1], bounds[1][-1]
        pattern: Pattern = Band(
            draw(st.integers(1, 9)), draw(st.integers(0, 2)), draw(st.booleans())
        )
    else:
        batch, queries, key_rows = draw(st.integers(1, 3)), draw(st.integers(0, 70)), 0
        key_rows = draw(st.one_of(st.just(queries), st.integers(0, 70)))
        pattern = draw_pattern(draw, queries, key_rows)
    q, k, v = heads_of(dtype, batch, (heads, groups), (queries, key_rows), channels)
    if draw(st.booleans()):
        # As projections leave them: heads behind rows.
        q, k, v = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v))
    if draw(st.booleans()):
        options["active_heads"] = [h for h in range(heads) if draw(st.booleans())]
    if draw(st.booleans()):
        options["key_padding"] = torch.rand(batch, key_rows) < draw(st.sampled_from([0.2, 0.9]))
    if draw(st.booleans()):
        options["softcap"] = draw(st.sampled_from([0.5, 3.0]))
    if draw(st.booleans()):
        options["sink_logits"] = sinks_of(dtype, heads)
    if draw(st.booleans()):
        options["scale"] = draw(st.sampled_from([0.1, 1.0]))
    return call(q, k, v, pattern, **options)


@settings(max_examples=30)
@given(calls())
def test_random_calls(sample: Sample) -> None:
    with leeboard.ops.backend("cpu"):
        outputs = run(NAME, sample)
        assert_matches(NAME, sample, outputs, arbitrary=True)
        grads = [torch.randn(y.shape).to(y.dtype) for y in outputs]
        actual = gradients(sparse_gqa, wants_gradient(sample), grads)
    assert_gradients_match(NAME, sample, grads, actual)


@dtypes
@pytest.mark.parametrize("channels", [1, 15, 16, 17, 31, 48, 64, 96, 112, 128, 160, 192, 255])
def test_head_dimensions(channels: int, dtype: torch.dtype, isa: str) -> None:
    # Enough rows that the largest error is no chance of one of them.
    q, k, v = heads_of(dtype, 2, (4, 2), (19, 37), channels)
    sample = call(q, k, v, Band(9, sinks=1), return_lse=True)
    with leeboard.ops.backend("cpu"):
        outputs = run(NAME, sample)
        assert_matches(NAME, sample, outputs)
        grads = [torch.randn(y.shape).to(y.dtype) for y in outputs]
        actual = gradients(sparse_gqa, wants_gradient(sample), grads)
    assert_gradients_match(NAME, sample, grads, actual)


@dtypes
def test_large_scores(dtype: torch.dtype, isa: str) -> None:
    """Far beyond what exp can hold, with the greatest first, in the middle and last."""
    q, k, v = heads_of(dtype, 1, (3, 1), (50, 50), 16)
    k = (k.double() * torch.linspace(0.0, 1.0, 50, dtype=torch.float64)[:, None]).to(dtype)
    for keys in (k, k.flip(2), k.roll(25, 2)):
        sample = call(q * 8.0, keys, v, Dense(), scale=4.0, return_lse=True)
        assert_matches(NAME, sample, run(NAME, sample), arbitrary=True)


# --- identities ---


@backends
def test_rows_that_see_nothing(backend: str) -> None:
    q, k, v = heads_of(torch.float32, 2, (4, 2), (9, 9), 16)
    padding = torch.zeros(2, 9, dtype=torch.bool)
    padding[0, :3] = True
    padding[1] = True
    sinks = sinks_of(torch.float32, 4)
    for more in ({}, {"sink_logits": sinks}):
        sample = wants_gradient(
            call(q, k, v, Band(2), key_padding=padding, return_lse=True, **more)
        )
        with leeboard.ops.backend(backend):
            out, lse = run(NAME, sample)
            assert not out[0, :, :3].any()
            assert not out[1].any()
            nothing = sinks[:, None].expand(4, 9) if more else torch.full((4, 9), -float("inf"))
            torch.testing.assert_close(lse[1].detach(), nothing)
            torch.testing.assert_close(lse[0, :, :3].detach(), nothing[:, :3])
            grads = torch.autograd.grad(
                [out, lse], sample.tensors()[:3], [torch.ones_like(out), torch.ones_like(lse)]
            )
        for grad in grads:
            assert not grad.isnan().any()
            assert not grad[1].any()
            assert grad[0].any()
        assert not grads[0][0, :, :3].any()
        assert not grads[1][0, :, :3].any()


@backends
@pytest.mark.parametrize("pattern", [Band(4), TopU(1)], ids=str)
def test_idle_heads_are_not_read(backend: str, pattern: Pattern) -> None:
    q, k, v = heads_of(torch.float32, 1, (6, 3), (12, 12), 16)
    if isinstance(pattern, TopU):
        q = peaked(q, pattern)
    q[:, [1, 4, 5]] = float("nan")
    k[:, 2] = v[:, 2] = float("nan")
    sample = wants_gradient(call(q, k, v, pattern, active_heads=[0, 2, 3], return_lse=True))
    with leeboard.ops.backend(backend):
        out, lse = run(NAME, sample)
        assert not out[:, [1, 4, 5]].any()
        assert (lse[:, [1, 4, 5]] == -float("inf")).all()
        assert not out.isnan().any()
        wanted = sample.tensors()
        cotangents = [torch.full_like(out, 0.5), torch.full_like(lse, 0.25)]
        grad_q, grad_k, grad_v = torch.autograd.grad([out, lse], wanted, cotangents)
    assert not grad_q[:, [1, 4, 5]].any()
    assert not grad_k[:, 2].any()
    assert not grad_v[:, 2].any()
    for grad in (grad_q, grad_k, grad_v):
        assert not grad.isnan().any()
    whole = call(q[:, [0, 2, 3]], k[:, [0, 1, 1]], v[:, [0, 1, 1]], pattern)
    torch.testing.assert_close(out[:, [0, 2, 3]].detach(), run(NAME, whole)[0])
    with leeboard.ops.backend(backend):
        nobody = sparse_gqa(q, k, v, pattern, active_heads=())
    assert torch.equal(nobody, torch.zeros_like(q))


@pytest.mark.parametrize("pattern", [Dense(), TopU(1, 3)], ids=str)
def test_padding_is_as_if_it_were_not_there(pattern: Pattern) -> None:
    q, k, v = heads_of(torch.float32, 1, (4, 2), (31, 40), 16)
    if isinstance(pattern, TopU):
        q = peaked(q, pattern)
    kept = torch.rand(40) < 0.6
    out, lse = sparse_gqa(q, k, v, pattern, key_padding=~kept[None], return_lse=True)
    alone = sparse_gqa(q, k[:, :, kept], v[:, :, kept], pattern, return_lse=True)
    torch.testing.assert_close(out, alone[0])
    torch.testing.assert_close(lse, alone[1])


@backends
@pytest.mark.parametrize("pattern", [Band(5, 1, causal=False), TopU(1, 3)], ids=str)
def test_sequences_in_a_row_are_each_alone(backend: str, pattern: Pattern) -> None:
    sample = packed(torch.float32)
    bounds, key_bounds = (sample.kwargs[name].tolist() for name in ("cu_seqlens", "cu_seqlens_k"))
    q, k, v = sample.args[:3]
    if isinstance(pattern, TopU):
        q = peaked(q, pattern, list(itertools.pairwise(bounds)))
    padding = torch.rand(1, k.shape[2]) < 0.3
    # One of them has no key in sight.
    padding[:, key_bounds[3] :] = True
    options = {"active_heads": (0, 2, 3, 5), "sink_logits": sinks_of(torch.float32, 6)}
    together = wants_gradient(
        call(q, k, v, pattern, key_padding=padding, **options, **sample.kwargs)
    )
    with leeboard.ops.backend(backend):
        out, lse = run(NAME, together)
        cotangents = [torch.randn_like(out), torch.randn_like(lse)]
        actual = torch.autograd.grad([out, lse], together.tensors()[:3], cotangents)
        parts, grads = [], []
        for (b, e), (kb, ke) in zip(
            itertools.pairwise(bounds), itertools.pairwise(key_bounds), strict=True
        ):
            leaves = [
                t.clone().requires_grad_() for t in (q[:, :, b:e], k[:, :, kb:ke], v[:, :, kb:ke])
            ]
            alone = sparse_gqa(
                *leaves, pattern, key_padding=padding[:, kb:ke], return_lse=True, **options
            )
            parts.append(alone)
            grads.append(
                torch.autograd.grad(
                    alone, leaves, [g[:, :, b:e] for g in cotangents], materialize_grads=True
                )
            )
    for got, pieces in zip((out, lse), zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(got, torch.cat(pieces, 2))
    for got, pieces in zip(actual, zip(*grads, strict=True), strict=True):
        torch.testing.assert_close(got, torch.cat(pieces, 2))


def test_one_bound_serves_queries_and_keys() -> None:
    q, k, v = heads_of(torch.float32, 1, (4, 2), (20, 20), 16)
    bounds = torch.tensor([0, 6, 20])
    out = sparse_gqa(q, k, v, Causal(), cu_seqlens=bounds)
    for b, e in ((0, 6), (6, 20)):
        alone = sparse_gqa(q[:, :, b:e], k[:, :, b:e], v[:, :, b:e], Causal())
        torch.testing.assert_close(out[:, :, b:e], alone)
    nothing = sparse_gqa(
        q[:, :, :0], k[:, :, :0], v[:, :, :0], Causal(), cu_seqlens=torch.tensor([0])
    )
    assert nothing.shape == (1, 4, 0, 16)


def test_the_last_query_is_at_the_last_key() -> None:
    """One more token over a cache is the last row of all."""
    q, k, v = heads_of(torch.float32, 2, (4, 2), (23, 23), 16)
    for pattern in (Causal(), Band(7, sinks=2)):
        whole = sparse_gqa(q, k, v, pattern)
        torch.testing.assert_close(sparse_gqa(q[:, :, -1:], k, v, pattern), whole[:, :, -1:])


def test_log_sum_exp_softcap_and_sinks() -> None:
    """From the scores themselves; a sink is a key of that logit whose value is zero."""
    q, k, v = heads_of(torch.float64, 1, (2, 2), (5, 8), 16)
    sinks = sinks_of(torch.float64, 2)
    scores = 3.0 * torch.tanh(q @ k.mT * 0.7 / 3.0)
    logits = torch.cat([scores, sinks[None, :, None, None].expand(1, 2, 5, 1)], -1)
    values = torch.cat([v, torch.zeros(1, 2, 1, 16, dtype=torch.float64)], 2)
    out, lse = sparse_gqa(
        q, k, v, Dense(), scale=0.7, softcap=3.0, sink_logits=sinks, return_lse=True
    )
    torch.testing.assert_close(lse, logits.logsumexp(-1))
    torch.testing.assert_close(out, logits.softmax(-1) @ values)
    huge = sparse_gqa(
        q, k, v, Dense(), sink_logits=torch.tensor([1e4, -1e4]).double(), return_lse=True
    )
    assert not huge[0][:, 0].any()
    torch.testing.assert_close(huge[0][:, 1], sparse_gqa(q, k, v, Dense())[:, 1])


# --- the most peaked queries ---


def by_hand(q: Tensor, k: Tensor, v: Tensor, pattern: TopU) -> tuple[Tensor, list[list[int]]]:
    """ProbSparse attention of one batch, a head and a query at a time."""
    heads, rows, channels = q.shape
    groups, keys, _ = k.shape
    chosen = []
    out = torch.empty(q.shape, dtype=q.dtype)
    for h in range(heads):
        own_k, own_v = k[h * groups // heads], v[h * groups // heads]
        peaks = []
        for i in range(rows):
            scores = [float(q[h, i] @ own_k[j]) * channels**-0.5 for j in pattern.sampled(keys)]
            peaks.append(max(scores) - sum(scores) / len(scores))
        best = sorted(sorted(range(rows), key=lambda i: (-peaks[i], i))[: pattern.queries(rows)])
        for i in range(rows):
            weights = (own_k @ q[h, i] * channels**-0.5).softmax(0)
            out[h, i] = weights @ own_v if i in best else own_v.mean(0)
        chosen.append(best)
    return out, chosen


@backends
def test_top_u_by_hand(backend: str) -> None:
    pattern = TopU(2, seed=5)
    dtype = torch.float64 if backend == "reference" else torch.float32
    q, k, v = heads_of(dtype, 2, (4, 2), (37, 45), 16)
    q = peaked(q, pattern)
    with leeboard.ops.backend(backend):
        out, _, chosen = torch.ops.leeboard.sparse_gqa(*arguments(call(q, k, v, pattern)))
    for b in range(2):
        expected, rows = by_hand(q[b], k[b], v[b], pattern)
        assert chosen[b].tolist() == rows
        torch.testing.assert_close(out[b], expected)


@backends
def test_equal_queries_are_chosen_in_order(backend: str) -> None:
    # Whole numbers: their products are exact wherever a row stands.
    q, k, v = (t.round() for t in heads_of(torch.float32, 1, (2, 1), (40, 40), 16))
    q = q[:, :, :1].expand(1, 2, 40, 16)
    sample = call(q, k, v, TopU(1), scale=1.0)
    with leeboard.ops.backend(backend):
        _, _, chosen = torch.ops.leeboard.sparse_gqa(*arguments(sample))
    assert chosen.tolist() == [[[0, 1, 2, 3]] * 2]


@pytest.mark.parametrize("padded", [1, 2], ids=["one", "all"])
@backends
def test_top_u_over_nothing(backend: str, padded: int) -> None:
    q, k, v = heads_of(torch.float32, 2, (2, 1), (12, 9), 16)
    padding = torch.zeros(2, 9, dtype=torch.bool)
    padding[:padded] = True
    sample = wants_gradient(
        call(
            q,
            k,
            v,
            TopU(),
            key_padding=padding,
            sink_logits=sinks_of(torch.float32, 2),
            return_lse=True,
        )
    )
    with leeboard.ops.backend(backend):
        out, lse = run(NAME, sample)
        assert not out[0].any()
        assert (lse[0] == -float("inf")).all()
        cotangents = [torch.ones_like(out), torch.ones_like(lse)]
        leaves = [t for t in sample.tensors() if t.requires_grad]
        grads = torch.autograd.grad([out, lse], leaves, cotangents)
    for grad in grads:
        assert not grad.isnan().any()
    assert not grads[0][0].any()
    assert not grads[2][0].any()


def test_out_may_share_memory_with_the_sinks() -> None:
    q, k, v = heads_of(torch.float32, 2, (2, 1), (12, 9), 16)
    memory = torch.randn(q.numel())
    sinks = memory[:2]
    expected = sparse_gqa(q, k, v, Dense(), sink_logits=sinks)
    sparse_gqa(q, k, v, Dense(), sink_logits=sinks, out=memory.view(q.shape))
    assert torch.equal(memory.view(q.shape), expected)


def test_top_u_is_the_same_again() -> None:
    pattern = TopU(2, seed=11)
    q, k, v = heads_of(torch.float32, 2, (8, 2), (200, 200), 16)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        sample = wants_gradient(call(q, k, v, pattern, return_lse=True))
        outputs = run(NAME, sample)
        grads = torch.autograd.grad(outputs, sample.tensors(), [t.detach() for t in outputs])
        results.append([t.detach() for t in (*outputs, *grads)])
    assert_same(results[0], results[1])
    other = sparse_gqa(q, k, v, TopU(2, seed=12))
    assert not torch.equal(results[0][0], other)


# --- gradients ---


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("name", ["everything", "top-u", "packed"])
def test_one_cotangent_at_a_time(backend: str, name: str) -> None:
    """The log-sum-exp is often not used, the output seldom."""
    sample = samples()[name](torch.float32)
    with leeboard.ops.backend(backend):
        wanted = wants_gradient(sample)
        leaves = [t for t in wanted.tensors() if t.requires_grad]
        outputs = run(NAME, wanted)
        grads = [torch.randn_like(y) for y in outputs]
        both = torch.autograd.grad(outputs, leaves, grads, retain_graph=True)
        alone = [
            torch.autograd.grad([y], leaves, [g], retain_graph=True, materialize_grads=True)
            for y, g in zip(outputs, grads, strict=True)
        ]
    for total, first, second in zip(both, *alone, strict=True):
        torch.testing.assert_close(total, first + second)


def test_closed_form_of_the_reference() -> None:
    """Autograd through the reference, and its backward."""
    for name in ("everything", "padded", "packed", "composed", "more-queries"):
        sample = samples()[name](torch.float64)
        q, k, v, pattern = sample.args
        options = {n: t for n, t in sample.kwargs.items() if n != "return_lse"}
        out, lse, _ = reference.sparse_gqa_parts(q, k, v, pattern, **options)
        options.pop("sink_logits", None)
        grads = [torch.randn_like(out), torch.randn_like(lse)]
        actual = reference.sparse_gqa_backward(*grads, q, k, v, out, lse, pattern, **options)
        whole = call(*sample.args, **{**sample.kwargs, "return_lse": True})
        expected = gradients(reference.sparse_gqa, wants_gradient(whole, which=[0, 1, 2]), grads)
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, b)


# --- torch's machinery ---


@pytest.mark.parametrize("name", ["top-u", "packed", "everything"])
def test_opcheck_of_forward_and_backward(name: str) -> None:
    sample = samples()[name](torch.float32)
    if name == "packed":
        sample.kwargs["cu_seqlens"] = sample.kwargs["cu_seqlens"].long()
    given = arguments(sample)
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(torch.ops.leeboard.sparse_gqa.default, given, test_utils=checks)
    out, lse, chosen = torch.ops.leeboard.sparse_gqa(*given)
    for grad_lse in (None, torch.randn_like(lse)):
        backward = (torch.randn_like(out), grad_lse, *given[:3], out, lse, chosen, *given[3:])
        torch.library.opcheck(
            torch.ops.leeboard.sparse_gqa_backward.default, backward, test_utils=checks
        )


@pytest.fixture
def clean_dynamo() -> None:
    torch._dynamo.reset()


@pytest.mark.usefixtures("clean_dynamo")
def test_compiles_whole_for_any_length() -> None:
    """One graph, forward and backward; the pattern is a constant of it."""
    counter = CompileCounterWithBackend("aot_eager")

    def function(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern) -> Any:
        return sparse_gqa(q * 1.0, k, v, pattern, return_lse=True)

    compiled = torch.compile(function, backend=counter, fullgraph=True, dynamic=True)
    for rows in (6, 33):
        sample = call(*heads_of(torch.float32, 2, (4, 2), (rows, rows + 3), 16), Band(3, 1))
        traced = wants_gradient(sample)
        outputs = many(compiled(*traced.args))
        expected = run(NAME, Sample(sample.args, {"return_lse": True}))
        assert_same([y.detach() for y in outputs], expected)
        grads = [torch.randn_like(y) for y in outputs]
        actual = torch.autograd.grad(outputs, traced.tensors(), grads)
        again = wants_gradient(Sample(sample.args, {"return_lse": True}))
        assert_same(actual, gradients(sparse_gqa, again, grads))
    assert counter.frame_count == 1


@pytest.mark.usefixtures("clean_dynamo")
@pytest.mark.parametrize("pattern", [Modality.of_lengths((9, 11), 4), TopU(1, 3)], ids=str)
def test_compiles_with_everything(pattern: Pattern) -> None:
    q, k, v = heads_of(torch.float32, 2, (4, 2), (20, 20), 16)
    if isinstance(pattern, TopU):
        q = peaked(q, pattern)
    options = {
        "key_padding": torch.rand(2, 20) < 0.3,
        "sink_logits": sinks_of(torch.float32, 4),
        "active_heads": (0, 3),
        "softcap": 2.0,
        "scale": 0.5,
    }
    compiled = torch.compile(sparse_gqa, backend="aot_eager", fullgraph=True)
    assert_same([compiled(q, k, v, pattern, **options)], [sparse_gqa(q, k, v, pattern, **options)])


def test_exports_with_dynamic_rows() -> None:
    class Module(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Any:
            return sparse_gqa(q, k, v, Band(3, 1), return_lse=True)

    q, k, v = heads_of(torch.float32, 2, (4, 2), (6, 6), 16)
    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(Module(), (q, k, v), dynamic_shapes=({2: rows},) * 3)
    for length in (5, 70):
        q, k, v = heads_of(torch.float32, 2, (4, 2), (length, length), 16)
        expected = sparse_gqa(q, k, v, Band(3, 1), return_lse=True)
        assert_same(many(program.module()(q, k, v)), many(expected))


def test_a_pattern_that_does_not_fit_is_refused_when_compiled() -> None:
    compiled = torch.compile(sparse_gqa, backend="aot_eager", fullgraph=True)
    q, k, v = heads_of(torch.float32, 1, (2, 1), (6, 6), 16)
    with pytest.raises(ValueError, match=r"pattern: Modality.* for 6 queries .* expected 7"):
        compiled(q, k, v, Modality.of_lengths((3, 4)))


# --- the direct path ---


def test_direct_path_needs_no_dispatcher(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = samples()["everything"](torch.float32)
    expected = run(NAME, sample)

    def refuse(*args: Any) -> None:
        raise AssertionError("checks were needed")

    monkeypatch.setattr(_check, "companion", refuse)
    assert_same(run(NAME, sample), expected)


def test_out_is_written_in_place() -> None:
    q, k, v = heads_of(torch.float32, 1, (4, 2), (9, 9), 16)
    expected, lse = sparse_gqa(q, k, v, Band(3), return_lse=True)
    for out in (torch.empty_like(q), torch.empty(1, 9, 4, 16).transpose(1, 2)):
        version = out._version
        y, log = sparse_gqa(q, k, v, Band(3), return_lse=True, out=out)
        assert y is out
        assert out._version > version
        assert_same([out, log], [expected, lse])
    inputs = q.clone()
    assert_same([sparse_gqa(inputs, k, v, Band(3), out=inputs)], [expected])


@pytest.mark.parametrize("storage", ["cu_seqlens", "key_padding", "sink_logits"])
@pytest.mark.parametrize("pattern", [Dense(), TopU()], ids=str)
def test_small_tensors_without_memory(storage: str, pattern: Pattern) -> None:
    q, k, v = heads_of(torch.float32, 1, (4, 2), (9, 9), 16)
    made = {
        "cu_seqlens": torch.tensor([0, 9]),
        "key_padding": torch.zeros(1, 9, dtype=torch.bool),
        "sink_logits": normal(torch.float32, 4),
    }[storage]
    made.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=r"storage|do not fit"):
        sparse_gqa(q, k, v, pattern, **{storage: made})
