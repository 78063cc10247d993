"""Turns one run's measurements into tables.

    python -m bench.report [--publish]

Reads bench/results/run.json (pytest-benchmark) and memory.json. With --publish it rewrites
bench/RESULTS.md, the table of README.md and bench/results/latest.json; without, it prints. Each op has a section of its
name, which the op's page of the documentation shows.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.environment import QUIET
from bench.run import RESULTS, ROOT

TARGET = ROOT / "bench" / "RESULTS.md"
README = ROOT / "README.md"
README_MARKS = ("<!-- speed:begin -->", "<!-- speed:end -->")
# The simulator's section, which bench.sim writes.
SIM_MARKS = ("<!-- simulator:begin -->", "<!-- simulator:end -->")

READING = """\
Times are microseconds of one public call, medians; p99 is over rounds, and a round of a short call
averages several. `out=` is the same call into a given output. `eager` and `compile` say how many
times as long PyTorch's own idiom takes, eagerly and under `torch.compile` (below 1.00x it is
faster). `limit` is the time that this machine needs to move the bytes that the case must move (or
for its arithmetic, if that is longer): the fastest of several streaming kernels with the same mix
of reads and writes over the same working set, measured just before and just after. `share` is
limit / time. `level` is where the working set fits, by the cache sizes that the system reports.
Every result was checked against the reference in float64 before it was timed. One backward is one
`torch.autograd.grad` through a graph that is kept. The allocator keeps freed memory (see
`bench/run.py`), so no time holds page faults; that helps the peers more than leeboard. `~` marks a
time that other processes disturbed.

