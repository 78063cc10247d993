"""`leeboard prune` and `leeboard prune calibrate`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from leeboard.cli import build_parser, main
from leeboard.prune import LatencyTable

MODELS = """
import torch
from torch import nn

def encoder():
    return nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), torch.randn(1, 6, 16)

def bare():
    return encoder()[0]

def wrong():
    return "a model"

def odd_inputs():
    return encoder()[0], [1, 2]

constant = 3
"""
QUICK = ["--sizes", "1", "--rounds", "1", "--repeats", "1", "--out", "table.json"]
SMALL = ["--d-model", "16", "--heads", "2", "--hidden", "32", "--layers", "1"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module of models, to work in."""
    (tmp_path / "edge_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    # Each test imports its own copy.
    monkeypatch.delitem(sys.modules, "edge_models", raising=False)
    return tmp_path


def calibrate(*words: str) -> int:
    return main(["prune", "calibrate", *QUICK, *words])


@pytest.mark.parametrize("backbone", ["shared", "cross", "late"])
def test_calibrate_a_backbone(
    backbone: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--modality", "ACC:3:8:2", "--modality", "EDA:1:4"]
    assert calibrate("--backbone", backbone, "--threads", "1", *words, *SMALL) == 0
    out = capsys.readouterr().out
    assert "feed_forward 16>32x1>16" in out
    assert "The whole model takes" in out
    assert "table.json is written" in out
    table = LatencyTable.load("table.json", any_device=True)
    assert table.device.threads == 1
    assert set(table.rests) == {"ACC", "EDA", "ACC+EDA"}
    assert main(["prune", "calibrate", "--show", "table.json"]) == 0
    assert capsys.readouterr().out.strip() == str(table)


def test_calibrate_ones_own_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert calibrate("--model", "edge_models:encoder") == 0
    assert set(LatencyTable.load("table.json", any_device=True).rests) == {"input"}
    assert calibrate("--model", "edge_models:bare") == 0
    assert "what is not prunable is not counted" in capsys.readouterr().out
    assert json.loads(Path("table.json").read_text())["rests"] == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "edge_models"], "--model: got 'edge_models', expected MODULE:FUNCTION"),
        (["--model", "nowhere:make"], "No module named 'nowhere'"),
        (["--model", "edge_models:missing"], "edge_models has no function 'missing'"),
        (["--model", "edge_models:constant"], "edge_models has no function 'constant'"),
        (["--model", "edge_models:wrong"], "returned str, expected a torch.nn.Module"),
        (["--model", "edge_models:odd_inputs"], "returned list as inputs, expected a tensor"),
        (["--model", "edge_models:bare", "--heads", "2"], "--heads: it is of a backbone"),
        (["--modality", "ACC"], "--modality: got 'ACC', expected NAME:CHANNELS:LENGTH:PATCH"),
        (["--modality", "ACC:3:8:3"], "patch of ACC: got 3, expected a divisor"),
        (["--heads", "5"], "heads: got 5, expected a divisor of d_model"),
        (["--threads", "0"], "threads: got 0, expected a positive integer"),
        (["--out", "nowhere/table.json"], "--out: there is no folder nowhere"),
        (["--show", "edge_models.py"], "edge_models.py: not a latency table"),
        (["--show", "missing.json"], "missing.json"),
    ],
)
def test_what_goes_wrong_is_one_line(
    words: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert calibrate(*words) == 2
    error = capsys.readouterr().err
    assert error.startswith("leeboard prune calibrate: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (folder / "table.json").exists()


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        build_parser().parse_args(["prune", "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("calibrate", "demo", "study"))
    with pytest.raises(SystemExit):
        build_parser().parse_args(["prune", "calibrate", "--help"])
    out = capsys.readouterr().out
    assert "leeboard prune calibrate --backbone late" in out
    assert 'budget="2.5 ms", latency=table' in out


def test_the_parser_does_not_import_torch() -> None:
    code = (
        "import sys\nfrom leeboard.cli import build_parser\nbuild_parser()\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
