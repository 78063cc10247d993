"""Build hook: puts files of the repository into pages, so that no page holds a copy.

`<!-- include: PATH -->` becomes the file PATH (from the root of the repository).
`<!-- measured: OP -->` becomes the sections of bench/RESULTS.md whose heading names the op.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "RESULTS.md"
NOT_MEASURED = (
    '!!! note "Not measured yet"\n\n'
    "    `make bench` measures this machine and writes `bench/RESULTS.md`, which appears here.\n"
)

log = logging.getLogger("mkdocs.hooks.leeboard")


def sections(text: str, op: str) -> list[str]:
    """The sections of a Markdown text whose heading has `op` as a word, without the headings."""
    found: list[str] = []
    level = 0
    fenced = False
    for line in text.splitlines():
        fenced ^= line.startswith("```")
        heading = None if fenced else re.match(r"(#+) +(.*)", line)
        if heading and (level == 0 or len(heading[1]) <= level):
            level = len(heading[1]) if re.search(rf"(?<!\w){op}(?!\w)", heading[2]) else 0
            if level:
                found.append("")
            continue
        if level:
            found[-1] += line + "\n"
    return found


def measured(op: str, page: str) -> str:
    """The measured tables of an op; a warning, so a failed strict build, if there are none."""
    if not RESULTS.exists():
        return NOT_MEASURED
    found = sections(RESULTS.read_text(encoding="utf-8"), op)
    if not found:
        log.warning("%s: bench/RESULTS.md has no section about %s", page, op)
    return "\n".join(found)


def include(path: str, page: str) -> str:
    """A file of the repository."""
    file = ROOT / path
    if file == RESULTS and not file.exists():
        return NOT_MEASURED
    if not file.exists():
        log.warning("%s: includes %s, which does not exist", page, path)
        return ""
    return file.read_text(encoding="utf-8")


def on_page_markdown(markdown: str, *, page: Any, **_: object) -> str:
    """Called by MkDocs for every page."""
    source = page.file.src_uri
    markdown = re.sub(r"<!-- include: (\S+) -->", lambda match: include(match[1], source), markdown)
    return re.sub(r"<!-- measured: (\w+) -->", lambda match: measured(match[1], source), markdown)
