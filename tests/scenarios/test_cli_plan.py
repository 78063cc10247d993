"""The commands `leeboard plan speculation` and `leeboard plan edge`."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from leeboard._cli import plan as parsers
from leeboard.cli import main

ROOT = Path(__file__).parents[2]
HELP = {"speculation": parsers._SPECULATION_EXAMPLES, "edge": parsers._EDGE_EXAMPLES}


def examples(text: str) -> list[list[str]]:
    joined = text.replace("\\\n", " ")
    return [
        shlex.split(line)[1:] for line in re.findall(r"^  (leeboard .*)$", joined, re.MULTILINE)
    ]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with the examples."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom leeboard.cli import main\n"
        "for command in ([], ['speculation'], ['edge']):\n"
        "    try:\n        main(['plan', *command, '--help'])\n"
        "    except SystemExit as done:\n        assert done.code == 0\n"
        "assert not {'torch', 'numpy', 'leeboard.sim', 'leeboard.scenarios'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for command, text in HELP.items():
        assert f"leeboard plan {command}" in done.stdout
        assert text in done.stdout


@pytest.mark.parametrize(
    "words", [e for text in HELP.values() for e in examples(text)], ids=lambda w: " ".join(w[1:3])
)
def test_examples_of_the_help_run_as_written(
    words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "--plot" in words:
        pytest.importorskip("matplotlib")
    if "--platform" in words:
        pytest.importorskip("yaml")
    # The inputs, moved, and ten times the windows take long; they are tested on their own.
    quick = ["--no-sensitivity", *(["--windows", "100"] if words[1] == "edge" else [])]
    assert main([*words, *quick]) == 0
    assert "Best: " in capsys.readouterr().out
    for option in ("--plot", "--json"):
        if option in words:
            assert (folder / words[words.index(option) + 1]).stat().st_size > 1000


def test_there_are_examples() -> None:
    assert [len(examples(text)) for text in HELP.values()] == [4, 3]


def test_all_of_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "speculation", "--acceptance", "0.6", "--tokens", "50", "--share", "0.1"]
    assert main([*words, "--placements", "server", "--all", "--json", "p.json"]) == 0
    printed = capsys.readouterr().out
    read = json.loads((folder / "p.json").read_text())
    assert read["sensitivity"]["share"] == 0.1
    assert "-10 %" in printed
    # The matrix, the best of each placement, the table.
    assert len(re.findall(r"^server +\d", printed, re.MULTILINE)) == 4
    words = ["plan", "edge", "examples/plan/plans.csv", "--deadline", "1s", "--windows", "20"]
    assert main([*words, "--all", "--placements", "hub"]) == 0
    printed = capsys.readouterr().out
    assert len(re.findall(r"^hub .*ms", printed, re.MULTILINE)) == 3 + 7
    assert "the decision flips" in printed


def test_nothing_that_meets_the_demands(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "edge", "examples/plan/plans.csv", "--windows", "20", "--deadline", "1us"]
    assert main(words) == 3
    printed = capsys.readouterr()
    assert len(re.findall(r"deadline: ", printed.out)) == 21
    assert len(re.findall(r"^placement ", printed.out, re.MULTILINE)) == 1
    assert "leeboard plan edge: nothing meets deadline 1 us at P99. Nearest is" in printed.err
    tiny = "jetson-orin-nano"
    words = ["plan", "speculation", "0.5", "--edge", tiny, "--server", tiny, "--tokens", "20"]
    assert main(words) == 3
    printed = capsys.readouterr()
    assert "nothing fits: edge: memory: 15" in printed.err
    assert "memory" in printed.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("speculation", "acceptance: got none"),
        ("speculation 0.5 --acceptance 0.5", "acceptance: got it twice"),
        ("speculation many", "acceptance: got 'many', expected shares by depth"),
        ("speculation gone.json", "acceptance: gone.json: no such file"),
        ("speculation 0.5,1.5", "got 1.5 at depth 2"),
        ("speculation ,", "acceptance: got none"),
        ("speculation 0.5 --edge toaster", "device: unknown 'toaster'"),
        ("speculation 0.5 --target-bytes 0", "bytes_per_weight: got 0.0"),
        ("speculation 0.5 --plot a.txt", "--plot a.txt: expected a name that ends in .png"),
        ("speculation 0.5 --plot .", "--plot .: is a folder"),
        ("speculation 0.5 --json no/where.json", "there is no folder no"),
        (
            "speculation 0.5 --platform examples/plan/wearables.yaml",
            "edge: the platform has no device 'edge' (it has wrist, chest, phone)",
        ),
        (
            "speculation 0.5 --platform examples/plan/wearables.yaml --bandwidth 1Mbit/s",
            "--bandwidth: --platform says it",
        ),
        (
            "speculation 0.5 --platform examples/plan/wearables.yaml --latency 1ms",
            "--latency: --platform says it",
        ),
        (
            "speculation 0.5 --platform examples/plan/wearables.yaml --efficiency 0.5",
            "--efficiency: --platform says it",
        ),
        ("speculation 0.5 --platform gone.yaml", "gone.yaml: no such file"),
        ("speculation 0.5 --replies 3", "--replies 3: is for --draws seeded"),
        ("edge examples/plan/plans.csv --deadline 1s --hub phone", "--hub phone: says which"),
        ("edge examples/plan/plans.csv --deadline 1s --ranker l1", "--ranker l1: is for --study"),
        ("edge --deadline 1s", "plans: got neither of PLANS and --study"),
        ("edge examples/plan/plans.csv --study x --deadline 1s", "plans: got both"),
        ("edge --study x --deadline 1s", "--latency: missing"),
        (
            "edge examples/plan/plans.csv --latency 5ms --deadline 1s",
            "the link's latency is --link",
        ),
        ("edge examples/plan/plans.csv --deadline soon", "deadline: got 'soon'"),
        ("edge examples/plan/plans.csv --deadline 1s --dropout ACC", "--dropout: got 'ACC'"),
        ("edge examples/plan/plans.csv --deadline 1s --on ACC", "--on: got 'ACC', expected NAME="),
        ("edge examples/plan/plans.csv --deadline 1s --node-power 5W", "expected IDLE,ACTIVE"),
        ("edge examples/plan/study-late.json --deadline 1s", "give it as --study"),
    ],
)
def test_mistakes_are_said_in_a_line(
    words: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *words.split()]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("leeboard plan ")
    assert message in printed.err
    assert printed.err.count("\n") == 1
