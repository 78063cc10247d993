"""panel_linear: projections of half of the heads, to them (outputs) and from them (inputs).

A width, one or 64 tokens, or 256, and half of the panels; panel_ffn has the rest of the grid.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.cases import Aim, Case, Inputs, Prepared, Subject, Variant
from bench.grid import Measure, Point, grid
from bench.ops.panels import channels_of, kept, width_of

OVERS = ("outputs", "inputs")


def _case(over: str, rows: int, width: int, dtype: torch.dtype) -> Case:
    return Case(
        op="panel_linear",
        shape={"N": rows, "D": width, "K": 50},
        dtype=dtype,
        direction="forward",
        read=(width * width + 2 * rows * width) // 2 * dtype.itemsize,
        written=rows * width * dtype.itemsize // (2 if over == "outputs" else 1),
        flops=rows * width * width,
        streams=(2, 1),
        aim=Aim(ratios={"gathered": 1.0}),
        quick=rows == 64 and width == 256,
        label=over,
        products=True,
    )


def _inputs(case: Case, device: torch.device) -> Inputs:
    width, over = case.shape["D"], case.label
    weight = torch.randn(width, width) * width**-0.5
    parameters = [
        torch.nn.Parameter(t.to(device, case.dtype)) for t in (weight, torch.randn(width) * 0.1)
    ]
    panels = kept(width, case.shape["K"], case.dtype, device)
    panel = width_of(case.dtype)
    columns = width if over == "outputs" else len(panels) * panel
    x = torch.randn(case.shape["N"], columns).to(device, case.dtype)
    return Inputs((x, parameters[0], panels, parameters[1]), {"panel": panel, "over": over})


def _gathered(
    x: Tensor, weight: Tensor, panels: Tensor, bias: Tensor, *, panel: int, over: str
) -> Tensor:
    """The weight is cut at every call."""
    channels = channels_of(panels, panel)
    if over == "outputs":
        return F.linear(x, weight.index_select(0, channels), bias.index_select(0, channels))
    return F.linear(x, weight.index_select(1, channels), bias)


def _compacted(prepared: Prepared) -> Callable[..., Tensor]:
    """The weight has been cut before."""
    _, weight, panels, bias = prepared.inputs.args
    outputs = prepared.case.label == "outputs"
    channels = channels_of(panels, prepared.inputs.kwargs["panel"])
    cut = weight.detach().index_select(0 if outputs else 1, channels)
    offset = bias.detach()[channels] if outputs else bias.detach()

    def run(x: Tensor, *_: Any, **__: Any) -> Tensor:
        return F.linear(x, cut, offset)

    return run


def _variants(case: Case) -> tuple[Variant, ...]:
    return ("leeboard", "leeboard-out", "gathered", "compacted")


SUBJECT = Subject(
    op="panel_linear",
    cases=[
        _case(over, rows, width, dtype)
        for over in OVERS
        for width in (64, 256, 1024)
        for rows in (1, 64, 256)
        for dtype in (torch.float32, torch.bfloat16)
        if dtype == torch.float32 or width == 256
    ],
    inputs=_inputs,
    eager=_gathered,
    peers={"gathered": lambda _: _gathered, "compacted": _compacted},
    choose=_variants,
)


@pytest.mark.parametrize("point", grid(SUBJECT))
def test_panel_linear(measure: Measure, point: Point) -> None:
    measure(SUBJECT, point)
