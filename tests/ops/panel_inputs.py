"""Inputs of the ops over panels for the contract tests, valid and not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import leeboard.ops
from harness import Sample
from leeboard.ops import FeedForwardWeights

Builder = Callable[[torch.dtype], Sample]
Bad = tuple[Callable[[], object], type[Exception], str]


def normal(dtype: torch.dtype, *shape: int, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape, dtype=torch.float64) * scale).to(dtype)


def listed(panels: Sequence[int] | None, dtype: torch.dtype = torch.int64) -> Tensor | None:
    return None if panels is None else torch.tensor(panels, dtype=dtype)


def linear(
    rows: tuple[int, ...],
    size: tuple[int, int],
    panels: Sequence[int] | None = None,
    *,
    panel: int = 16,
    over: str = "outputs",
    bias: bool = True,
    residual: bool = False,
    index: torch.dtype = torch.int64,
) -> Builder:
    """A sample of panel_linear: rows of x without their width, and [N, K]."""

    def build(dtype: torch.dtype) -> Sample:
        outputs, inputs = size
        count = -(-size[over == "inputs"] // panel) if panels is None else len(panels)
        width = count * panel if over == "inputs" else inputs
        made = count * panel if over == "outputs" else outputs
        args = [
            normal(dtype, *rows, width),
            normal(dtype, *size, scale=inputs**-0.5),
            listed(panels, index),
            normal(dtype, outputs) if bias else None,
        ]
        options: dict[str, Any] = {"panel": panel, "over": over}
        if residual:
            options["residual"] = normal(dtype, *rows, made)
        return Sample(tuple(args), options)

    return build


def linear_samples() -> dict[str, Builder]:
    return {
        # Floating-point tensors alone: transforms of torch.func differentiate in all of them.
        "plain": linear((2, 1), (40, 24), residual=True),
        "many": linear((300,), (256, 64), [3, 2, 9, 15, 0, 7, 8, 11], residual=True),
        "no-rows": linear((3, 0), (40, 17), [1, 0]),
        "1-d": linear((), (40, 20), [2, 0], residual=True),
        "few": linear((5,), (70, 33), [8, 0, -1, 3], panel=8, index=torch.int32),
        "strips": linear((70,), (70, 33), [8, 0, -1, 3, 4], panel=8, residual=True),
        "narrow": linear((30,), (50, 36), [4, 41, 40, 2, -1, 9], panel=1, bias=False),
        "inputs": linear((2, 3), (9, 35), [3, 0, -1, 1], panel=10, over="inputs"),
        "inputs-strips": linear(
            (2, 33), (21, 72), [4, 1, -1, 3], over="inputs", bias=False, residual=True
        ),
        "inputs-all": linear((15,), (21, 64), panel=32, over="inputs"),
    }


def linear_arguments(sample: Sample) -> tuple[Any, ...]:
    options = sample.kwargs
    return (*sample.args, options.get("residual"), options["panel"], options["over"])


def weights_of(
    dtype: torch.dtype,
    width: int,
    hidden: int,
    outputs: int | None = None,
    *,
    gated: bool = False,
    biases: bool = True,
    norm: str | None = None,
    **options: Any,
) -> FeedForwardWeights:
    """Random weights whose results are about unit normal."""
    outputs = width if outputs is None else outputs

    def vector(size: int, present: bool, around: float = 0.0) -> Tensor | None:
        return around + normal(dtype, size, scale=0.5) if present else None

    return FeedForwardWeights(
        up=normal(dtype, hidden, width, scale=width**-0.5),
        down=normal(dtype, outputs, hidden, scale=hidden**-0.5),
        up_bias=vector(hidden, biases),
        down_bias=vector(outputs, biases),
        gate=normal(dtype, hidden, width, scale=width**-0.5) if gated else None,
        gate_bias=vector(hidden, biases and gated),
        norm=norm,
        norm_weight=vector(width, norm is not None, 1.0),
        norm_bias=vector(width, norm == "layer_norm"),
        **options,
    )


def ffn(
    rows: tuple[int, ...],
    sizes: tuple[int, ...],
    panels: Sequence[int] | None = None,
    *,
    bias: bool = False,
    gates: tuple[int, ...] | None = None,
    residual: bool = False,
    **options: Any,
) -> Builder:
    """A sample of panel_ffn: rows of x without their width; (d, F) or (d, F, d_out)."""

    def build(dtype: torch.dtype) -> Sample:
        weights = weights_of(dtype, *sizes, **options)
        if bias:
            # A bias takes the place of theirs, which then has no gradient.
            weights = replace(weights, down_bias=None)
        made = weights.down.shape[0]
        extras = {
            "bias": normal(dtype, made) if bias else None,
            "gates": None if gates is None else normal(dtype, *gates, sizes[1]),
            "residual": normal(dtype, *rows, made) if residual else None,
        }
        return Sample((normal(dtype, *rows, sizes[0]), weights, listed(panels)), extras)

    return build


def ffn_samples() -> dict[str, Builder]:
    return {
        "plain": ffn((2, 1), (24, 40, 20), gates=(), norm="layer_norm", residual=True),
        "many": ffn((300,), (64, 256), [3, 2, 9, 15, 0, 7, 8, 11], residual=True),
        "no-rows": ffn((3, 0), (17, 40), [1, 0], gates=(3,)),
        "1-d": ffn((), (20, 40), [2, 0], residual=True),
        "gated": ffn(
            (5,), (40, 70), [8, 0, -1, 3], panel=8, gated=True, activation="silu", norm="rms_norm"
        ),
        "gated-strips": ffn(
            (40,), (40, 70), [8, 0, -1, 3], panel=8, gated=True, activation="gelu_tanh"
        ),
        "samples": ffn(
            (3, 20), (36, 45), [4, 0, 2], panel=10, gates=(3,), activation="relu", norm="rms_norm"
        ),
        "samples-few": ffn((4,), (36, 45), [4, 0, 2], panel=10, gates=(4,), bias=True),
        "narrow": ffn((13,), (33, 50), [4, 41, 40, 2], panel=1, activation="identity"),
        "pairs": ffn((50,), (64, 320), range(1, 10), panel=32, norm="layer_norm", residual=True),
        "no-bias": ffn((20,), (32, 64), panel=32, biases=False, bias=True, residual=True),
    }


def ffn_arguments(sample: Sample) -> tuple[Any, ...]:
    x, weights, panels = sample.args
    bias, gates, residual = (sample.kwargs[name] for name in ("bias", "gates", "residual"))
    sample_dims = x.dim() - 1 if gates is not None and gates.dim() == 2 else 0
    if gates is not None and gates.dim() == 1:
        # A leaf of its own, for checks of gradients.
        gates = gates.detach()[None].requires_grad_(gates.requires_grad)
    return (
        x,
        weights.up,
        weights.down,
        weights.gate,
        weights.up_bias,
        weights.gate_bias,
        panels,
        weights.down_bias if bias is None else bias,
        gates,
        residual,
        weights.norm_weight,
        weights.norm_bias,
        sample_dims,
        weights.activation,
        weights.norm or "none",
        weights.eps,
        weights.panel,
    )


def _panel_bad_calls(bad: Callable[..., Bad]) -> dict[str, Bad]:
    """Of either op; the weight has 3 panels of 16."""
    return {
        "panels-list": bad(TypeError, r"panels: expected a torch.Tensor, got list", panels=[0]),
        "panels-float": bad(
            ValueError, r"panels: dtype torch.float32 .* torch.int32", panels=torch.ones(1)
        ),
        "panels-2d": bad(
            ValueError,
            r"panels: shape \[1, 1\] was given; expected \[n\]",
            panels=listed([0])[None],
        ),
        "panels-device": bad(
            ValueError, r"panels: device meta .* expected cpu", panels=listed([0]).to("meta")
        ),
        "panels-beyond": bad(
            ValueError, r"panels: 3 was given at \[1\]; expected -1 to 2", panels=listed([0, 3])
        ),
        "panels-negative": bad(
            ValueError,
            r"panels: -2 was given at \[0\]; expected -1 to 2",
            panels=listed([-2], torch.int32),
        ),
        "panels-twice": bad(
            ValueError,
            r"panels: 1 was given a second time at \[2\]; expected each panel once",
            panels=listed([1, -1, 1]),
        ),
    }


def linear_bad_calls() -> dict[str, Bad]:
    x, weight = torch.randn(4, 24), torch.randn(40, 24)

    def bad(error: type[Exception], match: str, **changed: Any) -> Bad:
        arguments = {"x": x, "weight": weight, **changed}
        return lambda: leeboard.ops.panel_linear(**arguments), error, match

    return {
        **_panel_bad_calls(bad),
        "x-list": bad(TypeError, r"x: expected a torch.Tensor, got list", x=[1.0]),
        "x-int": bad(
            ValueError, r"x: dtype torch.int64 is not supported", x=torch.ones(2, 2).long()
        ),
        "x-0d": bad(ValueError, r"x: a 0-dimensional tensor", x=torch.ones(())),
        "x-width": bad(
            ValueError, r"x: shape \[4, 23\] .* \[..., 24\] \(the columns of weight\)", x=x[:, 1:]
        ),
        "x-inputs": bad(
            ValueError,
            r"x: shape \[4, 24\] .* \[..., 16\] \(1 panels of 16 columns\)",
            panels=listed([1]),
            over="inputs",
        ),
        "weight-none": bad(
            TypeError, r"weight: expected a torch.Tensor, got NoneType", weight=None
        ),
        "weight-1d": bad(ValueError, r"weight: shape \[24\] .* \[N, K\]", weight=weight[0]),
        "weight-dtype": bad(
            ValueError, r"weight: dtype torch.float16 .* torch.float32", weight=weight.half()
        ),
        "bias-size": bad(ValueError, r"bias: shape \[39\] .* \[40\]", bias=torch.ones(39)),
        "bias-array": bad(
            TypeError, r"bias: expected a torch.Tensor, got ndarray", bias=np.ones(40, np.float32)
        ),
        "residual-shape": bad(
            ValueError, r"residual: shape \[4, 40\] .* \[4, 48\]", residual=torch.ones(4, 40)
        ),
        "residual-rows": bad(
            ValueError, r"residual: shape \[2, 2, 48\] .* \[4, 48\]", residual=torch.ones(2, 2, 48)
        ),
        "panel-0": bad(ValueError, r"panel: 0 was given; expected at least 1", panel=0),
        "panel-float": bad(TypeError, r"panel: expected an integer, got float", panel=16.0),
        "over": bad(ValueError, r"over: 'rows' .* expected 'outputs' or 'inputs'", over="rows"),
    }


def ffn_bad_calls() -> dict[str, Bad]:
    x, good = torch.randn(4, 24), weights_of(torch.float32, 24, 40, gated=True, norm="layer_norm")
    plain = weights_of(torch.float32, 24, 40)

    def bad(error: type[Exception], match: str, **changed: Any) -> Bad:
        arguments = {"x": x, "weights": good, **changed}
        return lambda: leeboard.ops.panel_ffn(**arguments), error, match

    def of(error: type[Exception], match: str, **changed: Any) -> Bad:
        return bad(error, match, weights=replace(good, **changed))

    half = torch.ones(40).half()
    return {
        **_panel_bad_calls(bad),
        "x-list": bad(TypeError, r"x: expected a torch.Tensor, got list", x=[1.0]),
        "x-width": bad(ValueError, r"weights.up: shape \[40, 24\] .* \[F, 23\]", x=x[:, 1:]),
        "x-empty": bad(ValueError, r"x: shape \[4, 0\] has a hidden dimension of 0", x=x[:, :0]),
        "weights-type": bad(
            TypeError, r"weights: expected a FeedForwardWeights, got Tensor", weights=good.up
        ),
        "up-none": of(TypeError, r"weights.up: expected a torch.Tensor, got NoneType", up=None),
        "down-shape": of(
            ValueError, r"weights.down: shape \[40, 24\] .* \[d_out, 40\]", down=good.down.t()
        ),
        "down-dtype": of(ValueError, r"weights.down: dtype torch.float16", down=good.down.half()),
        "gate-shape": of(
            ValueError, r"weights.gate: shape \[39, 24\] .* \[40, 24\]", gate=good.gate[1:]
        ),
        "gate_bias-alone": bad(
            ValueError,
            r"weights.gate_bias: given without weights.gate",
            weights=replace(plain, gate_bias=plain.up_bias),
        ),
        "up_bias-dtype": of(ValueError, r"weights.up_bias: dtype torch.float16", up_bias=half),
        "down_bias-size": of(
            ValueError, r"weights.down_bias: shape \[23\] .* \[24\]", down_bias=torch.ones(23)
        ),
        "norm_weight-size": of(
            ValueError, r"weights.norm_weight: shape \[23\] .* \[24\]", norm_weight=torch.ones(23)
        ),
        "norm": of(ValueError, r"weights.norm: 'batch' .* expected 'layer_norm'", norm="batch"),
        "norm_weight-alone": of(
            ValueError, r"weights.norm_weight: given without weights.norm", norm=None
        ),
        "norm_bias-rms": of(
            ValueError, r"weights.norm_bias: given without a layer norm", norm="rms_norm"
        ),
        "activation": of(
            ValueError, r"weights.activation: 'tanh' .* expected one of gelu", activation="tanh"
        ),
        "eps": of(ValueError, r"eps: -1 was given; expected a number >= 0", eps=-1),
        "panel": of(ValueError, r"panel: 0 was given; expected at least 1", panel=0),
        "bias-size": bad(ValueError, r"bias: shape \[40\] .* \[24\]", bias=torch.ones(40)),
        "gates-size": bad(ValueError, r"gates: shape \[39\] .* \[40\]", gates=torch.ones(39)),
        "gates-samples": bad(
            ValueError, r"gates: shape \[3, 40\] .* \[4, 40\]", gates=torch.ones(3, 40)
        ),
        "residual-rows": bad(
            ValueError, r"residual: shape \[2, 2, 24\] .* \[4, 24\]", residual=torch.ones(2, 2, 24)
        ),
    }
