"""Turns one run's measurements into tables.

    python -m bench.report [--publish [--part]]

Reads bench/results/run.json (pytest-benchmark) and memory.json. With --publish it rewrites
bench/RESULTS.md, the tables of README.md and bench/results/latest.json; without, it prints. Each op
has a section of its name, which the op's page of the documentation shows. With --part it rewrites
the sections of the ops that were measured, whole and with their own machine and date, and leaves
the others alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bench.environment import QUIET
from bench.run import RESULTS, ROOT
from bench.sections import (
    GLANCE_HEAD,
    READING_HEAD,
    README,
    TARGET,
    between,
    keep_systems,
    readme_marks,
    with_section,
    write,
)
from bench.timings import (
    Point,
    Timing,
    failures,
    microseconds,
    over_flops,
    points_of,
    read_timings,
    rivals,
)

READING = """\
Times are microseconds of one public call, medians; p99 is over rounds, and a round of a short call
averages several. `out=` is the same call into a given output. `eager` and `compile` say how many
times as long PyTorch's own idiom takes, eagerly and under `torch.compile` (below 1.00x it is
faster); `sdpa`, `flex` and others are rivals that an op's benchmark names, and `best` is the
fastest of them. `over flops` is how many times its share of the dense arithmetic, in time of
leeboard's own dense call, a sparse call takes. `limit` is the time that this machine needs to move the bytes that the case must move (or
for its arithmetic, if that is longer): the fastest of several streaming kernels with the same mix
of reads and writes over the same working set, measured just before and just after. `share` is
limit / time. `level` is where the working set fits, by the cache sizes that the system reports.
Every result was checked against the reference in float64 before it was timed. One backward is one
`torch.autograd.grad` through a graph that is kept. The allocator keeps freed memory (see
`bench/run.py`), so no time holds page faults; that helps the peers more than leeboard. `training`
times a forward and a backward together. `~` marks a time that other processes disturbed.

Memory is the peak of resident memory in MB of one call above its inputs and outputs, each in a
process of its own with the allocator's ordinary settings; `training` is a forward and a backward
together, so what the forward keeps for its backward counts."""


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


def spaced(sizes: str) -> str:
    """Sizes as they are shown."""
    return " ".join(sizes.split("-"))


# Rivals that every op has; an op with others has columns for those that it has.
USUAL = ("eager", "compile")


def _columns(points: Sequence[Point]) -> list[str]:
    """The columns of an op's table between `leeboard` and `limit`."""
    present = list(dict.fromkeys(name for point in points for name in point))
    own = ["p99", "out="]
    others = [name for name in present if not name.startswith("leeboard")]
    if set(others) <= set(USUAL):
        return [*own, *USUAL]
    if "leeboard-out" not in present:
        own.remove("out=")
    dense = ["over flops"] if "leeboard-dense" in present else []
    return [*own, *others, "best", *dense]


def _timing_row(point: Point, columns: Sequence[str]) -> list[str]:
    own = point["leeboard"]
    ratios = rivals(point)

    def mark(t: Timing) -> str:
        return "~" if t.others > QUIET else ""

    def cell(column: str) -> str:
        if column == "p99":
            return microseconds(own.p99)
        if column == "out=":
            given = point.get("leeboard-out")
            return "" if given is None else mark(given) + microseconds(given.median)
        if column == "best":
            best = min(ratios, key=ratios.__getitem__, default=None)
            return "" if best is None else f"{mark(point[best])}{ratios[best]:.2f}x {best}"
        if column == "over flops":
            over = over_flops(point)
            return "" if over is None else f"{over:.2f}"
        return f"{mark(point[column])}{ratios[column]:.2f}x" if column in ratios else ""

    missed = failures(point)
    return [
        spaced(own.sizes),
        own.dtype,
        str(own.threads),
        own.level,
        mark(own) + microseconds(own.median),
        *map(cell, columns),
        microseconds(own.limit),
        f"{own.share:.0%}",
        "" if missed is None else "; ".join(missed) or "met",
    ]


