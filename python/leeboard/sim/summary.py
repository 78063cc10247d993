"""A result in a few lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from leeboard.sim.table import text_of

if TYPE_CHECKING:
    from leeboard.sim.result import Result

_SHOWN = 4


def summarise(result: Result) -> str:
    """What `print(result)` prints."""
    lines = [f"{'makespan':<15} {text_of(result.makespan, 's')}"]
    lines += [f"{name:<15} {text}" for name, text in _facts(result)]
    return "\n".join(lines)


def _facts(result: Result) -> Iterator[tuple[str, str]]:
    ranks, links = result.ranks, result.links
    yield "ranks", f"{len(ranks):,}, of whose time"
    for name, share in result.shares().items():
        per_rank = ranks[name]
        low, high = (text_of(float(f(per_rank)), "s") for f in (np.min, np.max))
        yield f"  {name}", f"{text_of(share, '%')} ({low} to {high} a rank)"
    if len(ranks) > 1:
        last = int(np.argmax(ranks["finish"]))
        yield "  last", f"rank {last} on {ranks['device'][last]}"
    yield "messages", f"{result.messages:,}, {text_of(int(ranks['sent'].sum()), 'B')} sent"
    if len(links) and links["bytes"].any():
        top = int(np.argmax(links["utilisation"]))
        row = links.row(top)
        used = text_of(row["utilisation"], "%")
        where = f"{row['link']} ({row['source']} to {row['target']})"
        yield "busiest link", f"{where}: {used} of its bandwidth over the run"
    if len(result.records):
        path = result.critical_path
        parts = {kind: part for kind, part in path.totals().items() if part}
        shown = ", ".join(f"{kind} {text_of(part, 's')}" for kind, part in parts.items())
        yield "critical path", shown
    for row in result.requests:
        percentiles = ", ".join(f"{p} {text_of(row[p], 's')}" for p in ("p50", "p90", "p99"))
        left = f", {row['unanswered']:,} unanswered" if row["unanswered"] else ""
        rate = f"{text_of(row['throughput'])} a second"
        yield "requests", f"{row['queue']}: {row['count']:,}{left}, {rate}; latency {percentiles}"
    if result.energy:
        yield "energy", text_of(result.energy, "J")
    yield from _few("out of memory", result.out_of_memory)
    yield from _few("failed", result.failures)
    if result.unmatched:
        yield "left over", f"{result.unmatched:,} messages and receives that never met"
    if result.records_dropped:
        yield "timeline", "dropped: it was larger than allowed"
    yield "simulated", f"{result.network} network, seed {result.seed}, {result.events:,} events"
    yield "event hash", result.event_hash


def _few(name: str, things: Sequence[object]) -> Iterator[tuple[str, str]]:
    for thing in things[:_SHOWN]:
        yield name, str(thing)
    if len(things) > _SHOWN:
        yield name, f"... and {len(things) - _SHOWN:,} more"
