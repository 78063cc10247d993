"""rms_norm: [N, H] rows of a decoder layer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.cases import Case, Inputs, Subject
from bench.grid import Measure, Point, grid
from bench.ops.norms import EPS, norm_cases, norm_weight


def _inputs(case: Case, device: torch.device) -> Inputs:
    x = torch.randn(case.shape["N"], case.shape["H"], device=device).to(case.dtype)
    return Inputs((x, norm_weight(case, device), EPS))


def _eager(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, eps)


SUBJECT = Subject(
    op="rms_norm",
    # Backward: reads the gradient and x, writes the gradient of x.
    cases=norm_cases("rms_norm", forward=(1, 1), backward=(2, 1), flops=4),
    inputs=_inputs,
    eager=_eager,
)


@pytest.mark.parametrize("point", grid(SUBJECT))
def test_rms_norm(measure: Measure, point: Point) -> None:
    measure(SUBJECT, point)
