"""ttt_loss: a training step's loss against eager PyTorch's, which holds the logits.

The idiom is given less to do: it makes the loss alone, without hits and overlaps. Its memory is a
dozen times [N, V]; the products are the same in both, and the limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.cases import Aim, Case, Inputs, Prepared, Subject, Variant, tensors_of, within
from bench.grid import Measure, Point, grid
from leeboard import reference

FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
# Rows of the reference that a check may hold at a time, in float64.
ROWS = 256


def _case(
    label: str,
    steps: int,
    tokens: int,
    width: int,
    vocabulary: int,
    dtype: torch.dtype = FLOAT32,
    *,
    aim: Aim | None = None,
    quick: bool = False,
    memory: bool = False,
) -> Case:
    rows = steps * tokens
    # Half of the rows of the case "masked" are skipped; each of them costs its three products.
    live = rows // 2 if label == "masked" else rows
    teachers = tokens // 2 if label == "masked" else tokens
    states = (rows + tokens) * width * dtype.itemsize
    heads = 2 * vocabulary * width * dtype.itemsize
    return Case(
        op="ttt_loss",
        shape={"S": steps, "N": tokens, "H": width, "V": vocabulary},
        dtype=dtype,
        direction="training",
        read=states + heads,
        written=states - tokens * width * dtype.itemsize + heads // 2,
        flops=2 * vocabulary * width * (3 * live + teachers),
        streams=(2, 1),
        aim=aim,
        quick=quick,
        label=label,
        products=True,
        memory=memory,
    )


def _inputs(case: Case, device: torch.device) -> Inputs:
    S, N, H, V = case.shape.values()
    hidden = torch.randn(S, N, H, device=device).to(case.dtype)
    teacher = torch.randn(N, H, device=device).to(case.dtype)
    head, target = ((torch.randn(V, H, device=device) * H**-0.5).to(case.dtype) for _ in range(2))
    row_weight = torch.full((S, N), 1 / (S * N), device=device)
    if case.label == "masked":
        # The assistant's turns: half of the tokens, in runs.
        row_weight[:, torch.arange(N, device=device) // 64 % 2 == 0] = 0.0
    return Inputs((hidden, head, teacher, target, row_weight), constants=(2, 3, 4))


def _eager(
    hidden: Tensor, weight: Tensor, teacher: Tensor, teacher_weight: Tensor, row_weight: Tensor
) -> Tensor:
    with torch.no_grad():
        p = F.linear(teacher, teacher_weight).float().softmax(-1)
    log_q = F.linear(hidden, weight).float().log_softmax(-1)
    kl = F.kl_div(log_q, p.expand_as(log_q), reduction="none").sum(-1)
    return (row_weight * kl).sum()


def _chunks(inputs: Inputs, dtype: torch.dtype, grad: Tensor) -> tuple[Tensor, ...]:
    """The reference's gradients, a few rows of the teacher at a time."""
    hidden, weight, teacher, teacher_weight, row_weight = (t.detach() for t in inputs.args)
    of_hidden, of_weight = [], torch.zeros(weight.shape, dtype=torch.float64)
    wide = torch.promote_types(dtype, FLOAT32)
    for n in range(0, teacher.shape[0], ROWS):
        rows = slice(n, n + ROWS)
        args = (hidden[:, rows], weight, teacher[rows], teacher_weight)
        slopes = reference.ttt_loss_gradients(
            *(t.to(dtype) for t in args), row_weight[:, rows].to(wide)
        )
        of_hidden.append(slopes[0].double())
        of_weight += slopes[1].double()
    scale = grad.double()
    return torch.cat(of_hidden, 1) * scale, of_weight * scale


def _check(prepared: Prepared, variant: Variant, result: Any) -> None:
    if not prepared.kept:
        (grad,) = prepared.grads_out
        exact = _chunks(prepared.inputs, torch.float64, grad)
        rounded = _chunks(prepared.inputs, prepared.case.dtype, grad)
        errors = [
            float((r.to(prepared.case.dtype) - e).abs().max())
            for r, e in zip(rounded, exact, strict=True)
        ]
        prepared.kept["budget"] = list(zip(exact, errors, strict=True))
    got = tensors_of(result)
    assert len(got) == 2
    for name, grad, (exact_grad, own) in zip(
        ("hidden", "weight"), got, prepared.kept["budget"], strict=True
    ):
        within(variant, grad, exact_grad, own, f"gradient in {name}")


def _variants(case: Case) -> Sequence[Variant]:
    return ("leeboard", "eager", "compile")


SUBJECT = Subject(
    op="ttt_loss",
    cases=[
        # One step of a drafter of a small target over the usual draft vocabulary.
        _case("all", 1, 2048, 256, 32000, aim=Aim(ratios={"eager": 1.0}), quick=True, memory=True),
        _case("all", 4, 512, 256, 32000, aim=Aim(ratios={"eager": 1.0})),
        _case("masked", 1, 2048, 256, 32000, aim=Aim(ratios={"eager": 0.6})),
        _case("all", 1, 2048, 512, 32000, aim=Aim(ratios={"eager": 1.0})),
        _case("all", 1, 2048, 256, 32000, BFLOAT16, memory=True),
        # A training step of the demo.
        _case("all", 2, 1024, 96, 1024, aim=Aim(ratios={"eager": 1.0})),
    ],
    inputs=_inputs,
    eager=_eager,
    check=_check,
    choose=_variants,
    warm=lambda case: replace(case, shape={**case.shape, "N": 64, "V": 100}),
)


@pytest.mark.parametrize("point", grid(SUBJECT))
def test_ttt_loss(measure: Measure, point: Point) -> None:
    measure(SUBJECT, point)
