"""ScoreTable: the mean saliency of each mask, its neighbours' for unseen ones, mean inputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from leeboard.prune import ScoreTable, SentryGate, Taps, Units
from prune_models import Tiny, batch_for, units_of

MODALITIES = ("a", "b", "c")


def toy(modalities: tuple[str, ...] = MODALITIES, **options: object) -> Units:
    return units_of(
        {"x": ("attention", 2, 3, 1), "y": ("feed_forward", 5, 1, 1)},
        modalities,
        **options,  # type: ignore[arg-type]
    )


def rows(count: int, seed: int = 0, modalities: int = 3) -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    saliency = {
        "x": torch.rand(count, 2, generator=generator),
        "y": torch.rand(count, 5, generator=generator),
    }
    present = torch.rand(count, modalities, generator=generator) > 0.5
    present[:, 0] |= ~present.any(1)
    return saliency, present


def of(present: Tensor, names: tuple[str, ...]) -> Tensor:
    return (present == torch.tensor([m in names for m in MODALITIES])).all(1)


def test_means_of_each_mask() -> None:
    saliency, present = rows(60)
    table = ScoreTable(toy())
    for start in range(0, 60, 7):
        part = {n: s[start : start + 7] for n, s in saliency.items()}
        table.update(part, present[start : start + 7])
    assert sum(table.counts.values()) == 60
    for names in table.counts:
        chosen = of(present, names)
        assert int(chosen.sum()) == table.counts[names]
        for name, scores in table.scores(names).items():
            assert scores.dtype == torch.float32
            torch.testing.assert_close(scores, saliency[name][chosen].mean(0))
    full = ScoreTable(toy())
    full.update(saliency)
    assert {*full.counts} == {MODALITIES}
    torch.testing.assert_close(full.scores()["y"], saliency["y"].mean(0))


def test_old_samples_fade() -> None:
    table = ScoreTable(toy(), half_life=10)
    ones = {"x": torch.ones(10, 2), "y": torch.ones(10, 5)}
    table.update({n: s * 4 for n, s in ones.items()})
    table.update(ones)
    # Ten samples of 4 weigh half of ten samples of 1.
    torch.testing.assert_close(table.scores()["x"], torch.full((2,), (4 * 5 + 10) / 15))


def test_unseen_masks_have_the_mean_of_the_nearest() -> None:
    units = toy(missing={"y": "b"})
    table = ScoreTable(units)
    seen = {("a", "b"): 1.0, ("a", "c"): 2.0, ("b",): 8.0}
    for names, value in seen.items():
        present = torch.tensor([[m in names for m in MODALITIES]])
        table.update({"x": torch.full((1, 2), value), "y": torch.full((1, 5), value)}, present)
    # From (a) two masks differ in one modality, (b) in two.
    assert table.scores(["a"])["x"].tolist() == [1.5, 1.5]
    assert table.scores(["a"])["y"].tolist() == [0] * 5
    assert table.scores(["a", "b", "c"])["y"].tolist() == [1.5] * 5
    assert table.scores(["b"])["x"].tolist() == [8.0, 8.0]
    wary = ScoreTable(units, min_samples=2)
    wary.load_state_dict(table.state_dict())
    # One sample is too few: within one modality of (b) there is (a, b).
    assert wary.scores(["b"])["x"].tolist() == [4.5, 4.5]


def test_conditional_means_of_inputs() -> None:
    saliency, present = rows(80)
    deltas = torch.randn(4, 6)
    x = torch.cat((torch.ones(80, 1), present.float()), 1) @ deltas
    x[7] = torch.nan
    seen = of(present, ("a", "b", "c")).logical_not()
    table = ScoreTable(toy())
    assert table.means() is None
    few = {n: s[seen] for n, s in saliency.items()}
    table.update(few, present[seen], {"x": x[seen]})
    means = table.means(["a", "c"])
    assert means is not None
    assert means.keys() == {"x"}
    torch.testing.assert_close(means["x"], deltas[0] + deltas[1] + deltas[3])
    # Never seen together: the additive model is exact here.
    means = table.means()
    assert means is not None
    torch.testing.assert_close(means["x"], deltas.sum(0))


def test_many_modalities() -> None:
    """More than eight: means come from the additive model alone."""
    names = tuple(f"m{i}" for i in range(10))
    saliency, present = rows(200, modalities=10)
    deltas = torch.randn(11, 6)
    x = torch.cat((torch.ones(200, 1), present.float()), 1) @ deltas
    table = ScoreTable(toy(names))
    table.update(saliency, present, {"x": x})
    means = table.means(["m2", "m5"])
    assert means is not None
    torch.testing.assert_close(means["x"], deltas[[0, 3, 6]].sum(0), rtol=1e-4, atol=1e-4)
    assert table.scores(["m2", "m5"])["y"].shape == (5,)
    other = ScoreTable(toy(names))
    other.load_state_dict(table.state_dict())
    again = other.means(["m2", "m5"])
    assert again is not None
    assert torch.equal(again["x"], means["x"])


def test_it_goes_on_where_it_was() -> None:
    table, other = ScoreTable(toy(), half_life=20), ScoreTable(toy(), half_life=20)
    for seed in range(2):
        saliency, present = rows(30, seed)
        table.update(saliency, present, {"x": torch.rand(30, 6)})
    other.load_state_dict(table.state_dict())
    saliency, present = rows(30, 5)
    for each in (table, other):
        each.update(saliency, present, {"x": torch.ones(30, 6)})
    assert table.counts == other.counts
    for names in table.counts:
        for name, scores in table.scores(names).items():
            assert torch.equal(scores, other.scores(names)[name])
        first, second = table.means(names), other.means(names)
        assert first is not None
        assert second is not None
        assert torch.equal(first["x"], second["x"])


def test_rows_that_are_not_finite_do_not_count() -> None:
    table = ScoreTable(toy())
    saliency = {"x": torch.tensor([[1.0, 2.0], [torch.inf, 1.0]]), "y": torch.ones(2, 5)}
    table.update(saliency)
    assert table.scores()["x"].tolist() == [1, 2]


def test_scores_of_a_model() -> None:
    """End to end: a missing modality's encoder has zeros, the others do not."""
    model = Tiny()
    units, table = model.units(), ScoreTable(model.units())
    inputs, target = batch_for(model, 16)
    _, present = rows(16)
    with Taps(model, units, saliency=True) as taps:
        cross_entropy(model(inputs, present), target).backward()
    table.update(taps.saliency, present)
    scores = table.scores(["a", "c"])
    assert (scores["encoders.b"] == 0).all()
    assert (scores["encoders.a"] > 0).all()
    assert scores["heads"].shape == (4,)