Memory is the peak of resident memory in MB of one call above its inputs and outputs, each in a
process of its own with the allocator's ordinary settings; `training` is a forward and a backward
together, so what the forward keeps for its backward counts."""


@dataclass(frozen=True)
class Timing:
    """One measured point."""

    op: str
    case: str
    sizes: str
    dtype: str
    direction: str
    threads: int
    variant: str
    median: float
    p99: float
    rounds: int
    limit: float
    level: str
    others: float
    faults_per_call: float
    aim: dict[str, Any] | None

    @property
    def share(self) -> float:
        return self.limit / self.median


def _percentile(values: Sequence[float], fraction: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))]


def read_timings(path: Path) -> tuple[dict[str, str], list[Timing], str]:
    """(machine facts, timings, date) of a pytest-benchmark file."""
    run = json.loads(path.read_text())
    timings = []
    for entry in run["benchmarks"]:
        info, stats = entry["extra_info"], entry["stats"]
        timings.append(
            Timing(
                op=info["op"],
                case=info["case"],
                sizes=info["sizes"],
                dtype=info["dtype"],
                direction=info["direction"],
                threads=info["threads"],
                variant=info["variant"],
                median=stats["median"],
                p99=_percentile(stats["data"], 0.99),
                rounds=stats["rounds"],
                limit=statistics.mean(info["limits"]),
                level=info["level"],
                others=info["others"],
                faults_per_call=info["faults_per_call"],
                aim=info["aim"],
            )
        )
    return run["machine_info"], timings, run["datetime"][:10]


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """A Markdown table whose columns line up in plain text too; the first `left` go left."""
    widths = [max(len(r[i]) for r in (head, *rows)) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            c.ljust(w) if i < left else c.rjust(w)
            for i, (c, w) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * w if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return [line(head), "| " + " | ".join(rule) + " |", *(line(row) for row in rows)]


def microseconds(seconds: float) -> str:
    """A time in microseconds, with three digits or so."""
    us = seconds * 1e6
    return f"{us:.2f}" if us < 10 else f"{us:.1f}" if us < 100 else f"{us:,.0f}"


def spaced(sizes: str) -> str:
    """Sizes as they are shown."""
    return " ".join(sizes.split("-"))


def failures(point: dict[str, Timing]) -> list[str] | None:
    """What keeps a point from its aim; None where it has none."""
    own = point["leeboard"]
    if own.aim is None:
        return None
    missed = []
    if own.aim["seconds"] is not None and own.median >= own.aim["seconds"]:
        missed.append(f"not under {microseconds(own.aim['seconds'])} us")
    if own.aim["share"] is not None and own.share < own.aim["share"]:
        missed.append(f"share under {own.aim['share']:.0%}")
    if own.aim["compiled"] and "compile" in point and point["compile"].median < own.median:
        missed.append("compile is faster")
    return missed


def _points(timings: Iterable[Timing]) -> list[dict[str, Timing]]:
    """Timings of the same case and thread count, by variant."""
    found: dict[tuple[str, str, int], dict[str, Timing]] = {}
    for t in timings:
        found.setdefault((t.op, t.case, t.threads), {})[t.variant] = t
    return [point for point in found.values() if "leeboard" in point]


def _timing_row(point: dict[str, Timing]) -> list[str]:
    own = point["leeboard"]

    def mark(t: Timing) -> str:
        return "~" if t.others > QUIET else ""

    def ratio(variant: str) -> str:
        peer = point.get(variant)
        return "" if peer is None else f"{mark(peer)}{peer.median / own.median:.2f}x"

    given = point.get("leeboard-out")
    missed = failures(point)
    return [
        spaced(own.sizes),
        own.dtype,
        str(own.threads),
        own.level,
        mark(own) + microseconds(own.median),
        microseconds(own.p99),
        "" if given is None else mark(given) + microseconds(given.median),
        ratio("eager"),
        ratio("compile"),
        microseconds(own.limit),
        f"{own.share:.0%}",
        "" if missed is None else "; ".join(missed) or "met",
    ]


_HEAD = ["case", "dtype", "threads", "level", "leeboard", "p99", "out=", "eager", "compile"]
_HEAD += ["limit", "share", "aim"]


def _op_section(
    op: str, points: list[dict[str, Timing]], memory: list[dict[str, Any]]
) -> list[str]:
    lines = [f"## {op}", ""]
    for direction in ("forward", "backward"):
        rows = [_timing_row(p) for p in points if p["leeboard"].direction == direction]
        if rows:
            lines += [f"**{direction}**, microseconds", "", *table(_HEAD, rows, left=2), ""]
    if memory:
        lines += ["**peak extra memory**, MB", "", *_memory_table(memory), ""]
    return lines


def _memory_table(found: list[dict[str, Any]]) -> list[str]:
    grouped: dict[str, dict[str, dict[str, Any]]] = {}
    for entry in found:
        grouped.setdefault(entry["case"], {})[entry["variant"]] = entry
    rows = []
    for case, by_variant in grouped.items():
        sizes, dtype, direction = case.rsplit("-", 2)
        own = by_variant["leeboard"]
        what = "training" if direction == "backward" else "forward"
        sizes_mb = [own["inputs"], own["outputs"], *(v["extra"] for v in by_variant.values())]
        rows.append([spaced(sizes), dtype, what, *(f"{size / 1e6:,.1f}" for size in sizes_mb)])
    head = ["case", "dtype", "what", "inputs", "outputs", "leeboard", "eager", "reference"]
    return table(head, rows, left=3)


def _glance(points: list[dict[str, Timing]]) -> list[str]:
    """The cases that have an aim, on all cores."""
    most = max(p["leeboard"].threads for p in points)
    rows = []
    for point in points:
        own = point["leeboard"]
        if own.aim is None or own.threads != most:
            continue
        size, dtype, _, _, time, _, _, eager, compiled, _, share, aim = _timing_row(point)
        rows.append([own.op, size, dtype, own.direction, time, eager, compiled, share, aim])
    head = ["op", "case", "dtype", "direction", "us", "eager", "compile", "share of limit", "aim"]
    return [*table(head, rows, left=4), ""] if rows else []


def _summary(points: list[dict[str, Timing]]) -> list[str]:
    judged = [(p["leeboard"], failures(p)) for p in points]
    aimed = [(own, missed) for own, missed in judged if missed is not None]
    met = sum(not missed for _, missed in aimed)
    lines = [f"Aims met: {met} of {len(aimed)}."]
    for peer in ("eager", "compile"):
        ratios = [p[peer].median / p["leeboard"].median for p in points if peer in p]
        if ratios:
            lines.append(
                f"Against {peer}: {statistics.geometric_mean(ratios):.1f}x as fast in the "
                f"geometric mean, {min(ratios):.2f}x at worst, {max(ratios):.1f}x at best, "
                f"{len(ratios)} cases."
            )
    disturbed = sum(t.others > QUIET for p in points for t in p.values())
    if disturbed:
        lines.append(f"{disturbed} of {sum(map(len, points))} times were disturbed.")
    return lines


def compose(
    machine: dict[str, str],
    timings: list[Timing],
    memory: list[dict[str, Any]],
    date: str,
    *,
    quick: bool = False,
) -> str:
    """The whole report."""
    points = _points(timings)
    ops = list(dict.fromkeys(p["leeboard"].op for p in points))
    how = "`python bench/run.py --quick --publish`" if quick else "`make bench`"
    origin = f"Written by {how} on {date}: one run, one machine."
    if quick:
        origin += " A quick one: few cases, all cores, short measurements."
    lines = [
        "# Measured speed",
        "",
        f"{origin} Ratios carry over to other machines better than times do.",
        "",
        *table(["machine", ""], [[k, v] for k, v in machine.items()], left=2),
        "",
        *(f"- {line}" for line in _summary(points)),
        "",
        "## At a glance",
        "",
        *_glance(points),
        "## How to read the tables",
        "",
        READING,
        "",
    ]
    for op in ops:
        own_points = [p for p in points if p["leeboard"].op == op]
        lines += _op_section(op, own_points, [m for m in memory if m["op"] == op])
    return "\n".join(lines).rstrip() + "\n"


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


def keep_simulator(text: str, old: str) -> str:
    """A new report with the simulator's section of the old one."""
    begin, end = SIM_MARKS
    if begin not in old:
        return text
    kept = old[old.index(begin) : old.index(end) + len(end)]
    return f"{text}\n{kept}\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.report")
    parser.add_argument("--publish", action="store_true", help="rewrite bench/RESULTS.md")
    parser.add_argument("--quick", action="store_true", help="say that the run was a quick one")
    options = parser.parse_args()
    machine, timings, date = read_timings(RESULTS / "run.json")
    memory_file = RESULTS / "memory.json"
    memory = json.loads(memory_file.read_text()) if memory_file.exists() else []
    text = compose(machine, timings, memory, date, quick=options.quick)
    if not options.publish:
        print(text)
        return
    latest = {
        "date": date,
        "machine": machine,
        "timings": [asdict(t) | {"share": t.share} for t in timings],
        "memory": memory,
    }
    write(RESULTS / "latest.json", json.dumps(latest, separators=(",", ":")) + "\n")
    write(TARGET, keep_simulator(text, TARGET.read_text() if TARGET.exists() else ""))
    cpu = f"{machine['processor']}, {machine['cores']} cores, torch {machine['torch']}, {date}:"
    shown = [cpu, "", *_glance(_points(timings))]
    write(README, between(README.read_text(), README_MARKS, shown, README.name))
    print(f"{TARGET.relative_to(ROOT)}: " + " ".join(_summary(_points(timings))))


if __name__ == "__main__":
    main()
