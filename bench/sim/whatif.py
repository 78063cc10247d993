"""What-ifs: one recorded trace replayed on many platforms, on both cores."""

from __future__ import annotations

import time
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor

from bench.environment import CPUS
from bench.part import Part, Row, number, say, wait_for_quiet
from bench.sim.scale import REPLAY_RANKS, steps_of
from leeboard.sim import Platform, sweep

EVENTS = 100_000


def platforms(count: int) -> dict[str, Platform]:
    """Stars of `count` pairs of bandwidth and latency."""
    return {
        f"{i}": Platform.star(
            REPLAY_RANKS, bandwidth=1e9 * (1 + i % 40), latency=1e-6 * (1 + i // 40)
        )
        for i in range(count)
    }


def measure(quick: bool) -> list[Row]:
    """Seconds of a whole sweep, table included; every executor must give the same events."""
    count = 20 if quick else 1000
    trace = steps_of(EVENTS)
    points = platforms(count)
    rows: list[Row] = []
    found = set()
    makers: list[tuple[str, int, type[Executor]]] = [
        ("thread", 1, ThreadPoolExecutor),
        ("threads", CPUS, ThreadPoolExecutor),
        ("processes", CPUS, ProcessPoolExecutor),
    ]
    for name, workers, make in makers:
        with make(workers) as executor:  # type: ignore[call-arg]
            # Workers start before the clock does.
            sweep(trace, platforms(4 * workers), executor=executor, progress=False)
            wait_for_quiet()
            start = time.perf_counter()
            table = sweep(trace, points, executor=executor, progress=False)
            seconds = time.perf_counter() - start
        assert not len(table.failures), table.failures
        found.add(tuple(table["event_hash"]))
        events = int(table["events"].sum())
        rows.append(
            {
                "executor": name,
                "workers": workers,
                "what-ifs": count,
                "events": events,
                "seconds": seconds,
            }
        )
        say(f"what-ifs, {workers} {name}: {seconds:.2f} s")
    assert len(found) == 1, "the executors disagree on the events"
    return rows


def cells(row: Row) -> list[str]:
    return [
        f"{row['workers']} {row['executor']}",
        f"{row['what-ifs']:,}",
        f"{row['events'] // row['what-ifs']:,}",
        number(row["seconds"]),
        number(row["seconds"] / row["what-ifs"] * 1e3),
        number(row["events"] / row["seconds"] / 1e6),
    ]


PART = Part(
    name="whatif",
    title="What-ifs",
    reading=(
        "`sweep` of one trace over platforms that differ in bandwidth and latency: seconds of it "
        "all, milliseconds of one, million events a second. Every executor gives the same events."
    ),
    head=("executor", "what-ifs", "events of each", "seconds", "ms each", "M events/s"),
    left=1,
    measure=measure,
    cells=cells,
)
