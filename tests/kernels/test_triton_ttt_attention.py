"""The kernels of train-time-test attention against the reference, in the interpreter."""

from __future__ import annotations

import math

import pytest
import torch

from leeboard.kernels import ttt_attention
from leeboard.ops._ttt_call import Documents
from leeboard.reference.ttt_attention import (
    ttt_attention as attend,
)
from leeboard.reference.ttt_attention import (
    ttt_attention_backward,
    ttt_attention_scores,
)
from tolerances import assert_close_to_reference, nudged

# Several tiles on each side of few rows.
TILE = {"ROWS": 16, "BLOCK": 16}


def call(dtype, device, steps, batch, heads, rows, width=16):
    """q, and k and v of each step, whose rows are further apart than they are long."""

    def normal(count):
        t = torch.randn(batch, rows, count, width + 3).to(dtype).to(device)
        return t[..., :width].transpose(1, 2)

    return normal(heads[0]), *([normal(heads[1]) for _ in range(steps)] for _ in range(2))


def nan(like):
    return torch.full(like.shape, math.nan, dtype=like.dtype, device=like.device)


def double(args):
    return [[t.double() for t in arg] if isinstance(arg, list) else arg.double() for arg in args]


def check(args, *, window=None, sinks=0, cu=None, scale=None, tile=TILE):
    """Forward and backward."""
    q, k, v = args
    options = {"window": window, "sinks": sinks, "scale": scale}
    options["cu_seqlens"] = None if cu is None else torch.tensor(cu)
    plans = Documents(cu, q.shape[2]).plans(len(k) - 1, window, sinks)
    factor = q.shape[3] ** -0.5 if scale is None else scale
    out, lse = nan(q), nan(q[..., 0].float().contiguous())
    ttt_attention.forward(q, k, v, out, lse, plans, cu, factor, tile)
    low, exact = attend(q, k, v, **options), attend(*double(args), **options)
    assert_close_to_reference(out, low, exact, what="out")
    logs = [
        ttt_attention_scores(
            each[0], each[1], *(options[n] for n in ("window", "sinks", "cu_seqlens", "scale"))
        ).logsumexp(-1)
        for each in (args, double(args))
    ]
    assert_close_to_reference(lse, *logs, what="lse")

    g = torch.randn_like(q)
    grads = nan(q), [nan(t) for t in k], [nan(t) for t in v]
    ttt_attention.backward(g, q, k, v, out, lse, *grads, plans, cu, factor, tile)
    low_grads = ttt_attention_backward(g, q, k, v, low, logs[0], **options)
    wide = double((g, *args))
    exact_grads = ttt_attention_backward(*wide, exact, logs[1], **options)
    # The log-sum-exp is an input of the backward: its rounding is an error of a whole row.
    near = (g.double(), nudged(q), [nudged(t) for t in k], wide[3], exact, nudged(logs[1].float()))
    near_grads = ttt_attention_backward(*near, **options)
    every = zip(*(flat(each) for each in (grads, low_grads, exact_grads, near_grads)), strict=True)
    for i, (got, in_dtype, right, nearby) in enumerate(every):
        assert_close_to_reference(
            got, in_dtype.to(q.dtype), right, what=f"gradient {i}", nearby=nearby
        )


def flat(grads):
    return [grads[0], *grads[1], *grads[2]]


@pytest.mark.parametrize("steps", [1, 4])
def test_steps(steps, device):
    check(call(torch.float32, device, steps, 2, (2, 1), 19))


@pytest.mark.parametrize("width", [1, 80])
def test_widths(width, device):
    check(call(torch.float32, device, 3, 1, (1, 1), 9, width))


def test_documents_in_a_window(dtype, device):
    args = call(dtype, device, 3, 1, (2, 1), 30)
    check(args, cu=[0, 5, 5, 25, 30], window=9, sinks=2, scale=-0.4)


@pytest.mark.parametrize("sinks", [0, 3])
def test_steps_that_have_left_the_window(sinks, device):
    check(call(torch.float32, device, 4, 1, (1, 1), 18), window=2, sinks=sinks)


def test_tiles_as_configured(device):
    check(call(torch.float32, device, 2, 1, (1, 1), 40), window=20, sinks=34, tile=None)


def test_steps_in_layouts_of_their_own(device):
    q, k, v = call(torch.float32, device, 3, 1, (1, 1), 9)
    check((q, [k[0], k[1].contiguous(), k[2]], [v[0], v[1], v[2].contiguous()]))


def test_nothing(device):
    check(call(torch.float32, device, 3, 0, (2, 1), 18))