def test_errors() -> None:
    table = ScoreTable(toy())
    saliency, present = rows(4)
    with pytest.raises(RuntimeError, match="the table is empty"):
        table.scores()
    with pytest.raises(ValueError, match="'y' is missing"):
        table.update({"x": saliency["x"]})
    with pytest.raises(ValueError, match=r"got shape \[4, 4\] for 'y', expected \[4, 5\]"):
        table.update({"x": saliency["x"], "y": saliency["y"][:, :4]})
    with pytest.raises(ValueError, match=r"present: got shape \[3, 3\], expected \[4, 3\]"):
        table.update(saliency, present[:3])
    with pytest.raises(ValueError, match="sample 2 has no modality"):
        table.update(saliency, present & (torch.arange(4) != 2)[:, None])
    assert not table.counts
    with pytest.raises(ValueError, match="half_life: got 0"):
        ScoreTable(toy(), half_life=0)
    with pytest.raises(ValueError, match="means_half_life: got -1"):
        ScoreTable(toy(), means_half_life=-1)
    with pytest.raises(ValueError, match="min_samples: got 0"):
        ScoreTable(toy(), min_samples=0)
    table.update(saliency, present)
    with pytest.raises(ValueError, match=r"sums\.x: got torch\.float64"):
        ScoreTable(units_of({"x": ("attention", 3, 2, 1)}, MODALITIES)).load_state_dict(
            {**table.state_dict(), "table": _only_x(table)}
        )


@pytest.mark.parametrize("kind", [ScoreTable, SentryGate])
def test_means_that_do_not_fit_change_nothing(kind: type[ScoreTable | SentryGate]) -> None:
    saliency, present = rows(4)
    units = toy()
    ranking = kind(units)
    good = {s.name: torch.rand(4, s.columns) for s in units}
    for wrong, what in (
        ({**good, "y": torch.rand(4, 3)}, r"means: got shape \[4, 3\] for 'y'"),
        ({**good, "y": torch.rand(3, 5)}, r"means: got shape \[3, 5\] for 'y'"),
        ({**good, "z": torch.rand(4, 5)}, "means: 'z' is unknown"),
    ):
        with pytest.raises(ValueError, match=what):
            ranking.update(saliency, present, wrong)
        assert ranking.version == 0
        assert ranking.means() is None
        with pytest.raises(RuntimeError, match="expected an update first"):
            ranking.scores()


def _only_x(table: ScoreTable) -> dict[str, Tensor]:
    return {n: t for n, t in table.state_dict()["table"].items() if not n.endswith(".y")}
