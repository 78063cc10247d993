"""The sections of whole systems in bench/RESULTS.md: measured part by part, each between marks.

`python -m bench.draft`, `bench.prune` and `bench.sim` are this with parts of their own.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.part import Part, Row, look
from bench.report import table
from bench.run import RESULTS
from bench.sections import TARGET, between, system_marks, write

# What makes two machines the same; which peers are installed may change in between.
_HOST = ("processor", "cores")


@dataclass(frozen=True)
class System:
    """A system with a section of its own.

    Attributes:
        name: Its package in bench/, its option of bench/run.py and its file of results.
        title: The heading of its section.
        parts: Modules of its package that hold a `PART`, in the order of the section.
        machine: What a reader needs to judge the figures.
    """

    name: str
    title: str
    parts: tuple[str, ...]
    machine: Callable[[], dict[str, str]]

    def main(self) -> None:
        """The command line of the package."""
        parser = argparse.ArgumentParser(prog=f"python -m bench.{self.name}")
        parser.add_argument("--quick", action="store_true", help="few cases, short measurements")
        parser.add_argument(
            "--publish", action="store_true", help="rewrite bench/RESULTS.md's section"
        )
        parser.add_argument(
            "--only", nargs="+", choices=self.parts, default=self.parts, metavar="PART"
        )
        options = parser.parse_args()
        if options.quick:
            look()
        results: dict[str, list[Row]] = {}
        for name in self.parts:
            if name not in options.only:
                continue
            part = self._part(name)
            start = time.monotonic()
            results[name] = part.measure(options.quick)
            print(f"  {part.title}: {time.monotonic() - start:.0f} s", flush=True)
        machine = self.machine()
        date = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
        RESULTS.mkdir(parents=True, exist_ok=True)
        file = RESULTS / f"{self.name}.json"
        kept = {"date": date, "quick": options.quick, "machine": machine}
        results = {**self._of_today(file, kept), **results}
        write(file, json.dumps({**kept, "parts": results}, indent=1) + "\n")
        parts = [self._part(name) for name in self.parts if name in results]
        lines = self.compose(parts, results, machine, date, quick=options.quick)
        print("\n".join(["", *lines]))
        if options.publish:
            self.publish(lines)

    def _part(self, name: str) -> Part:
        part: Part = importlib.import_module(f"bench.{self.name}.{name}").PART
        return part

    @staticmethod
    def _of_today(file: Path, kept: Mapping[str, Any]) -> dict[str, list[Row]]:
        """Parts that were measured before: on this machine and day, and at the same length."""
        if not file.is_file():
            return {}
        before: dict[str, Any] = json.loads(file.read_text())
        same = all(before[key] == kept[key] for key in ("date", "quick"))
        same &= all(before["machine"].get(key) == kept["machine"][key] for key in _HOST)
        return before["parts"] if same else {}

    def compose(
        self,
        parts: Sequence[Part],
        results: Mapping[str, list[Row]],
        machine: Mapping[str, str],
        date: str,
        *,
        quick: bool,
    ) -> list[str]:
        """The lines of the section; parts without results are left out."""
        how = f"python bench/run.py --{self.name}" + (" --quick" if quick else "")
        where = ", ".join(machine.values())
        lines = [
            f"## {self.title}",
            "",
            f"Written by `{how}` on {date}: one day, one machine ({where}).",
        ]
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

    def publish(self, lines: Sequence[str]) -> None:
        """Put the section into bench/RESULTS.md, in place of the one before."""
        marks = system_marks(self.name)
        text = TARGET.read_text()
        if marks[0] not in text:
            text = "\n".join([text.rstrip(), "", *marks, ""])
        write(TARGET, between(text, marks, lines, TARGET.name))
