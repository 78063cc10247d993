"""The head that keeps no logits against the reference: values, ties, NaN, infinities."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from weights import FORMATS, doubled, weight

from leeboard import reference
from leeboard.kernels import _heads, _weights, linear_argmax
from rows import rows
from tolerances import assert_close_to_reference

INF, NAN = float("inf"), float("nan")


def argmax(x, weight, d2t=None):
    N = x.shape[0]
    index = torch.full((N,), -1, dtype=torch.int64, device=x.device)
    value = torch.full((N,), NAN, dtype=torch.float32, device=x.device)
    linear_argmax.forward(x, weight, index, value, d2t)
    return index, value


# 1 and 2 rows take the streaming path, 3 and 17 the two smaller `tl.dot` tiles.
@pytest.mark.parametrize("N", [1, 2, 3, 17], ids=lambda n: f"N{n}")
@pytest.mark.parametrize(("V", "H"), [(1, 1), (33, 7), (257, 100), (130, 257)])
def test_random(N, V, H, dtype, device):
    x, weight = rows(N, H, dtype, device, gap=3), rows(V, H, dtype, device, gap=5)
    index, value = argmax(x, weight)
    _, low = reference.linear_argmax(x, weight)
    exact_logits = x.double() @ weight.double().T
    exact = exact_logits.max(-1).values
    assert_close_to_reference(value, low, exact)
    # The entry named has the value named, so near-ties are no excuse for a wrong index.
    chosen = exact_logits.gather(-1, index[:, None])[:, 0]
    assert_close_to_reference(value, low, chosen)


@pytest.mark.parametrize("N", [1, 5], ids=lambda n: f"N{n}")
def test_ties_go_to_the_lowest_index(N, dtype, device):
    """Small integers: every logit is exact, and the largest occurs many times."""
    x = torch.randint(-1, 2, (N, 8), device=device).to(dtype)
    weight = torch.randint(-1, 2, (130, 8), device=device).to(dtype)
    logits = x.double() @ weight.double().T
    top = logits.max(-1, keepdim=True).values
    first = (logits == top).double().argmax(-1)
    assert ((logits == top).sum(-1) > 1).any()
    index, value = argmax(x, weight)
    assert torch.equal(index, first)
    assert torch.equal(value.double(), top[:, 0])


@pytest.mark.parametrize("N", [1, 5], ids=lambda n: f"N{n}")
@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        ([1.0, NAN, 3.0, NAN], 1),
        ([INF, 2.0, NAN], 2),
        ([1.0, INF, INF], 1),
        ([-INF, -INF, -INF], 0),
        ([-INF, -3.0, -2.0, -2.5], 2),
        ([-0.0, 0.0], 0),
        ([0.0, -0.0], 0),
        ([-1.0, -0.0, 0.0], 1),
        ([0.0] * 77 + [1.0], 77),
        ([NAN] * 70, 0),
    ],
    ids=str,
)
def test_special_values(N, logits, expected, device):
    weight = torch.tensor(logits, device=device)[:, None]
    index, value = argmax(torch.ones(N, 1, device=device), weight)
    assert (index == expected).all()
    torch.testing.assert_close(
        value, weight[expected].expand(N), rtol=0, atol=0, equal_nan=True, check_stride=False
    )


@pytest.mark.parametrize("N", [1, 5], ids=lambda n: f"N{n}")
def test_negative_nan_is_the_maximum_too(N, device):
    weight = torch.tensor([1.0, -NAN, INF], device=device).copysign(torch.tensor(-1.0))[:, None]
    index, value = argmax(torch.ones(N, 1, device=device), weight)
    assert (index == 1).all()
    assert value.isnan().all()


@triton.jit
def _encode_kernel(logits, keys, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(keys + at, _heads.encode(tl.load(logits + at), at, at < SIZE))


def test_keys_compare_as_logits_do(device):
    """Pairs of equal logits included: a product that underflows may leave either zero."""
    logits = [NAN, INF, 3.0, 1e-45, -0.0, 0.0, -0.0, 0.0, -1e-45, -3.0, -3.0, -1e38, -INF, -INF]
    logits = torch.tensor([-NAN, NAN, *logits], device=device)
    keys = torch.zeros(16, dtype=torch.int64, device=device)
    _encode_kernel[(1,)](logits, keys, SIZE=16)
    assert keys.tolist() == sorted(keys.tolist(), reverse=True)
    assert len(set(keys.tolist())) == 16
    assert keys.min() > -0x7FFFFFFFFFFFFFFF


@pytest.mark.parametrize("N", [1, 5], ids=lambda n: f"N{n}")
def test_draft_vocabulary(N, device):
    x, weight = rows(N, 20, torch.float32, device), rows(150, 20, torch.float32, device)
    d2t = torch.randint(0, 1 << 40, (150,), device=device)
    index, value = argmax(x, weight, d2t)
    expected_index, _ = reference.linear_argmax(x, weight, d2t=d2t)
    plain_index, plain_value = argmax(x, weight)
    assert torch.equal(index, expected_index)
    assert torch.equal(index, plain_index + d2t[plain_index])
    assert torch.equal(value, plain_value)


def test_more_blocks_than_the_reduction_reads_at_once(device, monkeypatch):
    """The winner and its tie lie in the last step of the second kernel; then a tie in the first."""
    monkeypatch.setattr(linear_argmax, "REDUCE_BLOCK", 4)
    weight = torch.zeros(101, 1, device=device)
    weight[99:] = 1.0
    index, value = argmax(torch.ones(1, 1, device=device), weight)
    assert (index.item(), value.item()) == (99, 1.0)
    weight[2] = 1.0
    index, value = argmax(torch.ones(1, 1, device=device), weight)
    assert (index.item(), value.item()) == (2, 1.0)


def test_no_rows(device):
    x, weight = rows(0, 7, torch.float32, device), rows(5, 7, torch.float32, device)
    index, value = argmax(x, weight)
    assert index.shape == value.shape == (0,)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("N", [2, 20], ids=lambda n: f"N{n}")
def test_formats_and_log_sum_exp(N, form, dtype, device):
    x, w = rows(N, 150, dtype, device, gap=3), weight(131, 150, form, dtype, device)
    index = torch.full((N,), -1, dtype=torch.int64, device=device)
    value, lse = (torch.full((N,), NAN, device=device) for _ in range(2))
    linear_argmax.forward(x, w, index, value, None, lse)
    _, low, low_lse = reference.linear_argmax(x, w, logsumexp=True)
    logits = x.double() @ doubled(w).T
    assert_close_to_reference(value, low, logits.max(-1).values)
    assert_close_to_reference(value, low, logits.gather(-1, index[:, None])[:, 0])
    assert_close_to_reference(lse, low_lse, logits.logsumexp(-1))


@pytest.mark.parametrize("N", [1, 3], ids=lambda n: f"N{n}")
@pytest.mark.parametrize(
    "logits",
    [
        [1.0, NAN, 3.0],
        [INF, 2.0] + [-INF] * 80,
        [-INF] * 70,
        [-INF] * 70 + [-1e4, -1e4],
        [3e38] * 3,
        [NAN] * 40,
        [-5000.0] + [-INF] * 35 + [-4999.0],
    ],
    ids=lambda logits: f"{logits[0]}-{len(logits)}",
)
def test_log_sum_exp_of_special_values(N, logits, device, monkeypatch):
    monkeypatch.setattr(linear_argmax, "REDUCE_BLOCK", 4)
    w = torch.tensor(logits, device=device)[:, None]
    index = torch.zeros(N, dtype=torch.int64, device=device)
    value, lse = torch.zeros(2, N, device=device).unbind()
    linear_argmax.forward(torch.ones(N, 1, device=device), w, index, value, None, lse)
    expected = w[:, 0].double().logsumexp(0).float().expand(N)
    torch.testing.assert_close(lse, expected, equal_nan=True, check_stride=False)


def test_scores_extend_paths(device):
    """A norm before the head, strided outputs, log-probabilities added up."""
    x, w = rows(3, 20, torch.float32, device), rows(40, 20, torch.float32, device)
    gamma = rows(1, 20, torch.float32, device)[0]
    tokens = torch.full((3, 2), -1, dtype=torch.int64, device=device)
    scores = torch.full((3, 2), NAN, device=device)
    head = _weights.stored(w)
    given = {"norm_weight": gamma, "eps": 1e-5}
    linear_argmax.greedy(x, head, None, tokens[:, 0], x.dtype, score=scores[:, 0], **given)
    linear_argmax.greedy(
        x, head, None, tokens[:, 1], x.dtype, score=scores[:, 1], prior=scores[:, 0], **given
    )
    index, value, lse = reference.linear_argmax(
        reference.rms_norm(x, gamma, 1e-5), w, logsumexp=True
    )
    assert torch.equal(tokens, index[:, None].expand(3, 2))
    torch.testing.assert_close(scores, (value - lse)[:, None] * torch.tensor([1.0, 2.0]).to(x))
