"""verify_greedy: the accepted part of greedy drafts, chains and trees of 60 nodes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bench.cases import Case, Inputs, Prepared, Subject, Variant, tensors_of
from bench.grid import Measure, Point, grid
from leeboard import reference

VOCABULARY = 128256
CHAIN, TREE = 5, 60


def _case(sequences: int, nodes: int) -> Case:
    # Every accepted node costs a comparison; the numbers are few, so the call itself is the cost.
    words = sequences * (2 * nodes + 1) + (nodes if nodes == TREE else 0)
    return Case(
        op="verify_greedy",
        shape={"B": sequences, "N": nodes},
        dtype=torch.int64,
        direction="forward",
        read=8 * words,
        written=8 * sequences * (2 + (nodes if nodes == TREE else 0)),
        flops=0,
        streams=(1, 1),
        quick=sequences == 1,
    )


def _inputs(case: Case, device: torch.device) -> Inputs:
    sequences, nodes = case.shape["B"], case.shape["N"]
    target = torch.randint(0, VOCABULARY, (sequences, nodes + 1), device=device)
    if nodes == CHAIN:
        # Two drafts in three are right.
        right = torch.rand(sequences, nodes, device=device) < 2 / 3
        return Inputs((torch.where(right, target[:, :-1], -1), target))
    parents = torch.tensor([int(torch.randint(-1, i, ())) if i else -1 for i in range(nodes)])
    parents = parents.to(device)
    wanted = target[:, parents + 1]
    right = torch.rand(sequences, nodes, device=device) < 1 / 3
    return Inputs((torch.where(right, wanted, -1), target), {"parents": parents})


def _eager(drafts: Tensor, target: Tensor, parents: Tensor | None = None) -> Any:
    if parents is None:
        accepted = (drafts == target[:, :-1]).long().cumprod(dim=1).sum(dim=1)
        return accepted, target.gather(1, accepted[:, None])[:, 0]
    # The usual loop over a tree has no vectorised form.
    return reference.verify_greedy(drafts, target, parents=parents)


def _check(prepared: Prepared, variant: Variant, result: Any) -> None:
    inputs = prepared.inputs
    expected = reference.verify_greedy(*inputs.args, **inputs.kwargs)
    for got, right in zip(tensors_of(result), expected, strict=True):
        assert torch.equal(got, right)


SUBJECT = Subject(
    op="verify_greedy",
    cases=[_case(sequences, nodes) for nodes in (CHAIN, TREE) for sequences in (1, 64)],
    inputs=_inputs,
    eager=_eager,
    check=_check,
)


@pytest.mark.parametrize("point", grid(SUBJECT))
def test_verify_greedy(measure: Measure, point: Point) -> None:
    measure(SUBJECT, point)
