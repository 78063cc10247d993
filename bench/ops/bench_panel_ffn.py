"""panel_ffn: part of a feed-forward block's channels, beside the ways that PyTorch has to leave out.

The whole grid (5 widths, 5 numbers of tokens, 4 shares, 3 dtypes, 7 rivals, 2 thread counts) takes
hours. Half of the channels is the case that is asked for most; other shares are measured at 64
tokens, where the time should follow them; wide blocks at one, 64 and 512 tokens; bfloat16 at three
widths. Multiplying by a mask costs what the dense block does and more, so it is met at 64 tokens
alone. Cut weights are met eagerly and compiled: the best that PyTorch has for one plan.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.cases import Aim, Case, Inputs, Prepared, Subject, Variant, tensors_of, within
from bench.grid import Measure, Point, grid
from bench.ops.panels import channels_of, kept, width_of
from leeboard.ops import FeedForwardWeights

FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16


def _flops(rows: int, width: int, percent: int) -> int:
    return 4 * rows * width * 4 * width * percent // 100


def _aim(rows: int, width: int, percent: int, dtype: torch.dtype) -> Aim | None:
    ratios: dict[str, float] = {}
    if percent == 100:
        ratios["eager"] = 1.0
    elif percent == 50 and width <= 256 and dtype == FLOAT32:
        ratios["compacted"] = 1.3
    overhead = 1.15 if percent < 100 and rows >= 64 else None
    return Aim(ratios=ratios, overhead=overhead) if ratios or overhead else None


def _case(
    rows: int, width: int, percent: int, dtype: torch.dtype = FLOAT32, *, memory: bool = False
) -> Case:
    weights = 2 * width * 4 * width * percent // 100
    return Case(
        op="panel_ffn",
        shape={"N": rows, "D": width, "K": percent},
        dtype=dtype,
        direction="forward",
        read=(weights + rows * width) * dtype.itemsize,
        written=rows * width * dtype.itemsize,
        flops=_flops(rows, width, percent),
        streams=(2, 1),
        aim=_aim(rows, width, percent, dtype),
        quick=rows in (1, 64) and width in (64, 256) and percent == 50,
        products=True,
        dense_flops=_flops(rows, width, 100) if percent < 100 else None,
        memory=memory,
    )


def _cases() -> list[Case]:
    narrow = [
        _case(rows, width, percent)
        for width in (64, 128, 256)
        for rows in (1, 8, 64, 256)
        for percent in ((25, 50, 75, 100) if rows == 64 else (50, 100))
    ]
    wide = [_case(rows, width, 50) for width in (512, 1024) for rows in (1, 64, 512)]
    half = [_case(rows, width, 50, BFLOAT16) for width in (64, 256, 1024) for rows in (1, 64, 512)]
    return [*narrow, *wide, *half]


def _gpu_cases() -> list[Case]:
    return [
        _case(rows, width, percent, BFLOAT16)
        for width in (512, 1024)
        for rows in (512, 8192)
        for percent in (25, 50, 100)
    ]


def _inputs(case: Case, device: torch.device) -> Inputs:
    width = case.shape["D"]
    hidden = 4 * width

    def parameter(*shape: int, scale: float) -> torch.nn.Parameter:
        return torch.nn.Parameter((torch.randn(shape) * scale).to(device, case.dtype))

    weights = FeedForwardWeights(
        up=parameter(hidden, width, scale=width**-0.5),
        down=parameter(width, hidden, scale=hidden**-0.5),
        up_bias=parameter(hidden, scale=0.1),
        down_bias=parameter(width, scale=0.1),
        panel=width_of(case.dtype),
    )
    x = torch.randn(case.shape["N"], width).to(device, case.dtype)
    return Inputs((x, weights, kept(hidden, case.shape["K"], case.dtype, device)))


def _block(x: Tensor, up: Tensor, up_bias: Tensor, down: Tensor, down_bias: Tensor) -> Tensor:
    return F.linear(F.gelu(F.linear(x, up, up_bias)), down, down_bias)


def _dense(x: Tensor, weights: FeedForwardWeights, _: Tensor) -> Tensor:
    return _block(x, weights.up, weights.up_bias, weights.down, weights.down_bias)


def _masked(prepared: Prepared) -> Callable[..., Tensor]:
    """Every channel is computed, then multiplied by zero or one."""
    _, weights, panels = prepared.inputs.args
    mask = torch.zeros_like(weights.up_bias.detach())
    mask[channels_of(panels, weights.panel)] = 1.0

    def run(x: Tensor, weights: FeedForwardWeights, _: Tensor) -> Tensor:
        hidden = F.gelu(F.linear(x, weights.up, weights.up_bias)) * mask
        return F.linear(hidden, weights.down, weights.down_bias)

    return run


def _gathered(prepared: Prepared) -> Callable[..., Tensor]:
    """Weights are cut at every call, as a plan that changes with the input asks for."""
    _, weights, panels = prepared.inputs.args
    channels = channels_of(panels, weights.panel)

    def run(x: Tensor, weights: FeedForwardWeights, _: Tensor) -> Tensor:
        return _block(
            x,
            weights.up.index_select(0, channels),
            weights.up_bias.index_select(0, channels),
            weights.down.index_select(1, channels),
            weights.down_bias,
        )

    return run


def _compacted(prepared: Prepared) -> Callable[..., Tensor]:
    """Weights have been cut before, which costs as much memory as they have for every plan."""
    _, weights, panels = prepared.inputs.args
    channels = channels_of(panels, weights.panel)
    up, up_bias = weights.up.detach()[channels], weights.up_bias.detach()[channels]
    down, down_bias = weights.down.detach()[:, channels].contiguous(), weights.down_bias.detach()

    def run(x: Tensor, _: FeedForwardWeights, __: Tensor) -> Tensor:
        return _block(x, up, up_bias, down, down_bias)

    return run


def _compacted_compiled(prepared: Prepared) -> Callable[..., Tensor]:
    """The same under torch.compile, for this case and number of threads."""
    torch.compiler.reset()
    compiled: Callable[..., Tensor] = torch.compile(
        _compacted(prepared), fullgraph=True, dynamic=False
    )
    return compiled


def _own_dense(prepared: Prepared) -> Callable[..., Tensor]:
    def run(x: Tensor, weights: FeedForwardWeights, _: Tensor) -> Any:
        return prepared.spec.function(x, weights)

    return run


def _variants(case: Case) -> tuple[Variant, ...]:
    if case.shape["K"] == 100:
        return ("leeboard", "leeboard-out", "eager", "compile")
    masked = ("masked",) if case.shape["N"] == 64 else ()
    return (
        "leeboard",
        "leeboard-dense",
        "eager",
        *masked,
        "gathered",
        "compacted",
        "compacted-compile",
    )


def _check(prepared: Prepared, variant: Variant, result: Any) -> None:
    """Against the reference over the list, or over all for who leaves nothing out."""
    everything = variant in ("eager", "compile", "leeboard-dense")
    if everything not in prepared.kept:
        x, weights, panels = prepared.inputs.args
        asked = None if everything else panels
        doubled = prepared.inputs.map(lambda t: t.detach().double() if t.is_floating_point() else t)
        exact = prepared.spec.reference(*doubled.args[:2], asked)
        own = (prepared.spec.reference(x, weights, asked).double() - exact).abs().max()
        prepared.kept[everything] = exact, float(own)
    exact, own = prepared.kept[everything]
    (out,) = tensors_of(result)
    assert out.dtype == prepared.case.dtype
    within(variant, out, exact, own, "output")


SUBJECT = Subject(
    op="panel_ffn",
    cases=_cases(),
    inputs=_inputs,
    eager=_dense,
    check=_check,
    peers={
        "masked": _masked,
        "gathered": _gathered,
        "compacted": _compacted,
        "compacted-compile": _compacted_compiled,
        "leeboard-dense": _own_dense,
    },
    choose=_variants,
    gpu=_gpu_cases(),
    warm=lambda case: replace(case, shape={**case.shape, "N": 2, "D": 64}),
)


@pytest.mark.parametrize("point", grid(SUBJECT))
def test_panel_ffn(measure: Measure, point: Point) -> None:
    measure(SUBJECT, point)
