"""What is particular to panel_linear: lists, ragged panels, and both sides of the weight."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from harness import LAYOUTS, Sample, assert_matches, assert_same, relayout, run
from leeboard.ops import backend, panel_linear
from panel_inputs import linear, normal

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
overs = pytest.mark.parametrize("over", ["outputs", "inputs"])


def check(sample: Sample) -> Tensor:
    with backend("cpu"):
        outputs = run("panel_linear", sample)
    assert_matches("panel_linear", sample, outputs)
    return outputs[0]


@dtypes
@overs
@pytest.mark.parametrize("panel", [1, 4, 10, 16, 32])
@pytest.mark.parametrize("rows", [1, 2, 3, 8, 9, 33, 70])
def test_widths_of_panels(rows: int, panel: int, over: str, dtype: torch.dtype) -> None:
    """Unsorted, with neighbours and one that is none; the last one is ragged."""
    count = -(-75 // panel)
    panels = [count - 1, 0, -1, 1, *range(2, count - 1, 2)]
    size = (75, 40) if over == "outputs" else (40, 75)
    check(linear((rows,), size, panels, panel=panel, over=over, residual=rows % 2 == 0)(dtype))


@overs
@pytest.mark.parametrize("rows", [5, 40])
def test_every_level(rows: int, over: str, isa: str) -> None:
    size = (203, 50) if over == "outputs" else (50, 203)
    panels = [*range(12, 3, -1), -1, 0, 2]
    for dtype in DTYPES:
        check(linear((rows,), size, panels, over=over, residual=True)(dtype))


@pytest.mark.parametrize("rows", [4, 40])
def test_equals_a_smaller_layer(rows: int) -> None:
    """To the bit: of the listed rows or columns, cut out."""
    x, weight, bias = torch.randn(rows, 48), torch.randn(96, 48), torch.randn(96)
    kept = torch.tensor([4, 0, 3])
    listed = (kept[:, None] * 16 + torch.arange(16)).flatten()
    whole = panel_linear(x, weight, kept, bias)
    assert_same([whole], [panel_linear(x, weight[listed].clone(), None, bias[listed].clone())])
    y = torch.randn(rows, 48)
    narrow = panel_linear(y, weight.t().contiguous(), kept, over="inputs")
    small = weight.t()[:, listed].contiguous()
    assert_same([narrow], [panel_linear(y, small, over="inputs")])


@overs
@pytest.mark.parametrize("rows", [2, 40])
def test_none_at_all(rows: int, over: str) -> None:
    """Panels that are none leave zeros or nothing, and what goes into them is ignored."""
    weight, bias = torch.randn(48, 48), torch.randn(48)
    none = torch.full((3,), -1)
    x, residual = torch.full((rows, 48), float("nan")), torch.randn(rows, 48)
    if over == "outputs":
        made = panel_linear(x, weight, none, bias, residual=residual)
        assert_same([made], [residual])
        assert panel_linear(x, weight, none[:0], bias).shape == (rows, 0)
        assert not panel_linear(x, weight, none, bias).any()
        return
    made = panel_linear(x, weight, none, bias, over="inputs", residual=residual)
    assert_same([made], [bias + residual])
    assert_same([panel_linear(x[:, :0], weight, none[:0], bias, over="inputs")],
                [bias.expand(rows, 48)])  # fmt: skip


@overs
def test_gradients_of_an_empty_list(over: str) -> None:
    """A plan that drops a whole layer is trained, too."""
    weight, bias = torch.randn(24, 24, requires_grad=True), torch.randn(24, requires_grad=True)
    columns = 24 if over == "outputs" else 0
    x = torch.randn(2, 3, columns, requires_grad=True)
    out = panel_linear(x, weight, torch.empty(0, dtype=torch.int32), bias, over=over)
    out.sum().backward()
    assert_same([x.grad, weight.grad], [torch.zeros_like(x), torch.zeros_like(weight)])
    assert_same([bias.grad], [torch.full((24,), 0.0 if over == "outputs" else 6.0)])


@overs
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if not name.startswith("expanded")])
def test_layouts_of_the_list_and_of_many_rows(layout: str, over: str) -> None:
    sample = linear((5, 9), (64, 64), [2, 0, 3, 1], over=over, residual=True)(torch.float32)
    changed = sample.mapped(lambda t: relayout(layout, t))
    assert_matches("panel_linear", sample, run("panel_linear", changed))


@dtypes
@pytest.mark.parametrize("rows", [8, 70])
def test_a_row_is_its_own(rows: int, dtype: torch.dtype, isa: str) -> None:
    """Among few rows, and among many, whatever their number and the threads."""
    sample = linear((rows,), (160, 72), [3, 9, 1, 0, 7])(dtype)
    (together,) = run("panel_linear", sample)
    x, *others = sample.args
    least = 1 if rows == 8 else 9
    for count in (least, least + 1, rows - 1):
        part = panel_linear(x[:count], *others)
        assert_same([part], [together[:count]])


@overs
def test_tangent_of_a_list(over: str) -> None:
    """Unlisted rows or columns have gradients of exactly zero."""
    weight = torch.randn(48, 48, requires_grad=True)
    x = torch.randn(9, 32 if over == "inputs" else 48)
    panel_linear(x, weight, torch.tensor([2, 0]), over=over).square().sum().backward()
    assert weight.grad is not None
    middle = weight.grad[16:32] if over == "outputs" else weight.grad[:, 16:32]
    assert not middle.any()
    assert bool(weight.grad.any())


def test_compiled_for_any_number_of_rows_and_any_list() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(panel_linear, backend="aot_eager", fullgraph=True, dynamic=True)
    weight = torch.randn(64, 24)
    for rows, panels in ((3, [1, 2]), (40, [3, 0, 1]), (9, [2, 1])):
        x, kept = normal(torch.float32, rows, 24), torch.tensor(panels, dtype=torch.int32)
        assert_same([compiled(x, weight, kept)], [panel_linear(x, weight, kept)])


def test_a_compiled_call_cannot_leave_the_weight() -> None:
    """Nobody looks at the list before the kernel, which does."""
    x, weight = torch.randn(2, 24), torch.randn(48, 24)
    with pytest.raises(ValueError, match=r"panels: 3 was given at \[0\]; expected -1 to 2"):
        torch.ops.leeboard.panel_linear(x, weight, torch.tensor([3]), None, None, 16, "outputs")
