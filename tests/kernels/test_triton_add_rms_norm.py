"""The fused residual addition against the reference."""

from __future__ import annotations

import pytest
import torch

from leeboard import reference
from leeboard.kernels import add_rms_norm
from rows import ROUNDINGS, assert_gaps_untouched, poisoned, rows
from tolerances import assert_close_to_reference

EPS = 1e-5


def check(N, H, rounding, dtype, device, *, with_weight=True):
    x, residual = rows(N, H, dtype, device, gap=3), rows(N, H, dtype, device, gap=2)
    weight = rows(1, H, dtype, device)[0] if with_weight else None
    normed, total = (poisoned(N, H, dtype, device, gap=gap) for gap in (5, 1))
    add_rms_norm.forward(x, residual, weight, normed, total, EPS, 0.5, rounding)
    options = {"weight_offset": 0.5, "rounding": rounding}
    low, low_total = reference.add_rms_norm(x, residual, weight, EPS, **options)
    wide = None if weight is None else weight.double()
    # The contract rounds the sum first: the exact norm is that of the rounded sum.
    exact = reference.rms_norm(low_total.double(), wide, EPS, weight_offset=0.5)
    assert torch.equal(total, low_total)
    assert_close_to_reference(normed, low, exact)
    assert_gaps_untouched(normed)
    assert_gaps_untouched(total)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize(
    "shape", [(1, 1), (3, 7), (17, 100), (3, 257), (3, 1000)], ids=lambda s: f"N{s[0]}-H{s[1]}"
)
def test_forward(shape, rounding, dtype, device):
    check(*shape, rounding, dtype, device)


def test_forward_without_weight(dtype, device):
    check(3, 100, "after_weight", dtype, device, with_weight=False)


def test_forward_walks_wide_rows(dtype, device, monkeypatch):
    monkeypatch.setattr(add_rms_norm, "FORWARD_LIMIT", 4096)
    assert not add_rms_norm.config(5000)["ONE_BLOCK"]
    check(2, 5000, "before_weight", dtype, device)


def test_the_rounded_sum_is_normalised(device):
    """Bit by bit the float16 reference, which a norm of the unrounded sum is not."""
    x, residual = (rows(8, 256, torch.float16, device) for _ in range(2))
    out = poisoned(8, 256, torch.float16, device), poisoned(8, 256, torch.float16, device)
    add_rms_norm.forward(x, residual, None, *out, EPS, 0.0, "after_weight")
    low, _ = reference.add_rms_norm(x, residual, None, EPS)
    unrounded = reference.rms_norm(x.float() + residual.float(), None, EPS).half()
    assert (out[0] == low).double().mean() > 0.99
    assert (out[0] == unrounded).double().mean() < 0.9


def test_inputs_are_left_alone(device):
    x, residual = rows(3, 100, torch.float32, device), rows(3, 100, torch.float32, device)
    before = x.clone(), residual.clone()
    out = poisoned(3, 100, torch.float32, device), poisoned(3, 100, torch.float32, device)
    add_rms_norm.forward(x, residual, None, *out, EPS, 0.0, "after_weight")
    assert torch.equal(x, before[0])
    assert torch.equal(residual, before[1])


def test_no_rows(device):
    x = rows(0, 7, torch.float32, device)
    add_rms_norm.forward(x, x, None, x.clone(), x.clone(), EPS, 0.0, "after_weight")
