"""aux_norm_linear: three captured target states of one token, normed, joined and projected."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.cases import Aim, Case, Inputs, Subject
from bench.grid import Measure, Point, grid
from bench.ops.norms import EPS, HIDDEN, norm_weight

STATES = 3


def _case(dtype: torch.dtype) -> Case:
    wide = STATES * HIDDEN
    return Case(
        op="aux_norm_linear",
        shape={"N": 1, "K": wide, "H": HIDDEN},
        dtype=dtype,
        direction="forward",
        # The weights; states and result are a ten-thousandth of them.
        read=wide * HIDDEN * dtype.itemsize,
        written=0,
        flops=2 * wide * HIDDEN,
        streams=(1, 0),
        aim=Aim(share=0.9),
        quick=dtype == torch.bfloat16,
    )


def _inputs(case: Case, device: torch.device) -> Inputs:
    hiddens = [torch.randn(1, HIDDEN, device=device).to(case.dtype) for _ in range(STATES)]
    gammas = [norm_weight(case, device) for _ in range(STATES)]
    weight = torch.randn(HIDDEN, case.shape["K"], device=device) * case.shape["K"] ** -0.5
    return Inputs((hiddens, gammas, torch.nn.Parameter(weight.to(case.dtype)), EPS))


def _eager(
    hiddens: Sequence[Tensor], gammas: Sequence[Tensor], weight: Tensor, eps: float
) -> Tensor:
    normed = [F.rms_norm(h, g.shape, g, eps) for h, g in zip(hiddens, gammas, strict=True)]
    return F.linear(torch.cat(normed, dim=-1), weight)


SUBJECT = Subject(
    op="aux_norm_linear",
    cases=[_case(torch.float32), _case(torch.bfloat16)],
    inputs=_inputs,
    eager=_eager,
)


@pytest.mark.parametrize("point", grid(SUBJECT))
def test_aux_norm_linear(measure: Measure, point: Point) -> None:
    measure(SUBJECT, point)
