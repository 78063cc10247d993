"""Importances that are the same whatever is present."""

from __future__ import annotations

import pytest
import torch

from baseline_model import tiny_units
from leeboard.prune import Plan, StaticScores

UNITS = tiny_units()


def values(fill: float = 1.0) -> dict[str, torch.Tensor]:
    return {s.name: torch.full((s.units,), fill, dtype=torch.float64) for s in UNITS}


def test_same_for_every_mask_as_float32_copies() -> None:
    given = values()
    scores = StaticScores(UNITS, "mine", given)
    given["cross"].zero_()
    for present in (None, ["a"], ["b", "a"]):
        found = scores.scores(present)
        assert list(found) == [s.name for s in UNITS]
        assert found["cross"].dtype == torch.float32
        assert found["cross"].tolist() == [1.0] * 4
        assert scores.means(present) is None
    assert scores.name == "mine"
    assert scores.units is UNITS


def test_means_have_a_number_per_column() -> None:
    means = {s.name: torch.arange(s.columns).float() for s in UNITS}
    found = StaticScores(UNITS, "mine", values(), means).means(["a"])
    assert found is not None
    assert torch.equal(found["cross"], torch.arange(12).float())


def test_plans_stay_as_they_are() -> None:
    plan = Plan(fingerprint="tiny", present=("a",), budget="50%", keep={"cross": (0, 1)})
    assert StaticScores(UNITS, "mine", values()).refine(plan) is plan


def test_unknown_modalities_are_refused() -> None:
    scores = StaticScores(UNITS, "mine", values())
    with pytest.raises(ValueError, match="present: got 'c'"):
        scores.scores(["c"])
    with pytest.raises(ValueError, match="got no modality"):
        scores.means([])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cross": torch.ones(5)}, r"values\['cross'\]: got the shape \[5\], expected \[4\]"),
        ({"cross": torch.tensor([1.0, 1.0, -1.0, 1.0])}, r"values\['cross'\]: got -1"),
        ({"cross": torch.tensor([1.0, 1.0, float("nan"), 1.0])}, "got NaN"),
        ({"other": torch.ones(4)}, "got the sublayer 'other'"),
    ],
)
def test_bad_values(change: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StaticScores(UNITS, "mine", values() | change)


def test_a_missing_sublayer_is_named() -> None:
    given = values()
    del given["feed_forward"]
    with pytest.raises(ValueError, match="values: got nothing for 'feed_forward'"):
        StaticScores(UNITS, "mine", given)
    with pytest.raises(ValueError, match=r"means: got nothing for 'a\.attention'"):
        StaticScores(UNITS, "mine", values(), {})
