"""qlinear: one matrix of a drafter, on weights of 32 to 4 bits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.cases import Aim, Case, Inputs, Subject
from bench.grid import Measure, Point, grid
from bench.ops.norms import HIDDEN
from bench.ops.weights import BITS, dtype_of, in_bfloat16, weight_bytes, weight_of


def _case(rows: int, bits: int) -> Case:
    dtype = dtype_of(bits)
    return Case(
        op="qlinear",
        shape={"N": rows, "K": HIDDEN, "M": HIDDEN, "W": bits},
        dtype=dtype,
        direction="forward",
        read=weight_bytes(HIDDEN, HIDDEN, bits) + rows * HIDDEN * dtype.itemsize,
        written=rows * HIDDEN * dtype.itemsize,
        flops=2 * rows * HIDDEN * HIDDEN,
        streams=(1, 0),
        aim=Aim(share=1 / 1.15) if rows <= 4 else None,
        quick=rows == 1,
    )


def _inputs(case: Case, device: torch.device) -> Inputs:
    x = torch.randn(case.shape["N"], HIDDEN).to(device, case.dtype)
    return Inputs((x, weight_of(HIDDEN, HIDDEN, case.shape["W"], device)))


def _eager(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x, weight)


SUBJECT = Subject(
    op="qlinear",
    cases=[_case(rows, bits) for rows in (1, 4, 16) for bits in BITS],
    inputs=_inputs,
    eager=_eager,
    plain=in_bfloat16,
)


@pytest.mark.parametrize("point", grid(SUBJECT))
def test_qlinear(measure: Measure, point: Point) -> None:
    measure(SUBJECT, point)