def _op_tables(points: list[Point], memory: list[dict[str, Any]]) -> list[str]:
    lines = []
    for direction in ("forward", "backward", "training"):
        some = [p for p in points if p["leeboard"].direction == direction]
        if some:
            columns = _columns(some)
            head = ["case", "dtype", "threads", "level", "leeboard", *columns]
            head += ["limit", "share", "aim"]
            rows = [_timing_row(p, columns) for p in some]
            lines += [f"**{direction}**, microseconds", "", *table(head, rows, left=2), ""]
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
        what = "forward" if direction == "forward" else "training"
        sizes_mb = [own["inputs"], own["outputs"], *(v["extra"] for v in by_variant.values())]
        rows.append([spaced(sizes), dtype, what, *(f"{size / 1e6:,.1f}" for size in sizes_mb)])
    head = ["case", "dtype", "what", "inputs", "outputs", "leeboard", "eager", "reference"]
    return table(head, rows, left=3)


# Most cases of an op at a glance; of one with more, those of a quick run.
GLANCE = 16


def _glance(points: list[Point]) -> list[str]:
    """The cases that have an aim, on all cores; ops with the same rivals in one table."""
    most = max(p["leeboard"].threads for p in points)
    tables: dict[tuple[str, ...], list[list[str]]] = {}
    for op in dict.fromkeys(p["leeboard"].op for p in points):
        aimed = [
            p
            for p in points
            if (own := p["leeboard"]).op == op and own.aim is not None and own.threads == most
        ]
        if len(aimed) > GLANCE:
            aimed = [p for p in aimed if p["leeboard"].quick]
        if not aimed:
            continue
        columns = [c for c in _columns(aimed) if c not in ("p99", "out=")]
        head = ("op", "case", "dtype", "direction", "us", *columns, "share of limit", "aim")
        for point in aimed:
            own = point["leeboard"]
            case, dtype, _, _, time, *others, _, share, aim = _timing_row(point, columns)
            row = [own.op, case, dtype, own.direction, time, *others, share, aim]
            tables.setdefault(head, []).append(row)
    return [line for head, rows in tables.items() for line in (*table(head, rows, left=4), "")]


def _summary(points: list[Point]) -> list[str]:
    judged = [(p["leeboard"], failures(p)) for p in points]
    aimed = [(own, missed) for own, missed in judged if missed is not None]
    met = sum(not missed for _, missed in aimed)
    lines = [f"Aims met: {met} of {len(aimed)}."]
    against: dict[str, list[float]] = {}
    for point in points:
        for peer, ratio in rivals(point).items():
            against.setdefault(peer, []).append(ratio)
    lines += [
        f"Against {peer}: {statistics.geometric_mean(ratios):.1f}x as fast in the "
        f"geometric mean, {min(ratios):.2f}x at worst, {max(ratios):.1f}x at best, "
        f"{len(ratios)} cases."
        for peer, ratios in against.items()
    ]
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
    points = points_of(timings)
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
        GLANCE_HEAD,
        "",
        *_glance(points),
        READING_HEAD,
        "",
        READING,
        "",
    ]
    for op in ops:
        lines += [f"## {op}", "", *_op_tables(*_of(op, points, memory))]
    return "\n".join(lines).rstrip() + "\n"


def _of(
    op: str, points: list[Point], memory: list[dict[str, Any]]
) -> tuple[list[Point], list[dict[str, Any]]]:
    return [p for p in points if p["leeboard"].op == op], [m for m in memory if m["op"] == op]


