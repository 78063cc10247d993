"""What is particular to decode_attention: masks, windows, chunks of keys, appending, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cases import attention_arguments, attention_call, tree
from harness import LAYOUTS, Sample, assert_matches, assert_same, relayout, run
from leeboard import reference
from leeboard.ops import backend, decode_attention, decode_attention_
from tolerances import assert_close_to_reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


def agrees(call: Sample) -> Tensor:
    """The CPU kernel's result, held against the reference."""
    with backend("cpu"):
        (out,) = run("decode_attention", call)
    assert_matches("decode_attention", call, [out])
    return out


def by_hand(call: Sample) -> Tensor:
    """torch's own attention in float64, a batch at a time, with a mask made key by key."""
    q, k, v, k_cache, v_cache, lengths = (
        t.double() if t.is_floating_point() else t for t in call.args
    )
    options = call.kwargs
    window, sinks, tokens = options.get("window"), options.get("sinks", 0), q.shape[2]
    outs = []
    for b, length in enumerate(lengths.tolist()):
        keys = torch.cat([k_cache[b, :, :length], k[b]], 1)
        values = torch.cat([v_cache[b, :, :length], v[b]], 1)
        seen = torch.zeros(tokens, length + tokens, dtype=torch.bool)
        for t in range(tokens):
            for j in range(length + tokens):
                near = window is None or length + t - j < window or j < sinks
                seen[t, j] = j <= length + t and near
                if j >= length and "mask" in options:
                    mask = options["mask"]
                    seen[t, j] = (mask if mask.dim() == 2 else mask[b])[t, j - length]
        out = F.scaled_dot_product_attention(
            q[b : b + 1],
            keys[None],
            values[None],
            attn_mask=seen,
            scale=options.get("scale"),
            enable_gqa=True,
        )
        outs.append(out)
    return torch.cat(outs)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"window": 5},
        {"window": 9, "sinks": 3},
        {"sinks": 4},
        {"window": 1, "sinks": 100},
        {"mask": tree((), 4)},
        {"mask": tree((2,), 4), "window": 6, "sinks": 2},
        {"mask": torch.eye(4, dtype=torch.bool), "scale": 0.5},
    ],
    ids=lambda options: "-".join(options) or "none",
)
def test_the_reference_is_attention(options: dict[str, Any]) -> None:
    call = attention_call(torch.float64, (6, 2), 4, 16, (23, 7), room=3, rotate=False, **options)
    actual = reference.decode_attention(*call.args, **call.kwargs)
    torch.testing.assert_close(actual, by_hand(call), rtol=1e-12, atol=1e-12)


def test_rotation_is_a_product_of_complex_numbers() -> None:
    """Channel i and i + D / 2 are the parts of one number, turned by the token's angle."""
    call = attention_call(torch.float64, (2, 1), 3, 8, (5,))
    cos, sin = call.kwargs["cos"].double(), call.kwargs["sin"].double()

    def turned(x: Tensor) -> Tensor:
        turn = torch.complex(cos, sin)[5:8]
        y = torch.complex(x[..., :4].contiguous(), x[..., 4:].contiguous()) * turn
        return torch.cat([y.real, y.imag], -1)

    q, k, *others = call.args
    actual = reference.decode_attention(q, k, *others, cos=cos, sin=sin)
    expected = reference.decode_attention(turned(q), turned(k), *others)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@dtypes
@pytest.mark.parametrize("width", [16, 34, 64, 80, 128, 256])
@pytest.mark.parametrize("ratio", [1, 2, 3, 4, 8, 13])
def test_ratios_and_widths(dtype: torch.dtype, ratio: int, width: int, isa: str) -> None:
    agrees(attention_call(dtype, (2 * ratio, 2), 1, width, (70, 33), room=5))


@dtypes
@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 63, 64, 65, 511, 512, 513, 1024])
def test_borders_of_blocks_and_chunks(dtype: torch.dtype, length: int, isa: str) -> None:
    for tokens in (1, 3):
        agrees(attention_call(dtype, (4, 1), tokens, 32, (length,)))


@pytest.mark.parametrize("edge", [62, 63, 64, 65, 128, 511, 512, 513])
def test_windows_and_sinks_end_at_borders(edge: int, isa: str) -> None:
    """A key too many or too few would show: those at the edge outweigh all others."""
    for options in ({"window": 5, "sinks": edge}, {"window": 600 - edge}, {"window": 601 - edge}):
        call = attention_call(torch.float32, (2, 1), 2, 16, (600,), rotate=False, **options)
        q, _, _, k_cache, *_ = call.args
        k_cache[:, :, edge - 1 : edge + 2] = 3.0 * q[:, :1, :1]
        agrees(call)


