"""The pages of the simulator: their code runs, and prints what they show."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from leeboard.sim import Result
from leeboard.sim.records import RECORD, Kind, kind_name
from leeboard.sim.result_file import readable

PAGES = Path(__file__).parents[2] / "docs" / "sim"


def blocks(text: str, kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL)


def labels(text: str) -> list[str]:
    """The beginnings of lines, and the headers of tables: without the figures."""
    return [re.split(r"\s{2,}|\s[\d.]", line.strip())[0] for line in text.splitlines() if line]


@pytest.mark.parametrize("page", ["index.md", "programs.md", "torch.md", "trace.md", "results.md"])
def test_code_runs_and_prints_what_is_shown(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    text = (PAGES / page).read_text()
    names: dict[str, Any] = {}
    for code in blocks(text, "python"):
        exec(compile(code, page, "exec"), names)  # noqa: S102
    printed = capsys.readouterr().out
    shown = "".join(blocks(text, "text"))
    if shown:
        assert labels(printed) == labels(shown)
    assert isinstance(names["result"], Result)


def test_the_file_is_described_whole(tmp_path: Path) -> None:
    text = (PAGES / "results.md").read_text()
    words = set(re.findall(r"`([\w]+)`", text))
    assert set(RECORD.names or ()) <= words
    from sim_results import ping, result

    made = result(ping())
    made.to_json(tmp_path / "result.json")
    assert set(readable(made)) - {"format", "version", "leeboard"} <= words
    assert set(made.ranks.columns) - {"rank", "device"} <= words
    assert set(made.requests.columns) - {"queue"} <= words
    for kind in Kind:
        name = "collective" if kind == Kind.COLLECTIVE else kind_name(kind)
        assert f"{int(kind)} {name}" in text
