"""The benchmark of a chain's steps, at a toy size and with a timer that only calls."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
TOY = {"hidden": 32, "inner": 40, "heads": 4, "groups": 2, "width": 16, "vocabulary": 90}


@pytest.fixture
def chain(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from bench import chain

    return chain


def test_every_format_is_checked_and_timed(chain, device):
    calls = []

    def timer(call):
        calls.append(call())
        return 4e-6

    sizes = chain.Sizes(**TOY, draft=50, context=9, steps=2)
    rows = chain.measure(
        sizes, torch.float32, device, timer, lambda moved: moved * 1e-9, lambda f: f, batches=(1,)
    )
    assert [(row.form, row.batch) for row in rows] == [(form, 1) for form in chain.FORMATS]
    assert len(calls) == 2 + len(chain.FORMATS)
    assert all(set(row.seconds.values()) == {2e-6} for row in rows)
    assert all(len(row.cells()) == len(chain.HEAD) for row in rows)
    floors = {row.form: row.floor for row in rows}
    assert floors["int8"] == floors["fp8"] < floors["bfloat16"] / 3


def test_wrong_chains_are_found(chain):
    sizes = chain.Sizes(**TOY, draft=50, context=9, steps=2)
    weights = chain.drafter(sizes, torch.float32, "cpu")
    tokens, scores = chain.peer_chain(weights, chain.inputs(sizes, 2, torch.float32, "cpu"), 2)
    right = chain.reference.draft_chain(
        weights, *vars(chain.inputs(sizes, 2, torch.float32, "cpu")).values(), 2
    )
    chain.check("leeboard", tokens, scores, right)
    for wrong in (scores + 0.5, scores.cumsum(1), scores * float("nan")):
        with pytest.raises(AssertionError, match="off by"):
            chain.check("leeboard", tokens, wrong, right)
