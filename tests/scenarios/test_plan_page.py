"""docs/plan.md: its code runs, its commands parse, its table of keys is whole."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from leeboard.cli import build_parser
from leeboard.scenarios import DRAFTERS, TARGETS, plans_of
from leeboard.scenarios.edge_programs import EDGE_PLACEMENTS
from leeboard.scenarios.rounds import PLACEMENTS

PAGE = (Path(__file__).parents[2] / "docs" / "plan.md").read_text()


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)


def test_code_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for code in blocks("python"):
        exec(compile(code, "plan.md", "exec"), names)  # noqa: S102
    printed = capsys.readouterr().out
    assert "server, depth" in printed
    assert "ACC 100%" in printed
    assert (tmp_path / "edge.json").is_file()


def test_commands_parse() -> None:
    commands = [c for b in blocks("console") for c in b.replace("\\\n", " ").split("$ ")[1:]]
    assert len(commands) == 3
    for command in commands:
        assert build_parser().parse_args(shlex.split(command)[1:]).run_plan


def test_tables_of_plans_are_read(tmp_path: Path) -> None:
    (table,) = blocks("json")
    assert plans_of(json.loads(table)).rows[0].fusion == pytest.approx(4e-3)
    lines = next(b for b in blocks("text") if b.startswith("name,"))
    (tmp_path / "plans.csv").write_text(lines)
    assert len(plans_of(tmp_path / "plans.csv").rows) == 2


def test_all_names_are_there() -> None:
    for name in (*TARGETS, *DRAFTERS):
        assert name in PAGE
    for name in (*PLACEMENTS, *EDGE_PLACEMENTS):
        assert f"`{name}`" in PAGE
