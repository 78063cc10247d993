"""What a simulated run gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leeboard.sim.critical_path import CriticalPath, critical_path
from leeboard.sim.records import PICOSECONDS, RECORD
from leeboard.sim.requests import TIMES, Requests, summary
from leeboard.sim.result_tables import energies, link_table, rank_table
from leeboard.sim.table import Table, text_of

if TYPE_CHECKING:
    from leeboard.sim.names import Names
    from leeboard.sim.platform import Platform
    from leeboard.sim.trace import Trace


@dataclass(frozen=True)
class OutOfMemory:
    """A rank's first allocation that its device could not hold; the run went on."""

    rank: int
    at: float
    in_use: int
    limit: int
    requested: int

    def __str__(self) -> str:
        use, limit, asked = (text_of(n, "B") for n in (self.in_use, self.limit, self.requested))
        return (
            f"rank {self.rank} at {text_of(self.at, 's')}: {asked} asked for with {use} in use "
            f"of {limit}"
        )


@dataclass(frozen=True)
class Failure:
    """A rank that stopped for good because its device did."""

    rank: int
    at: float

    def __str__(self) -> str:
        return f"rank {self.rank} stopped at {text_of(self.at, 's')}"


def _all(names: Names) -> list[str]:
    """What `names[0]`, `names[1]`, ... give, for many."""
    return [
        group.name if group.count is None else f"{group.name}.{i}"
        for group in names.groups
        for i in range(len(group))
    ]


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """What a run gives back; `print(result)` sums it up. Times are float seconds.

    Attributes:
        makespan_ps: Picoseconds from the start until the last rank was done.
        events: Events of the simulation.
        messages: Messages between ranks, those of collectives too.
        event_hash: 16 hexadecimal digits over all events; equal runs have equal hashes.
        network: "flow" or "alpha-beta".
        seed: Of everything random.
        ranks: A row per rank: rank, device, finish, compute, communication (its own thread was
            blocked in communication and its device did not compute), idle (all the rest of the
            makespan), sent, received, peak_memory, energy (joules).
        links: A row per link and direction: link, source, target, bandwidth, bytes, busy,
            utilisation (share of what it could have carried).
        energy: Joules that all devices drew, those without a rank too; 0 where no device of the
            platform says what it draws.
        queues: Of each queue of requests what came when (see `requests` for the summary).
        records: The timeline, a RECORD array in order of creation; empty if it was not asked for.
        unmatched: Messages and receives that were left over: nobody waited for them.
        records_dropped: There were more records than asked for, so there are none.
        names: Of the marks.
        link_use: float32 [links, bins]: share of each link's bandwidth over time; empty if it was
            not asked for.
        bin: Seconds of one column of `link_use`.
        out_of_memory: Which ranks ran out of memory, when and how.
        failures: Which ranks stopped because their device failed.
    """

    makespan_ps: int
    events: int
    messages: int
    event_hash: str
    network: str
    seed: int
    ranks: Table
    links: Table
    energy: float = 0.0
    queues: tuple[Requests, ...] = ()
    records: np.ndarray = field(default_factory=lambda: np.zeros(0, RECORD))
    records_dropped: bool = False
    unmatched: int = 0
    names: tuple[str, ...] = ()
    link_use: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    bin: float = 0.0
    out_of_memory: tuple[OutOfMemory, ...] = ()
    failures: tuple[Failure, ...] = ()

    @classmethod
    def from_core(
        cls,
        raw: Mapping[str, Any],
        trace: Trace,
        platform: Platform,
        *,
        network: str = "flow",
        seed: int = 0,
        core: Mapping[str, Any] | None = None,
    ) -> Result:
        """Read what `_C.sim_run` returned.

        Args:
            raw: Its dict.
            trace: What was run.
            platform: On what.
            network: Name of the network model.
            seed: That the run was given.
            core: `platform.core()`, if it is at hand.
        """
        core = platform.core() if core is None else core
        makespan = int(raw["makespan"])
        devices = _all(platform.devices)
        nodes = [*devices, *_all(platform.graph.switches)]
        ranks = len(raw["ranks"]["finish"])
        placement = np.asarray(core["placement"], np.int64)
        device_of = placement if len(placement) else np.arange(ranks)
        energy, total = energies(raw["ranks"]["compute"], makespan, device_of, platform.power())
        links, rows = link_table(raw["links"], makespan, _all(platform.graph.links), nodes, core)
        use = np.asarray(raw["utilisation"], np.float32)
        return cls(
            makespan_ps=makespan,
            events=int(raw["events"]),
            messages=int(raw["messages"]),
            event_hash=str(raw["hash"]),
            network=network,
            seed=seed,
            ranks=rank_table(raw["ranks"], makespan, device_of, devices, energy),
            links=links,
            energy=total,
            queues=tuple(
                Requests(about["name"], *(np.asarray(times[key], np.uint64) for key in TIMES))
                for about, times in zip(trace.queues, raw["requests"], strict=True)
            ),
            records=np.asarray(raw["records"], RECORD),
            records_dropped=bool(raw["records_dropped"]),
            unmatched=int(raw["unmatched"]),
            names=tuple(trace.names),
            link_use=use[rows] if use.size else np.zeros((0, 0), np.float32),
            bin=int(raw["bin_ps"]) / PICOSECONDS,
            out_of_memory=tuple(
                OutOfMemory(int(r), int(at) / PICOSECONDS, int(u), int(limit), int(asked))
                for r, at, u, limit, asked in raw["out_of_memory"]
            ),
            failures=tuple(Failure(int(r), int(at) / PICOSECONDS) for r, at in raw["failed"]),
        )

    @property
    def makespan(self) -> float:
        """Seconds from the start until the last rank was done."""
        return self.makespan_ps / PICOSECONDS

    @cached_property
    def requests(self) -> Table:
        """A row per queue: queue, count, unanswered, throughput (answers a second), mean waiting
        and service, mean, p50, p90, p99 and max latency."""
        return summary(self.queues)

    @cached_property
    def critical_path(self) -> CriticalPath:
        """The chain of things that made the makespan, and what each waited for.

        Raises:
            ValueError: The run kept no timeline.
        """
        self.need_records("the critical path")
        return critical_path(self.records)

    def need_records(self, what: str) -> None:
        """Raise a ValueError if there is no timeline for `what`."""
        if self.records_dropped:
            raise ValueError(f"{what} needs the timeline, which was larger than `records` allowed")
        if not len(self.records):
            raise ValueError(f"{what} needs the timeline: run with timeline=True")

    def shares(self) -> dict[str, float]:
        """Mean shares of the makespan that ranks compute, communicate and idle; they add up to 1."""
        total = self.makespan * len(self.ranks)
        names = ("compute", "communication", "idle")
        return {name: float(self.ranks[name].sum()) / total if total else 0.0 for name in names}

    def to_json(self, path: str | Path) -> None:
        """Write everything to a file for `Result.load` (docs/sim/results.md). Atomic."""
        from leeboard.sim.result_file import save

        save(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Result:
        """Read a file of `to_json`.

        Raises:
            OSError: No such file.
            ResultError: Not a result, cut off, or of a newer version.
        """
        from leeboard.sim.result_file import load

        return load(path)

    def to_perfetto(self, path: str | Path) -> None:
        """Write the timeline for https://ui.perfetto.dev: .json, or .json.gz. Atomic.

        Raises:
            ValueError: The run kept no timeline.
        """
        from leeboard.sim.perfetto import write

        write(self, path)

    def plot(self, path: str | Path | None = None) -> Any:
        """Draw who did what when, how full the links were, and the latencies of requests.

        Args:
            path: Where to write the picture (its suffix tells the format); None: nowhere.

        Returns:
            The matplotlib Figure.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        from leeboard.sim.plot import plot

        return plot(self, path)

    def __repr__(self) -> str:
        time = text_of(self.makespan, "s")
        return f"<Result: {time}, {len(self.ranks)} ranks, hash {self.event_hash}>"

    def __str__(self) -> str:
        from leeboard.sim.summary import summarise

        return summarise(self)
