"""The linear layer on every weight format against the reference: norm, residual, both paths."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from weights import FORMATS, doubled, weight

from leeboard import reference
from leeboard.kernels import _common, _weights, qlinear
from rows import assert_gaps_untouched, poisoned, rows
from tolerances import assert_close_to_reference

EPS = 1e-5


def wide(t):
    return None if t is None else t.double()


def check(x, w, norm=None, residual=None):
    out = poisoned(x.shape[0], w.shape[0], x.dtype, x.device, gap=3)
    qlinear.forward(x, w, out, norm, EPS, residual)
    low = reference.qlinear(x, w, norm_weight=norm, eps=EPS, residual=residual)
    exact = reference.qlinear(
        x.double(), doubled(w), norm_weight=wide(norm), eps=EPS, residual=wide(residual)
    )
    assert_close_to_reference(out, low, exact)
    assert_gaps_untouched(out)


# 1 and 2 rows are streamed, 3 and 20 take the two smaller tiles of `tl.dot`.
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("N", [1, 2, 3, 20], ids=lambda n: f"N{n}")
@pytest.mark.parametrize(("F", "K"), [(1, 1), (33, 100), (67, 300)])
def test_random(N, F, K, form, dtype, device):
    check(rows(N, K, dtype, device, gap=3), weight(F, K, form, dtype, device))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("N", [2, 5], ids=lambda n: f"N{n}")
def test_norm_and_residual(N, form, dtype, device):
    x, gamma = 3.0 * rows(N, 200, dtype, device, gap=1), rows(1, 200, dtype, device)[0]
    w, residual = weight(37, 200, form, dtype, device), rows(N, 37, dtype, device, gap=4)
    check(x, w, norm=gamma)
    check(x, w, residual=residual)
    check(x, w, norm=gamma, residual=residual)


def test_norm_of_large_half_precision_rows(device):
    """Products with the gain would overflow float16 before the norm's scale."""
    x = 3e4 * torch.ones(4, 64, dtype=torch.float16, device=device)
    gamma = torch.full((64,), 8.0, dtype=torch.float16, device=device)
    check(x, weight(9, 64, "plain", torch.float16, device), norm=gamma)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("N", [1, 3], ids=lambda n: f"N{n}")
def test_matrices_in_one_launch(N, form, device):
    """Rows wider than the storage type, outputs of two dtypes, blocks that end within a matrix."""
    x = rows(N, 150, torch.float32, device)
    matrices = [weight(F, 150, form, torch.float16, device) for F in (35, 7, 70)]
    dtypes = (torch.float32, torch.float32, torch.float16)
    outs = [
        poisoned(N, w.shape[0], dtype, device, gap=2)
        for w, dtype in zip(matrices, dtypes, strict=True)
    ]
    stored = [_weights.stored(w) for w in matrices]
    qlinear.project(x, stored, outs, None, EPS, None, torch.float16)
    for w, out in zip(matrices, outs, strict=True):
        exact = reference.qlinear(x.double(), doubled(w))
        low = reference.qlinear(x, w).to(out.dtype)
        # Two terms of float16 hold 22 bits of a float32 row's 24.
        factor = 8.0 if out.dtype == torch.float32 and N > _common.STREAM_ROWS else 2.0
        assert_close_to_reference(out, low, exact, factor=factor)
        assert_gaps_untouched(out)


@pytest.mark.parametrize("N", [0, 2])
def test_nothing_to_do(N, device):
    F = 3 if N == 0 else 0
    x, out = rows(N, 7, torch.float32, device), poisoned(N, F, torch.float32, device)
    qlinear.forward(x, torch.empty(F, 7, device=device), out, None, EPS, None)


@triton.jit
def _widened_kernel(data, out, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(out + at, _common.widened(tl.load(data + at)))


def test_bits_of_float8(device):
    bits = torch.arange(256, dtype=torch.uint8, device=device)
    out = torch.full((256,), float("nan"), device=device)
    _widened_kernel[(1,)](bits, out, SIZE=256)
    expected = bits.view(torch.float8_e4m3fn).float()
    number = ~expected.isnan()
    assert number.sum() == 254
    assert torch.equal(out[number], expected[number])
