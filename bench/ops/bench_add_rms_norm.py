"""add_rms_norm: the residual addition and norm between the blocks of a decoder layer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.cases import Case, Inputs, Subject
from bench.grid import Measure, Point, grid
from bench.ops.norms import EPS, norm_cases, norm_weight


def _inputs(case: Case, device: torch.device) -> Inputs:
    x, residual = torch.randn(2, case.shape["N"], case.shape["H"], device=device).to(case.dtype)
    # Two tensors of their own, not views of one.
    return Inputs((x.clone(), residual.clone(), norm_weight(case, device), EPS))


def _eager(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    new_residual = x + residual
    return F.rms_norm(new_residual, weight.shape, weight, eps), new_residual


SUBJECT = Subject(
    op="add_rms_norm",
    # Backward: reads both gradients and the new residual; x and residual have one gradient.
    cases=norm_cases("add_rms_norm", forward=(2, 2), backward=(3, 1), flops=5),
    inputs=_inputs,
    eager=_eager,
)


@pytest.mark.parametrize("point", grid(SUBJECT))
def test_add_rms_norm(measure: Measure, point: Point) -> None:
    measure(SUBJECT, point)
