"""Train-time-test attention: against torch's own under a mask, identities, layouts, compilation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import leeboard.ops
from harness import (
    Sample,
    assert_gradients_match,
    assert_matches,
    assert_same,
    gradients,
    run,
    wants_gradient,
)
from leeboard.ops import _check, patterns, sparse_gqa, ttt_attention
from ttt_inputs import arguments, normal, samples, steps_of

NAME = "ttt_attention"
BACKENDS = ("reference", "cpu", "triton")

backends = pytest.mark.parametrize("backend", BACKENDS)
# Triton's interpreter is slow: its kernels have tests of their own.
quick_backends = pytest.mark.parametrize("backend", BACKENDS[:2])


def in_one_softmax(
    q: Tensor, k: Sequence[Tensor], v: Sequence[Tensor], window: int | None = None, sinks: int = 0
) -> Tensor:
    """All keys of all steps behind one another, and a mask that leaves out most of them."""
    rows, steps = q.shape[2], len(k)
    t, c = torch.arange(rows)[:, None], torch.arange(rows)[None]
    first = c <= t
    if window is not None:
        first &= (t + steps - 1 - c < window) | (c < sinks)
    mask = torch.cat([first] + [t == c] * (steps - 1), 1)
    keys, values = torch.cat(list(k), 2), torch.cat(list(v), 2)
    attend = torch.nn.functional.scaled_dot_product_attention
    return attend(q, keys, values, attn_mask=mask, enable_gqa=True)


@quick_backends
@pytest.mark.parametrize(
    "options",
    [{}, {"window": 4}, {"window": 6, "sinks": 2}, {"window": 1}, {"window": 99}],
    ids=str,
)
def test_against_torch(backend: str, options: dict[str, int]) -> None:
    dtype = torch.float64 if backend == "reference" else torch.float32
    for steps in (1, 2, 4):
        sample = wants_gradient(Sample(steps_of(dtype, steps, 2, (4, 2), 19, 16), options))
        grad = torch.randn(2, 4, 19, 16, dtype=dtype)
        with leeboard.ops.backend(backend):
            out = ttt_attention(*sample.args, **options)
            grads = torch.autograd.grad(out, sample.tensors(), grad)
        again = wants_gradient(sample)
        expected = in_one_softmax(*again.args, **options)
        torch.testing.assert_close(out, expected)
        expected_grads = torch.autograd.grad(expected, again.tensors(), grad)
        for actual, one in zip(grads, expected_grads, strict=True):
            torch.testing.assert_close(actual, one, atol=1e-5, rtol=1e-4)


@quick_backends
def test_of_one_step_it_is_causal_attention(backend: str) -> None:
    q, k, v = steps_of(torch.float32, 1, 2, (4, 2), 37, 16)
    with leeboard.ops.backend(backend):
        for window, pattern in ((None, patterns.Causal()), (5, patterns.Band(5, sinks=1))):
            actual = ttt_attention(q, k, v, window=window, sinks=1)
            torch.testing.assert_close(actual, sparse_gqa(q, k[0], v[0], pattern))


@backends
def test_a_row_with_its_own_keys_alone(backend: str) -> None:
    """The window has left the keys of step 0 behind: two own keys are all that there is."""
    q, k, v = steps_of(torch.float32, 3, 1, (2, 1), 9, 16)
    with leeboard.ops.backend(backend):
        out = ttt_attention(q, k, v, window=2)
    scores = torch.stack([(q * key).sum(-1) for key in k[1:]]) * 16**-0.5
    weights = scores.softmax(0)[..., None]
    torch.testing.assert_close(out, weights[0] * v[1] + weights[1] * v[2])


@backends
def test_documents_do_not_see_each_other(backend: str) -> None:
    q, k, v = steps_of(torch.float32, 3, 2, (4, 2), 20, 16)
    cu = torch.tensor([0, 7, 7, 20, 32, 40])
    options = {"window": 6, "sinks": 2, "scale": 0.4}
    with leeboard.ops.backend(backend):
        packed = ttt_attention(q, k, v, cu_seqlens=cu, **options)
        for b, begin, end in ((0, 0, 7), (0, 7, 20), (1, 0, 12), (1, 12, 20)):
            at = (slice(b, b + 1), slice(None), slice(begin, end))
            alone = ttt_attention(q[at], [t[at] for t in k], [t[at] for t in v], **options)
            torch.testing.assert_close(packed[at], alone)


@backends
def test_bounds_that_change_nothing(backend: str) -> None:
    q, k, v = steps_of(torch.float32, 2, 3, (2, 1), 11, 16)
    with leeboard.ops.backend(backend):
        expected = ttt_attention(q, k, v)
        for dtype in (torch.int32, torch.int64):
            cu = torch.arange(0, 34, 11, dtype=dtype)
            torch.testing.assert_close(ttt_attention(q, k, v, cu_seqlens=cu), expected)


@quick_backends
def test_all_steps_at_once_are_the_steps(backend: str) -> None:
    sample = samples()["together"](torch.float32)
    every, k, v = sample.args
    with leeboard.ops.backend(backend):
        (together,) = run(NAME, sample)
        for s in range(len(every)):
            step = ttt_attention(every[s], k[: s + 1], list(v[: s + 1]), **sample.kwargs)
            assert torch.equal(together[s], step)


def test_one_sequence_or_many_threads_give_the_same_bits() -> None:
    sample = samples()["packed"](torch.float32)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        wanted = wants_gradient(sample)
        (out,) = run(NAME, wanted)
        grads = torch.autograd.grad(out, [t for t in wanted.tensors() if t.requires_grad], out)
        results.append([out.detach(), *grads])
    assert_same(*results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [-0.7, 0.0, 30.0])
def test_any_scale(scale: float, dtype: torch.dtype) -> None:
    sample = Sample(steps_of(dtype, 3, 1, (4, 2), 40, 32), {"window": 9, "scale": scale})
    assert_matches(NAME, sample, run(NAME, sample))
    if scale > 1.0:
        # The weights are made anew from scores in the hundreds: sparse_gqa's tests have the limits.
        return
    grads = [normal(dtype, 1, 4, 40, 32)]
    actual = gradients(ttt_attention, wants_gradient(sample), grads)
    assert_gradients_match(NAME, sample, grads, actual)


def test_scores_far_apart() -> None:
    """Own keys that outweigh all others, and that weigh nothing."""
    q, k, v = steps_of(torch.float32, 3, 1, (2, 1), 33, 16)
    for factors in ((1.0, 100.0, -100.0), (100.0, 1e-3, 1.0)):
        scaled = [t * f for t, f in zip(k, factors, strict=True)]
        sample = Sample((q, scaled, v))
        actual = run(NAME, sample)
        assert actual[0].isfinite().all()
        assert_matches(NAME, sample, actual)


# --- layouts ---


def side_by_side(t: Tensor) -> Tensor:
    """[B, H, T, D] whose heads lie side by side in memory, as a projection leaves them."""
    return t.transpose(1, 2).contiguous().transpose(1, 2)


@pytest.mark.parametrize(
    ("backend", "cu"),
    [(name, [0, 4, 6, 10, 12]) for name in BACKENDS] + [(name, None) for name in BACKENDS[:2]],
)
def test_heads_side_by_side_stay_so(backend: str, cu: list[int] | None) -> None:
    q, k, v = steps_of(torch.float32, 2, 2, (2, 1), 6, 16)
    options = {"cu_seqlens": None if cu is None else torch.tensor(cu)}
    with leeboard.ops.backend(backend):
        expected = ttt_attention(q, k, v, **options)
        sample = wants_gradient(Sample((q, k, v), options).mapped(lambda t: t))
        strided = Sample(
            (side_by_side(q), [side_by_side(t) for t in k], [side_by_side(t) for t in v]), options
        )
        leaves = wants_gradient(strided)
        out = ttt_attention(*leaves.args, **options)
        assert out.transpose(1, 2).is_contiguous()
        assert torch.equal(out, expected)
        assert torch.equal(ttt_attention(*strided.args, **options), expected)
        mine = [t for t in leaves.tensors() if t.requires_grad]
        grads = torch.autograd.grad(out, mine, side_by_side(torch.ones_like(q)))
        plain = [t for t in sample.tensors() if t.requires_grad]
        exact = torch.autograd.grad(
            ttt_attention(*sample.args, **options), plain, torch.ones_like(q)
        )
    assert_same(grads, exact)
    assert all(g.transpose(1, 2).is_contiguous() for g in grads)


@quick_backends
def test_every_step_in_a_layout_of_its_own(backend: str) -> None:
    q, k, v = steps_of(torch.float32, 4, 2, (4, 2), 12, 16)
    mixed = (
        [
            k[0],
            side_by_side(k[1]),
            k[2].flip(2).flip(2),
            normal(torch.float32, 2, 2, 12, 20)[..., :16],
        ],
        [side_by_side(v[0]), v[1], v[2].mT.contiguous().mT, v[3]],
    )
    sample = Sample((q, *mixed))
    grads = [torch.randn_like(q)]
    with leeboard.ops.backend(backend):
        assert_matches(NAME, sample, run(NAME, sample))
        actual = gradients(ttt_attention, wants_gradient(sample), grads)
        assert_gradients_match(NAME, sample, grads, actual)


def test_out_is_written_in_place() -> None:
    q, k, v = steps_of(torch.float32, 2, 2, (4, 2), 9, 16)
    expected = ttt_attention(q, k, v)
    for out in (torch.empty_like(q), side_by_side(torch.empty_like(q))):
        version = out._version
        assert ttt_attention(q, k, v, out=out) is out
        assert out._version > version
        assert_same([out], [expected])
    memory = q.clone()
    assert_same([ttt_attention(memory, k, v, out=memory)], [expected])


# --- gradients of an unroll ---


def test_an_unroll_sends_gradients_to_every_step() -> None:
    """Each step's keys come from what the step before it gave."""

    def unrolled(attend: Any, x: Tensor, w: Tensor) -> Tensor:
        keys: list[Tensor] = []
        total = x.new_zeros(())
        for _ in range(3):
            keys.append(x)
            x = attend(x * 2.0, keys, keys) @ w
            total = total + x.square().sum()
        return total

    x, w = torch.randn(1, 2, 14, 8), torch.randn(8, 8) / 3
    wanted = [
        [t.detach().to(dtype).requires_grad_() for t in (x, w)]
        for dtype in (torch.float32, torch.float64)
    ]
    actual = torch.autograd.grad(unrolled(ttt_attention, *wanted[0]), wanted[0])
    expected = torch.autograd.grad(unrolled(in_one_softmax, *wanted[1]), wanted[1])
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.double(), e, rtol=1e-4, atol=1e-4)


