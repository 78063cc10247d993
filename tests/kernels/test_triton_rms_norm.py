"""The Triton RMSNorm against the reference: sizes, strides, rounding, both passes."""

from __future__ import annotations

import pytest
import torch

from leeboard import reference
from leeboard.kernels import rms_norm
from rows import ROUNDINGS, assert_gaps_untouched, poisoned, rows
from tolerances import assert_close_to_reference

# Below, at and off powers of two; one column; several rows a program (up to 512 columns) and one.
SHAPES = [(1, 1), (3, 7), (17, 100), (3, 257), (17, 1000)]
EPS = 1e-5


def ids(shape: tuple[int, int]) -> str:
    return f"N{shape[0]}-H{shape[1]}"


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("shape", SHAPES, ids=ids)
def test_forward(shape, rounding, dtype, device):
    N, H = shape
    x, weight = rows(N, H, dtype, device, gap=3), rows(1, H, dtype, device)[0]
    out = poisoned(N, H, dtype, device, gap=5)
    rms_norm.forward(x, weight, out, EPS, 1.0, rounding)
    options = {"weight_offset": 1.0, "rounding": rounding}
    low = reference.rms_norm(x, weight, EPS, **options)
    # The rounding is part of the low-precision result only.
    exact = reference.rms_norm(x.double(), weight.double(), EPS, weight_offset=1.0)
    assert_close_to_reference(out, low, exact)
    assert_gaps_untouched(out)


def test_forward_without_weight(dtype, device):
    x, out = rows(3, 100, dtype, device), poisoned(3, 100, dtype, device)
    rms_norm.forward(x, None, out, EPS, 0.0, "after_weight")
    assert_close_to_reference(
        out, reference.rms_norm(x, None, EPS), reference.rms_norm(x.double(), None, EPS)
    )


def test_forward_walks_wide_rows(dtype, device, monkeypatch):
    monkeypatch.setattr(rms_norm, "FORWARD_LIMIT", 4096)
    x, weight = rows(2, 5000, dtype, device), rows(1, 5000, dtype, device)[0]
    out = poisoned(2, 5000, dtype, device)
    assert not rms_norm.config(5000)["ONE_BLOCK"]
    rms_norm.forward(x, weight, out, EPS, 0.0, "before_weight")
    low = reference.rms_norm(x, weight, EPS, rounding="before_weight")
    assert_close_to_reference(out, low, reference.rms_norm(x.double(), weight.double(), EPS))


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_rounding_is_the_one_asked_for(rounding, device):
    """In float16 the two contracts differ in many elements; ours follows the one named."""
    x, weight = rows(8, 256, torch.float16, device), rows(1, 256, torch.float16, device)[0]
    out = poisoned(8, 256, torch.float16, device)
    rms_norm.forward(x, weight, out, EPS, 0.5, rounding)
    agreement = {
        name: (out == reference.rms_norm(x, weight, EPS, weight_offset=0.5, rounding=name))
        .double()
        .mean()
        for name in ROUNDINGS
    }
    other = next(name for name in ROUNDINGS if name != rounding)
    assert agreement[rounding] > 0.99
    assert agreement[other] < 0.9


def test_weight_of_another_dtype(device):
    x, weight = rows(3, 100, torch.float16, device), rows(1, 100, torch.float32, device)[0]
    out = poisoned(3, 100, torch.float16, device)
    rms_norm.forward(x, weight, out, EPS, 0.0, "after_weight")
    exact = reference.rms_norm(x.double(), weight.double(), EPS)
    assert_close_to_reference(out, reference.rms_norm(x, weight, EPS), exact)


@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("shape", SHAPES, ids=ids)
def test_backward(shape, rounding, residual, dtype, device):
    check_backward(*shape, rounding, residual, dtype, device)


