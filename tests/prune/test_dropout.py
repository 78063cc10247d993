"""Modality dropout: the curriculum, the distribution of masks, and groups of a batch."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from leeboard.prune import ModalityDropout, grouped
from leeboard.prune._masks import distinct


def test_curriculum() -> None:
    dropout = ModalityDropout(["a", "b"], p_max=0.4, warmup=0.2, ramp_end=0.7, total_steps=100)
    assert [dropout.p_at(s) for s in (0, 19, 20)] == [0, 0, 0]
    assert dropout.p_at(45) == pytest.approx(0.2)
    assert [dropout.p_at(s) for s in (70, 99, 1000)] == [0.4, 0.4, 0.4]
    assert dropout.sample(50).all()
    for _ in range(45):
        dropout.step()
    assert dropout.p == pytest.approx(0.2)
    at_once = ModalityDropout(["a", "b"], warmup=0, ramp_end=0, total_steps=1)
    assert at_once.p == 0.4


def test_masks_have_the_documented_distribution() -> None:
    p, count, rows = 0.4, 3, 40_000
    dropout = ModalityDropout(["a", "b", "c"], p_max=p, warmup=0, ramp_end=0, total_steps=1)
    sample = dropout.sample(rows)
    assert sample.dtype == torch.bool
    assert sample.any(1).all()
    total = 0.0
    for mask in product([False, True], repeat=count):
        kept = sum(mask)
        if kept == 0:
            continue
        expected = (1 - p) ** kept * p ** (count - kept)
        if kept == 1:
            expected += p**count / count
        total += expected
        share = float((sample == torch.tensor(mask)).all(1).float().mean())
        # Four standard errors.
        assert abs(share - expected) < 4 * (expected * (1 - expected) / rows) ** 0.5
    assert total == pytest.approx(1)


def test_only_available_modalities_are_kept() -> None:
    dropout = ModalityDropout(["a", "b", "c"], p_max=0.9, warmup=0, ramp_end=0, total_steps=1)
    available = torch.tensor([[1, 0, 0], [0, 1, 1]], dtype=torch.bool).repeat(500, 1)
    sample = dropout.sample(1000, available=available)
    assert sample.any(1).all()
    assert not (sample & ~available).any()
    # Of two, either may be the one.
    assert sample[1::2, 1].any()
    assert sample[1::2, 2].any()


def test_it_goes_on_where_it_was_and_leaves_torch_alone() -> None:
    def new() -> ModalityDropout:
        return ModalityDropout(["a", "b", "c"], total_steps=10, seed=3)

    state = torch.random.get_rng_state()
    dropout = new()
    for _ in range(6):
        dropout.sample(4)
        dropout.step()
    kept = dropout.state_dict()
    expected = [dropout.sample(8) for _ in range(3)]
    other = new()
    other.load_state_dict(kept)
    assert other.p == dropout.p > 0
    assert all(torch.equal(other.sample(8), e) for e in expected)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_grouped() -> None:
    inputs = {"a": torch.arange(4.0), "b": torch.arange(4.0) + 10}
    present = torch.tensor([[1, 1], [0, 1], [1, 1], [1, 0]], dtype=torch.bool)
    found = {names: (x, indices) for x, names, indices in grouped(inputs, present)}
    assert {*found} == {("a", "b"), ("b",), ("a",)}
    x, indices = found["a", "b"]
    assert indices.tolist() == [0, 2]
    assert x["b"].tolist() == [10, 12]
    assert found["b",][0].keys() == {"b"}
    assert found["b",][0]["b"].tolist() == [11]
    assert found["a",][1].tolist() == [3]
    # A modality that is missing for the whole batch.
    (only,) = grouped({"b": inputs["b"]}, None, ["a", "b"])
    assert only[1] == ("b",)
    assert only[0]["b"] is inputs["b"]
    with pytest.raises(ValueError, match="sample 3 has no modality"):
        list(grouped({"b": inputs["b"]}, present, ["a", "b"]))


def test_errors() -> None:
    with pytest.raises(ValueError, match="expected a list of distinct names"):
        ModalityDropout(["a", "a"], total_steps=1)
    with pytest.raises(ValueError, match="expected a list of distinct names"):
        ModalityDropout("abc", total_steps=1)
    with pytest.raises(ValueError, match="p_max: got 1"):
        ModalityDropout(["a"], p_max=1, total_steps=1)
    with pytest.raises(ValueError, match="warmup <= ramp_end"):
        ModalityDropout(["a"], warmup=0.8, total_steps=1)
    with pytest.raises(ValueError, match="total_steps: got 0"):
        ModalityDropout(["a"], total_steps=0)
    with pytest.raises(ValueError, match="inputs: got 'z'"):
        list(grouped({"z": torch.zeros(2)}, None, ["a"]))
    with pytest.raises(ValueError, match="got 3 samples of 'b', expected 2"):
        list(grouped({"a": torch.zeros(2), "b": torch.zeros(3)}, None))
    with pytest.raises(TypeError, match=r"got torch\.int64, expected a bool tensor"):
        list(grouped({"a": torch.zeros(2)}, torch.ones(2, 1, dtype=torch.int64)))
    with pytest.raises(ValueError, match="at least one"):
        list(grouped({}, None))


def test_distinct_masks_of_a_batch() -> None:
    for count in (3, 62, 70):
        mask = torch.rand(40, count) > (0.5 if count == 3 else 0.99)
        rows, which = distinct(mask)
        assert torch.equal(rows[which], mask)
        assert len({tuple(r) for r in rows.tolist()}) == len(rows)
        assert torch.equal(rows, torch.unique(mask, dim=0))
