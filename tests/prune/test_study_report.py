"""Verdicts and page from made-up records: they must answer as the records were made."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from leeboard.prune.study.report import write_report
from leeboard.prune.study.results import CaseResults, Side
from leeboard.prune.study.statistics import Bootstrap
from leeboard.prune.study.storage import RunFolder
from leeboard.prune.study.verdicts import verdicts
from study_records import Accuracy, case, fill

MATCHED = "P1 at equal compute"


def good(arm: str, ranker: str, k: int, level: float) -> float:
    """All three pass."""
    value = 0.85 - 0.08 * k - 0.2 * level
    value -= {"A": 0.2, "A-matched": 0.12, "B": 0.0, "C": 0.06, "R": 0.08}[arm]
    if ranker in ("random", "magnitude"):
        value -= 0.1
    if ranker == "table, held out":
        value -= 0.05
    return value - (0.01 if ranker.startswith("flap") else 0.0)


def trained(arm: str, ranker: str, k: int, level: float) -> float:
    """Training explains all: the static ranking under C is as good, and better where k is high."""
    value = good(arm, ranker, k, level)
    if arm == "C":
        value += 0.06 + (0.05 if k == 2 else 0.0)
    if ranker == "gate, held out":
        value -= 0.08
    return value


def useless(arm: str, ranker: str, k: int, level: float) -> float:
    """B is as bad as A is good."""
    value = good(arm, ranker, k, level)
    return value + {"A": 0.3, "B": -0.1}.get(arm, 0.0)


def level_pegging(arm: str, ranker: str, k: int, level: float) -> float:
    return 0.7


def answers(folder: Path, accuracy: Accuracy, **changes: int) -> dict[str, str]:
    study = fill(folder, case(**changes), accuracy)
    results = CaseResults(study.cases[0], RunFolder(folder).records(), Bootstrap(500))
    found = verdicts(results)
    assert [v.planning for v in found] == ["global"] * 4 + ["per layer"] * 4 + ["chosen"] * 3
    by_planning = [{v.name: v.answer for v in found[i : i + 4]} for i in (0, 4, 8)]
    # The records are made alike for both; what unseen masks cost is asked of each way by itself.
    assert by_planning[0] == by_planning[1] == by_planning[2] | {"P3": by_planning[0]["P3"]}
    return by_planning[0]


@pytest.mark.parametrize(
    ("accuracy", "expected"),
    [
        (good, {"P1": "pass", MATCHED: "pass", "P2": "pass", "P3": "pass"}),
        (trained, {"P1": "pass", MATCHED: "pass", "P2": "fail", "P3": "fail"}),
        (useless, {"P1": "fail", MATCHED: "pass", "P2": "fail", "P3": "pass"}),
    ],
)
def test_verdicts(tmp_path: Path, accuracy: Accuracy, expected: dict[str, str]) -> None:
    assert answers(tmp_path, accuracy) == expected


def test_what_is_even_is_undecided(tmp_path: Path) -> None:
    found = answers(tmp_path, level_pegging)
    assert (found["P1"], found["P2"]) == ("undecided", "undecided")


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_seeds_decide_nothing(tmp_path: Path, seeds: int) -> None:
    assert set(answers(tmp_path, good, seeds=seeds).values()) == {"undecided"}


def test_the_rival_is_chosen_on_validation_rows(tmp_path: Path) -> None:
    study = fill(tmp_path, case(), good)
    records = RunFolder(tmp_path).records()
    for record in records:
        for cell in record["cells"]:
            if cell["ranker"] == "magnitude":
                cell["validation"] = 0.99
    results = CaseResults(study.cases[0], records, Bootstrap(500))
    assert results.best_static("A") == "magnitude"
    # On test rows it is worse than the other one.
    left, right = Side("A", "magnitude"), Side("A", "taylor/mix")
    assert results.difference(left, right).below_zero


def test_page(tmp_path: Path) -> None:
    fill(tmp_path / "run", case(), trained)
    out = tmp_path / "docs" / "study-prune.md"
    out.parent.mkdir()
    found = write_report(tmp_path / "run", out)
    text = out.read_text(encoding="utf-8")
    assert [v.answer for v in found] == ["pass", "pass", "fail", "fail"] * 2 + [
        "pass",
        "pass",
        "fail",
    ]
    assert re.search(r"\| P2 \| digits-4, shared \| global \| \*\*fail\*\* \|", text)
    assert (
        "**Masks that know the modalities add nothing to prune-aware training** in digits" in text
    )
    assert "P1 at equal compute: pass in digits-4, shared (global)" in text
    assert "B: gate - A-matched: taylor/mix" in text
    assert "B: gate - B: gate (per layer)" in text
    assert "B: gate (per layer) - C: taylor/mix (per layer)" in text
    pictures = re.findall(r"\]\((images/\S+\.png)\)", text)
    assert len(pictures) == 3
    for picture in pictures:
        assert (out.parent / picture).read_bytes().startswith(b"\x89PNG")
    # Again, in another place: the same to the byte.
    again = tmp_path / "again" / "study-prune.md"
    again.parent.mkdir()
    write_report(tmp_path / "run", again)
    assert again.read_text(encoding="utf-8") == text
    for picture in pictures:
        assert (out.parent / picture).read_bytes() == (again.parent / picture).read_bytes()


def test_page_of_an_unfinished_study(tmp_path: Path) -> None:
    study = fill(tmp_path, case(), good)
    folder = RunFolder(tmp_path)
    for unit in study.units():
        if unit.arm != "A" or unit.seed > 1:
            folder.unit_path(unit).unlink()
    out = tmp_path / "page.md"
    assert write_report(tmp_path, out) == []
    assert "**Unfinished: 2 of 20 trainings.**" in out.read_text(encoding="utf-8")


def test_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="not found"):
        write_report(tmp_path, tmp_path / "page.md")


def test_each_side_is_planned_as_validation_rows_choose(tmp_path: Path) -> None:
    study = fill(tmp_path, case(), good)
    records = RunFolder(tmp_path).records()
    for record in records:
        for cell in record["cells"]:
            if (cell["ranker"], cell["planning"]) == ("gate", "per layer"):
                cell["validation"] = 0.99
            if cell["ranker"] == "taylor/mix" and cell["planning"] == "global":
                cell["validation"] = 0.99
    results = CaseResults(study.cases[0], records, Bootstrap(500))
    assert results.side("B", "gate", "chosen") == Side("B", "gate", "per layer")
    assert results.best_static_side("A", "chosen") == Side("A", "taylor/mix", "global")
