"""What is particular to swiglu_linear: unrounded intermediates, silu's ends, mixed formats."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

from harness import assert_same
from leeboard import reference
from leeboard.ops import QuantizedWeight, backend, quantize_weight, swiglu_linear
from tolerances import assert_close_to_reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def weight(
    rows: int, columns: int, kind: str, dtype: torch.dtype
) -> torch.Tensor | QuantizedWeight:
    values = torch.randn(rows, columns) * columns**-0.5
    return values.to(dtype) if kind == "plain" else quantize_weight(values, kind)


@pytest.mark.parametrize(
    "kinds", list(itertools.product(["plain", "int8", "int4"], repeat=3)), ids="-".join
)
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_formats_mix(kinds: tuple[str, str, str], dtype: torch.dtype, isa: str) -> None:
    """Gate and up may want x in different orders, and down the block's inside in a third."""
    x = torch.randn(5, 140).to(dtype)
    weights = (
        weight(77, 140, kinds[0], dtype),
        weight(77, 140, kinds[1], dtype),
        weight(30, 77, kinds[2], dtype),
    )
    with backend("cpu"):
        actual = swiglu_linear(x, *weights)
    exact = reference.swiglu_linear(x.double(), *weights)
    assert_close_to_reference(actual, reference.swiglu_linear(x, *weights), exact)


@pytest.mark.parametrize("kinds", [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_bfloat16_weights_of_float32_activations(kinds: tuple[str, str], isa: str) -> None:
    x = torch.randn(3, 140)
    first, second = (getattr(torch, kind) for kind in kinds)
    weights = (
        torch.randn(33, 140).to(first),
        torch.randn(33, 140).to(second),
        torch.randn(9, 33).to(first),
    )
    with backend("cpu"):
        actual = swiglu_linear(x, *weights)
    exact = reference.swiglu_linear(x.double(), *weights)
    assert_close_to_reference(actual, reference.swiglu_linear(x, *weights), exact)


def test_silu_over_its_whole_range(isa: str) -> None:
    """One feature a number, through identities: gate x, up 1, down the identity."""
    ends = [0.0, -0.0, 1e-30, -1e-30, 88.0, -86.0, 104.0, -104.0, 1e4, -1e4, 3e38, -3e38]
    values = torch.cat((torch.linspace(-30, 30, 1001), torch.tensor(ends)))
    n = values.numel()
    x = torch.cat((values, torch.ones(1)))[None]
    gate = torch.cat((torch.eye(n), torch.zeros(n, 1)), dim=1)
    up = torch.zeros(n, n + 1)
    up[:, n] = 1.0
    with backend("cpu"):
        actual = swiglu_linear(x, gate, up, torch.eye(n))[0]
    exact = F.silu(values.double())
    # vector_exp is good to 2 units in the last place, and gives 0 below exp(-87).
    allowed = exact.abs() * 8 * 2**-24 + 104 * torch.finfo(torch.float32).smallest_normal
    assert bool(((actual.double() - exact).abs() <= allowed).all())


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_the_inside_is_not_rounded(dtype: torch.dtype, isa: str) -> None:
    """Two features whose difference the storage type would lose."""
    x = torch.ones(1, 2, dtype=dtype)
    gate = torch.tensor([[64.0, 0.0], [64.0, 0.0]], dtype=dtype)
    up = torch.tensor([[4.0, 2**-9], [4.0, 0.0]], dtype=dtype)
    down = torch.tensor([[1.0, -1.0]], dtype=dtype)
    with backend("cpu"):
        assert swiglu_linear(x, gate, up, down).item() == 64 * 2**-9


@dtypes
def test_fp8_runs_the_reference_on_a_cpu(dtype: torch.dtype) -> None:
    x = torch.randn(3, 40).to(dtype)
    weights = [
        weight(9, 40, "int8", dtype),
        weight(9, 40, "fp8", dtype),
        weight(5, 9, "int4", dtype),
    ]
    assert_same([swiglu_linear(x, *weights)], [reference.swiglu_linear(x, *weights)])
    with backend("cpu"), pytest.raises(RuntimeError, match=r"'cpu' is forced, but .* not fp8"):
        swiglu_linear(x, *weights)


@pytest.mark.parametrize("shape", [(40,), (2, 40), (2, 0, 40), (2, 1, 3, 40)])
def test_shapes_of_the_output(shape: tuple[int, ...]) -> None:
    weights = (torch.randn(9, 40), torch.randn(9, 40), torch.randn(5, 9))
    assert swiglu_linear(torch.randn(shape), *weights).shape == (*shape[:-1], 5)


def test_needs_no_gradient() -> None:
    x, gate = torch.randn(3, 24), torch.nn.Parameter(torch.randn(9, 24))
    others = torch.randn(9, 24), torch.randn(5, 9)
    with pytest.raises(RuntimeError, match=r"gate: requires grad, .*torch.no_grad\(\)"):
        swiglu_linear(x, gate, *others)
    with torch.no_grad():
        assert not swiglu_linear(x, gate, *others).requires_grad
    out = torch.ops.leeboard.swiglu_linear(
        x, [gate, *others], "plain,plain,plain", None, 1e-6, None
    )
    with pytest.raises(RuntimeError, match="swiglu_linear has no gradient"):
        out.sum().backward()