@dtypes
@pytest.mark.parametrize("seed", range(12))
def test_random_sights(dtype: torch.dtype, seed: int, isa: str) -> None:
    def one_of(*values: Any) -> Any:
        return values[int(torch.randint(len(values), ()))]

    torch.manual_seed(seed)
    tokens = one_of(1, 2, 5, 12, 70)
    lengths = torch.randint(0, 700, (2,)).tolist()
    options: dict[str, Any] = {"window": one_of(None, 1, 7, 64, 300), "sinks": one_of(0, 1, 4, 90)}
    if one_of(True, False):
        options["mask"] = tree(one_of((), (2,)), tokens)
    call = attention_call(dtype, (one_of(2, 6), 2), tokens, 32, lengths, room=9, **options)
    agrees(call)


def test_hand_made_masks(isa: str) -> None:
    for options in ({"window": 6, "sinks": 2}, {"mask": tree((2,), 4), "window": 6, "sinks": 2}):
        call = attention_call(torch.float32, (6, 2), 4, 16, (150, 7), rotate=False, **options)
        low = reference.decode_attention(*call.args, **call.kwargs)
        assert_close_to_reference(agrees(call), low, by_hand(call))


@pytest.mark.parametrize("tokens", [65, 130, 600])
def test_many_tokens(tokens: int, isa: str) -> None:
    """More rows than one pass takes, and more new keys than one chunk."""
    agrees(attention_call(torch.float32, (2, 1), tokens, 16, (30,)))
    agrees(attention_call(torch.bfloat16, (2, 1), tokens, 16, (30,), window=70, sinks=2))


def test_one_head_of_many_queries(isa: str) -> None:
    agrees(attention_call(torch.float32, (71, 1), 3, 16, (30,)))


@dtypes
def test_a_token_does_not_depend_on_those_behind(dtype: torch.dtype, isa: str) -> None:
    """Rows that are computed side by side, and in one block of keys, do not touch each other."""
    call = attention_call(dtype, (6, 2), 11, 32, (600,), window=200, sinks=1)
    (whole,) = run("decode_attention", call)
    q, k, v, *caches = call.args
    for tokens in (1, 2, 5, 10):
        part = Sample((q[:, :, :tokens], k[:, :, :tokens], v[:, :, :tokens], *caches), call.kwargs)
        assert_same(run("decode_attention", part), [whole[:, :, :tokens]])
    heads = Sample((q[:, :2], k, v, *caches), call.kwargs)
    assert_same(run("decode_attention", heads), [decode_attention(*heads.args, **heads.kwargs)])


@dtypes
def test_a_batch_does_not_depend_on_the_others(dtype: torch.dtype, isa: str) -> None:
    call = attention_call(dtype, (4, 2), 2, 32, (5, 600, 1030, 0))
    (whole,) = run("decode_attention", call)
    for b in range(4):
        one = Sample(tuple(t[b : b + 1] for t in call.args), call.kwargs)
        assert_same(run("decode_attention", one), [whole[b : b + 1]])


@dtypes
def test_same_bits_for_any_thread_count(dtype: torch.dtype, isa: str) -> None:
    for tokens in (1, 5):
        call = attention_call(dtype, (8, 2), tokens, 64, (4090,), window=3000, sinks=4)
        results = []
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            results.append(run("decode_attention", call))
        for result in results[1:]:
            assert_same(result, results[0])


# --- numbers at the edge ---


@dtypes
def test_what_lies_behind_the_length_is_not_read(dtype: torch.dtype, isa: str) -> None:
    call = attention_call(dtype, (4, 2), 2, 32, (70, 513), room=20)
    expected = agrees(call)
    for b, length in enumerate((70, 513)):
        for cache in call.args[3:5]:
            cache[b, :, length:] = math.nan
    for name in ("cpu", "reference"):
        with backend(name):
            (out,) = run("decode_attention", call)
        assert out.isfinite().all()
    with backend("cpu"):
        assert_same(run("decode_attention", call), [expected])


@dtypes
@pytest.mark.parametrize("size", [50.0, 1e3])
def test_large_scores(dtype: torch.dtype, size: float, isa: str) -> None:
    """exp alone would overflow; nearly all weights but one vanish."""
    call = attention_call(dtype, (4, 2), 2, 64, (600,), rotate=False)
    q, *others = call.args
    q = (q.double() * size).to(dtype)
    agrees(Sample((q, *others), call.kwargs))


