"""The whole engine on plain messages, against SimPy and SimGrid on the same logical workload."""

from __future__ import annotations

import statistics
from typing import Any

from bench.part import Part, Row, number, say, wait_for_quiet
from bench.sim import own, peer_simgrid, peer_simpy
from bench.sim.workloads import Workload

PEERS: dict[str, Any] = {"simpy": peer_simpy, "simgrid": peer_simgrid}
PAIRS = (1, 64, 512, 4096)
RINGS = (8, 64, 256, 1024)
# What a peer is compared with: the model that does the same.
MODEL_OF = {"simpy": "alpha-beta", "simgrid": "flow"}
NETWORKS: tuple[own.Network, ...] = ("flow", "alpha-beta")
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
        # Long enough that starting and reporting do not count.
        longer = workload.scaled(max(workload.messages, 200_000 if quick else 4_000_000))
        for network in NETWORKS:
            wait_for_quiet()
            outcome = own.run(workload, network)
            outcome.check(workload)
            row[network] = outcome.seconds
            outcome = own.run(longer, network, repeats=2)
            outcome.check(longer)
            row[f"long {network}"] = outcome.seconds / longer.messages
        for name, peer in PEERS.items():
            row[name] = None
            if peer.installed():
                outcome = peer.run(workload)
                outcome.check(workload)
                row[name] = outcome.seconds
        rows.append(row)
        say(f"{workload.kind} {workload.ranks}: {1e-6 / row['long flow']:.1f} M messages/s")
    return rows


def cells(row: Row) -> list[str]:
    messages = row["messages"]

    def rate(seconds: float | None) -> str:
        return "not installed" if seconds is None else number(messages / seconds / 1e6)

    def ratio(peer: str) -> str:
        seconds = row[peer]
        return "" if seconds is None else f"{seconds / row[MODEL_OF[peer]]:.0f}x"

    return [
        "ping-pong" if row["kind"] == "ping_pong" else "ring all-reduce",
        str(row["ranks"]),
        f"{messages:,}",
        *(number(1e-6 / row[f"long {network}"]) for network in NETWORKS),
        *(rate(row[name]) for name in (*NETWORKS, *PEERS)),
        *(ratio(peer) for peer in PEERS),
    ]


def summary(rows: list[Row]) -> list[str]:
    lines = []
    for kind, name in (("ping_pong", "Ping-pong"), ("ring", "Ring")):
        found = [row for row in rows if row["kind"] == kind]
        first, last = found[0], found[-1]
        growth = [f"{last[f'long {n}'] / first[f'long {n}']:.2f} ({n})" for n in NETWORKS]
        lines.append(
            f"{name}: with {last['ranks']} ranks a message costs {' and '.join(growth)} times what "
            f"it costs with {first['ranks']}."
        )
    largest = max(rows, key=lambda row: (row["kind"] == "ring", row["ranks"]))
    for network in NETWORKS:
        rate = 1 / largest[f"long {network}"]
        met = "met" if rate >= AIM else "not met"
        lines.append(
            f"Aim, {AIM / 1e6:.0f} million messages a second in a ring of 1,024 ({network}): {met}"
            + (f" (measured at {largest['ranks']} ranks)." if largest["ranks"] != 1024 else ".")
        )
    for peer, name in (("simpy", "SimPy"), ("simgrid", "SimGrid S4U")):
        ratios = [row[peer] / row[MODEL_OF[peer]] for row in rows if row[peer] is not None]
        if ratios:
            mean = statistics.geometric_mean(ratios)
            lines.append(f"{name} takes {mean:.0f} times as long in the geometric mean.")
    return lines


PART = Part(
    name="messages",
    title="Messages",
    reading=(
        "Million messages a second, by leeboard's two network models and by its peers. The long "
        "runs of millions of messages show what a message costs; the other columns run the very "
        "same workload, starting and reporting included. SimPy has a process a message and no "
        "network; SimGrid has the fluid model without factors (CM02). Every simulated end was "
        "compared with what latency and bandwidth give (1e-6) before its time was believed. Last, "
        "how many times as long a peer takes as the model that does the same."
    ),
    head=(
        *("workload", "ranks", "messages", "long, flow", "long, alpha-beta"),
        *("flow", "alpha-beta", "SimPy", "SimGrid", "SimPy / alpha-beta", "SimGrid / flow"),
    ),
    left=1,
    measure=measure,
    cells=cells,
    summary=summary,
)
