"""verify_sample: rejection sampling of a chain of drafts over a large vocabulary."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bench.cases import Case, Inputs, Prepared, Subject, Variant, tensors_of
from bench.grid import Measure, Point, grid
from leeboard import reference

VOCABULARY = 151936
DRAFTS = 5


def _case(sequences: int, dtype: torch.dtype) -> Case:
    # The public call checks every row, so it reads all of them, and the visited ones again.
    rows = sequences * (DRAFTS + 1)
    return Case(
        op="verify_sample",
        shape={"B": sequences, "N": DRAFTS, "V": VOCABULARY},
        dtype=dtype,
        direction="forward",
        read=rows * VOCABULARY * dtype.itemsize,
        written=16 * sequences,
        flops=2 * rows * VOCABULARY,
        streams=(1, 0),
        quick=sequences == 1,
    )


def _inputs(case: Case, device: torch.device) -> Inputs:
    sequences = case.shape["B"]
    logits = 2.0 * torch.randn(sequences, DRAFTS + 1, VOCABULARY, device=device)
    drafts = logits[:, :-1].argmax(dim=-1)
    # The likeliest token of each row has about two thirds of it.
    logits[:, :-1].scatter_add_(2, drafts[..., None], torch.full_like(logits[:, :-1, :1], 6.0))
    uniforms = torch.rand(sequences, DRAFTS + 1, dtype=torch.float64, device=device)
    return Inputs((drafts, logits.softmax(dim=-1).to(case.dtype)), {"uniforms": uniforms})


def _eager(drafts: Tensor, target: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Accept with p(x), else clear p(x); then the inverse CDF of the row reached."""
    chosen = target[:, :-1].gather(2, drafts[..., None])[..., 0]
    accepted = (uniforms[:, :-1] < chosen).long().cumprod(dim=1).sum(dim=1)
    row = target.gather(1, accepted[:, None, None].expand(-1, 1, target.shape[2]))[:, 0].float()
    padded = torch.nn.functional.pad(drafts, (0, 1), value=0)
    tried = padded.gather(1, accepted[:, None])
    kept = torch.where(accepted[:, None] == drafts.shape[1], row.gather(1, tried), 0.0)
    total = row.scatter(1, tried, kept).cumsum(dim=1)
    drawn = uniforms[:, -1:].float() * total[:, -1:]
    return accepted, torch.searchsorted(total, drawn, right=True)[:, 0]


def _check(prepared: Prepared, variant: Variant, result: Any) -> None:
    inputs = prepared.inputs
    if "expected" not in prepared.kept:
        prepared.kept["expected"] = reference.verify_sample(*inputs.args, **inputs.kwargs)
    accepted, next_token = prepared.kept["expected"]
    got_accepted, got_token = tensors_of(result)
    if variant not in ("eager", "compile"):
        assert torch.equal(got_accepted, accepted)
        assert torch.equal(got_token, next_token)
        return
    # The idiom neither normalises its rows nor sums exactly: it may draw a neighbour where its
    # cumulative sum, off by about eps sqrt(V) in float32, says so.
    assert torch.equal(got_accepted, accepted)
    target, rows = inputs.args[1], torch.arange(accepted.shape[0])
    totals = target[rows, accepted].double().cumsum(dim=1)
    low, high = torch.minimum(got_token, next_token), torch.maximum(got_token, next_token)
    between = totals[rows, high.clamp(max=VOCABULARY - 1)] - totals[rows, low]
    # Between two tokens that are not the same lies at least the mass of one.
    heaviest = target[rows, accepted].double().max(dim=1).values
    allowed = VOCABULARY**0.5 * torch.finfo(target.dtype).eps + heaviest
    assert bool((between <= allowed).all())


SUBJECT = Subject(
    op="verify_sample",
    cases=[_case(sequences, dt) for dt in (torch.float32, torch.bfloat16) for sequences in (1, 16)],
    inputs=_inputs,
    eager=_eager,
    check=_check,
)


@pytest.mark.parametrize("point", grid(SUBJECT))
def test_verify_sample(measure: Measure, point: Point) -> None:
    measure(SUBJECT, point)
