"""The whole engine on plain messages, against SimPy and SimGrid on the same logical workload."""

from __future__ import annotations

import statistics
from typing import Any

from bench.sim import own, peer_simgrid, peer_simpy
from bench.sim.part import Part, Row, number, say
from bench.sim.workloads import Workload

PEERS: dict[str, Any] = {"simpy": peer_simpy, "simgrid": peer_simgrid}
PAIRS = (1, 64, 512, 4096)
RINGS = (8, 64, 256, 1024)
# Messages a second at the largest ring.
AIM = 5e6


def workloads(quick: bool) -> list[Workload]:
    """Of about so many messages that the slowest peer takes seconds."""
    messages = 20_000 if quick else 400_000
    pairs = [Workload("ping_pong", 2 * n).scaled(messages) for n in PAIRS]
    rings = [
        Workload("ring", n, bytes=4096).scaled(messages) for n in RINGS if not (quick and n > 128)
    ]
    return pairs + rings


def measure(quick: bool) -> list[Row]:
    """Every simulator's seconds, after its simulated end was found right."""
    rows = []
    for workload in workloads(quick):
        row: Row = {
            "kind": workload.kind,
            "ranks": workload.ranks,
            "messages": workload.messages,
            "end": workload.end,
        }
        for network in ("flow", "alpha-beta"):
            outcome = own.run(workload, network)
            outcome.check(workload)
            row[network] = outcome.seconds
        # Long enough that starting and reporting do not count.
        longer = workload.scaled(max(workload.messages, 200_000 if quick else 4_000_000))
        outcome = own.run(longer, "flow", repeats=2)
        outcome.check(longer)
        row["steady"] = outcome.seconds / longer.messages
        for name, peer in PEERS.items():
            row[name] = None
            if peer.installed():
                outcome = peer.run(workload)
                outcome.check(workload)
                row[name] = outcome.seconds
        rows.append(row)
        say(f"{workload.kind} {workload.ranks}: {1e-6 / row['steady']:.1f} M messages/s")
    return rows


def cells(row: Row) -> list[str]:
    messages = row["messages"]

    def rate(seconds: float | None) -> str:
        return "not installed" if seconds is None else number(messages / seconds / 1e6)

    def ratio(seconds: float | None) -> str:
        return "" if seconds is None else f"{seconds / row['flow']:.0f}x"

    return [
        "ping-pong" if row["kind"] == "ping_pong" else "ring all-reduce",
        str(row["ranks"]),
        f"{messages:,}",
        number(1e-6 / row["steady"]),
        rate(row["flow"]),
        rate(row["alpha-beta"]),
        rate(row["simpy"]),
        rate(row["simgrid"]),
        ratio(row["simpy"]),
        ratio(row["simgrid"]),
    ]


def summary(rows: list[Row]) -> list[str]:
    lines = []
    for kind, name in (("ping_pong", "Ping-pong"), ("ring", "Ring")):
        found = [row for row in rows if row["kind"] == kind]
        first, last = found[0], found[-1]
        lines.append(
            f"{name}: a message costs {last['steady'] / first['steady']:.2f} times as much with "
            f"{last['ranks']} ranks as with {first['ranks']}."
        )
    largest = max(rows, key=lambda row: (row["kind"] == "ring", row["ranks"]))
    met = "met" if 1 / largest["steady"] >= AIM else "not met"
    lines.append(
        f"Aim, {AIM / 1e6:.0f} million messages a second in a ring of 1,024: {met}"
        + (f" (measured at {largest['ranks']} ranks)." if largest["ranks"] != 1024 else ".")
    )
    for name, shown in (("simpy", "SimPy"), ("simgrid", "SimGrid S4U")):
        ratios = [row[name] / row["flow"] for row in rows if row[name] is not None]
        if ratios:
            mean = statistics.geometric_mean(ratios)
            lines.append(f"{shown} takes {mean:.0f} times as long in the geometric mean.")
    return lines


PART = Part(
    name="messages",
    title="Messages",
    reading=(
        "Million messages a second. `long`: a run of millions of messages, so that starting and "
        "reporting do not count; the other columns run the very same workload, start and report "
        "included. `flow` and `alpha-beta` are leeboard's network models; SimPy has a process a "
        "message and no network, SimGrid the fluid model without factors (CM02). Every simulated "
        "end was compared with latency and bandwidth's own arithmetic (1e-6) before its time was "
        "believed. The last columns: how many times as long a peer takes as `flow`."
    ),
    head=(
        "workload",
        "ranks",
        "messages",
        "long",
        "flow",
        "alpha-beta",
        "SimPy",
        "SimGrid",
        "SimPy /",
        "SimGrid /",
    ),
    left=1,
    measure=measure,
    cells=cells,
    summary=summary,
)
