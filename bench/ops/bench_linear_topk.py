"""linear_topk: the best ten tokens of a draft-vocabulary head."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.cases import Aim, Case, Inputs, Prepared, Subject, Variant, tensors_of
from bench.grid import Measure, Point, grid
from bench.ops.bench_linear_argmax import DRAFT_VOCABULARY
from bench.ops.norms import HIDDEN
from bench.ops.weights import BITS, dtype_of, in_bfloat16, weight_bytes, weight_of
from leeboard.reference import qlinear

COUNT = 10


def _case(bits: int) -> Case:
    return Case(
        op="linear_topk",
        shape={"N": 1, "H": HIDDEN, "V": DRAFT_VOCABULARY, "k": COUNT, "W": bits},
        dtype=dtype_of(bits),
        direction="forward",
        read=weight_bytes(DRAFT_VOCABULARY, HIDDEN, bits),
        written=0,
        flops=2 * DRAFT_VOCABULARY * HIDDEN,
        streams=(1, 0),
        aim=Aim(share=1 / 1.15),
        quick=bits == 16,
    )


def _inputs(case: Case, device: torch.device) -> Inputs:
    x = torch.randn(1, HIDDEN).to(device, case.dtype)
    return Inputs((x, weight_of(DRAFT_VOCABULARY, HIDDEN, case.shape["W"], device), COUNT))


def _eager(x: Tensor, weight: Tensor, k: int) -> tuple[Tensor, Tensor]:
    top = F.linear(x, weight).topk(k, dim=-1)
    return top.indices, top.values


def _check(prepared: Prepared, variant: Variant, result: Any) -> None:
    # Near ties may fall either way: what counts is how far each logit is from its place's best.
    if "exact" not in prepared.kept:
        x, weight, _ = prepared.inputs.map(lambda t: t.detach()).args
        rounded = qlinear(x.float(), weight)
        x, weight, _ = prepared.inputs.map(
            lambda t: t.detach().double() if t.is_floating_point() else t
        ).args
        prepared.kept["exact"] = exact = qlinear(x, weight)
        prepared.kept["error"] = float((rounded.double() - exact).abs().max())
    exact = prepared.kept["exact"]
    index, value = tensors_of(result)
    assert index.dtype == torch.int64
    assert index.shape == value.shape == (*exact.shape[:-1], COUNT)
    assert index.unique().numel() == COUNT, "a token comes twice"
    best = exact.topk(COUNT, dim=-1).values
    allowed = 2 * prepared.kept["error"]
    if variant in ("eager", "compile"):
        # The idiom rounds its weights, if they were quantised, and its logits.
        allowed += 4 * float(torch.finfo(prepared.case.dtype).eps) * float(best.max())
    for what, given in (("index", exact.gather(-1, index)), ("value", value.double())):
        short = float((given - best).abs().max())
        assert short <= allowed, f"{what}: off by {short:.3g}, allowed {allowed:.3g}"


SUBJECT = Subject(
    op="linear_topk",
    cases=[_case(bits) for bits in BITS],
    inputs=_inputs,
    eager=_eager,
    check=_check,
    plain=in_bfloat16,
)


@pytest.mark.parametrize("point", grid(SUBJECT))
def test_linear_topk(measure: Measure, point: Point) -> None:
    measure(SUBJECT, point)