def test_weights_that_underflow(isa: str) -> None:
    """One key wins by more than exp can express, in every place of a block and of the chunks."""
    q = torch.ones(1, 1, 1, 16)
    for winner in (0, 1, 63, 64, 511, 512, 599):
        k_cache, v_cache = torch.full((1, 1, 601, 16), -100.0), torch.randn(1, 1, 601, 16)
        k_cache[:, :, winner] = 100.0
        k = torch.full((1, 1, 1, 16), -100.0)
        out = decode_attention(q, k, v_cache[:, :, :1], k_cache, v_cache, torch.tensor([600]))
        assert torch.equal(out[0, 0, 0], v_cache[0, 0, winner])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_special_keys(value: float, isa: str) -> None:
    """NaN and infinities where the reference has them, and in no other head."""
    for at in (3, 70, 599):
        call = attention_call(torch.float32, (4, 2), 2, 16, (600,), rotate=False)
        call.args[3][0, 1, at, 2] = value
        out = agrees(call)
        assert out[:, :2].isfinite().all()


def test_equal_keys_give_the_mean(isa: str) -> None:
    call = attention_call(torch.float32, (2, 1), 1, 16, (999,), rotate=False)
    q, k, v, k_cache, v_cache, lengths = call.args
    out = decode_attention(torch.zeros_like(q), k, v, k_cache, v_cache, lengths)
    mean = torch.cat([v_cache[:, :, :999], v], 2).double().mean(2, keepdim=True)
    torch.testing.assert_close(out.double(), mean.expand_as(out), rtol=1e-6, atol=1e-7)


# --- appending ---


def appended(call: Sample) -> tuple[Tensor, Tensor, Tensor]:
    """The result and the caches of decode_attention_, on copies."""
    copy = call.copied()
    out = decode_attention_(*copy.args, **copy.kwargs)
    return out, copy.args[3], copy.args[4]


@dtypes
@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_appending_gives_the_same_result(dtype: torch.dtype, name: str, isa: str) -> None:
    for tokens, lengths in ((1, (5, 70)), (4, (0, 511)), (70, (3, 9))):
        call = attention_call(dtype, (4, 2), tokens, 48, lengths, room=3, window=60, sinks=1)
        with backend(name):
            out, k_cache, v_cache = appended(call)
            assert_same([out], run("decode_attention", call))
        for b, length in enumerate(lengths):
            new = slice(length, length + tokens)
            assert torch.equal(v_cache[b, :, new], call.args[2][b])
            for cache, before in ((k_cache, call.args[3]), (v_cache, call.args[4])):
                assert torch.equal(cache[b, :, :length], before[b, :, :length])
                assert torch.equal(cache[b, :, new.stop :], before[b, :, new.stop :])


@dtypes
def test_appended_keys_are_those_of_the_reference(dtype: torch.dtype, isa: str) -> None:
    """Bit for bit: products are rounded one by one, then the sum, then to the cache's dtype."""
    for width in (16, 34, 80, 128):
        call = attention_call(
            dtype, (4, 2), 3, width, (5, 70), positions=torch.tensor([[4, 0, 9], [1, 1, 2]])
        )
        _, k_cache, v_cache = appended(call)
        exact = call.copied()
        reference.decode_attention_(*exact.args, **exact.kwargs)
        assert_same([k_cache, v_cache], exact.args[3:5])


@dtypes
def test_later_calls_read_the_keys_that_this_one_used(dtype: torch.dtype, isa: str) -> None:
    """Token by token over a growing cache: what all at once gives, but for the chunks' borders."""
    call = attention_call(dtype, (4, 2), 6, 32, (20,))
    q, k, v, k_cache, v_cache, lengths = call.copied().args
    together, all_keys, all_values = appended(call)
    for t in range(6):
        row = slice(t, t + 1)
        alone = decode_attention_(
            q[:, :, row], k[:, :, row], v[:, :, row], k_cache, v_cache, lengths + t, **call.kwargs
        )
        low, exact = (
            reference.decode_attention(*c.args, **c.kwargs)[:, :, row]
            for c in (call, call.in_double())
        )
        assert_close_to_reference(alone, low, exact)
        assert_close_to_reference(together[:, :, row], low, exact)
    assert_same([k_cache, v_cache], [all_keys, all_values])


