"""One part of a system's report: what it measures, and how that is shown."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.environment import IdleGate
from bench.memory import ordinary_environment
from bench.run import ROOT

Row = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """A table of the report.

    Attributes:
        name: Its key in the file of results.
        title: Its heading.
        reading: How to read it.
        head: Column heads; the first `left` are aligned to the left.
        measure: Rows, as plain data; given True it measures little, for a look.
        cells: What the table shows of a row.
        summary: A line or more about all rows.
    """

    name: str
    title: str
    reading: str
    head: Sequence[str]
    left: int
    measure: Callable[[bool], list[Row]]
    cells: Callable[[Row], list[str]]
    summary: Callable[[list[Row]], list[str]] = lambda rows: []


def in_fresh_process(module: str, *arguments: object) -> Row:
    """What a module prints as JSON, run with the allocator's ordinary settings."""
    done = subprocess.run(
        [sys.executable, "-m", module, "--one", *map(str, arguments)],
        cwd=ROOT,
        env=ordinary_environment(),
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(
            f"{module} {arguments}: exit status {done.returncode}\n{done.stderr[-3000:]}"
        )
    found: Row = json.loads(done.stdout.splitlines()[-1])
    return found


# Over the whole run; a look does not wait.
_GATE = IdleGate(patience=120.0)


def wait_for_quiet() -> None:
    """Wait a while for others on this machine to finish."""
    _GATE.wait()


def look() -> None:
    """From here on `wait_for_quiet` does not wait."""
    _GATE.patience = 0.0


def say(text: str) -> None:
    """A line of progress."""
    print(f"  {text}", flush=True)


def number(value: float) -> str:
    """Three digits or so."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def megabytes(size: float) -> str:
    """Bytes as MB."""
    return f"{size / 1e6:,.1f}"
