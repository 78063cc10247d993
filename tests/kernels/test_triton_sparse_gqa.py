"""The sparse attention kernels against the reference, in the interpreter."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from leeboard import ops, reference
from leeboard.kernels import _gqa_tiles, sparse_gqa
from leeboard.ops import patterns
from leeboard.ops._attention_plan import plan_for
from leeboard.ops._sparse_call import Segments, kernel_options, top_u_sample
from leeboard.reference.sparse_gqa import sparse_gqa_backward, sparse_gqa_parts
from tolerances import assert_close_to_reference, nudged

# Several tiles on each side of few rows.
TILE = {"ROWS": 16, "BLOCK": 16}
BLOCKS = patterns.Blocks(((0, 1), (1,), (0, 2)), block=16)
PATTERNS = {
    "dense": patterns.Dense(),
    "causal": patterns.Causal(),
    "band": patterns.Band(19, sinks=3),
    "two-sided": patterns.Band(5, sinks=1, causal=False),
    "modality": patterns.Modality(((0, 7), (7, 24), (24, 33), (33, 35)), window=9),
    "blocks": BLOCKS,
    "intersection": BLOCKS & patterns.Causal(),
    "union": patterns.Band(3) | patterns.Blocks(((0,), (1,)), block=20),
}


def sizes(name):
    return {
        "modality": (35, 35),
        "blocks": (41, 48),
        "intersection": (41, 48),
        "causal": (41, 33),
    }.get(name, (37, 53))


def call(dtype, device, heads, lengths, width=16, batch=1):
    """q, k, v whose rows are further apart than they are long."""

    def rows(count, n):
        return torch.randn(batch, n, count, width + 3).to(dtype).to(device)[..., :width]

    q, k, v = (rows(h, n).transpose(1, 2) for h, n in zip(heads, lengths, strict=True))
    return q, k, v


def double(options):
    return {
        name: t.double() if isinstance(t, torch.Tensor) and t.is_floating_point() else t
        for name, t in options.items()
    }


def launch_options(q, k, pattern, options, sinks=True):
    """The kernels' last arguments."""
    segments = Segments.of(q, k, options.get("cu_seqlens"), options.get("cu_seqlens_k"))
    last = [options.get("active_heads"), options.get("key_padding")]
    last += [options.get("sink_logits")] if sinks else []
    scale = kernel_options(options.get("scale"), options.get("softcap"), q.shape[3])
    return segments, (segments.cu_q, segments.cu_k, *last, *scale)


def nan(shape, like, dtype=None):
    return torch.full(shape, math.nan, dtype=dtype or like.dtype, device=like.device)


def check(args, pattern, tile=TILE, backward=True, grad_lse=True, **options):
    """Forward and backward; returns the results."""
    q, k = args[:2]
    segments, last = launch_options(q, k, pattern, options)
    plans = segments.plans(pattern.code)
    out, lse = nan(q.shape, q), nan(q.shape[:3], q, torch.float32)
    sparse_gqa.forward(*args, out, lse, plans, *last, tile)
    low = sparse_gqa_parts(*args, pattern, **options)
    exact = sparse_gqa_parts(*[t.double() for t in args], pattern, **double(options))
    assert_close_to_reference(out, low[0], exact[0], what="out")
    assert_close_to_reference(lse, low[1], exact[1], what="lse")
    if not backward:
        return out, lse, []

    g = torch.randn_like(q)
    g_lse = torch.randn_like(lse) if grad_lse else None
    options.pop("sink_logits", None)
    grads = [nan(t.shape, t) for t in args]
    _, last = launch_options(q, k, pattern, options, sinks=False)
    sparse_gqa.backward(g, g_lse, *args, out, lse, *grads, plans, *last, tile)
    low_grads = sparse_gqa_backward(g, g_lse, *args, *low[:2], pattern, **options)
    grads_out = (g.double(), None if g_lse is None else g_lse.double())
    plain = [t.double() for t in args]
    exact_grads = sparse_gqa_backward(*grads_out, *plain, *exact[:2], pattern, **double(options))
    # The log-sum-exp is an input of the backward: its rounding is an error of a whole row.
    near = (nudged(args[0]), nudged(args[1]), plain[2], exact[0], nudged(exact[1].float()))
    near_grads = sparse_gqa_backward(*grads_out, *near, pattern, **double(options))
    every = zip(("q", "k", "v"), grads, low_grads, exact_grads, near_grads, strict=True)
    for name, got, in_dtype, right, nearby in every:
        assert_close_to_reference(
            got, in_dtype.to(q.dtype), right, what=f"grad_{name}", nearby=nearby
        )
    return out, lse, grads