def check_backward(N, H, rounding, residual, dtype, device):
    grad, x = rows(N, H, dtype, device, gap=2), rows(N, H, dtype, device, gap=3)
    weight = rows(1, H, dtype, device)[0]
    extra = rows(N, H, dtype, device, gap=1) if residual else None
    grad_x = poisoned(N, H, dtype, device, gap=5)
    grad_weight = poisoned(1, H, dtype, device)[0]
    rms_norm.backward(grad, x, weight, grad_x, grad_weight, EPS, 1.0, rounding, extra)
    low = reference.rms_norm_backward(
        grad, x, weight, EPS, weight_offset=1.0, rounding=rounding, grad_residual=extra
    )
    exact = reference.rms_norm_backward(
        grad.double(),
        x.double(),
        weight.double(),
        EPS,
        weight_offset=1.0,
        grad_residual=None if extra is None else extra.double(),
    )
    assert_close_to_reference(grad_x, low[0], exact[0])
    assert_close_to_reference(grad_weight, low[1], exact[1])
    assert_gaps_untouched(grad_x)
    return grad_x, grad_weight


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_weight_gradient_sees_the_rounded_value(rounding, device):
    """One row, so that nothing averages: the summand of the rounding asked for, in float32."""
    grad, x = (rows(1, 1000, torch.float16, device) for _ in range(2))
    weight = torch.ones(1000, device=device)
    grad_x, grad_weight = torch.empty_like(x), torch.empty_like(weight)
    rms_norm.backward(grad, x, weight, grad_x, grad_weight, EPS, 0.0, rounding, None)
    normed = x.float() * torch.rsqrt(x.float().square().mean() + EPS)
    rounded = normed.half().float() if rounding == "before_weight" else normed
    # The reciprocal RMS may differ in its last bits, which can tip a rounding.
    same = (grad_weight - (grad * rounded)[0]).abs() <= 1e-6 * (grad * rounded)[0].abs()
    assert same.double().mean() > 0.99


@pytest.mark.parametrize("with_weight", [False, True], ids=["no-weight", "frozen-weight"])
def test_backward_without_weight_gradient(with_weight, dtype, device):
    grad, x = rows(17, 100, dtype, device), rows(17, 100, dtype, device)
    weight = rows(1, 100, dtype, device)[0] if with_weight else None
    grad_x = poisoned(17, 100, dtype, device)
    rms_norm.backward(grad, x, weight, grad_x, None, EPS, 0.0, "after_weight", None)
    low, _ = reference.rms_norm_backward(grad, x, weight, EPS)
    wide = None if weight is None else weight.double()
    exact, _ = reference.rms_norm_backward(grad.double(), x.double(), wide, EPS)
    assert_close_to_reference(grad_x, low, exact)


@pytest.mark.parametrize("shape", [(40, 700), (70, 100), (3, 5000)], ids=ids)
def test_backward_runs_of_rows(shape, dtype, device, monkeypatch):
    """Programs that own several tiles, the last run reaching beyond the last row."""
    monkeypatch.setattr(rms_norm, "backward_tiles", lambda rows, tile_rows: 2)
    check_backward(*shape, "after_weight", True, dtype, device)


def test_backward_repeats_bit_for_bit(device):
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(check_backward(37, 300, "after_weight", False, torch.float32, device))
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


def test_backward_programs_are_few_and_cover_all_rows():
    for N in (1, 127, 129, 1000, 4096, 100_000, 10_000_000):
        for tile_rows in (1, 16):
            tiles = rms_norm.backward_tiles(N, tile_rows)
            programs = -(-N // (tiles * tile_rows))
            assert programs <= 512
            assert programs * tiles * tile_rows >= N
            assert programs >= min(-(-N // tile_rows), 64)


def test_no_rows(device):
    x, weight = rows(0, 7, torch.float32, device), rows(1, 7, torch.float32, device)[0]
    grad_weight = poisoned(1, 7, torch.float32, device)[0]
    rms_norm.forward(x, weight, torch.empty_like(x), EPS, 0.0, "after_weight")
    rms_norm.backward(
        x, x, weight, torch.empty_like(x), grad_weight, EPS, 0.0, "after_weight", None
    )
    assert (grad_weight == 0).all()
