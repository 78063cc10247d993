"""drafter_glue: what lies between two steps of a drafter, for one sequence and for a batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.cases import Case, Inputs, Subject
from bench.grid import Measure, Point, grid
from bench.ops.norms import EPS, HIDDEN

# Every call looks up the same tokens: their rows lie in the cache, however large the table.
VOCABULARY = 4096


def _case(rows: int, dtype: torch.dtype) -> Case:
    row = HIDDEN * dtype.itemsize
    return Case(
        op="drafter_glue",
        shape={"N": rows, "H": HIDDEN},
        dtype=dtype,
        direction="forward",
        # The stream, a row of the table and a token for each; the three gains once.
        read=rows * (2 * row + 8) + 3 * row,
        written=rows * 3 * row,
        # Three norms: a square and a sum, two products.
        flops=rows * HIDDEN * 12,
        # A sweep writes two arrays at most.
        streams=(2, 2),
        quick=rows == 1,
    )


def _inputs(case: Case, device: torch.device) -> Inputs:
    rows = case.shape["N"]
    x = torch.randn(rows, HIDDEN, device=device).to(case.dtype)
    token = torch.randint(0, VOCABULARY, (rows,), device=device)
    table = torch.randn(VOCABULARY, HIDDEN, device=device).to(case.dtype)
    gains = [(1.0 + 0.1 * torch.randn(HIDDEN, device=device)).to(case.dtype) for _ in range(3)]
    return Inputs((x, token, table, *gains, EPS))


def _eager(
    x: Tensor,
    token: Tensor,
    embedding: Tensor,
    norm_weight: Tensor,
    hidden_weight: Tensor,
    input_weight: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    state = F.rms_norm(x, norm_weight.shape, norm_weight, eps)
    entered = F.rms_norm(F.embedding(token, embedding), input_weight.shape, input_weight, eps)
    hidden = F.rms_norm(state, hidden_weight.shape, hidden_weight, eps)
    return torch.cat((entered, hidden), dim=-1), state


SUBJECT = Subject(
    op="drafter_glue",
    cases=[_case(rows, dtype) for dtype in (torch.float32, torch.bfloat16) for rows in (1, 64)],
    inputs=_inputs,
    eager=_eager,
)


@pytest.mark.parametrize("point", grid(SUBJECT))
def test_drafter_glue(measure: Measure, point: Point) -> None:
    measure(SUBJECT, point)
