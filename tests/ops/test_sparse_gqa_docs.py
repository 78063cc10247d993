"""The pages about sparse attention: their code runs, and prints what they show."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def blocks(text: str, kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("page", ["ops/sparse_gqa.md", "patterns.md"])
def test_code_runs_and_prints_what_is_shown(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = (DOCS / page).read_text()
    names: dict[str, Any] = {}
    found = blocks(text, "python")
    assert found
    for code in found:
        exec(compile(code, page, "exec"), names)  # noqa: S102
    assert capsys.readouterr().out == "".join(blocks(text, "text"))


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    spec = importlib.util.spec_from_file_location("draw", DOCS / "images" / "draw_patterns.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert all(
        (module.picture(pattern) >= module.SEEN).any(1).sum() > 8
        for pattern in module.PANELS.values()
    )
    module.draw(tmp_path / "patterns.png")
    assert (tmp_path / "patterns.png").read_bytes().startswith(b"\x89PNG")
