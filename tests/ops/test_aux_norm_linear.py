"""What is particular to aux_norm_linear: several states, one rounding, two ways to the product."""

from __future__ import annotations

import pytest
import torch
from harness import assert_same
from torch import Tensor
from torch.nn import functional as F

from leeboard import reference
from leeboard.ops import aux_norm_linear, rms_norm
from tolerances import assert_close_to_reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def inputs(
    dtype: torch.dtype, rows: int, width: int = 40, features: int = 24, states: int = 3
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    hiddens = [torch.randn(rows, width).to(dtype) for _ in range(states)]
    gammas = [(1 + 0.1 * torch.randn(width)).to(dtype) for _ in range(states)]
    weight = (torch.randn(features, states * width) * (states * width) ** -0.5).to(dtype)
    return hiddens, gammas, weight


def doubled(*groups: object) -> tuple[object, ...]:
    return torch.utils._pytree.tree_map(lambda t: t.double(), groups)


def test_is_norms_then_a_linear_layer() -> None:
    hiddens, gammas, weight = inputs(torch.float32, 5)
    normed = [rms_norm(h, g) for h, g in zip(hiddens, gammas, strict=True)]
    expected = F.linear(torch.cat(normed, -1), weight)
    torch.testing.assert_close(aux_norm_linear(hiddens, gammas, weight), expected)


def test_each_state_has_its_own_norm() -> None:
    """Scaling one state changes nothing: it is not the norm of the concatenation."""
    hiddens, gammas, weight = inputs(torch.float32, 5)
    scaled = [hiddens[0] * 1000.0, hiddens[1], hiddens[2] * 0.01]
    torch.testing.assert_close(
        aux_norm_linear(scaled, gammas, weight, eps=0.0),
        aux_norm_linear(hiddens, gammas, weight, eps=0.0),
    )


def test_the_order_of_the_states_matters() -> None:
    hiddens, gammas, weight = inputs(torch.float32, 5)
    swapped = aux_norm_linear(hiddens[::-1], gammas, weight)
    assert not torch.allclose(swapped, aux_norm_linear(hiddens, gammas, weight), atol=0.1)


@dtypes
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 15, 16, 17, 63, 64, 65, 511, 513])
def test_every_number_of_rows(dtype: torch.dtype, rows: int) -> None:
    """Few rows stream the weights; more go through a matrix product, in pieces."""
    hiddens, gammas, weight = inputs(dtype, rows)
    assert_close_to_reference(
        aux_norm_linear(hiddens, gammas, weight),
        reference.aux_norm_linear(hiddens, gammas, weight),
        reference.aux_norm_linear(*doubled(hiddens, gammas, weight)),
    )


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_few_rows_are_rounded_once(dtype: torch.dtype, isa: str) -> None:
    """The normed state is not rounded to the storage type: closer than the step-by-step result."""
    hiddens, gammas, weight = inputs(dtype, 8, width=512, features=64)
    exact = reference.aux_norm_linear(*doubled(hiddens, gammas, weight))
    once = aux_norm_linear(hiddens, gammas, weight).double()
    stepwise = reference.aux_norm_linear(hiddens, gammas, weight).double()
    assert (once - exact).square().mean() < 0.9 * (stepwise - exact).square().mean()


def test_gammas_none_is_gammas_of_one(isa: str) -> None:
    hiddens, _, weight = inputs(torch.float32, 5)
    ones = [torch.ones(40)] * 3
    assert_same([aux_norm_linear(hiddens, None, weight)], [aux_norm_linear(hiddens, ones, weight)])


def test_one_tensor_may_be_every_state() -> None:
    hiddens, gammas, weight = inputs(torch.float32, 5)
    h = hiddens[0].requires_grad_()
    out = aux_norm_linear([h, h, h], gammas, weight)
    (actual,) = torch.autograd.grad(out.sum(), [h])
    (expected,) = torch.autograd.grad(
        reference.aux_norm_linear([h, h, h], gammas, weight).sum(), [h]
    )
    torch.testing.assert_close(actual, expected)


def test_gradient_without_gammas() -> None:
    hiddens, _, weight = inputs(torch.float32, 5)
    wanted = [t.requires_grad_() for t in (*hiddens, weight)]
    grad = torch.randn(5, 24)
    actual = torch.autograd.grad(aux_norm_linear(hiddens, None, weight), wanted, grad)
    expected = torch.autograd.grad(reference.aux_norm_linear(hiddens, None, weight), wanted, grad)
    for got, want in zip(actual, expected, strict=True):
        torch.testing.assert_close(got, want)


def test_frozen_weight_has_no_gradient() -> None:
    hiddens, gammas, weight = inputs(torch.float32, 5)
    out = aux_norm_linear([h.requires_grad_() for h in hiddens], gammas, weight)
    out.sum().backward()
    assert all(h.grad is not None for h in hiddens)
    assert weight.grad is None


def test_sequences_of_any_kind() -> None:
    hiddens, gammas, weight = inputs(torch.float32, 5)
    expected = aux_norm_linear(hiddens, gammas, weight)
    assert_same([aux_norm_linear(tuple(hiddens), tuple(gammas), weight)], [expected])
    with pytest.raises(TypeError, match=r"hiddens: expected a sequence of tensors, got generator"):
        aux_norm_linear((h for h in hiddens), gammas, weight)


def test_no_features() -> None:
    hiddens, gammas, weight = inputs(torch.float32, 5, features=0)
    assert aux_norm_linear(hiddens, gammas, weight).shape == (5, 0)
