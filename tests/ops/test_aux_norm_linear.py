"""What is particular to aux_norm_linear: several states, one rounding, two ways to the product."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from harness import assert_same
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


class Calls(TorchDispatchMode):
    """Counts the ops that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        # What is frozen costs nothing: no product, no norm of the states, no backward of it.
        ("hiddens", {"mm": 1, "rms_norm": 0, "rms_norm_backward": 3}),
        ("gammas", {"mm": 1, "rms_norm": 0, "rms_norm_backward": 3}),
        ("weight", {"mm": 1, "rms_norm": 3, "rms_norm_backward": 0}),
        ("all", {"mm": 2, "rms_norm": 3, "rms_norm_backward": 3}),
    ],
)
@pytest.mark.parametrize("rows", [5, 20])
def test_backward_computes_what_is_wanted(wanted: str, expected: dict[str, int], rows: int) -> None:
    hiddens, gammas, weight = inputs(torch.float32, rows)
    groups = {"hiddens": hiddens, "gammas": gammas, "weight": [weight]}
    leaves = [*hiddens, *gammas, weight] if wanted == "all" else groups[wanted]
    for t in leaves:
        t.requires_grad_()
    out, grad = aux_norm_linear(hiddens, gammas, weight), torch.randn(rows, 24)
    with Calls() as calls:
        actual = torch.autograd.grad(out, leaves, grad)
    assert {name: calls.counts[name] for name in expected} == expected
    exact = reference.aux_norm_linear(hiddens, gammas, weight)
    for got, want in zip(actual, torch.autograd.grad(exact, leaves, grad), strict=True):
        torch.testing.assert_close(got, want)


def largest_allocation(function: Callable[[], object]) -> int:
    """Bytes of the largest tensor made inside."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        function()
    return max((event.self_cpu_memory_usage for event in profile.events()), default=0)


@pytest.mark.parametrize("rows", [4, 20])
def test_out_needs_no_second_result(rows: int) -> None:
    hiddens, gammas, weight = inputs(torch.float32, rows, width=8, features=4096)
    expected = aux_norm_linear(hiddens, gammas, weight)
    size = expected.numel() * expected.itemsize
    out = torch.empty_like(expected)
    address = out.data_ptr()
    assert largest_allocation(lambda: aux_norm_linear(hiddens, gammas, weight)) >= size
    assert largest_allocation(lambda: aux_norm_linear(hiddens, gammas, weight, out=out)) < size
    assert out.data_ptr() == address
    assert_same([out], [expected])


@pytest.mark.parametrize("rows", [4, 20, 600])
@pytest.mark.parametrize("into", ["hidden", "gamma", "weight"])
def test_out_inside_an_input(rows: int, into: str) -> None:
    """Every input is read to its end before the first result is written over it."""
    hiddens, gammas, weight = inputs(torch.float32, rows, width=40, features=40, states=2)
    expected = aux_norm_linear(hiddens, gammas, weight)
    room = torch.empty(4 * rows * 40 + weight.numel())
    start = 20 if into == "gamma" else 40
    out = room[start : start + rows * 40].view(rows, 40)
    held = {"hidden": hiddens[1], "gamma": gammas[1], "weight": weight}[into]
    moved = room[: held.numel()].view(held.shape).copy_(held)
    if into == "hidden":
        hiddens[1] = moved
    elif into == "gamma":
        gammas[1] = moved
    else:
        weight = moved
    assert aux_norm_linear(hiddens, gammas, weight, out=out) is out
    assert_same([out], [expected])