@pytest.mark.parametrize("name", PATTERNS)
def test_patterns(name, dtype, device):
    rows, keys = sizes(name)
    args = call(dtype, device, (1, 1, 1), (rows, keys, keys))
    # The interpreter is slow, and these masks know no dtype.
    check(args, PATTERNS[name], backward=dtype == torch.float32)


@pytest.mark.parametrize("options", [{"softcap"}, {"padding"}, {"sinks"}, {"heads"}, {"scale"}])
def test_options_alone(options, device):
    check_options(
        call(torch.float32, device, (4, 2, 2), (18, 23, 23), 8), patterns.Band(7), options
    )


def test_options_together(dtype, device):
    args = call(dtype, device, (6, 3, 3), (17, 30, 30), 24, batch=2)
    every = {"softcap", "padding", "sinks", "heads", "scale"}
    check_options(args, patterns.Band(11, sinks=18, causal=False), every)


def check_options(args, pattern, names):
    q, k, _ = args
    padding = torch.rand(k.shape[0], k.shape[2], device=k.device) < 0.4
    given = {
        "softcap": {"softcap": 1.5},
        "padding": {"key_padding": padding},
        "sinks": {"sink_logits": torch.randn(q.shape[1], device=q.device)},
        # One key-value head is left without a query head, where there are more than two.
        "heads": {"active_heads": (0, 3)},
        "scale": {"scale": -0.4},
    }
    options = {k: v for name in names for k, v in given[name].items()}
    out, lse, grads = check(args, pattern, **options)
    if "heads" in names:
        idle = [head for head in range(q.shape[1]) if head not in (0, 3)]
        assert not out[:, idle].any()
        assert (lse[:, idle] == -math.inf).all()
        assert not grads[0][:, idle].any()


@pytest.mark.parametrize("width", [1, 17, 80])
def test_widths(width, dtype, device):
    check(call(dtype, device, (1, 1, 1), (9, 20, 20), width), patterns.Causal(), grad_lse=False)


def test_tiles_as_configured(dtype, device):
    check(call(dtype, device, (1, 1, 1), (40, 75, 75)), patterns.Band(20, sinks=34), None)


def test_packed_segments(dtype, device):
    """Segments of different lengths, empty ones, and one of rows that have no keys."""
    cu = torch.tensor([0, 5, 5, 25, 30, 47, 64])
    cu_k = torch.tensor([0, 9, 9, 45, 45, 62, 79])
    args = call(dtype, device, (2, 1, 1), (64, 79, 79))
    padding = torch.rand(1, 79, device=device) < 0.2
    options = {"cu_seqlens": cu, "cu_seqlens_k": cu_k, "key_padding": padding}
    out, lse, _ = check(args, patterns.Band(6, sinks=2), **options)
    assert not out[:, :, 25:30].any()
    assert (lse[:, :, 25:30] == -math.inf).all()


def test_rows_that_see_nothing(dtype, device):
    """Rows before the first key; a sequence of nothing but padding."""
    args = call(dtype, device, (1, 1, 1), (30, 20, 20), batch=2)
    padding = torch.zeros(2, 20, dtype=torch.bool, device=device)
    padding[1] = True
    out, lse, grads = check(args, patterns.Causal(), key_padding=padding)
    for dead in (out[0, :, :10], out[1], grads[0][0, :, :10], *(g[1] for g in grads)):
        assert not dead.any()
    assert (lse[0, :, :10] == -math.inf).all()
    assert (lse[1] == -math.inf).all()


def test_no_active_head(device):
    args = call(torch.float32, device, (2, 1, 1), (5, 5, 5))
    _, _, grads = check(args, patterns.Dense(), active_heads=())
    assert not any(grad.any() for grad in grads)


def test_a_far_score_with_a_cap(device):
    """The tangent's exponential overflows, and underflows."""
    q, k, v = call(torch.float32, device, (1, 1, 1), (5, 20, 20))
    check((q * 100, k, v), patterns.Dense(), softcap=0.5)


