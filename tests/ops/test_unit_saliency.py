"""What is particular to unit_saliency: whose sum it is, tokens by the ten thousand, layouts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from harness import assert_same
from leeboard import _C, reference
from leeboard.ops import backend, unit_saliency
from tolerances import assert_close_to_reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def check(a: Tensor, g: Tensor, width: int = 1) -> Tensor:
    with backend("cpu"):
        result = unit_saliency(a, g, width=width)
    low = reference.unit_saliency(a, g, width=width)
    exact = reference.unit_saliency(a.double(), g.double(), width=width)
    assert_close_to_reference(result, low, exact)
    return result


def test_is_the_gradient_of_a_gate() -> None:
    """|dL_b / dg_u| at g = 1, by autograd, for a loss that is no sum over tokens or channels."""
    a, mix = torch.randn(3, 7, 24, dtype=torch.float64), torch.randn(24, 24, dtype=torch.float64)

    def losses(values: Tensor) -> Tensor:
        return (values @ mix).tanh().mean(1).square().sum(-1)

    gates = torch.ones(3, 6, dtype=torch.float64, requires_grad=True)
    gated = (a.view(3, 7, 6, 4) * gates[:, None, :, None]).flatten(2)
    (expected,) = torch.autograd.grad(losses(gated).sum(), gates)
    hidden = a.clone().requires_grad_()
    (grad,) = torch.autograd.grad(losses(hidden).sum(), hidden)
    torch.testing.assert_close(unit_saliency(a, grad, width=4), expected.abs())
    low = unit_saliency(a.float(), grad.float(), width=4)
    torch.testing.assert_close(low, expected.abs().float())


@dtypes
@pytest.mark.parametrize("width", [1, 4])
def test_as_exact_as_the_reference_over_many_tokens(dtype: torch.dtype, width: int, isa: str):
    a, g = torch.randn(2, 1, 100_000, 8).to(dtype)
    check(a, g, width)


@pytest.mark.parametrize("width", [1, 4])
def test_equal_signs_over_many_tokens(width: int, isa: str) -> None:
    """Nothing cancels: a running sum would lose a bit with every doubling."""
    a, g = torch.rand(2, 1, 100_000, 8)
    check(a, g, width)


def test_one_wide_unit(isa: str) -> None:
    a, g = torch.rand(2, 3, 2, 65536)
    check(a, g, width=65536)


def test_counts_exactly(isa: str) -> None:
    """Sums of ones: every token and channel once, at every length around the kernel's steps."""
    for tokens in (0, 1, 7, 8, 9, 127, 128, 129, 255, 256, 257, 1000):
        ones = torch.ones(2, tokens, 70)
        assert torch.equal(unit_saliency(ones, ones), torch.full((2, 70), float(tokens)))
        by_ten = unit_saliency(ones, -ones, width=10)
        assert torch.equal(by_ten, torch.full((2, 7), 10.0 * tokens))


def test_samples_do_not_mix(isa: str) -> None:
    a, g = torch.randn(2, 5, 150, 40)
    together = unit_saliency(a, g, width=8)
    for b in range(5):
        assert_same([unit_saliency(a[b : b + 1], g[b : b + 1], width=8)], [together[b : b + 1]])


@dtypes
def test_layouts_without_a_copy(dtype: torch.dtype) -> None:
    """Tokens first, without the class token, every other sample, some channels, one for all."""
    a, g = torch.randn(2, 4, 9, 48).to(dtype)
    whole = (a, g)
    tokens_first = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in whole]
    for views in (
        tokens_first,
        [t[:, 1:] for t in whole],
        [t[::2] for t in whole],
        [t[..., 8:32] for t in whole],
        [a[:1].expand_as(a), g],
        [a[:, :1].expand_as(a), g],
        [t.unflatten(1, (3, 3)) for t in whole],
    ):
        out = torch.full((views[0].shape[0], views[0].shape[-1] // 4), float("nan"))
        # The entry itself, which takes the layout or does nothing.
        assert _C.unit_saliency_forward(*views, out, 4, -1)
        assert_same([out], [unit_saliency(*[t.contiguous() for t in views], width=4)])


def test_layouts_that_cost_a_copy() -> None:
    a, g = torch.randn(2, 4, 3, 5, 48)
    swapped = a.transpose(1, 2).contiguous().transpose(1, 2)
    assert not _C.unit_saliency_forward(swapped, g, torch.empty(4, 12), 4, -1)
    assert_same([unit_saliency(swapped, g, width=4)], [unit_saliency(a, g, width=4)])


def test_out_may_lie_in_an_input() -> None:
    a, g = torch.randn(2, 4, 8, 16)
    expected = unit_saliency(a, g, width=2)
    out = a[:, 0, :8]
    assert unit_saliency(a, g, width=2, out=out) is out
    assert_same([out], [expected])


def test_needs_no_gradient() -> None:
    a = torch.randn(2, 3, 8, requires_grad=True)
    g = torch.randn(2, 3, 8)
    with pytest.raises(RuntimeError, match=r"activation: requires grad.*torch.no_grad\(\)"):
        unit_saliency(a, g)
    with torch.no_grad():
        assert not unit_saliency(a, g).requires_grad
    assert_same([unit_saliency(a.detach(), g)], [reference.unit_saliency(a.detach(), g)])


def test_the_op_behind_it_has_no_gradient() -> None:
    a = torch.randn(2, 3, 8, requires_grad=True)
    result = torch.ops.leeboard.unit_saliency(a, torch.randn(2, 3, 8), 1)
    with pytest.raises(RuntimeError, match="unit_saliency has no gradient"):
        result.sum().backward()


def test_in_a_backward_hook() -> None:
    """Where it is used: grad mode is off there."""
    layer = torch.nn.Linear(12, 12)
    seen: list[Tensor] = []

    def keep(module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        output.register_hook(lambda grad: seen.append(unit_saliency(output, grad, width=3)))

    with_hook = layer.register_forward_hook(keep)
    layer(torch.randn(2, 5, 12)).square().sum().backward()
    with_hook.remove()
    assert [tuple(s.shape) for s in seen] == [(2, 4)]
