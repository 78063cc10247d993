"""The simulator's section of bench/RESULTS.md, between marks of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.report import table
from bench.sections import SIM_MARKS, TARGET, between, write
from bench.sim.part import Part, Row


def compose(
    parts: Sequence[Part],
    results: Mapping[str, list[Row]],
    machine: Mapping[str, str],
    date: str,
    *,
    quick: bool,
) -> list[str]:
    """The lines of the section; parts without results are left out."""
    how = "python bench/run.py --sim" + (" --quick" if quick else "")
    where = ", ".join(f"{value}" for value in machine.values())
    lines = ["## Simulator", "", f"Written by `{how}` on {date}: one run, one machine ({where})."]
    if quick:
        lines[-1] += " A quick one: few cases, short measurements."
    for part in parts:
        rows = results.get(part.name)
        if not rows:
            continue
        lines += ["", f"### {part.title}", "", part.reading, ""]
        lines += table(part.head, [part.cells(row) for row in rows], left=part.left)
        said = part.summary(rows)
        if said:
            lines += ["", *(f"- {line}" for line in said)]
    return lines


def publish(lines: Sequence[str]) -> None:
    """Put the section into bench/RESULTS.md, in place of the one before."""
    text = TARGET.read_text()
    if SIM_MARKS[0] not in text:
        text = "\n".join([text.rstrip(), "", *SIM_MARKS, ""])
    write(TARGET, between(text, SIM_MARKS, lines, TARGET.name))