def check_top_u(args, pattern, **options):
    q, k, _ = args
    segments, last = launch_options(q, k, pattern, options)
    sample, counts = top_u_sample(pattern, segments, options.get("key_padding"))
    out, lse = nan(q.shape, q), nan(q.shape[:3], q, torch.float32)
    low = sparse_gqa_parts(*args, pattern, **options)
    exact = sparse_gqa_parts(*[t.double() for t in args], pattern, **double(options))
    chosen = torch.full_like(low[2], 7)
    sparse_gqa.top_u(*args, out, lse, chosen, sample, counts, *last, TILE)
    assert torch.equal(chosen, low[2])
    assert_close_to_reference(out, low[0], exact[0], what="out")
    assert_close_to_reference(lse, low[1], exact[1], what="lse")


def test_top_u(dtype, device):
    check_top_u(call(dtype, device, (2, 1, 1), (60, 40, 40)), patterns.TopU(3, seed=5))


def test_top_u_with_options(dtype, device):
    args = call(dtype, device, (4, 2, 2), (30, 27, 27), batch=2)
    padding = torch.rand(2, 27, device=device) < 0.4
    options = {
        "active_heads": (0, 2, 3),
        "softcap": 2.0,
        "sink_logits": torch.randn(4, device=device),
        "scale": 0.5,
    }
    check_top_u(args, patterns.TopU(1), key_padding=padding, **options)
    padding[1] = True
    check_top_u(args, patterns.TopU(1), key_padding=padding)


def test_top_u_packed(device):
    args = call(torch.float32, device, (2, 1, 1), (40, 43, 43))
    cu, cu_k = torch.tensor([0, 22, 22, 27, 40]), torch.tensor([0, 18, 20, 20, 43])
    padding = torch.rand(1, 43, device=device) < 0.3
    check_top_u(args, patterns.TopU(1), cu_seqlens=cu, cu_seqlens_k=cu_k, key_padding=padding)


def test_equal_peakedness_takes_the_first_rows(device):
    q, k, v = call(torch.float32, device, (1, 1, 1), (40, 9, 9))
    check_top_u((q[:, :, :1].expand_as(q), k, v), patterns.TopU(2))


@pytest.mark.parametrize("pattern", [patterns.Band(6), patterns.TopU(1)], ids=repr)
def test_the_op_with_gradients(pattern, device):
    args = [t.requires_grad_() for t in call(torch.float32, device, (2, 1, 1), (20, 20, 20))]
    sinks = torch.randn(2, device=device, requires_grad=True)
    weights = torch.randn_like(args[0])
    results = []
    for attend, kind in ((ops.sparse_gqa, torch.float32), (reference.sparse_gqa, torch.float64)):
        inputs = [t.detach().to(kind).requires_grad_() for t in (*args, sinks)]
        with ops.backend("triton" if kind == torch.float32 else "reference"):
            out = attend(*inputs[:3], pattern, sink_logits=inputs[3])
            loss = (out * weights).sum()
        results.append([out.detach(), *torch.autograd.grad(loss, inputs)])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected.float())


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("tile", [(16, 16), (8, 32), (41, 7)], ids=str)
def test_tiles_are_those_of_the_pattern(name, tile):
    """Against the whole mask: full and partial tiles, both lists, and the table of spans."""
    queries, keys = sizes(name)
    plan = plan_for(PATTERNS[name].code, queries, keys)
    mask = PATTERNS[name].dense_mask(queries, keys).numpy()
    found = _gqa_tiles.tiles(plan, *tile)
    begins, counts = found.table
    inside = (np.arange(keys) >= begins[..., None]) & (
        np.arange(keys) < (begins + counts)[..., None]
    )
    assert (inside.any(0) == mask).all()
    seen = []
    for lists, swapped in ((found.by_rows, False), (found.by_keys, True)):
        touched = {}
        for own, ends in enumerate(zip(lists.begin, lists.middle, lists.end, strict=True)):
            for at in range(ends[0], ends[2]):
                other, low, high = lists.entries[at]
                row, key = (other, own) if swapped else (own, other)
                assert (row, key) not in touched
                touched[row, key] = at < ends[1]
                if not touched[row, key]:
                    rows = slice(row * tile[0], (row + 1) * tile[0])
                    columns = slice(key * tile[1], (key + 1) * tile[1])
                    part = inside[low:high, rows, columns].any(0)
                    assert (part == mask[rows, columns]).all()
        seen.append(touched)
    assert seen[0] == seen[1]
    for row in range(-(-queries // tile[0])):
        for key in range(-(-keys // tile[1])):
            columns = slice(key * tile[1], (key + 1) * tile[1])
            part = mask[row * tile[0] : (row + 1) * tile[0], columns]
            full = part.all() and columns.stop <= keys
            assert seen[0].get((row, key)) == (full if part.any() else None)
