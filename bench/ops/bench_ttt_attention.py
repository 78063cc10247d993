"""ttt_attention: four steps of an unroll, forward and backward, beside what trainers of drafters do.

SDPA gets all keys of all steps in a row and a boolean mask that leaves out most of them; the eager
idiom is that of EAGLE's training code, a T x T product and a row-wise one for each later step, in
one softmax; torch.compile of it is asked in float32 only, for it compiles half a minute a case. (The
other idiom of trainers, FlexAttention, has no backward on CPUs.) The last case is a training step of
the demo's drafter, whose time is overhead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.cases import (
    OWN_BUDGET,
    PEER_BUDGET,
    Aim,
    Case,
    Inputs,
    Prepared,
    Subject,
    Variant,
    tensors_of,
)
from bench.grid import Measure, Point, grid
from leeboard.ops.patterns import Causal

FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
# A forward has two matrix products, its backward five.
TRAINING = 7 / 2


def _case(
    steps: int,
    batch: int,
    heads: tuple[int, int],
    rows: int,
    width: int,
    dtype: torch.dtype,
    *,
    quick: bool = False,
    memory: bool = False,
) -> Case:
    queries, groups = heads
    of_q, of_kv = (n * steps * batch * rows * width * dtype.itemsize for n in (queries, groups))
    # Of a step's keys, those of step 0 in sight, and one for each later step.
    pairs = steps * Causal().pairs(rows) + rows * steps * (steps - 1) // 2
    return Case(
        op="ttt_attention",
        shape={"S": steps, "B": batch, "H": queries, "G": groups, "T": rows, "D": width},
        dtype=dtype,
        direction="training",
        # Queries, keys and values, and the output's gradient; output and the inputs' gradients.
        read=2 * of_q + 2 * of_kv,
        written=2 * of_q + 2 * of_kv,
        flops=round(TRAINING * 4 * width * queries * batch * pairs),
        streams=(4, 2),
        aim=Aim(ratios={"best": 1.0}),
        quick=quick,
        products=True,
        memory=memory,
    )


def _inputs(case: Case, device: torch.device) -> Inputs:
    steps, batch, heads, groups, rows, width = case.shape.values()

    def normal(count: int) -> Tensor:
        # As projections leave them: the heads of a row side by side.
        t = torch.randn(steps, batch, rows, count, width, device=device).to(case.dtype)
        return t.transpose(2, 3)

    return Inputs((normal(heads), normal(groups), normal(groups)))


def _eager(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """EAGLE's idiom, step after step; grouped heads by broadcasting."""
    hidden = torch.ones(q.shape[3], q.shape[3], dtype=torch.bool, device=q.device).triu(1)
    return torch.stack([_eager_step(q[s], k[: s + 1], v[: s + 1], hidden) for s in range(len(q))])


def _eager_step(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> Tensor:
    rows = q.shape[2]
    grouped = q.unflatten(1, (k.shape[2], -1)) * q.shape[3] ** -0.5
    scores = (grouped @ k[0].mT.unsqueeze(2)).masked_fill(hidden, float("-inf"))
    own = [(grouped * key.unsqueeze(2)).sum(-1, keepdim=True) for key in k[1:]]
    weights = torch.cat((scores, *own), -1).softmax(-1, dtype=torch.float32).to(q.dtype)
    out = weights[..., :rows] @ v[0].unsqueeze(2)
    for j, value in enumerate(v[1:], start=rows):
        out = out + weights[..., j, None] * value.unsqueeze(2)
    return out.flatten(1, 2)


def _masks(q: Tensor) -> list[Tensor]:
    """bool [T, (s + 1) T] of each step s."""
    rows = q.shape[3]
    causal = torch.ones(rows, rows, dtype=torch.bool, device=q.device).tril()
    own = torch.eye(rows, dtype=torch.bool, device=q.device)
    return [torch.cat([causal] + [own] * s, 1) for s in range(len(q))]


def _sdpa(prepared: Prepared) -> Callable[..., Any]:
    """SDPA over the keys of all steps; its masks are ready."""
    masks = _masks(prepared.inputs.args[0])

    def all_of(steps: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(steps), 2)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        outs = [
            F.scaled_dot_product_attention(
                q[s], all_of(k[: s + 1]), all_of(v[: s + 1]), attn_mask=mask, enable_gqa=True
            )
            for s, mask in enumerate(masks)
        ]
        return torch.stack(outs)

    return run


def _rms(t: Tensor) -> float:
    return float(t.square().mean().sqrt())


def _check(prepared: Prepared, variant: Variant, result: Any) -> None:
    """Every gradient within the budget, by the root mean square of its error.

    The largest error of a gradient of q, which is a small difference of large sums, is a matter of
    luck: 1.2 to 2.4 times the reference's with eight seeds of the smallest case (1.1 to 2.7 for the
    same formula in plain PyTorch), where the root mean square is 1.17 to 1.19 times.
    """
    if "own" not in prepared.kept:
        rounded = prepared.reference_result(prepared.inputs, prepared.grads_out)
        pairs = zip(rounded, prepared.budget, strict=True)
        prepared.kept["own"] = [_rms(r.double() - exact) for r, (exact, _) in pairs]
    parts = zip(tensors_of(result), prepared.budget, prepared.kept["own"], strict=True)
    budget = OWN_BUDGET if variant == "leeboard" else PEER_BUDGET
    for index, (got, (exact, _), own) in enumerate(parts):
        assert got.shape == exact.shape, f"output {index}: {got.shape}, not {exact.shape}"
        assert got.dtype == prepared.case.dtype, f"output {index}: dtype {got.dtype}"
        error = _rms(got.detach().double() - exact)
        allowed = budget * max(own, torch.finfo(got.dtype).eps * _rms(exact) / 4)
        assert error <= allowed, f"output {index}: error {error:.3g}, allowed {allowed:.3g}"


def _variants(case: Case) -> tuple[Variant, ...]:
    usual: tuple[Variant, ...] = ("leeboard", "sdpa", "eager")
    return (*usual, "compile") if case.dtype == FLOAT32 else usual


MODEL = (8, 4)
SUBJECT = Subject(
    op="ttt_attention",
    cases=[
        *(
            _case(4, 1, MODEL, rows, 64, dtype, quick=rows == 1024, memory=dtype == FLOAT32)
            for rows in (512, 1024, 2048)
            for dtype in (FLOAT32, BFLOAT16)
        ),
        _case(2, 8, (3, 3), 128, 32, FLOAT32, quick=True),
    ],
    inputs=_inputs,
    eager=_eager,
    check=_check,
    peers={"sdpa": _sdpa},
    choose=_variants,
    gpu=[_case(4, 1, (32, 8), rows, 128, BFLOAT16) for rows in (2048, 8192)],
    warm=lambda case: replace(case, shape={**case.shape, "T": 64}),
)


@pytest.mark.parametrize("point", grid(SUBJECT))
def test_ttt_attention(measure: Measure, point: Point) -> None:
    measure(SUBJECT, point)
