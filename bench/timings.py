"""One run's timings, what each case's rivals took, and what keeps a case from its aim."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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
    flop_share: float | None
    quick: bool

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
                flop_share=info["flop_share"],
                quick=info["quick"],
            )
        )
    return run["machine_info"], timings, run["datetime"][:10]


def microseconds(seconds: float) -> str:
    """A time in microseconds, with three digits or so."""
    us = seconds * 1e6
    return f"{us:.2f}" if us < 10 else f"{us:.1f}" if us < 100 else f"{us:,.0f}"


Point = dict[str, Timing]


def rivals(point: Point) -> dict[str, float]:
    """How many times as long the others take, by name."""
    own = point["leeboard"].median
    return {name: t.median / own for name, t in point.items() if not name.startswith("leeboard")}


def over_flops(point: Point) -> float | None:
    """Time over the share of the dense arithmetic, in time of the own dense call."""
    own, dense = point["leeboard"], point.get("leeboard-dense")
    if dense is None or own.flop_share is None:
        return None
    return own.median / (own.flop_share * dense.median)


def failures(point: Point) -> list[str] | None:
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
    ratios = rivals(point)
    for name, wanted in own.aim["ratios"].items():
        reached = min(ratios.values()) if name == "best" else ratios.get(name)
        if reached is not None and reached < wanted:
            missed.append(f"under {wanted:g}x {name}")
    over = over_flops(point)
    if own.aim["overhead"] is not None and over is not None and over > own.aim["overhead"]:
        missed.append(f"over flops above {own.aim['overhead']:g}")
    return missed


def points_of(timings: Iterable[Timing]) -> list[Point]:
    """Timings of the same case and thread count, by variant."""
    found: dict[tuple[str, str, int], Point] = {}
    for t in timings:
        found.setdefault((t.op, t.case, t.threads), {})[t.variant] = t
    return [point for point in found.values() if "leeboard" in point]
