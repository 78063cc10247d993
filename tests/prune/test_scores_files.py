"""Rankings on disk: equal after loading, trainable further, and damaged files are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from leeboard.prune import ScoreTable, SentryGate, StaticScores, Units, load_scores, save_scores
from leeboard.prune.scores import Scores
from prune_models import units_of

UNITS = units_of({"x": ("attention", 4, 2, 2), "y.z": ("feed_forward", 20, 1, 1)}, ("a", "b", "c"))


def rows(seed: int) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    saliency = {s.name: torch.rand(16, s.units, generator=generator) for s in UNITS}
    means = {s.name: torch.randn(16, s.columns, generator=generator) for s in UNITS}
    present = torch.rand(16, 3, generator=generator) > 0.3
    present[:, 0] |= ~present.any(1)
    return saliency, present, means


def made(kind: str) -> Scores:
    if kind == "static":
        values, _, means = rows(0)
        return StaticScores(
            UNITS, "flap", {n: v[0] for n, v in values.items()}, {n: m[0] for n, m in means.items()}
        )
    scores: ScoreTable | SentryGate = (
        ScoreTable(UNITS, half_life=50, means_half_life=70, min_samples=2, name="mine")
        if kind == "table"
        else SentryGate(UNITS, hidden=8, lr=0.01)
    )
    for seed in range(4):
        scores.update(*rows(seed))
    return scores


def assert_equal(first: Scores, second: Scores) -> None:
    assert type(first) is type(second)
    assert first.name == second.name
    for present in (None, ["a"], ["b", "c"]):
        ours, theirs = first.scores(present), second.scores(present)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[n], theirs[n]) for n in ours)
        one, two = first.means(present), second.means(present)
        assert one is not None
        assert two is not None
        assert all(torch.equal(one[n], two[n]) for n in one)


@pytest.mark.parametrize("kind", ["table", "gate", "static"])
def test_saved_and_loaded_rankings_are_equal_and_go_on(kind: str, tmp_path: Path) -> None:
    scores, path = made(kind), tmp_path / "scores.safetensors"
    save_scores(scores, path)
    loaded = load_scores(path, UNITS)
    assert_equal(scores, loaded)
    if not isinstance(scores, StaticScores):
        for each in (scores, loaded):
            for seed in range(4, 7):
                each.update(*rows(seed))  # type: ignore[attr-defined]
        assert_equal(scores, loaded)
    save_scores(loaded, path)
    assert [p.name for p in tmp_path.iterdir()] == ["scores.safetensors"]


def test_an_untrained_gate_and_an_empty_table(tmp_path: Path) -> None:
    for scores in (SentryGate(UNITS, hidden=0), ScoreTable(UNITS)):
        save_scores(scores, tmp_path / "s")
        loaded = load_scores(tmp_path / "s", UNITS)
        for each in (scores, loaded):
            each.update(*rows(0))  # type: ignore[attr-defined]
        assert_equal(scores, loaded)


def changed(
    path: Path, header: dict[str, object], tensors: dict[str, Tensor] | None = None
) -> None:
    """The file with other entries in its header, and other tensors."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as handle:
        kept = json.loads(handle.metadata()["leeboard.prune.scores"])
    metadata = {"leeboard.prune.scores": json.dumps(kept | header)}
    save_file(load_file(path) if tensors is None else tensors, path, metadata)


@pytest.mark.parametrize("kind", ["table", "gate", "static"])
def test_damaged_files(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "s"
    save_scores(made(kind), path)
    whole, tensors = path.read_bytes(), load_file(path)
    for length in (0, 7, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="damaged or no safetensors file"):
            load_scores(path, UNITS)
    for name in tensors:
        path.write_bytes(whole)
        less = {n: t for n, t in tensors.items() if n != name}
        changed(path, {}, less)
        with pytest.raises(ValueError, match="damaged: "):
            load_scores(path, UNITS)
    path.write_bytes(whole)
    some = next(n for n in tensors if tensors[n].is_floating_point() and tensors[n].dim())
    changed(path, {}, {**tensors, some: tensors[some] * torch.nan})
    with pytest.raises(ValueError, match=r"damaged: .*(not finite|NaN)"):
        load_scores(path, UNITS)
    changed(path, {}, {**tensors, "more/x": torch.zeros(1)})
    with pytest.raises(ValueError, match="more: unknown tensors"):
        load_scores(path, UNITS)
    changed(path, {"settings": {"nonsense": 1}}, tensors)
    with pytest.raises(ValueError, match="damaged: "):
        load_scores(path, UNITS)
    changed(path, {"kind": "list"}, tensors)
    with pytest.raises(ValueError, match="kind: got 'list'"):
        load_scores(path, UNITS)
    changed(path, {"version": 2}, tensors)
    with pytest.raises(ValueError, match="version: got 2, expected 1"):
        load_scores(path, UNITS)


def test_other_files_and_other_models(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with pytest.raises(FileNotFoundError, match="expected a file of scores"):
        load_scores(path, UNITS)
    save_file({"w": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="a safetensors file without scores"):
        load_scores(path, UNITS)
    save_file({"w": torch.zeros(2)}, path, {"leeboard.prune.scores": "{"})
    with pytest.raises(ValueError, match="is not JSON"):
        load_scores(path, UNITS)
    save_scores(made("table"), path)
    other: Units = replace(UNITS, fingerprint="another")
    with pytest.raises(ValueError, match="expected 'another': these scores are of another model"):
        load_scores(path, other)
    with pytest.raises(ValueError, match="modalities: got"):
        load_scores(path, replace(UNITS, modalities=("a", "b")))

    class Own(ScoreTable):
        """A class that no file can name."""

    with pytest.raises(TypeError, match="scores: got Own, expected a ScoreTable"):
        save_scores(Own(UNITS), path)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        save_scores(made("static"), tmp_path / "none" / "s")
    assert load_scores(path, UNITS).name == "mine"
