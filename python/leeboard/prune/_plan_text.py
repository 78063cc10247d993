"""Plans as tables for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from leeboard.prune.plan import Plan

_PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def text(plan: Plan) -> str:
    """What a plan costs, and a row for each sublayer."""
    lines = [
        f"Plan for {', '.join(plan.present)} within {plan.budget}"
        + (f", ranked by {plan.ranking}" if plan.ranking else "")
    ]
    lines += [f"  {line}" for line in _totals(plan)]
    header = ["sublayer", "kept", "units", "MAC", "share"]
    timed = any(part.milliseconds is not None for part in plan.parts.values())
    rows = [_row(plan, name, timed) for name in plan.keep]
    lines.append("")
    lines.append(aligned([*header, *(["ms"] if timed else []), ""], rows))
    return "\n".join(lines)


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns under a header; the first and the last are flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    last = len(widths) - 1
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in (0, last) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (header, *rows)
    )


def amount(value: float, unit: str) -> str:
    """E.g. "3.04 MMAC", "122 kB"."""
    scale, prefix = next((p for p in _PREFIXES if value >= p[0]), (1.0, ""))
    return f"{value / scale:.4g} {prefix}{unit}".rstrip()


def _totals(plan: Plan) -> list[str]:
    found = []
    for title, value, dense, unit in (
        ("compute", plan.macs, plan.dense_macs, "MAC"),
        ("weights", plan.bytes, plan.dense_bytes, "B"),
    ):
        if dense:
            share = f"{100.0 * value / dense:.1f} %"
            found.append(f"{title}     {amount(value, unit)} of {amount(dense, unit)} ({share})")
    if plan.milliseconds is not None and plan.dense_milliseconds:
        share = f"{100.0 * plan.milliseconds / plan.dense_milliseconds:.1f} %"
        times = f"{plan.milliseconds:.3f} ms of {plan.dense_milliseconds:.3f} ms"
        found.append(f"time        {times} ({share}), predicted")
    found.append(f"importance  {100.0 * plan.score:.1f} % kept")
    return found


def _row(plan: Plan, name: str, timed: bool) -> list[str]:
    kept, part = plan.keep[name], plan.parts.get(name)
    notes = [] if kept else ["dropped"]
    notes += ["rescaled"] if name in plan.scales else []
    notes += ["bias"] if name in plan.bias else []
    row = [name, str(len(kept)), "-", "-", "-"]
    if part is not None:
        share = f"{100.0 * part.macs / part.dense_macs:.0f} %" if part.dense_macs else "-"
        row[2:] = [str(part.units), amount(part.macs, ""), share]
    if timed:
        known = part is not None and part.milliseconds is not None
        row.append(f"{part.milliseconds:.3f}" if known else "-")  # type: ignore[union-attr]
    return [*row, ", ".join(notes)]
