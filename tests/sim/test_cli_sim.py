"""The commands `leeboard sim run`, `show`, `trace` and `platforms`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from leeboard.cli import main
from leeboard.sim import Platform, Program, Result, run
from trace_format import read

BUILD = """
from helper import SIZE
from leeboard.sim import Program

def build(args):
    program = Program(2)
    program.mark("talk")
    program.compute(seconds="1 ms")
    with program.loop(int(args[0]) if args else 1):
        program[0].send(1, bytes=SIZE)
        program[1].recv(0)
    return program
"""
VARIABLE = """
from __future__ import annotations
from dataclasses import dataclass
from leeboard.sim import Program

@dataclass
class Layer:
    size: int

program = Program(2)
program[0].send(1, bytes=Layer(4096).size)
program[1].recv(0)
"""
DEADLOCK = """
from leeboard.sim import Program
program = Program(3)
program.compute(seconds="2 ms")
program[0].recv(1, tag=7)
program[1].recv(0)
"""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a platform and programs, to work in."""
    star = Platform.star(3, bandwidth="1 Gbit/s", latency="100 us")
    star.save(tmp_path / "star.yaml")
    (tmp_path / "helper.py").write_text('SIZE = "1 MiB"\n')
    (tmp_path / "talk.py").write_text(BUILD)
    (tmp_path / "variable.py").write_text(VARIABLE)
    (tmp_path / "deadlock.py").write_text(DEADLOCK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "helper", raising=False)
    return tmp_path


@pytest.mark.parametrize("command", [[], ["run"], ["show"], ["trace"], ["platforms"]])
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    code = (
        "import sys\nfrom leeboard.cli import main\n"
        f"try:\n    main({['sim', *command, '--help']!r})\n"
        "except SystemExit as done:\n    assert done.code == 0\n"
        "assert not {'torch', 'numpy', 'leeboard.sim'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: leeboard sim")


