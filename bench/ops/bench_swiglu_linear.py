"""swiglu_linear: the feed-forward block of a drafter, with its norm and residual."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.cases import Aim, Case, Inputs, Subject
from bench.grid import Measure, Point, grid
from bench.ops.norms import HIDDEN
from bench.ops.weights import BITS, dtype_of, in_bfloat16, weight_bytes, weight_of

INTERMEDIATE = 14336


def _case(bits: int) -> Case:
    dtype = dtype_of(bits)
    return Case(
        op="swiglu_linear",
        shape={"N": 1, "H": HIDDEN, "I": INTERMEDIATE, "W": bits},
        dtype=dtype,
        direction="forward",
        read=2 * weight_bytes(INTERMEDIATE, HIDDEN, bits)
        + weight_bytes(HIDDEN, INTERMEDIATE, bits),
        written=HIDDEN * dtype.itemsize,
        flops=6 * HIDDEN * INTERMEDIATE,
        streams=(1, 0),
        aim=Aim(share=1 / 1.15),
        quick=bits in (16, 4),
    )


def _inputs(case: Case, device: torch.device) -> Inputs:
    bits = case.shape["W"]
    x = torch.randn(1, HIDDEN).to(device, case.dtype)
    sizes = [(INTERMEDIATE, HIDDEN), (INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE)]
    norm_weight = torch.nn.Parameter(torch.ones(HIDDEN, dtype=case.dtype, device=device))
    residual = torch.randn(1, HIDDEN).to(device, case.dtype)
    weights = [weight_of(*size, bits, device) for size in sizes]
    return Inputs((x, *weights), {"norm_weight": norm_weight, "residual": residual})


def _eager(
    x: Tensor, gate: Tensor, up: Tensor, down: Tensor, norm_weight: Tensor, residual: Tensor
) -> Tensor:
    normed = F.rms_norm(x, x.shape[-1:], norm_weight, 1e-6)
    return residual + F.linear(F.silu(F.linear(normed, gate)) * F.linear(normed, up), down)


SUBJECT = Subject(
    op="swiglu_linear",
    cases=[_case(bits) for bits in BITS],
    inputs=_inputs,
    eager=_eager,
    plain=in_bfloat16,
)


@pytest.mark.parametrize("point", grid(SUBJECT))
def test_swiglu_linear(measure: Measure, point: Point) -> None:
    measure(SUBJECT, point)
