"""The k best entries of a head against the reference: order, ties, NaN, every format and pass."""

from __future__ import annotations

import pytest
import torch
from weights import FORMATS, doubled, weight

from leeboard import reference
from leeboard.kernels import linear_topk
from rows import rows
from tolerances import assert_close_to_reference

NAN, INF = float("nan"), float("inf")


def topk(x, w, k, d2t=None):
    N = x.shape[0]
    index = torch.full((N, k), -1, dtype=torch.int64, device=x.device)
    value = torch.full((N, k), NAN, dtype=torch.float32, device=x.device)
    lse = torch.full((N,), NAN, dtype=torch.float32, device=x.device)
    linear_topk.forward(x, w, index, value, d2t, lse)
    return index, value, lse


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("k", [1, 3, 7])
@pytest.mark.parametrize("N", [2, 20], ids=lambda n: f"N{n}")
def test_random(N, k, form, dtype, device):
    x, w = rows(N, 150, dtype, device, gap=3), weight(131, 150, form, dtype, device)
    index, value, lse = topk(x, w, k)
    _, low, low_lse = reference.linear_topk(x, w, k, logsumexp=True)
    logits = x.double() @ doubled(w).T
    assert_close_to_reference(value, low, logits.sort(-1, descending=True).values[:, :k])
    # Every entry named has the value named, and none is named twice.
    assert_close_to_reference(value, low, logits.gather(-1, index))
    assert all(len(set(row)) == k for row in index.tolist())
    assert_close_to_reference(lse, low_lse, logits.logsumexp(-1))


@pytest.mark.parametrize("N", [1, 5], ids=lambda n: f"N{n}")
@pytest.mark.parametrize("k", [1, 40, 64])
def test_equal_values_come_in_order(N, k, dtype, device, monkeypatch):
    """Small integers, so that logits are exact; several passes over the keys."""
    monkeypatch.setattr(linear_topk, "REDUCE_BLOCK", 16)
    x = torch.randint(-1, 2, (N, 8), device=device).to(dtype)
    w = torch.randint(-1, 2, (150, 8), device=device).to(dtype)
    d2t = torch.randint(0, 1 << 40, (150,), device=device)
    index, value, _ = topk(x, w, k, d2t)
    expected_index, expected = reference.linear_topk(x, w, k, d2t=d2t)
    assert torch.equal(index, expected_index)
    assert torch.equal(value, expected)


@pytest.mark.parametrize("N", [1, 5], ids=lambda n: f"N{n}")
def test_special_values(N, device):
    logits = [-INF, NAN, 1.0, -0.0, INF, 0.0, NAN, -INF]
    w = torch.tensor(logits, device=device)[:, None]
    x = torch.ones(N, 1, device=device)
    index, value, lse = topk(x, w, 8)
    assert index.tolist() == [[1, 6, 4, 2, 3, 5, 0, 7]] * N
    torch.testing.assert_close(value, w[index[0], 0].expand(N, 8), equal_nan=True)
    assert lse.isnan().all()


@pytest.mark.parametrize(("N", "k"), [(0, 3), (2, 0)])
def test_nothing_to_do(N, k, device):
    topk(rows(N, 7, torch.float32, device), rows(5, 7, torch.float32, device), k)
