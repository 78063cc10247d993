"""Many flows at once that share links max-min fairly, against SimGrid."""

from __future__ import annotations

from bench.part import Part, Row, number, say, wait_for_quiet
from bench.sim import own, peer_simgrid
from bench.sim.workloads import Workload

# Microseconds a flow, by ranks.
AIMS = {64: 10.0}


def measure(quick: bool) -> list[Row]:
    """Both simulators' seconds, after they agreed on the simulated end."""
    rows = []
    sizes = (32,) if quick else (32, 64, 128)
    for ranks, uneven in ((ranks, uneven) for uneven in (False, True) for ranks in sizes):
        workload = Workload("all_to_all", ranks, uneven=uneven)
        wait_for_quiet()
        outcome = own.run(workload, "flow", repeats=2)
        row: Row = {
            "ranks": ranks,
            "uneven": uneven,
            "flows": workload.messages,
            "end": outcome.end,
            "own": outcome.seconds,
            "simgrid": None,
        }
        if peer_simgrid.installed():
            peer = peer_simgrid.run(workload)
            outcome.check(workload, peer.end)
            row["simgrid"] = peer.seconds
        rows.append(row)
        kind = "uneven all-to-all" if uneven else "all-to-all"
        say(f"{kind} {ranks}: {outcome.seconds / workload.messages * 1e6:.1f} us a flow")
    return rows


def cells(row: Row) -> list[str]:
    own_us = row["own"] / row["flows"] * 1e6
    peer = row["simgrid"]
    aim = None if row["uneven"] else AIMS.get(row["ranks"])
    return [
        "all different" if row["uneven"] else "by distance",
        str(row["ranks"]),
        f"{row['flows']:,}",
        number(own_us),
        "not installed" if peer is None else number(peer / row["flows"] * 1e6),
        "" if peer is None else f"{peer / row['own']:.1f}x",
        "unchecked" if peer is None else f"{row['end']:.6f} s",
        "" if aim is None else "met" if own_us <= aim else f"not within {aim:.0f} us",
    ]


PART = Part(
    name="contention",
    title="Contention",
    reading=(
        "Microseconds of a flow. Every rank sends to every other one, all at once. Sizes by "
        "distance: a rank's messages are all different, and every rank's are the same, so that "
        "as many end together as there are ranks. All different: rates change as often as there "
        "are flows. SimGrid has the fluid model without factors (CM02). Both must end at the same "
        "simulated time (1e-6)."
    ),
    head=("sizes", "ranks", "flows", "leeboard", "SimGrid", "faster", "both end at", "aim"),
    left=1,
    measure=measure,
    cells=cells,
)
