"""What is particular to rms_norm: where it rounds, and whose norm it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from harness import all_rows_equal, assert_same, rows_beyond_the_cache
from leeboard import reference
from leeboard.ops import backend, rms_norm
from tolerances import assert_close_to_reference

HALF = (torch.bfloat16, torch.float16)
halves = pytest.mark.parametrize("dtype", HALF, ids=str)


def ulps_apart(a: Tensor, b: Tensor) -> Tensor:
    """Steps between 16-bit floats: their bits, as sign and magnitude, on one line."""

    def line(t: Tensor) -> Tensor:
        bits = t.view(torch.int16).int()
        return torch.where(bits < 0, -(bits & 0x7FFF), bits)

    return (line(a) - line(b)).abs()


def reciprocal_rms(x: Tensor, eps: float = 1e-6) -> Tensor:
    return torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)


@halves
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_before_weight_rounds_as_llama_does(dtype: torch.dtype, offset: float, isa: str) -> None:
    """Bit for bit, once the row's factor is the same: the kernel's own, from its float32 result."""
    x, w = torch.randn(16, 300).to(dtype), torch.randn(300).to(dtype)
    normed = rms_norm(x.float()).to(dtype)
    expected = normed * (w.float() + offset).to(dtype)
    actual = rms_norm(x, w, weight_offset=offset, rounding="before_weight")
    assert_same([actual], [expected])


@halves
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_after_weight_rounds_at_the_end_only(dtype: torch.dtype, offset: float, isa: str) -> None:
    x, w = torch.randn(16, 300).to(dtype), torch.randn(300).to(dtype)
    expected = (rms_norm(x.float()) * (w.float() + offset)).to(dtype)
    assert_same([rms_norm(x, w, weight_offset=offset)], [expected])


@halves
def test_before_weight_is_within_one_step_elsewhere(dtype: torch.dtype, isa: str) -> None:
    """The factor may differ in its last float32 bit: few roundings turn, none by two steps."""
    x, w = torch.randn(64, 512).to(dtype), torch.randn(512).to(dtype)
    step_by_step = (x.float() * reciprocal_rms(x)).to(dtype) * w
    apart = ulps_apart(rms_norm(x, w, rounding="before_weight"), step_by_step)
    # A step of the normed value is at most two of the product, where the product's exponent is
    # the lower one.
    assert apart.max() <= 2
    assert (apart > 0).float().mean() < 1e-3


@halves
def test_after_weight_rounds_once(dtype: torch.dtype, isa: str) -> None:
    x, w = torch.randn(64, 512).to(dtype), torch.randn(512).to(dtype)
    once = (x.float() * reciprocal_rms(x) * w.float()).to(dtype)
    apart = ulps_apart(rms_norm(x, w), once)
    assert apart.max() <= 1
    assert (apart > 0).float().mean() < 1e-3


@halves
def test_the_two_roundings_differ(dtype: torch.dtype) -> None:
    x, w = torch.randn(64, 512).to(dtype), torch.randn(512).to(dtype)
    after, before = rms_norm(x, w), rms_norm(x, w, rounding="before_weight")
    assert (after != before).float().mean() > 0.05


def test_roundings_agree_in_float32(isa: str) -> None:
    x, w = torch.randn(64, 512), torch.randn(512)
    assert_same([rms_norm(x, w)], [rms_norm(x, w, rounding="before_weight")])


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
def test_gemma_offset_is_added_in_float32(dtype: torch.dtype, isa: str) -> None:
    """1 + w of a small w is not rounded to the storage type first."""
    x, w = torch.randn(8, 256).to(dtype), (torch.randn(256) * 1e-3).to(dtype)
    expected = (x.float() * reciprocal_rms(x) * (1.0 + w.float())).to(dtype)
    actual = rms_norm(x, w, weight_offset=1.0)
    torch.testing.assert_close(actual, expected, rtol=4 * torch.finfo(dtype).eps, atol=0.0)
    if dtype != torch.float32:
        rounded_first = (x.float() * reciprocal_rms(x) * (1.0 + w).float()).to(dtype)
        assert (actual != rounded_first).float().mean() > 0.05


def test_is_torchs_rms_norm() -> None:
    x, w = torch.randn(8, 256), torch.randn(256)
    torch.testing.assert_close(rms_norm(x, w), torch.rms_norm(x, (256,), w, 1e-6))


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
def test_out_may_be_x(dtype: torch.dtype, isa: str) -> None:
    x, w = torch.randn(70, 136).to(dtype), torch.randn(136).to(dtype)
    expected = rms_norm(x, w)
    assert rms_norm(x, w, out=x) is x
    assert_same([x], [expected])


@pytest.mark.parametrize("rounding", ["after_weight", "before_weight"])
@halves
def test_float32_weight_with_half_precision(dtype: torch.dtype, rounding: str) -> None:
    """The reference computes it, gradients included, each in its own dtype."""
    x = torch.randn(4, 24).to(dtype).requires_grad_()
    w = torch.randn(24, requires_grad=True)
    y = rms_norm(x, w, rounding=rounding)
    expected = reference.rms_norm(x, w, rounding=rounding)
    assert_same([y], [expected])
    grad = torch.randn(4, 24).to(dtype)
    actual = torch.autograd.grad(y, [x, w], grad)
    by_autograd = torch.autograd.grad(expected, [x, w], grad)
    wide = [t.detach().double().requires_grad_() for t in (x, w)]
    exact = torch.autograd.grad(reference.rms_norm(*wide), wide, grad.double())
    assert [g.dtype for g in actual] == [dtype, torch.float32]
    for got, low, best in zip(actual, by_autograd, exact, strict=True):
        assert_close_to_reference(got, low, best)
    with (
        backend("cpu"),
        pytest.raises(RuntimeError, match=r"'cpu' is forced, but .* one dtype, got torch\."),
    ):
        rms_norm(x, w, rounding=rounding)


def test_float64_weight_is_refused() -> None:
    x, w = torch.randn(4, 24), torch.randn(24).double()
    with pytest.raises(ValueError, match=r"weight: dtype torch.float64 .* expected torch.float32"):
        rms_norm(x, w)


def test_zero_rows_and_eps_zero() -> None:
    """A row of zeros stays zero with eps, and is 0/0 without."""
    x = torch.zeros(2, 8)
    assert torch.equal(rms_norm(x), x)
    assert rms_norm(x, eps=0.0).isnan().all()


@pytest.mark.parametrize("scale", [2.0**-60, 2.0**60])
def test_scale_invariance(scale: float, isa: str) -> None:
    """With eps = 0 a power of two cancels exactly, while squares stay representable."""
    x, w = torch.randn(8, 136), torch.randn(136)
    torch.testing.assert_close(rms_norm(x * scale, w, eps=0.0), rms_norm(x, w, eps=0.0))


def test_integer_and_default_options_are_the_same() -> None:
    x, w = torch.randn(4, 24), torch.randn(24)
    assert_same([rms_norm(x, w, 1, weight_offset=1)], [rms_norm(x, w, 1.0, weight_offset=1.0)])
    assert_same([rms_norm(x, w, eps=1e-6)], [rms_norm(x, w)])


def test_weight_gradient_sums_over_every_row(isa: str) -> None:
    """Thousands of rows in bfloat16: partial sums are float32, rounded once at the end."""
    x, w = torch.randn(5000, 24).bfloat16(), torch.randn(24).bfloat16().requires_grad_()
    (actual,) = torch.autograd.grad(rms_norm(x, w).sum(), [w])
    exact = reference.rms_norm(x.double()).sum(0)
    torch.testing.assert_close(actual.double(), exact, rtol=2**-8, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_streaming_stores_write_the_same_bits(dtype: torch.dtype, isa: str) -> None:
    """An output beyond the cache is written around it. One row, expanded: only outputs are big."""
    x, w = torch.randn(1, 4096).to(dtype), torch.randn(4096).to(dtype)
    rows = rows_beyond_the_cache(x)
    y = rms_norm(x.expand(rows, -1), w)
    assert all_rows_equal(y, rms_norm(x, w))


def test_streaming_stores_of_gradients(isa: str) -> None:
    x, w = torch.randn(1, 4096).bfloat16(), torch.randn(4096).bfloat16()
    rows = rows_beyond_the_cache(x)
    args = (w, 1e-6, 0.0, "after_weight", None)
    backward = torch.ops.leeboard.rms_norm_backward
    grad_x, _ = backward(x.expand(rows, -1), x.expand(rows, -1), *args)
    assert all_rows_equal(grad_x, backward(x, x, *args)[0])
