"""The page about plans: its code runs, and prints what it shows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from leeboard._cli.prune import add_arguments
from leeboard.prune import Budget

PAGE = Path(__file__).parents[2] / "docs" / "prune" / "plans.md"


def words(text: str) -> list[list[str]]:
    """Words of each line, without the figures, which may differ in their last digit."""
    lines = [re.findall(r"[A-Za-z_.]*[A-Za-z_][\w.]*", line) for line in text.splitlines()]
    return [line for line in lines if line]


def test_code_runs_and_prints_what_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text, names = PAGE.read_text(), dict[str, Any]()
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(code, PAGE.name, "exec"), names)  # noqa: S102
    shown = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    assert words(capsys.readouterr().out) == words("".join(shown))


def test_budgets_of_the_page_are_budgets() -> None:
    table = PAGE.read_text().split("## Budgets")[1].split("Case counts")[0]
    texts = re.findall(r'`"([^"]+)"`', table)
    assert len(texts) >= 6
    assert {Budget.parse(text).kind for text in texts} == {
        "share",
        "macs",
        "bytes",
        "milliseconds",
    }


def test_commands_of_the_page_are_commands() -> None:
    import argparse

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    lines = re.findall(r"^\$ leeboard prune (.*)$", PAGE.read_text(), re.MULTILINE)
    assert lines
    for line in lines:
        assert parser.parse_args(line.split()).run_prune
