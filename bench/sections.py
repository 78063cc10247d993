"""The published files: which part of them is whose, and how one part is replaced."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path

from bench.run import ROOT, SYSTEMS

TARGET = ROOT / "bench" / "RESULTS.md"
README = ROOT / "README.md"
GLANCE_HEAD = "## At a glance"
READING_HEAD = "## How to read the tables"


def system_marks(name: str) -> tuple[str, str]:
    """What encloses the section of a system in bench/RESULTS.md."""
    return f"<!-- system {name}:begin -->", f"<!-- system {name}:end -->"


def readme_marks(name: str) -> tuple[str, str]:
    """What encloses a table of README.md: "speed", or an op that has one of its own."""
    return f"<!-- {name}:begin -->", f"<!-- {name}:end -->"


def write(path: Path, text: str) -> None:
    """Replaces a file as a whole."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    os.replace(part, path)


def between(text: str, marks: tuple[str, str], lines: Sequence[str], name: str) -> str:
    """The text of a file with `lines` between its marks."""
    begin, end = marks
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"{name}: expected one {begin} and one {end}")
    before, after = text.split(begin)[0], text.split(end)[1]
    return "\n".join([before + begin, "", *lines, "", end + after])


def keep_systems(text: str, old: str) -> str:
    """A new report with the systems' sections of the old one."""
    for begin, end in map(system_marks, SYSTEMS):
        if begin in old:
            text += "\n" + old[old.index(begin) : old.index(end) + len(end)] + "\n"
    return text


def with_section(text: str, op: str, section: str) -> str:
    """A report with an op's section replaced, or put where its name belongs.

    The op's rows leave the table of all ops, which is of another run.
    """
    glance, reading = text.index(GLANCE_HEAD), text.index(READING_HEAD)
    text = text[:glance] + _without_rows(text[glance:reading], op) + text[reading:]
    first = text.index(READING_HEAD) + len(READING_HEAD)
    # Sections begin at their heading; those of systems at their marks.
    begins = [m.start() for m in re.finditer(r"^(?:## |<!-- )", text[first:], re.MULTILINE)]
    begins = [first + begin for begin in begins] + [len(text)]
    start = end = len(text)
    for at, following in itertools.pairwise(begins):
        name = text[at:].split("\n", 1)[0].removeprefix("## ")
        if name >= op or name.startswith("<!-- "):
            start, end = at, (following if name == op else at)
            break
    parts = (text[:start].rstrip("\n"), section.rstrip("\n"), text[end:].rstrip("\n"))
    return "\n\n".join(part for part in parts if part) + "\n"


def _without_rows(text: str, op: str) -> str:
    blocks = []
    for block in text.split("\n\n"):
        lines = [line for line in block.split("\n") if not re.match(rf"\| {op} +\|", line)]
        # A table of nothing but its head goes, too.
        if not (block.startswith("| ") and len(lines) < 3):
            blocks.append("\n".join(lines))
    return "\n\n".join(blocks)
