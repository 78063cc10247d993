"""The page and its pictures, from results alone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from leeboard._cli import reproduce
from leeboard.cli import main
from leeboard.reproduce.plots import draw
from leeboard.reproduce.report import table, text
from leeboard.reproduce.settings import ARMS
from reproduce_runs import DRIFTS, HOLDS, SETTINGS, results

COURSES = dict.fromkeys(ARMS, HOLDS) | {"pre": DRIFTS, "fc_norm": DRIFTS}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    made = results(tmp_path_factory.mktemp("run"), COURSES)
    # As they are read from the file.
    again: dict[str, Any] = json.loads(json.dumps(made, allow_nan=False))
    return again


def test_the_page_says_what_was_found(found: dict[str, Any]) -> None:
    page = text(found, {"acceptance": "a.png"})
    assert "![" in page
    assert "(images/a.png)" in page
    # Depth-1 acceptance: 70 % and 71 %, within 2 points.
    assert "from 70.0 % to 71.0 % on the checks, 1.0 points apart" in page
    assert "They agree within the 2 points" in page
    arm = next(a for a in found["figures"] if (a["arm"], a["ttt"]) == ("pre", 4))
    assert f"{arm['accepted']['raw']['value']:.2f} [" in page
    # Of 2 seeds, 24 prompts and 400 rows each, 0.8 * 0.8 reach the third step.
    assert arm["reached"][0] == 2 * 24 * 400
    assert arm["reached"][2] == pytest.approx(0.64 * arm["reached"][0], rel=0.05)
    assert "| pre | 4 | 19,200 |" in page
    for claim in found["claims"]:
        assert f"### {claim['name']}\n" in page
        assert claim["criterion"] in page
    lines = page.splitlines()
    for at, line in enumerate(lines):
        if line.startswith(("|---", "| ---")):
            width = lines[at - 1].count("|")
            assert line.count("|") == width == lines[at + 1].count("|")
    assert "nan" not in page.replace("dominant", "").lower().split()


def test_a_spread_at_depth_1_is_not_hidden(found: dict[str, Any]) -> None:
    wide = {**found, "matching": {**found["matching"], "agrees": False}}
    assert "They do not agree within the 2 points" in text(wide, {})


def test_nulls_are_named(tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, ttt=(2,), seeds=1)
    made = results(tmp_path, dict.fromkeys(ARMS, HOLDS), settings)
    page = text(made, {})
    assert "At this scale these do not hold: Growth, TTT 2" in page
    assert "Growth, TTT 2" in table(made)


def test_the_pages_files(
    found: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command writes the page and its pictures, and the same ones again."""
    image = pytest.importorskip("matplotlib.image")
    run, docs = tmp_path / "run", tmp_path / "docs"
    docs.mkdir()
    command = ["draft", "reproduce", "--report-only", "--out", str(run), "--write-docs", str(docs)]
    assert main(command) == 2
    assert "results.json: not found" in capsys.readouterr().err
    run.mkdir()
    (run / "results.json").write_text(json.dumps({**found, "format": 0}))
    assert main(command) == 2
    assert "got format 0, expected 1" in capsys.readouterr().err
    (run / "results.json").write_text('{"format":')
    assert main(command) == 2
    assert "results.json: damaged" in capsys.readouterr().err
    (run / "results.json").write_text(json.dumps(found))
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "Beyond the trained depth, TTT 2" in shown
    assert "reproduction-drift.md is written" in shown
    page = (docs / "reproduction-drift.md").read_text()
    pictures = sorted((docs / "images").iterdir())
    assert [path.stem.removeprefix("reproduction-drift-") for path in pictures] == sorted(
        ("verdicts", "acceptance", "state", "attention", "template", "context", "noise")
    )
    for path in pictures:
        assert f"(images/{path.name})" in page
        assert image.imread(path).std() > 0.05
    assert (
        text(found, {p.stem.removeprefix("reproduction-drift-"): p.name for p in pictures}) == page
    )


def test_equal_results_give_equal_pictures(found: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    small = {**found, "settings": {**found["settings"], "ttt": [2]}}
    for name in ("one", "two"):
        draw(small, tmp_path / name, "p", only=("noise",))
    first, second = ((tmp_path / name / "p-noise.png").read_bytes() for name in ("one", "two"))
    assert first == second


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "0"], "--seeds: got 0"),
        (["--workers", "-1"], "--workers: got -1"),
        (["--ttt", "two"], "--ttt: got 'two'"),
        (["--arms", "post"], "arms: got 'post'"),
        (["--target", "somewhere"], "--target, --data"),
        (["--arms", "pre,pre"], "expected each only once"),
        (["--device", "nowhere"], "--device: got 'nowhere', which cannot be used"),
        (["--write-docs", "nowhere"], "--write-docs nowhere"),
        (["--report-only", "--fresh"], "--report-only: runs nothing"),
        (["--report-only", "--ttt", "2"], "expected no --ttt with it"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_options_are_refused(
    options: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["draft", "reproduce", *options]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_no_run_writes_over_anothers_results() -> None:
    default = reproduce._default_out("default", None)
    assert default == Path("runs/reproduce")
    assert reproduce._default_out("gpu", "org/Model-1B") == Path("runs/reproduce-gpu-Model-1B")
    assert reproduce._default_out("quick", "models/own/") == Path("runs/reproduce-quick-own")
