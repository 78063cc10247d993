"""Switching plans between two calls."""

from __future__ import annotations

import itertools
import statistics
import time

from bench.part import Part, Row, say, wait_for_quiet
from bench.prune.models import SENSORS, backbone, half
from leeboard import prune
from leeboard.prune.backbones import BACKBONES

BUDGETS = ("25%", "50%", "75%")


def _measure(quick: bool) -> list[Row]:
    rows = []
    for name in BACKBONES:
        model = backbone(name)
        subsets = [SENSORS, SENSORS[:3], SENSORS[2:], SENSORS[:1]]
        plans = [half(model, present, b) for present in subsets for b in BUDGETS]
        wait_for_quiet()
        first = []
        for plan in plans:
            start = time.perf_counter()
            prune.apply(model, plan)
            first.append(time.perf_counter() - start)
        later = []
        for plan in itertools.islice(itertools.cycle(plans), 200 if quick else 5000):
            start = time.perf_counter()
            prune.apply(model, plan)
            later.append(time.perf_counter() - start)
        start = time.perf_counter()
        prune.compact(model, plans[0])
        compacting = time.perf_counter() - start
        prune.revert(model)
        later.sort()
        rows.append(
            {
                "backbone": name,
                "plans": len(plans),
                "install": first[0],
                "first": statistics.median(first[1:]),
                "later": statistics.median(later),
                "p99": later[int(0.99 * len(later))],
                "compact": compacting,
            }
        )
        say(f"switch {name}")
    return rows


def _cells(row: Row) -> list[str]:
    keys = ("install", "first", "later", "p99", "compact")
    return [row["backbone"], str(row["plans"]), *(f"{row[key] * 1e6:,.1f}" for key in keys)]


PART = Part(
    name="switch",
    title="Switching plans",
    reading="""\
Microseconds of `apply(model, plan)`: on a model that has no plan yet, with a plan that it has not met,
and with one that it has; the last also at the 99th percentile. `compact` is cutting the plan into a
smaller model instead.""",
    head=["backbone", "plans", "first of all", "new plan", "switch", "p99", "compact"],
    left=1,
    measure=_measure,
    cells=_cells,
)
