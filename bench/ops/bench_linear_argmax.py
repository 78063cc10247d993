"""linear_argmax: the greedy token of a draft-vocabulary head, mapped to the target's vocabulary."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.cases import Aim, Case, Inputs, Prepared, Subject, Variant, tensors_of
from bench.grid import Measure, Point, grid
from bench.ops.norms import HIDDEN

DRAFT_VOCABULARY = 32000
TARGET_VOCABULARY = 128256


def _case(dtype: torch.dtype) -> Case:
    return Case(
        op="linear_argmax",
        shape={"N": 1, "H": HIDDEN, "V": DRAFT_VOCABULARY},
        dtype=dtype,
        direction="forward",
        read=DRAFT_VOCABULARY * HIDDEN * dtype.itemsize,
        written=0,
        flops=2 * DRAFT_VOCABULARY * HIDDEN,
        streams=(1, 0),
        aim=Aim(share=0.9),
        quick=dtype == torch.bfloat16,
    )


def _inputs(case: Case, device: torch.device) -> Inputs:
    x = torch.randn(1, HIDDEN, device=device).to(case.dtype)
    weight = torch.empty(DRAFT_VOCABULARY, HIDDEN, dtype=case.dtype, device=device)
    weight.uniform_(-0.05, 0.05)
    chosen = torch.randperm(TARGET_VOCABULARY)[:DRAFT_VOCABULARY].sort().values
    offsets = (chosen - torch.arange(DRAFT_VOCABULARY)).to(device)
    return Inputs((x, torch.nn.Parameter(weight)), {"d2t": offsets})


def _eager(x: Tensor, weight: Tensor, d2t: Tensor) -> Tensor:
    index = F.linear(x, weight).argmax(dim=-1)
    return index + d2t[index]


def _check(prepared: Prepared, variant: Variant, result: Any) -> None:
    # Near ties may fall either way: what counts is how far the chosen logit is from the best.
    x, weight = prepared.inputs.args
    d2t = prepared.inputs.kwargs["d2t"]
    if "logits" not in prepared.kept:
        exact = F.linear(x.double(), weight.detach().double())
        rounded = F.linear(x.float(), weight.detach().float())
        prepared.kept["logits"] = exact
        prepared.kept["error"] = (rounded.double() - exact).abs().max()
    exact, own_error = prepared.kept["logits"], float(prepared.kept["error"])
    index, *value = tensors_of(result)
    assert index.dtype == torch.int64
    assert index.shape == exact.shape[:-1]
    draft = torch.searchsorted(torch.arange(DRAFT_VOCABULARY, device=d2t.device) + d2t, index)
    assert torch.equal(draft + d2t[draft], index), "an index outside the draft vocabulary"
    best = float(exact.max())
    # The idiom rounds its logits to the weights' dtype before it compares them.
    rounds = variant in ("eager", "compile")
    allowed = 2 * own_error + (torch.finfo(x.dtype).eps * best if rounds else 0.0)
    short = best - float(exact[0, draft])
    assert short <= allowed, f"logit {short:.3g} below the best, allowed {allowed:.3g}"
    for v in value:
        assert abs(float(v) - best) <= allowed, f"value {float(v)}, not {best}"


SUBJECT = Subject(
    op="linear_argmax",
    cases=[_case(torch.float32), _case(torch.bfloat16)],
    inputs=_inputs,
    eager=_eager,
    check=_check,
)


@pytest.mark.parametrize("point", grid(SUBJECT))
def test_linear_argmax(measure: Measure, point: Point) -> None:
    measure(SUBJECT, point)