def compose_part(
    op: str,
    machine: dict[str, str],
    timings: list[Timing],
    memory: list[dict[str, Any]],
    date: str,
    *,
    quick: bool = False,
) -> str:
    """An op's section by itself, with its own origin: the rest may be of another day or machine."""
    points, own_memory = _of(op, points_of(timings), memory)
    how = f"`python bench/run.py {'--quick ' if quick else ''}-k {op} --publish`"
    facts = "; ".join(f"{name.capitalize()}: {value}" for name, value in machine.items())
    lines = [
        f"## {op}",
        "",
        f"Written by {how} on {date}, apart from the other ops. {facts}.",
        "",
        *(f"- {line}" for line in _summary(points)),
        "",
        *_op_tables(points, own_memory),
    ]
    return "\n".join(lines).rstrip() + "\n"


def unmeasured(timings: list[Timing], *, quick: bool) -> list[str]:
    """Cases of the ops measured that a run left out, as "op case, threads"."""
    from bench.cases import subjects
    from bench.grid import points_of

    found = {(t.op, t.case, t.threads) for t in timings if t.variant == "leeboard"}
    wanted = [
        (op, point.case.id, point.threads)
        for op, subject in subjects().items()
        if any(t.op == op for t in timings)
        for point in points_of(subject)
        if point.variant == "leeboard" and (point.quick or not quick)
    ]
    return [f"{op} {case}, threads {n}" for op, case, n in wanted if (op, case, n) not in found]


def _publish_all(text: str, timings: list[Timing], title: str) -> None:
    write(TARGET, keep_systems(text, TARGET.read_text() if TARGET.exists() else ""))
    readme = README.read_text()
    featured = [op for op in {t.op for t in timings} if readme_marks(op)[0] in readme]
    rest = [t for t in timings if t.op not in featured]
    readme = between(readme, readme_marks("speed"), _shown(title, rest), README.name)
    for op in featured:
        shown = _shown(title, [t for t in timings if t.op == op])
        readme = between(readme, readme_marks(op), shown, README.name)
    write(README, readme)


def _publish_part(sections: dict[str, str], timings: list[Timing], title: str) -> None:
    text, readme = TARGET.read_text(), README.read_text()
    for op, section in sections.items():
        text = with_section(text, op, section)
        if readme_marks(op)[0] in readme:
            shown = _shown(title, [t for t in timings if t.op == op])
            readme = between(readme, readme_marks(op), shown, README.name)
    write(TARGET, text)
    write(README, readme)


def _shown(title: str, timings: list[Timing]) -> list[str]:
    return [title, "", *_glance(points_of(timings))][:-1]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.report")
    parser.add_argument("--publish", action="store_true", help="rewrite bench/RESULTS.md")
    parser.add_argument("--part", action="store_true", help="only the sections of the ops measured")
    parser.add_argument("--quick", action="store_true", help="say that the run was a quick one")
    options = parser.parse_args()
    quick = options.quick
    machine, timings, date = read_timings(RESULTS / "run.json")
    memory_file = RESULTS / "memory.json"
    memory = json.loads(memory_file.read_text()) if memory_file.exists() else []
    title = f"{machine['processor']}, {machine['cores']} cores, torch {machine['torch']}, {date}:"
    if options.part:
        ops = sorted({t.op for t in timings})
        sections = {op: compose_part(op, machine, timings, memory, date, quick=quick) for op in ops}
        text = "\n".join(sections.values())
    else:
        text = compose(machine, timings, memory, date, quick=quick)
    if not options.publish:
        print(text)
        return
    if options.part and (missing := unmeasured(timings, quick=quick)):
        raise SystemExit(
            f"bench.report: nothing published: {len(missing)} cases were not measured, the first "
            f"of them {missing[0]}; a section is replaced as a whole"
        )
    latest = {
        "date": date,
        "machine": machine,
        "timings": [asdict(t) | {"share": t.share} for t in timings],
        "memory": memory,
    }
    write(RESULTS / "latest.json", json.dumps(latest, separators=(",", ":")) + "\n")
    if options.part:
        _publish_part(sections, timings, title)
    else:
        _publish_all(text, timings, title)
    print(f"{TARGET.relative_to(ROOT)}: " + " ".join(_summary(points_of(timings))))


if __name__ == "__main__":
    main()
