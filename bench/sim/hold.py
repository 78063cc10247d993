"""The event queue alone: the hold model against std::priority_queue."""

from __future__ import annotations

from bench.part import Part, Row, say, wait_for_quiet
from leeboard import _C

STRUCTURES = ("queue", "heap", "standard")
JUMPS = ("exponential", "bimodal", "ties", "now", "far")
# Nanoseconds a hold, by pending events, where jumps are exponential.
AIMS = {1000: 70.0, 1_000_000: 120.0}


def measure(quick: bool) -> list[Row]:
    """The fastest of a few runs; every structure must pop the same events."""
    rows = []
    holds, repeats = (200_000, 2) if quick else (2_000_000, 5)
    for jumps in JUMPS:
        for pending in (1000, 10_000, 100_000, 1_000_000):
            if quick and pending == 1_000_000 and jumps != "exponential":
                continue
            best = dict.fromkeys(STRUCTURES, float("inf"))
            sums = set()
            wait_for_quiet()
            # In turn, so that a disturbance does not hit one of them alone.
            for _ in range(repeats if pending < 1_000_000 else 2):
                for structure in STRUCTURES:
                    taken, checksum = _C.sim_hold(structure, pending, holds, jumps, 1)
                    best[structure] = min(best[structure], taken)
                    sums.add(checksum)
            assert len(sums) == 1, f"{jumps}, {pending} pending: the queues pop different events"
            aim = AIMS.get(pending) if jumps == "exponential" else None
            rows.append({"jumps": jumps, "pending": pending, "aim": aim, **best})
            say(f"hold {jumps} {pending}: {best['queue']:.0f} ns")
    return rows


def cells(row: Row) -> list[str]:
    own = row["queue"]
    aim = ""
    if row["aim"] is not None:
        aim = "met" if own <= row["aim"] else f"not within {row['aim']:.0f} ns"
    return [
        row["jumps"],
        f"{row['pending']:,}",
        *(f"{row[structure]:.0f}" for structure in STRUCTURES),
        f"{row['standard'] / own:.1f}x",
        aim,
    ]


PART = Part(
    name="hold",
    title="Event queue",
    reading=(
        "Nanoseconds a hold: the first event is taken out and put back later, so many being "
        "pending. Jumps: exponential; bimodal (nine of ten a hundredth as long as the others); "
        "ties (all the same, as ranks of one program have it); now (nine of ten none at all); far "
        "(one of a hundred 2^40 times as long). `heap` is the queue's own 4-ary heap alone, "
        "`standard` is std::priority_queue. All three pop the same events in the same order."
    ),
    head=("jumps", "pending", "queue", "heap", "standard", "faster", "aim"),
    left=1,
    measure=measure,
    cells=cells,
)