@dtypes
@pytest.mark.parametrize(
    "layout", [n for n in LAYOUTS if not n.startswith("expanded") and n != "negative"]
)
def test_layouts_of_the_caches(dtype: torch.dtype, layout: str) -> None:
    call = attention_call(dtype, (4, 2), 2, 16, (5, 3), room=2)
    out, k_cache, v_cache = appended(call)
    views = [relayout(layout, t.clone()) for t in call.args[3:5]]
    others = (*call.args[:3], *views, *call.args[5:])
    assert_same([decode_attention_(*others, **call.kwargs)], [out])
    assert_same([t.as_subclass(Tensor).resolve_neg() for t in views], [k_cache, v_cache])


def test_caches_that_are_views_of_one_tensor() -> None:
    """Keys beside values, and rows before heads, as other packages keep them."""
    call = attention_call(torch.float32, (4, 2), 2, 16, (5, 3), room=2)
    out, k_cache, v_cache = appended(call)
    both = torch.stack([t.transpose(1, 2) for t in call.args[3:5]], 2).contiguous()
    views = [both[:, :, i].transpose(1, 2) for i in (0, 1)]
    assert_same([decode_attention_(*call.args[:3], *views, call.args[5], **call.kwargs)], [out])
    assert_same(views, [k_cache, v_cache])


def bad_value_calls() -> dict[str, tuple[Callable[[Sample], Sample], str]]:
    def changed(at: int | str, value: Any) -> Callable[[Sample], Sample]:
        def change(call: Sample) -> Sample:
            if isinstance(at, str):
                return Sample(call.args, {**call.kwargs, at: value})
            return Sample((*call.args[:at], value, *call.args[at + 1 :]), call.kwargs)

        return change

    blind = ~torch.eye(3, dtype=torch.bool)
    return {
        "overflow": (changed(5, torch.tensor([5, 8])), r"lengths: 8 .* batch 1; .* at most 7"),
        "negative": (changed(5, torch.tensor([-1, 2])), r"lengths: -1 .* batch 0"),
        "positions": (changed("positions", torch.full((2, 3), 17)), r"positions: 17 .* 0 to 16"),
        "mask": (changed("mask", blind), r"mask: false on the diagonal at row 0"),
        "masks": (
            changed("mask", torch.stack([~blind, blind])),
            r"mask: false on the diagonal at batch 1, row 0",
        ),
        "window": (changed("window", 0), r"window: 0"),
        "sinks": (changed("sinks", -2), r"sinks: -2"),
        "heads": (lambda c: Sample((c.args[0][:, :3], *c.args[1:]), c.kwargs), r"k: 2 heads"),
        "batch": (lambda c: Sample((c.args[0], c.args[1][:1], *c.args[2:]), c.kwargs), r"k: shape"),
        "odd": (
            lambda c: Sample((*(t[..., :15] for t in c.args[:5]), c.args[5]), c.kwargs),
            r"q: 15 channels .* even",
        ),
    }


@pytest.mark.parametrize("problem", bad_value_calls())
@pytest.mark.parametrize("name", [None, "cpu", "reference"])
def test_caches_stay_as_they_were_after_an_error(problem: str, name: Any) -> None:
    change, match = bad_value_calls()[problem]
    call = change(attention_call(torch.float32, (4, 2), 3, 16, (5, 2), room=2))
    before = call.copied()
    for function in (decode_attention, decode_attention_):
        forced = nullcontext() if name is None else backend(name)
        with forced, pytest.raises(ValueError, match=match):
            function(*call.args, **call.kwargs)
        assert_same(call.tensors(), before.tensors())


def test_a_table_that_is_too_short() -> None:
    call = attention_call(torch.float32, (4, 2), 3, 16, (5, 2), room=20)
    table = {name: call.kwargs[name][:7] for name in ("cos", "sin")}
    before = call.copied()
    for function in (decode_attention, decode_attention_):
        with pytest.raises(
            ValueError, match=r"lengths: 5 .* at most 4, for 3 positions in a table"
        ):
            function(*call.args, **table)
    assert_same(call.tensors(), before.tensors())
    # Positions say where the table is read; then the cache may be longer.
    decode_attention(*call.args, **table, positions=torch.tensor([[0, 3, 6], [6, 6, 6]]))


def test_caches_that_share_elements_are_refused() -> None:
    call = attention_call(torch.float32, (4, 2), 1, 16, (5, 2))
    one = call.args[3][:1].clone()
    args = (*call.args[:3], one.expand_as(call.args[3]), *call.args[4:])
    decode_attention(*args, **call.kwargs)
    before = one.clone()
    with pytest.raises(ValueError, match=r"k_cache: .* whose elements share memory"):
        decode_attention_(*args, **call.kwargs)
    assert torch.equal(one, before)