def test_the_log_sum_exp_has_no_gradient() -> None:
    sample = wants_gradient(samples()["plain"](torch.float32))
    out, lse = torch.ops.leeboard.ttt_attention(*arguments(sample))
    assert out.requires_grad
    assert not lse.requires_grad
    scores = leeboard.reference.ttt_attention_scores(*arguments(sample)[:2], None, 0, None, None)
    torch.testing.assert_close(lse, scores.logsumexp(-1).detach())


# --- torch's machinery ---


@pytest.mark.parametrize("name", ["packed", "left-the-window"])
def test_opcheck_of_forward_and_backward(name: str) -> None:
    given = arguments(samples()[name](torch.float32))
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(torch.ops.leeboard.ttt_attention.default, given, test_utils=checks)
    out, lse = torch.ops.leeboard.ttt_attention(*given)
    first, own = zip(*((steps[0], torch.stack(steps[1:])) for steps in given[1:3]), strict=True)
    backward = (torch.randn_like(out), given[0], *first, *own, out, lse, *given[3:])
    torch.library.opcheck(
        torch.ops.leeboard.ttt_attention_backward.default, backward, test_utils=checks
    )


@pytest.fixture
def clean_dynamo() -> None:
    torch._dynamo.reset()


@pytest.mark.usefixtures("clean_dynamo")
def test_compiles_whole_for_any_length() -> None:
    """One graph, forward and backward."""
    counter = CompileCounterWithBackend("aot_eager")

    def function(q: Tensor, k: list[Tensor], v: list[Tensor], cu: Tensor) -> Any:
        return ttt_attention(q * 1.0, k, v, window=5, sinks=1, cu_seqlens=cu)

    compiled = torch.compile(function, backend=counter, fullgraph=True, dynamic=True)
    for rows in (6, 33):
        cu = torch.tensor([0, 4, rows, 2 * rows])
        sample = Sample((*steps_of(torch.float32, 3, 2, (4, 2), rows, 16), cu))
        grads = [torch.randn(2, 4, rows, 16)]
        traced, plain = wants_gradient(sample), wants_gradient(sample)
        assert_same([compiled(*sample.args)], [function(*sample.args)])
        assert_same(gradients(compiled, traced, grads), gradients(function, plain, grads))
    # Whether a gradient is wanted makes a graph of its own.
    assert counter.frame_count == 2


