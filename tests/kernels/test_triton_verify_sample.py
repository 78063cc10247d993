"""Lossless verification against the reference, which it must equal bit for bit."""

from __future__ import annotations

import math

import pytest
import torch
import triton
import triton.language as tl

from leeboard import reference
from leeboard.kernels import _verify, verify_sample
from leeboard.reference._verify import draw, masses
from verify_inputs import apart, assert_equal_outputs, integers, outputs, trees

NAN, INF = float("nan"), float("inf")


def rows_of(count, V, dtype, device):
    """Distributions [count, V] with NaN after each row, some of their numbers zero.

    The tokens that are drafted, six all over the row, are likelier than the others.
    """
    logits = 2.0 * torch.randn(count, V, device=device)
    logits[:, :: max(1, V // 6)] += 3.0
    logits[:, 1:][torch.rand(count, V - 1, device=device) < 0.2] = -INF
    storage = torch.full((count, V + 2), NAN, dtype=dtype, device=device)
    storage[:, :V] = logits.softmax(dim=-1)
    return storage[:, :V]


def check(B, N, V, kind, dtype, device, ratio=False):
    tokens = integers(B, N, min(V, 6), device) * max(1, V // 6)
    parents = trees(B, N, kind, device)
    p = rows_of(B * (N + 1), V, dtype, device)
    q = rows_of(B * N, V, dtype, device) if ratio else None
    uniforms = torch.rand(B, N + 1, dtype=torch.float64, device=device)
    found = outputs(B, N, device)
    table = parents[None] if kind == "shared" else parents
    verify_sample.forward(apart(tokens), p, q, table, uniforms, *found)
    expected = reference.verify_sample(
        tokens,
        p.unflatten(0, (B, N + 1)),
        None if q is None else q.unflatten(0, (B, N)),
        parents=parents,
        uniforms=uniforms,
    )
    assert_equal_outputs(found, expected)
    return expected[0]


@pytest.mark.parametrize("kind", ["chain", "shared", "own"])
@pytest.mark.parametrize(("B", "N", "V"), [(1, 1, 1), (9, 16, 7), (7, 17, 16), (3, 5, 1001)])
def test_target_only(B, N, V, kind, dtype, device):
    check(B, N, V, kind, dtype, device)


@pytest.mark.parametrize(("B", "N", "V"), [(1, 1, 1), (16, 5, 7), (4, 3, 16), (3, 2, 1001)])
def test_ratio(B, N, V, dtype, device):
    check(B, N, V, "chain", dtype, device, ratio=True)


@pytest.mark.parametrize("ratio", [False, True])
def test_no_drafts(ratio, device):
    check(3, 0, 9, "chain", torch.float32, device, ratio)


@pytest.mark.parametrize("ratio", [False, True])
def test_no_sequences(ratio, device):
    verify_sample.forward(
        torch.empty((0, 2), dtype=torch.int64, device=device),
        torch.empty((0, 5), device=device),
        torch.empty((0, 5), device=device) if ratio else None,
        None,
        torch.empty((0, 3), dtype=torch.float64, device=device),
        *outputs(0, 2, device),
    )


@pytest.mark.parametrize("ratio", [False, True])
def test_many_blocks_of_a_row(ratio, device, monkeypatch):
    """The drawn token lies in any of them, and rejected tokens are taken out of theirs."""
    config = verify_sample.config
    monkeypatch.setattr(verify_sample, "config", lambda *a, **k: config(*a, **k) | {"BLOCK": 16})
    kind = "chain" if ratio else "own"
    assert check(40, 4, 100, kind, torch.float32, device, ratio).max() > 0


@triton.jit
def _mass_kernel(p, u, total, out, drawn, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(out + at, _verify.mass(tl.load(p + at)))
    tl.store(drawn + at, _verify.draw(tl.load(u + at), tl.load(total + at)))


def test_masses_and_draws(device):
    below = math.nextafter(1.0, 0.0)
    p = [0.0, -0.0, 1.0, 2.0, 3.0, INF, -INF, NAN, -0.5, 2.0**-51, 2.0**-52, 3 * 2.0**-52, 1e-30]
    p = torch.tensor([*p, 1 / 3, below, 0.1], dtype=torch.float64, device=device)
    u = [0.0, below, 0.5, 1 / 3, below, -1.0, 2.0, NAN, 1e-300, below, 0.5, 0.25, 1.0, 0.1, 0.9]
    u = torch.tensor([*u, below], dtype=torch.float64, device=device)
    total = [1, 1, 1, 3, 3, 5, 5, 5, 1 << 52, 1 << 52, 1 << 51, 7, 7, 10, 10, 0]
    total = torch.tensor(total, device=device)
    out, drawn = torch.full_like(total, -9), torch.full_like(total, -9)
    _mass_kernel[(1,)](p, u, total, out, drawn, SIZE=16)
    assert torch.equal(out, masses(p))
    assert torch.equal(drawn, draw(u, total))
    assert out.tolist()[:4] == [0, 0, 1 << 51, 1 << 52]
    # Half a unit rounds to even.
    assert out.tolist()[9:12] == [1, 0, 2]
    assert drawn.tolist()[:5] == [0, 0, 0, 1, 2]