def test_negative_views_are_refused() -> None:
    call = attention_call(torch.float32, (4, 2), 1, 16, (5, 2))
    args = (*call.args[:3], relayout("negative", call.args[3]), *call.args[4:])
    with pytest.raises(ValueError, match=r"k_cache: a negative view"):
        decode_attention_(*args, **call.kwargs)


def test_appending_counts_as_a_change() -> None:
    call = attention_call(torch.float32, (4, 2), 1, 16, (5, 2))
    for forced in (None, "cpu", "reference"):
        versions = [t._version for t in call.args[3:5]]
        with nullcontext() if forced is None else backend(forced):
            decode_attention_(*call.args, **call.kwargs)
        assert all(t._version > v for t, v in zip(call.args[3:5], versions, strict=True))


def test_appending_with_out() -> None:
    call = attention_call(torch.bfloat16, (4, 2), 2, 16, (5, 2))
    expected, k_cache, v_cache = appended(call)
    out = torch.empty_like(expected)
    assert decode_attention_(*call.args, **call.kwargs, out=out) is out
    assert_same([out, *call.args[3:5]], [expected, k_cache, v_cache])
    with pytest.raises(ValueError, match=r"out: shape"):
        decode_attention_(*call.args, **call.kwargs, out=out[:1])


# --- torch's machinery, for the op that writes ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_opcheck_of_the_op_that_writes(dtype: torch.dtype) -> None:
    call = attention_call(dtype, (4, 2), 3, 16, (5, 2), window=4, sinks=1, mask=tree((), 3))
    torch.library.opcheck(torch.ops.leeboard.decode_attention_.default, attention_arguments(call))
    strided = call.mapped(lambda t: relayout("last-strided", t))
    torch.library.opcheck(
        torch.ops.leeboard.decode_attention_.default,
        attention_arguments(strided),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_compiled_appending() -> None:
    torch._dynamo.reset()
    call = attention_call(torch.float32, (4, 2), 2, 16, (5, 2), room=4)
    expected, k_cache, v_cache = appended(call)

    def step(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, at: Tensor) -> Tensor:
        return decode_attention_(q * 1.0, k, v, keys, values, at, **call.kwargs) + 0.0

    out = torch.compile(step, backend="aot_eager", fullgraph=True)(*call.args)
    assert_same([out, *call.args[3:5]], [expected, k_cache, v_cache])


def test_values_are_checked_when_a_compiled_call_runs() -> None:
    torch._dynamo.reset()
    call = attention_call(torch.float32, (4, 2), 2, 16, (5, 2))
    compiled = torch.compile(
        lambda *args: decode_attention_(*args, **call.kwargs), backend="aot_eager", fullgraph=True
    )
    before = call.copied()
    args = (*call.args[:5], torch.tensor([5, 9]))
    with pytest.raises(ValueError, match=r"lengths: 9 was given for batch 1"):
        compiled(*args)
    assert_same(call.tensors(), before.tensors())


def test_transforms_of_the_op_that_writes() -> None:
    call = attention_call(torch.float32, (4, 2), 1, 16, (5, 2))
    q, *others = call.args
    with pytest.raises(RuntimeError, match=r"decode_attention_ writes to its arguments"):
        torch.func.vmap(lambda x: decode_attention_(x, *others))(torch.stack([q, q]))
    for function in (torch.func.grad, lambda f: torch.func.grad(lambda x: f(x.detach()))):
        with pytest.raises(RuntimeError, match=r"q: requires grad|writes to its caches, but torch"):
            function(lambda x: decode_attention_(x, *others).sum())(q)
    with pytest.raises(RuntimeError, match=r"writes to its caches, but forward-mode AD"):
        torch.func.jvp(lambda x: decode_attention_(x, *others), (q,), (q,))
    with pytest.raises(RuntimeError, match=r"k_cache: requires grad"):
        decode_attention_(q, *others[:2], others[2].requires_grad_(), *others[3:])


def test_meta_tensors_of_the_op_that_writes() -> None:
    call = attention_call(torch.float16, (4, 2), 3, 16, (5, 2)).mapped(lambda t: t.to("meta"))
    out = decode_attention_(*call.args, **call.kwargs)
    assert (out.device.type, out.shape, out.dtype) == ("meta", (2, 4, 3, 16), torch.float16)
