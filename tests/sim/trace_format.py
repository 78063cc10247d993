"""A strict reader of Chrome's JSON trace format, and Perfetto's own."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

# Keys of each phase: needed, and allowed beside them.
_NEEDED = {
    "M": {"ph", "pid", "tid", "name", "args"},
    "X": {"ph", "pid", "tid", "name", "cat", "ts", "dur", "args"},
    "i": {"ph", "pid", "tid", "name", "cat", "ts", "s"},
    "s": {"ph", "pid", "tid", "name", "cat", "ts", "id"},
    "f": {"ph", "pid", "tid", "name", "cat", "ts", "id", "bp"},
    "C": {"ph", "pid", "name", "ts", "args"},
    "b": {"ph", "pid", "tid", "name", "cat", "ts", "id"},
    "e": {"ph", "pid", "tid", "name", "cat", "ts", "id"},
}
_ALLOWED = {"b": {"args"}}


def read(path: Path) -> list[dict[str, Any]]:
    """The events of a trace file that keeps to the format."""
    content = path.read_bytes()
    data = gzip.decompress(content) if path.suffix == ".gz" else content
    trace = json.loads(data)
    assert set(trace) == {"displayTimeUnit", "traceEvents", "otherData"}
    events: list[dict[str, Any]] = trace["traceEvents"]
    check(events)
    return events


def check(events: Sequence[dict[str, Any]]) -> None:
    """Keys and types; slices that nest; arrows and asynchronous slices with both ends."""
    processes = {e["pid"] for e in events if e["name"] == "process_name"}
    threads = {(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name"}
    spans = defaultdict(list)
    arrows = defaultdict(list)
    stacks = defaultdict(list)
    for event in events:
        phase = event["ph"]
        extra = set(event) - _NEEDED[phase]
        assert not _NEEDED[phase] - set(event), event
        assert extra <= _ALLOWED.get(phase, set()), event
        assert event["pid"] in processes, event
        if phase == "M":
            continue
        at = nanoseconds(event["ts"])
        assert at >= 0
        if phase in "Xisf":
            assert (event["pid"], event["tid"]) in threads, event
        if phase == "X":
            assert nanoseconds(event["dur"]) >= 0
            spans[event["tid"]].append((at, at + nanoseconds(event["dur"])))
        elif phase in "sf":
            arrows[event["id"]].append((phase, event["tid"], at))
        elif phase == "b":
            stacks[event["cat"], event["id"]].append((event["name"], at))
        elif phase == "e":
            name, begun = stacks[event["cat"], event["id"]].pop()
            assert name == event["name"]
            assert begun <= at
        elif phase == "C":
            assert all(isinstance(value, float) for value in event["args"].values())
    assert not any(stacks.values())
    for inside in spans.values():
        assert_nested(inside)
    for ends in arrows.values():
        assert [phase for phase, _, _ in ends] == ["s", "f"]
        assert ends[0][2] <= ends[1][2]
        for _, tid, at in ends:
            assert any(start <= at < end for start, end in spans[tid]), "an arrow from nowhere"


def assert_nested(spans: list[tuple[int, int]]) -> None:
    """Each lies in another or beside it."""
    open_until: list[int] = []
    for start, end in sorted(spans, key=lambda span: (span[0], -span[1])):
        while open_until and open_until[-1] <= start:
            open_until.pop()
        assert not open_until or end <= open_until[-1], "slices overlap in part"
        open_until.append(end)


def nanoseconds(microseconds: float) -> int:
    """A whole number of them."""
    ns = microseconds * 1000
    assert abs(ns - round(ns)) < 1e-3, microseconds
    return round(ns)


def query(trace: Path, *queries: str) -> list[list[list[Any]]]:
    """Rows that Perfetto's trace processor finds; skips the test where it is not installed."""
    default = Path(sys.prefix) / "share" / "trace-processor"
    folder = Path(os.environ.get("LEEBOARD_TRACE_PROCESSOR", default))
    node = shutil.which("node")
    if node is None or not (folder / "trace_processor.wasm").is_file():
        pytest.skip("no trace processor: tools/setup_trace_processor.sh installs it, for node")
    done = subprocess.run(
        [node, str(Path(__file__).with_name("trace_processor.mjs")), str(folder), str(trace)],
        input=json.dumps(queries),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers: list[list[list[Any]]] = json.loads(done.stdout)
    return answers
