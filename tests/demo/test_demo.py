"""The command as a whole."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from leeboard.cli import main
from leeboard.demo.cli import add_arguments, run

HEAVY = ("torch", "transformers", "numpy", "matplotlib")


def parse(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(options)


def test_declaring_the_options_imports_nothing_heavy() -> None:
    code = (
        "import argparse, sys; from leeboard.demo.cli import add_arguments\n"
        "add_arguments(argparse.ArgumentParser())\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_help_teaches() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "leeboard.demo", "--help"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={"COLUMNS": "80", "PATH": ""},
    )
    for word in ("drift.png", "results.json", "--quick", "--redo decode", "cached"):
        assert word in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 80


@pytest.mark.parametrize(
    "options",
    [("--ttt", "0"), ("--depth", "many"), ("--redo", "nothing"), ("--seed", "-1")],
    ids=str,
)
def test_bad_options_are_refused(options: tuple[str, str], capsys: Any) -> None:
    with pytest.raises(SystemExit):
        parse(*options)
    assert repr(options[1]) in capsys.readouterr().err


def test_a_missing_extra_is_named(monkeypatch: Any, capsys: Any, tmp_path: Path) -> None:
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "tokenizers" else object()
    )
    assert run(parse("--quick", "--out", str(tmp_path))) == 1
    assert 'pip install "leeboard[hf]"' in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_quick_demo(tmp_path: Path, capsys: Any) -> None:
    """All stages, all files, the target's own text; then from the cache."""
    pytest.importorskip("transformers")
    mpl_image = pytest.importorskip("matplotlib.image")
    # torch is loaded already: two threads would spin for each other on a busy machine.
    options = ("--quick", "--out", str(tmp_path), "--threads", "1")
    assert run(parse(*options)) == 0
    shown = capsys.readouterr().out
    assert "numbers mean little" in shown
    assert "«" in shown

    results = json.loads((tmp_path / "results.json").read_text())
    prompts = results["decode"]["prompts"]
    ways = {f"{name}@{depth}" for name in ("pre", "post") for depth in (2, 8)}
    for prompt in prompts:
        assert prompt["equal_to_greedy"] == dict.fromkeys(ways, True)
    assert results["settings"]["prompts"] == len(prompts)
    for name in ("pre", "post"):
        for depth, figures in results["decode"]["runs"][name].items():
            assert figures["new_tokens"] == results["decode"]["plain"]["new_tokens"]
            # Each prompt's first pass is its own; every later pass is a round.
            assert figures["rounds"] == figures["target_forwards"] - len(prompts)
            assert figures["new_tokens"] > figures["target_forwards"]
            assert len(figures["state_rms_by_depth"]) == int(depth)
    # The models did learn.
    assert results["target"]["heldout_loss"] < 5.5
    for losses in (results["target"]["loss"], *results["drafters"]["loss"].values()):
        assert losses[-1] < losses[0]
    assert mpl_image.imread(tmp_path / "drift.png").std() > 0.05
    left = [path.name for path in tmp_path.rglob("*") if "partial" in path.name]
    assert left == []

    began = time.perf_counter()
    assert run(parse(*options)) == 0
    assert time.perf_counter() - began < 15
    again = json.loads((tmp_path / "results.json").read_text())
    assert all(stage["reused"] for stage in again["stages"].values())
    assert again["decode"] == results["decode"]
    assert capsys.readouterr().out.count("cached") == 5

    # The models can be evaluated, and nothing is trained again for it.
    before = sorted(path for path in tmp_path.rglob("*"))
    options_of_eval = ["--demo", str(tmp_path), "--max-prompts", "2", "--quantize", "int8"]
    assert main(["draft", "eval", *options_of_eval]) == 0
    shown = capsys.readouterr().out
    for name in ("pre-norm", "post-norm", "pre-norm int8", "post-norm int8"):
        assert re.search(rf"^{name} .* 2/2$", shown, re.MULTILINE)
    assert sorted(path for path in tmp_path.rglob("*")) == before

    # Another chain depth in decoding needs no training.
    assert run(parse(*options, "--depth", "3", "--prompts", "2")) == 0
    third = json.loads((tmp_path / "results.json").read_text())
    assert [name for name, stage in third["stages"].items() if not stage["reused"]] == ["decode"]
