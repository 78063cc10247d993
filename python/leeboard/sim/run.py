"""Running a program or a trace on a platform."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from leeboard import _C
from leeboard.sim.errors import (
    Blocked,
    CollectiveMismatchError,
    DeadlockError,
    SimulationError,
)
from leeboard.sim.names import integer
from leeboard.sim.program import Program
from leeboard.sim.result import Result
from leeboard.sim.trace import OpKind, Trace

if TYPE_CHECKING:
    from leeboard.sim.platform import Platform

NETWORKS = ("flow", "alpha-beta")
# Records of 56 bytes; a timeline that would grow beyond is left out unless it is asked for.
RECORDS = 1_000_000
# Bins of link use over time: this many, but for platforms of so many links that they would not fit.
BINS, FEWEST_BINS, MOST_CELLS = 200, 10, 8_000_000
_SECOND = 1e12


def run(
    program: Program | Trace,
    platform: Platform,
    *,
    network: Literal["flow", "alpha-beta"] = "flow",
    seed: int = 0,
    timeline: bool | None = None,
    links: bool = True,
) -> Result:
    """Run a program on a platform and return what it took.

    Args:
        program: A `Program`, or a `Trace` (a compiled program).
        platform: What it runs on. Rank r runs on device r unless the platform places it.
        network: "flow": messages on a link share it max-min fairly. "alpha-beta": a message takes
            latency + bytes / bandwidth, and only the first and the last link of its route
            contend; faster.
        seed: Of everything random: jitter, loss, drawn compute times, arrivals. Equal inputs and
            seeds give equal events (`Result.event_hash`).
        timeline: Whether to keep what happened when (critical path, Perfetto, timeline plot). None:
            yes, unless it grows beyond a million records.
        links: Whether to keep what each link carried over time. With neither, the messages of rings
            that have the alpha-beta network to themselves are counted and timed all the same, but
            are no events of their own: the hash is another, and another than that of the `launch`
            that recorded the trace.

    Raises:
        DeadlockError: Nothing can happen any more; it says which rank waits for what, since when.
        CollectiveMismatchError: Ranks disagree on a collective; it says which and on what.
        SimulationError: The program asks for something impossible (a message larger than its
            receive, a request that nobody holds, more than 106 simulated days).
        ValueError: An argument is wrong, or program and platform do not fit together.
    """
    if network not in NETWORKS:
        raise ValueError(f"network: got {network!r}, expected one of {', '.join(NETWORKS)}")
    seed = integer("seed", seed, 0, 2**64 - 1)
    trace = program.trace() if isinstance(program, Program) else program
    core = platform.core()
    raw = _C.sim_run(trace.compiled(), core, options(core, network, seed, timeline, links))
    raise_for(raw, trace, platform, core)
    return Result.from_core(raw, trace, platform, network=network, seed=seed, core=core)


def replay(
    trace: Trace,
    platform: Platform,
    *,
    network: Literal["flow", "alpha-beta"] = "flow",
    seed: int = 0,
    timeline: bool | None = None,
    links: bool = True,
) -> Result:
    """Run a recorded trace on a platform: `run`, with no Python between events."""
    return run(trace, platform, network=network, seed=seed, timeline=timeline, links=links)


def options(
    core: dict[str, Any], network: str, seed: int, timeline: bool | None, links: bool
) -> dict[str, Any]:
    """What `_C.sim_run` takes beside program and platform, from the arguments of `run`.

    Args:
        core: `platform.core()`.
        network: See `run`.
        seed: See `run`.
        timeline: See `run`.
        links: See `run`.
    """
    return {
        "network": network,
        "seed": seed,
        "records": 2**32 if timeline else 0 if timeline is False else RECORDS,
        "bins": _bins(2 * len(core["link_a"])) if links else 0,
    }


def _bins(directions: int) -> int:
    return max(FEWEST_BINS, min(BINS, MOST_CELLS // max(directions, 1)))


def raise_for(raw: dict[str, Any], trace: Trace, platform: Platform, core: dict[str, Any]) -> None:
    """Raise what `run` raises if a run did not come to its end.

    Args:
        raw: What `_C.sim_run` returned.
        trace: What was run.
        platform: On what.
        core: `platform.core()`.
    """
    status = raw["status"]
    if status == "done":
        return
    if status == "deadlock":
        raise DeadlockError(
            [_blocked(entry, trace) for entry in raw["blocked"]],
            [(rank, at / _SECOND) for rank, at in raw["failed"]],
            _down(platform, core, raw["makespan"]),
        )
    raise (CollectiveMismatchError if status == "mismatch" else SimulationError)(raw["message"])


def _down(platform: Platform, core: dict[str, Any], until: int) -> list[tuple[str, float]]:
    """The links that are down at the end of a run, to stay so, and since when."""
    since: dict[int, int | None] = {}
    for link, at, factor in zip(*core["link_changes"], strict=True):
        since[int(link)] = int(at) if factor == 0 else None
    names = platform.graph.links
    return [
        (names[link], at / _SECOND)
        for link, at in sorted(since.items())
        if at is not None and at <= until
    ]


def _blocked(entry: dict[str, Any], trace: Trace) -> Blocked:
    op = trace.ops[entry["op"]]
    kind = OpKind(int(op["kind"]))
    peer, tag = int(op["peer"]), int(op["tag"])
    if kind is OpKind.SEND:
        text = f"rank {peer} to receive {int(op['a'])} bytes (tag {tag})"
    elif kind is OpKind.RECV:
        source = "a message of any rank" if peer < 0 else f"a message of rank {peer}"
        text = f"{source} ({'any tag' if tag < 0 else f'tag {tag}'})"
    elif kind is OpKind.COLLECTIVE:
        text = f"collective {entry['number']} of group {tag} ({trace.describe_op(entry['op'])})"
        if entry["missing"]:
            text += f", to which rank(s) {', '.join(map(str, entry['missing']))} have not come"
    elif kind is OpKind.SYNC:
        text = "its streams" if peer < 0 else f"its stream {peer}"
    elif kind is OpKind.AWAIT:
        text = "a signal of another rank (it is parked)"
    elif kind is OpKind.TAKE:
        text = f"a request of queue {tag}"
    else:
        text = trace.describe_op(entry["op"])
    return Blocked(entry["rank"], entry["stream"], entry["op"], text, entry["since"] / _SECOND)
