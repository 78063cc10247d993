"""`leeboard sim run` of torch.distributed scripts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from leeboard import sim
from leeboard._cli.sim_torch import is_script
from leeboard.cli import main

SCRIPT = """
import os
import sys
import torch
import torch.distributed as dist

dist.init_process_group("gloo")
x = torch.ones(1000)
for _ in range(int(sys.argv[1])):
    dist.all_reduce(x)
print("local", os.environ["LOCAL_RANK"], "of", os.environ["LOCAL_WORLD_SIZE"])
dist.destroy_process_group()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    sim.Platform.star(4, bandwidth="1 Gbit/s", latency="100 us").save("star.yaml")
    Path("reduce.py").write_text(SCRIPT)
    return tmp_path


def run(*words: str) -> int:
    return main(["sim", "run", "--compute", "none", *words])


def test_run_record_replay(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("star.yaml", "reduce.py", "--record", "r.trace", "--out", "r.json", "--", "3") == 0
    out = capsys.readouterr().out
    assert sorted(line for line in out.splitlines() if line.startswith("local")) == [
        f"local {rank} of 4" for rank in range(4)
    ]
    assert "makespan" in out
    result = sim.Result.load("r.json")
    trace = sim.Trace.load("r.trace")
    assert trace.metadata["program"] == "reduce.py"
    assert trace.metadata["arguments"] == "3"
    replayed = sim.replay(trace, sim.Platform.load("star.yaml"))
    assert replayed.event_hash == result.event_hash
    assert main(["sim", "run", "star.yaml", "r.trace", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["event_hash"] == result.event_hash


def test_nodes_prefix_and_module(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--platform", "star.yaml", "-m", "reduce", "--nnodes", "2", "--prefix")
    assert run(*words, "--no-timeline", "--", "1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line for line in lines if line.startswith("[rank")) == [
        f"[rank {rank}] local {rank % 2} of 2" for rank in range(4)
    ]
    assert run("star.yaml", "reduce.py", "--nproc-per-node", "3", "--json", "--", "1") == 0
    out = capsys.readouterr().out
    assert out.count("of 3") == 3
    assert json.loads(out[out.index("{") :])["ranks"]["rank"] == [0, 1, 2]


def test_measured_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    Path("work.py").write_text(
        "import torch, torch.distributed as dist\n"
        "dist.init_process_group()\n"
        "x = torch.rand(200, 200)\n"
        "for _ in range(20): x = x @ x / 200\n"
        "dist.barrier()\n"
    )
    assert main(["sim", "run", "star.yaml", "work.py", "--record", "w.trace", "--ranks"]) == 0
    assert sim.Trace.load("w.trace").metadata["compute"] == "measured"
    result = sim.replay(sim.Trace.load("w.trace"), sim.Platform.load("star.yaml"))
    assert all(seconds > 0 for seconds in result.ranks["compute"])


@pytest.mark.parametrize(
    ("source", "status", "message"),
    [
        ("dist.init_process_group()\nif dist.get_rank(): dist.barrier()", 3, "s.py:3"),
        ("dist.init_process_group()\n1 / 0", 2, "raised ZeroDivisionError"),
        ("dist.init_process_group()\nraise SystemExit(1)", 2, "exited with status 1"),
        ("x = 1", 2, "no rank called torch.distributed.init_process_group()"),
        ("def f(:", 2, "s.py, line 2: SyntaxError"),
        ("", 2, "no rank called"),
    ],
)
def test_exit_status(
    source: str, status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("s.py").write_text(f"import torch.distributed as dist\n{source}\n")
    assert run("star.yaml", "s.py") == status
    assert message in capsys.readouterr().err


def test_what_is_wrong_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    Path("program.py").write_text("import leeboard.sim as sim\nprogram = sim.Program(2)\n")
    for words, message in (
        (("star.yaml", "program.py"), "--compute for torch.distributed scripts"),
        (("star.yaml", "reduce.py", "--nproc-per-node", "9"), "the platform has 4 devices"),
        (("star.yaml", "reduce.py", "--nnodes", "3"), "room for 4 ranks, which is no multiple"),
        (("star.yaml", "reduce.py", "--nnodes", "0"), "--nnodes: got 0, expected at least 1"),
        (("star.yaml", "reduce.py", "-m", "reduce"), "got 2 files"),
        (("star.yaml",), "got 1 files"),
        (("star.yaml", "nothing.py"), "nothing.py: no such file"),
        (("star.yaml", "-m", "no_such_module"), "-m no_such_module: no such module"),
        (("star.yaml", "reduce.py", "--profile", "p.json"), "is for --compute profiled"),
        (("star.yaml", "reduce.py", "--witness", "all"), "--witness all: is for --fold"),
        (("gone.yaml", "reduce.py"), "leeboard sim run: gone.yaml: no such file"),
        (("star.yaml", "reduce.py", "--record", "no/where"), "there is no folder no"),
    ):
        assert run(*words) == 2
        assert message in capsys.readouterr().err
    assert main(["sim", "trace", "reduce.py"]) == 2
    assert "reduce.py" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import torch\n\ndef main(): pass\n", True),
        ("def build(args): pass", False),
        ("program = 1", False),
        ("program: int = 1", False),
        ("if True:\n    program, other = 1, 2", False),
        ("from somewhere import build", False),
        ("for program in (1, 2): pass", False),
        ("def f():\n    program = 1\n    def build(): pass", True),
        ("class A:\n    program = 1", True),
        ("program", True),
    ],
)
def test_scripts_are_told_from_programs(source: str, expected: bool, tmp_path: Path) -> None:
    path = tmp_path / "either.py"
    path.write_text(source)
    assert is_script(path) is expected


def test_a_trace_is_no_script(tmp_path: Path) -> None:
    assert not is_script(tmp_path / "some.trace")
