"""Size: idle devices, one all-reduce of many, long replays; time, and memory of a fresh process."""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

from bench.memory import status
from bench.part import Part, Row, in_fresh_process, megabytes, number, say, wait_for_quiet
from bench.sim.own import Network
from leeboard.sim import Platform, Program, Trace, replay

BANDWIDTH, LATENCY = 12.5e9, 5e-6
BYTES = 1 << 26
REPLAY_RANKS = 64
# The alpha-beta model computes a ring of ranks that have their links to themselves as a recurrence.
NETWORKS: dict[str, Network] = {
    "idle": "flow",
    "binomial_tree": "flow",
    "ring": "flow",
    "folded": "alpha-beta",
    "replay": "flow",
}
# Seconds that one point of the ring's law may take, as foreseen from the point before.
PATIENCE = {True: 2.0, False: 120.0}


def _star(devices: int) -> Platform:
    return Platform.star(devices, bandwidth=BANDWIDTH, latency=LATENCY, protocol="ideal")


def _all_reduce(devices: int, algorithm: str) -> Trace:
    program = Program(devices)
    program.all_reduce(bytes=BYTES, algorithm=algorithm)
    return program.trace()


def steps(rounds: int, ranks: int = REPLAY_RANKS) -> Trace:
    """Ranks that compute, each at its own pace, and pass something on; `rounds` times."""
    program = Program(ranks)
    for me, rank in enumerate(program):
        with rank.loop(rounds):
            rank.compute(seconds=1e-6 * (1 + me / ranks))
            sent = rank.isend((me + 1) % ranks, 1000 + me)
            rank.recv((me - 1) % ranks)
            rank.wait(sent)
    return program.trace()


def steps_of(events: int) -> Trace:
    """`steps` with about so many events."""
    probe = replay(steps(100), _star(REPLAY_RANKS), timeline=False, links=False)
    return steps(max(1, round(events * 100 / probe.events)))


def _subject(what: str, size: int) -> tuple[Platform, Trace]:
    if what == "idle":
        return _star(size), Program(size).trace()
    if what == "replay":
        return _star(REPLAY_RANKS), steps_of(size)
    algorithm = "ring" if what == "folded" else what
    return _star(size), _all_reduce(size, algorithm)


def _one(what: str, size: int) -> Row:
    """A point, measured in this process."""
    # Libraries load, tables fill.
    replay(steps(10), _star(REPLAY_RANKS), timeline=False, links=False)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    start = time.perf_counter()
    platform, trace = _subject(what, size)
    built = time.perf_counter()
    result = replay(trace, platform, network=NETWORKS[what], timeline=False, links=False)
    ran = time.perf_counter()
    return {
        "what": what,
        "size": size,
        "build": built - start,
        "run": ran - built,
        "peak": status("VmHWM") - before,
        "events": result.events,
        "messages": result.messages,
        "makespan": result.makespan,
    }


def _check(row: Row) -> None:
    """Raise AssertionError unless an idle network's arithmetic gives the simulated end."""
    ranks = row["size"]
    if row["what"] in ("ring", "folded"):
        low = 2 * (ranks - 1) * (LATENCY + (BYTES // ranks) / BANDWIDTH)
        # Chunks differ by a byte; a picosecond a message is rounding.
        high = low + 2 * (ranks - 1) * (1 / BANDWIDTH + 2e-12)
    elif row["what"] == "binomial_tree":
        # Ranks are a power of two.
        levels = 2 * (ranks.bit_length() - 1)
        low = levels * (LATENCY + BYTES / BANDWIDTH)
        high = low + levels * 2e-12
    else:
        return
    assert low * (1 - 1e-9) <= row["makespan"] <= high * (1 + 1e-9), (row, low, high)


def measure(quick: bool) -> list[Row]:
    """Points in order of size; the ring goes on doubling until it would take too long."""
    rows: list[Row] = []

    def add(what: str, size: int) -> Row:
        wait_for_quiet()
        row = in_fresh_process("bench.sim.scale", what, size)
        _check(row)
        rows.append(row)
        say(f"{what} {size:,}: {row['run']:.2f} s, {row['peak'] / 1e6:.0f} MB")
        return row

    for devices in (4096, 65_536) if quick else (65_536, 1_048_576):
        add("idle", devices)
    for devices in (1024, 4096) if quick else (1024, 8192, 65_536):
        add("binomial_tree", devices)
    devices, foreseen = 1024, 0.0
    while devices <= 65_536 and foreseen <= PATIENCE[quick]:
        foreseen = 4 * add("ring", devices)["run"]
        devices *= 2
    for devices in (4096,) if quick else (1024, 8192, 65_536):
        add("folded", devices)
    for exponent in (5, 6) if quick else (6, 7, 8):
        add("replay", 10**exponent)
    return rows


NAMES = {
    "idle": "idle devices",
    "binomial_tree": "all-reduce, tree",
    "ring": "all-reduce, ring",
    "folded": "all-reduce, ring, alpha-beta",
    "replay": f"replay, {REPLAY_RANKS} ranks",
}


def cells(row: Row) -> list[str]:
    own = row["run"]
    return [
        NAMES[row["what"]],
        f"{row['size']:,}",
        f"{row['messages']:,}",
        f"{row['events']:,}",
        number(row["build"]),
        number(own),
        number(row["events"] / own / 1e6) if row["events"] else "",
        megabytes(row["peak"]),
    ]


def _law(rows: list[Row], what: str, key: str) -> str:
    """The exponent between the last two points."""
    a, b = [row for row in rows if row["what"] == what][-2:]
    power = math.log(b[key] / a[key]) / math.log(b["size"] / a["size"])
    return f"size^{power:.2f}"


def summary(rows: list[Row]) -> list[str]:
    small, large = [row for row in rows if row["what"] == "idle"][-2:]
    each = (large["peak"] - small["peak"]) / (large["size"] - small["size"])
    lines = [f"An idle device takes {each:.0f} bytes."]
    lines += [
        f"{NAMES[what]}: time grows as {_law(rows, what, 'run')} over the last two points."
        for what in ("binomial_tree", "ring", "folded", "replay")
        if sum(row["what"] == what for row in rows) > 1
    ]
    return lines


PART = Part(
    name="scale",
    title="Scale",
    reading=(
        "Devices around one switch, each row in a process of its own: seconds to build platform "
        "and program and to run, million events a second, peak resident memory in MB above that "
        "of the loaded package. Size is devices, or events of a replay. All-reduces are of 64 MiB; "
        "their simulated ends were compared with the arithmetic of an idle network. The ring sends "
        "2 N (N - 1) messages, where the tree sends 2 (N - 1). Under alpha-beta the rounds of a "
        "ring that has its links to itself are a recurrence: it ends when the messages would."
    ),
    head=("what", "size", "messages", "events", "build", "run", "M events/s", "peak MB"),
    left=1,
    measure=measure,
    cells=cells,
    summary=summary,
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.sim.scale")
    parser.add_argument("--one", nargs=2, required=True, metavar=("WHAT", "SIZE"))
    what, size = parser.parse_args().one
    print(json.dumps(_one(what, int(size))))


if __name__ == "__main__":
    main()
