"""unit_saliency: heads and channels of a layer, against eager PyTorch's sum of a product."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.cases import Aim, Case, Inputs, Prepared, Subject, Variant, tensors_of, within
from bench.grid import Measure, Point, grid


def _case(batch: int, tokens: int, channels: int, width: int, dtype: torch.dtype) -> Case:
    elements = batch * tokens * channels
    return Case(
        op="unit_saliency",
        shape={"B": batch, "T": tokens, "C": channels, "W": width},
        dtype=dtype,
        direction="forward",
        read=2 * elements * dtype.itemsize,
        written=4 * batch * channels // width,
        flops=2 * elements,
        streams=(2, 0),
        # The large cases are far beyond the caches.
        aim=Aim(share=0.8, compiled=True) if elements > 1 << 23 else None,
        quick=dtype == torch.bfloat16 and width == 64 and batch > 1,
    )


def _inputs(case: Case, device: torch.device) -> Inputs:
    shape = (case.shape["B"], case.shape["T"], case.shape["C"])
    a, g = (torch.randn(shape, device=device).to(case.dtype) for _ in range(2))
    return Inputs((a, g), {"width": case.shape["W"]})


def _eager(activation: Tensor, grad: Tensor, *, width: int) -> Tensor:
    product = (activation * grad).unflatten(-1, (-1, width))
    return product.sum((1, 3), dtype=torch.float32).abs()


def _check(prepared: Prepared, variant: Variant, result: Any) -> None:
    (got,) = tensors_of(result)
    ((exact, own),) = prepared.budget
    assert got.shape == exact.shape
    assert got.dtype == torch.float32
    if variant in ("eager", "compile"):
        # The idiom may round every product to the storage type, by half a step of it at most.
        a, g = prepared.inputs.args
        terms = (a.double() * g.double()).abs().unflatten(-1, (-1, prepared.case.shape["W"]))
        own += torch.finfo(a.dtype).eps / 2 * float(terms.sum((1, 3)).max())
    within(variant, got, exact, own, "saliency")


SUBJECT = Subject(
    op="unit_saliency",
    cases=[
        _case(*size, dtype)
        for dtype in (torch.float32, torch.bfloat16)
        # Heads of one sequence; channels of a feed-forward block; heads of a large batch.
        for size in ((1, 197, 768, 64), (32, 197, 3072, 1), (32, 512, 768, 64))
    ],
    inputs=_inputs,
    eager=_eager,
    check=_check,
    warm=lambda case: replace(case, shape={**case.shape, "B": 1}),
)


@pytest.mark.parametrize("point", grid(SUBJECT))
def test_unit_saliency(measure: Measure, point: Point) -> None:
    measure(SUBJECT, point)
