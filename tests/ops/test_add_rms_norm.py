"""What is particular to add_rms_norm: the sum is rounded before it is normed, and is returned."""

from __future__ import annotations

import pytest
import torch

from harness import all_rows_equal, assert_same, rows_beyond_the_cache
from leeboard.ops import add_rms_norm, rms_norm

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def inputs(dtype: torch.dtype, *shape: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x, residual = torch.randn(2, *shape).to(dtype)
    return x, residual, torch.randn(shape[-1]).to(dtype)


@dtypes
@pytest.mark.parametrize("rounding", ["after_weight", "before_weight"])
@pytest.mark.parametrize("width", [1, 17, 136, 1000])
def test_is_an_addition_then_rms_norm(
    dtype: torch.dtype, rounding: str, width: int, isa: str
) -> None:
    """Bit for bit: the sum is rounded to the storage type, and its norm is that of rms_norm."""
    x, residual, w = inputs(dtype, 9, width)
    normed, new_residual = add_rms_norm(x, residual, w, rounding=rounding)
    assert_same([new_residual], [x + residual])
    assert_same([normed], [rms_norm(x + residual, w, rounding=rounding)])


@dtypes
def test_updates_in_place(dtype: torch.dtype, isa: str) -> None:
    """normed into x and the sum into residual: what a decoder layer does."""
    x, residual, w = inputs(dtype, 70, 136)
    expected = add_rms_norm(x, residual, w)
    returned = add_rms_norm(x, residual, w, out=(x, residual))
    assert returned[0] is x
    assert returned[1] is residual
    assert_same([x, residual], expected)


@dtypes
def test_updates_in_place_the_other_way(dtype: torch.dtype, isa: str) -> None:
    x, residual, w = inputs(dtype, 70, 136)
    expected = add_rms_norm(x, residual, w)
    add_rms_norm(x, residual, w, out=(residual, x))
    assert_same([residual, x], expected)


def test_x_may_be_the_residual() -> None:
    x, _, w = inputs(torch.float32, 5, 40)
    normed, new_residual = add_rms_norm(x, x, w)
    assert_same([normed, new_residual], [rms_norm(x + x, w), x + x])


def test_overflow_of_the_sum_shows(isa: str) -> None:
    x = torch.full((1, 20), 40000.0, dtype=torch.float16)
    normed, new_residual = add_rms_norm(x, x)
    assert new_residual.isinf().all()
    assert normed.isnan().all()


@pytest.mark.parametrize("which", [0, 1])
def test_gradient_of_one_output(which: int) -> None:
    """The other output is not used: nothing flows from it."""
    x, residual, w = (t.requires_grad_() for t in inputs(torch.float32, 5, 40))
    output = add_rms_norm(x, residual, w)[which]
    grad = torch.randn(5, 40)
    wanted = [x, residual, w]
    actual = torch.autograd.grad(output, wanted, grad, allow_unused=True, materialize_grads=True)
    total = x + residual
    expected_output = (rms_norm(total, w), total)[which]
    expected = torch.autograd.grad(
        expected_output, wanted, grad, allow_unused=True, materialize_grads=True
    )
    for got, want in zip(actual, expected, strict=True):
        torch.testing.assert_close(got, want)


@dtypes
def test_both_inputs_have_the_same_gradient(dtype: torch.dtype) -> None:
    x, residual, w = (t.requires_grad_() for t in inputs(dtype, 5, 40))
    outputs = add_rms_norm(x, residual, w)
    torch.autograd.backward(outputs, list(torch.randn(2, 5, 40).to(dtype)))
    assert_same([x.grad], [residual.grad])
    x.grad.add_(1.0)
    assert not torch.equal(x.grad, residual.grad), "the two gradients share memory"


def test_only_one_input_wants_a_gradient() -> None:
    x, residual, w = inputs(torch.float32, 5, 40)
    normed, new_residual = add_rms_norm(x.requires_grad_(), residual, w)
    (normed.sum() + new_residual.sum()).backward()
    assert x.grad is not None
    assert residual.grad is None
    assert w.grad is None


def test_a_row_wider_than_the_buffer_of_the_streaming_path(isa: str) -> None:
    x, residual, w = inputs(torch.bfloat16, 3, 8192 + 64)
    normed, new_residual = add_rms_norm(x, residual, w)
    assert_same([new_residual], [x + residual])
    assert_same([normed], [rms_norm(x + residual, w)])


def test_streaming_stores_write_the_same_bits(isa: str) -> None:
    x, residual, w = inputs(torch.bfloat16, 1, 4096)
    rows = rows_beyond_the_cache(x)
    outputs = add_rms_norm(x.expand(rows, -1), residual.expand(rows, -1), w)
    for y, expected in zip(outputs, add_rms_norm(x, residual, w), strict=True):
        assert all_rows_equal(y, expected)


def test_residual_does_not_broadcast() -> None:
    x = torch.randn(4, 8)
    with pytest.raises(ValueError, match=r"residual: shape \[8\] .* expected \[4, 8\]"):
        add_rms_norm(x, x[0])
