"""What is particular to qlinear: the formats, one rounding at the end, mixed dtypes, fp8."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from harness import assert_same
from leeboard import reference
from leeboard.ops import QuantizedWeight, backend, qlinear, quantize_weight

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FORMATS = ("int8", "int4", "fp8")
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
formats = pytest.mark.parametrize("kind", FORMATS)
kernel_formats = pytest.mark.parametrize("kind", FORMATS[:2])
widths = pytest.mark.parametrize("columns", [1, 15, 16, 17, 127, 128, 129, 300])


def whole_numbers(kind: str, rows: int, columns: int) -> QuantizedWeight:
    """A weight of small whole numbers with scales that are powers of two: products are exact."""
    weight = torch.randint(-7, 8, (rows, columns)).float()
    if kind == "int8":
        scales = torch.exp2(torch.randint(-3, 4, (rows,)).float())
        return QuantizedWeight("int8", weight.to(torch.int8), scales, columns)
    # The largest value makes the scale 1.
    for start in range(0, columns, 128):
        weight[:, start] = 7.0
    quantised = quantize_weight(weight, "int4")
    assert torch.equal(quantised.dequantize(), weight)
    powers = torch.exp2(torch.randint(-3, 4, quantised.scales.shape).float())
    return replace(quantised, scales=powers.bfloat16())


# --- the formats themselves ---


@formats
@widths
def test_quantisation_error_is_half_a_step(kind: str, columns: int) -> None:
    weight = torch.randn(9, columns) * torch.logspace(-6, 6, 9)[:, None]
    quantised = quantize_weight(weight, kind)
    assert quantised.shape == (9, columns)
    error = (quantised.dequantize(torch.float64) - weight.double()).abs()
    if kind == "fp8":
        # Three bits of mantissa: 2^-4 of a value, or of the smallest normal number 2^-6.
        allowed = torch.maximum(
            weight.abs().double() * 2**-4, quantised.scales[:, None].double() * 2**-10
        )
    elif kind == "int8":
        allowed = quantised.scales[:, None].double() / 2
    else:
        groups = quantised.scales.double() / 2
        allowed = groups.repeat_interleave(128, dim=1)[:, :columns]
    assert bool((error <= allowed * (1 + 1e-6)).all())


@formats
def test_scales_clip_nothing(kind: str) -> None:
    """The largest magnitude of a row survives to half a step on both sides of zero."""
    weight = torch.randn(64, 257)
    quantised = quantize_weight(weight, kind).dequantize()
    at = weight.abs().argmax(dim=1, keepdim=True)
    largest, stored = weight.gather(1, at), quantised.gather(1, at)
    levels = {"int8": 127, "int4": 7, "fp8": 16}[kind]
    assert bool(((largest - stored).abs() <= largest.abs() / (2 * levels) * 1.01).all())


def test_layout_of_int4() -> None:
    """Nibble s of little-endian word l of a group is column 16 s + l, less 8, times the scale."""
    levels = torch.randint(-7, 8, (3, 256)).float()
    levels[:, 0] = levels[:, 128] = 7.0
    quantised = quantize_weight(levels * 0.5, "int4")
    words = quantised.data.contiguous().view(torch.int32).view(3, 2, 16).to(torch.int64)
    for column in range(256):
        group, within = divmod(column, 128)
        nibble = words[:, group, within % 16] >> 4 * (within // 16) & 0xF
        assert torch.equal(nibble - 8, levels[:, column].long())


@pytest.mark.parametrize(
    ("weight", "kind", "match"),
    [
        (torch.ones(3, 4), "int2", r"format: 'int2' was given; expected one of int8, int4, fp8"),
        (torch.ones(3), "int8", r"weight: torch.float32 \[3\] was given; expected .*\[N, K\]"),
        (torch.ones(0, 4), "int8", r"weight: .*\[0, 4\] was given"),
        (torch.ones(3, 4).long(), "int4", r"weight: torch.int64"),
        (torch.full((3, 4), float("nan")), "int4", r"weight: it holds NaN or infinity"),
    ],
)
def test_what_cannot_be_quantised(weight: Tensor, kind: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        quantize_weight(weight, kind)


@formats
def test_a_row_of_zeros(kind: str) -> None:
    weight = torch.zeros(2, 130)
    weight[1] = 3.0
    quantised = quantize_weight(weight, kind)
    assert not quantised.dequantize()[0].any()
    out = qlinear(torch.ones(1, 130), quantised)
    assert out[0, 0] == 0
    assert out[0, 1].item() == pytest.approx(390.0, rel=1e-2)


# --- products ---


@kernel_formats
@widths
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 65])
def test_products_of_whole_numbers_are_exact(kind: str, columns: int, rows: int, isa: str) -> None:
    weight = whole_numbers(kind, 19, columns)
    x = torch.randint(-15, 16, (rows, columns)).float()
    residual = torch.randint(-9, 10, (rows, 19)).float()
    with backend("cpu"):
        actual = qlinear(x, weight, residual=residual)
    expected = x.double() @ weight.dequantize(torch.float64).mT + residual.double()
    assert torch.equal(actual.double(), expected)


@dtypes
@pytest.mark.parametrize("columns", [2, 130])
def test_every_feature_and_column_is_its_own(dtype: torch.dtype, columns: int, isa: str) -> None:
    """The identity matrix picks every column once; no tile or tail mixes two of them up."""
    x = torch.arange(1.0, columns + 1).to(dtype)[None].repeat(3, 1)
    eye = torch.eye(columns)
    for weight in (eye.to(dtype), quantize_weight(eye * 7, "int4"), quantize_weight(eye, "int8")):
        with backend("cpu"):
            actual = qlinear(x, weight)
        factor = 7 if isinstance(weight, QuantizedWeight) and weight.format == "int4" else 1
        if isinstance(weight, QuantizedWeight) and weight.format == "int8":
            # 127 steps of 1 / 127: off by a rounding of the scale, and one of the result.
            assert torch.allclose(actual.float(), x.float(), rtol=2 * torch.finfo(dtype).eps)
        else:
            assert torch.equal(actual, (x.float() * factor).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_rounded_once(dtype: torch.dtype, isa: str) -> None:
    """A product that is lost in the storage type before the residual cancels what it is lost in."""
    x = torch.ones(1, 2, dtype=dtype)
    weight = torch.tensor([[256.0, 0.0625], [-256.0, 0.0625]], dtype=dtype)
    residual = torch.tensor([[-256.0, 256.0]], dtype=dtype)
    with backend("cpu"):
        assert qlinear(x, weight, residual=residual).tolist() == [[0.0625, 0.0625]]


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_the_norm_is_not_rounded(dtype: torch.dtype, isa: str) -> None:
    """Two normed values whose difference the storage type would lose."""
    x = torch.tensor([[1.0, 1.0]], dtype=dtype)
    gain = torch.tensor([1.0, 1.0 + 2**-20])
    weight = torch.tensor([[1.0, -1.0]], dtype=dtype)
    with backend("cpu"):
        out = qlinear(x, weight, norm_weight=gain, eps=0.0)
    assert out.item() == pytest.approx(-(2**-20), rel=1e-2)


@pytest.mark.parametrize("rows", [1, 5, 70])
def test_bfloat16_weights_of_float32_activations(rows: int, isa: str) -> None:
    x, weight = torch.randn(rows, 300), torch.randn(33, 300).bfloat16()
    with backend("cpu"):
        actual = qlinear(x, weight)
        same = qlinear(x, weight.float())
    assert actual.dtype == torch.float32
    exact = x.double() @ weight.double().mT
    bound = 300 * 2**-24 * (x.double().abs() @ weight.double().abs().mT)
    assert bool(((actual.double() - exact).abs() <= bound).all())
    assert bool(((same.double() - exact).abs() <= bound).all())


@dtypes
def test_fp8_runs_the_reference_on_a_cpu(dtype: torch.dtype) -> None:
    x, weight = torch.randn(3, 40).to(dtype), quantize_weight(torch.randn(9, 40), "fp8")
    assert_same([qlinear(x, weight)], [reference.qlinear(x, weight)])
    with backend("cpu"), pytest.raises(RuntimeError, match=r"'cpu' is forced, but .* not fp8"):
        qlinear(x, weight)


@kernel_formats
def test_parts_of_a_weight_in_any_layout(kind: str) -> None:
    x, weight = torch.randn(3, 300), quantize_weight(torch.randn(9, 300), kind)
    expected = qlinear(x, weight)
    spread = replace(
        weight,
        data=weight.data.repeat_interleave(2, dim=0)[::2],
        scales=weight.scales.repeat_interleave(2, dim=-1)[..., ::2],
    )
    assert_same([qlinear(x, spread)], [expected])
    columns_first = replace(weight, data=weight.data.t().contiguous().t())
    assert_same([qlinear(x, columns_first)], [expected])
    rows = replace(weight, data=weight.data[2:7], scales=weight.scales[2:7])
    assert_same([qlinear(x, rows)], [expected[:, 2:7]])


@kernel_formats
def test_needs_no_gradient(kind: str) -> None:
    weight = quantize_weight(torch.randn(9, 40), kind)
    x = torch.randn(3, 40, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"x: requires grad, .*torch.no_grad\(\)"):
        qlinear(x, weight)
    with torch.no_grad():
        assert not qlinear(x, weight).requires_grad
    scaled = replace(weight, scales=weight.scales.clone().requires_grad_())
    with pytest.raises(RuntimeError, match=r"weight.scales: requires grad"):
        qlinear(x.detach(), scaled)


def test_the_op_behind_it() -> None:
    x = torch.randn(3, 24, requires_grad=True)
    options = (None, 1e-6, None)
    out = torch.ops.leeboard.qlinear(x, [torch.randn(9, 24)], "plain", *options)
    with pytest.raises(RuntimeError, match="qlinear has no gradient"):
        out.sum().backward()
    with pytest.raises(ValueError, match=r"format: 'int2' was given; expected one of plain, int8"):
        torch.ops.leeboard.qlinear(x.detach(), [torch.randn(9, 24)], "int2", *options)


@pytest.mark.parametrize("shape", [(40,), (2, 40), (2, 0, 40), (2, 1, 3, 40)])
def test_shapes_of_the_output(shape: tuple[int, ...]) -> None:
    for weight in (torch.randn(9, 40), quantize_weight(torch.randn(9, 40), "int4")):
        out = qlinear(torch.randn(shape), weight)
        assert out.shape == (*shape[:-1], 9)


@kernel_formats
def test_compiled_with_a_quantised_weight(kind: str) -> None:
    """The weight is a pytree of tensors to every tracer."""
    x, weight = torch.randn(3, 40), quantize_weight(torch.randn(9, 40), kind)
    compiled = torch.compile(lambda x, w: qlinear(x, w), backend="aot_eager", fullgraph=True)
    assert_same([compiled(x, weight)], [qlinear(x, weight)])