def test_run_and_show(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = ["--out", "result.json", "--perfetto", "run.json.gz", "--plot", "run.svg"]
    words = ["--", "3"]
    options = ["--seed", "5", "--network", "alpha-beta", "--ranks", "--critical-path"]
    assert main(["sim", "run", "star.yaml", "talk.py", *options, *outputs, *words]) == 0
    printed = capsys.readouterr().out
    result = Result.load("result.json")
    assert (result.messages, result.seed, result.network) == (3, 5, "alpha-beta")
    program = Program(2)
    program.mark("talk")
    program.compute(seconds="1 ms")
    with program.loop(3):
        program[0].send(1, bytes="1 MiB")
        program[1].recv(0)
    same = run(program, Platform.load("star.yaml"), network="alpha-beta", seed=5)
    assert result.event_hash == same.event_hash
    assert printed.startswith(str(same))
    assert str(same.critical_path) in printed
    assert str(same.ranks) in printed
    assert {e["name"] for e in read(files / "run.json.gz")} >= {"talk", "message in"}
    assert b"</svg>" in (files / "run.svg").read_bytes()
    options = ["--perfetto", "again.json.gz", "--plot", "again.png", "--links"]
    assert main(["sim", "show", "result.json", *options]) == 0
    assert capsys.readouterr().out == f"{result}\n\n{result.links}\n"
    assert (files / "again.json.gz").read_bytes() == (files / "run.json.gz").read_bytes()
    assert main(["sim", "show", "result.json", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["makespan"] == result.makespan
    assert shown["ranks"]["finish"] == result.ranks["finish"].tolist()


def test_platform_as_an_option_and_a_variable(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sim", "run", "--platform", "star.yaml", "variable.py", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["messages"] == 1


def test_a_saved_trace_runs_as_its_program_does(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sim", "trace", "talk.py", "--save", "talk.trace", "--", "4"]) == 0
    assert capsys.readouterr().out == ""
    for program in (["talk.trace"], ["talk.py", "--", "4"]):
        assert main(["sim", "run", "--json", "star.yaml", *program]) == 0
    shown = capsys.readouterr().out
    assert shown[: len(shown) // 2] == shown[len(shown) // 2 :]
    assert main(["sim", "trace", "talk.trace"]) == 0
    assert "2 ranks" in capsys.readouterr().out
    assert main(["sim", "trace", "talk.trace", "--dump", "1"]) == 0
    assert "receive from rank 0" in capsys.readouterr().out
    assert main(["sim", "run", "star.yaml", "talk.trace", "--", "4"]) == 2
    assert "a trace takes no words" in capsys.readouterr().err


def test_other_formats_are_told_by_name_and_content(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (files / "ping.tit").write_text("0 send 1 0 100\n1 recv 0 0 100\n")
    assert main(["sim", "run", "star.yaml", "ping.tit", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["messages"] == 1
    assert main(["sim", "trace", "ping.tit", "--from", "simgrid", "--save", "ping.npz"]) == 0
    assert main(["sim", "run", "star.yaml", "ping.npz", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["messages"] == 1
    assert main(["sim", "trace", "ping.tit", "--from", "leeboard"]) == 2
    assert "ping.tit" in capsys.readouterr().err
    pytest.importorskip("google.protobuf")
    (files / "ping.0.et").write_bytes(b"\x01")
    assert main(["sim", "trace", "ping.0.et"]) == 2
    assert "ping.0.et" in capsys.readouterr().err


def test_no_timeline(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sim", "run", "star.yaml", "talk.py", "--no-timeline", "--out", "r.json"]) == 0
    assert "critical path" not in capsys.readouterr().out
    assert main(["sim", "show", "r.json", "--critical-path"]) == 2
    assert "needs the timeline" in capsys.readouterr().err


def test_a_deadlock_is_explained(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sim", "run", "star.yaml", "deadlock.py", "--out", "result.json"]) == 3
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "leeboard sim run: deadlock: 2 wait for what will not happen"
    assert lines[1].split() == ["who", "waits", "for", "since"]
    assert lines[2].startswith("rank 0  a message of rank 1 (tag 7)")
    assert lines[3].startswith("rank 1  a message of rank 0")
    assert lines[2].endswith("2 ms")
    assert not Path("result.json").exists()


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("x = 1\n", "define build(args) or program"),
        ("program = 3\n", "program is 3, expected a leeboard.sim.Program or Trace"),
        ("def build(args): return None\n", "build(args) returned None, expected"),
        ("def build(args):\n    return 1 / 0\n", "line 2: ZeroDivisionError: division by zero"),
        ("import nowhere\nprogram = 1\n", "line 1: ModuleNotFoundError: No module named 'nowhere'"),
        ("def (\n", "line 1: SyntaxError"),
        (
            "from leeboard.sim import Program\nprogram = Program(9)\n",
            "9 ranks",
        ),
    ],
)
def test_what_is_wrong_is_one_line(
    files: Path, capsys: pytest.CaptureFixture[str], program: str, message: str
) -> None:
    (files / "wrong.py").write_text(program)
    assert main(["sim", "run", "star.yaml", "wrong.py"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.startswith("leeboard sim run: ")
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["run", "star.yaml", "missing.py"], "missing.py: no such file"),
        (["run", "star.yaml", "missing.trace"], "missing.trace"),
        (["run", "missing.yaml", "talk.py"], "missing.yaml"),
        (["run", "talk.py"], "got 1 files (talk.py), expected a platform and a program"),
        (["run", "star.yaml", "talk.py", "3"], "words for the program follow --"),
        (["run", "star.yaml", "variable.py", "--", "3"], "defines no build(args) to take 3"),
        (["run", "star.yaml", "talk.py", "--out", "no/where.json"], "there is no folder no"),
        (["run", "star.yaml", "talk.py", "--out", "."], "--out .: is a folder"),
        (
            ["run", "star.yaml", "talk.py", "--no-timeline", "--critical-path"],
            "--critical-path needs the timeline, which --no-timeline leaves out",
        ),
        (["run", "star.yaml", "talk.py", "--seed", "-1"], "seed: got -1"),
        (["show", "star.yaml"], "star.yaml: not a result"),
        (["show", "missing.json"], "missing.json"),
        (["platforms", "abacus"], "there is no device, link or protocol 'abacus'"),
    ],
)
def test_wrong_commands(
    files: Path, capsys: pytest.CaptureFixture[str], command: list[str], message: str
) -> None:
    assert main(["sim", *command]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.startswith(f"leeboard sim {command[0]}: ")
    assert printed.err.count("\n") == 1


def test_a_reader_that_leaves_is_no_error() -> None:
    code = "from leeboard.cli import main\nraise SystemExit(main(['sim', 'platforms']))"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_platforms(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sim", "platforms"]) == 0
    shown = capsys.readouterr().out
    for word in ("devices", "protocols", "gloo", "topologies", "fat_tree"):
        assert word in shown
    assert main(["sim", "platforms", "gloo"]) == 0
    shown = capsys.readouterr().out
    assert "mpi " not in shown
    assert "measured: " in shown