@pytest.mark.usefixtures("clean_dynamo")
def test_compiles_all_steps_at_once() -> None:
    sample = samples()["packed-together"](torch.float32)
    compiled = torch.compile(ttt_attention, backend="aot_eager", fullgraph=True)
    assert_same([compiled(*sample.args, **sample.kwargs)], run(NAME, sample))


def test_direct_path_needs_no_dispatcher(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = samples()["packed"](torch.float32)
    expected = run(NAME, sample)

    def refuse(*args: Any) -> None:
        raise AssertionError("checks were needed")

    monkeypatch.setattr(_check, "companion", refuse)
    assert_same(run(NAME, sample), expected)


def test_bounds_without_memory() -> None:
    q, k, v = steps_of(torch.float32, 2, 1, (2, 1), 9, 16)
    cu = torch.tensor([0, 9])
    cu.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=r"cu_seqlens: its storage is empty"):
        ttt_attention(q, k, v, cu_seqlens=cu)


def test_not_a_number_stays_in_its_row() -> None:
    q, k, v = steps_of(torch.float32, 2, 1, (2, 1), 20, 16)
    k[1][0, 0, 7, 3] = math.nan
    out = ttt_attention(q, k, v)
    assert out[:, :, 7].isnan().all()
    assert out[:, :, [*range(7), *range(8, 20)]].isfinite().all()


# --- the benchmark ---


def test_rivals_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the check of their results can fail."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    from bench.cases import Prepared, variants
    from bench.ops import bench_ttt_attention as bench

    case = bench._case(3, 2, (4, 2), 20, 16, torch.float32)
    # 14 a channel of each pair: 210 with the keys of step 0, three times, and 60 with own ones.
    assert case.flops == 7 * 2 * 16 * 4 * 2 * (3 * 210 + 20 * 3)
    prepared = Prepared(bench.SUBJECT, case)
    for variant in variants(bench.SUBJECT, case):
        result = prepared.call(variant)()
        prepared.check(variant, result)
        with pytest.raises(AssertionError):
            prepared.check(variant, [result[0] * 1.01, *result[1:]])
