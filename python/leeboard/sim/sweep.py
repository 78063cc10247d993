"""What-ifs: one trace on many platforms, side by side, on any executor."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leeboard._version import __version__
from leeboard.sim.grid import Point, grid, points_of
from leeboard.sim.names import integer
from leeboard.sim.sweep_file import SweepFile, fingerprint
from leeboard.sim.table import Table

if TYPE_CHECKING:
    from leeboard.sim.platform import Platform
    from leeboard.sim.program import Program
    from leeboard.sim.result import Result
    from leeboard.sim.trace import Trace

__all__ = ["Point", "Sweep", "grid", "sweep"]

MEASURES = (
    "makespan",
    "compute",
    "communication",
    "idle",
    "energy",
    "p50",
    "p90",
    "p99",
    "unanswered",
    "messages",
    "events",
)
_UNITS = {
    **dict.fromkeys(("makespan", "p50", "p90", "p99"), "s"),
    **dict.fromkeys(("compute", "communication", "idle"), "%"),
    "energy": "J",
}
# A chunk is sent with the trace; so many a worker keep all of them busy to the end.
_CHUNKS, _LARGEST_CHUNK = 8, 32

Task = tuple[str, "Platform", str, int]


class Sweep(Table):
    """The rows of a sweep: the parameters, network and seed of a point, and what came out.

    Columns: the parameters; network, seed; makespan (seconds); compute, communication, idle (shares
    of the ranks' time); energy (joules); p50, p90, p99 (seconds, of all answered requests);
    unanswered, messages, events; event_hash; error (None, or why there is nothing else).
    """

    def __init__(self, parameters: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
        self.parameters = tuple(parameters)
        columns: dict[str, np.ndarray] = {}
        for name in (*self.parameters, "network", "seed", "event_hash", "error"):
            columns[name] = np.empty(len(rows), object)
            columns[name][:] = [row[name] for row in rows]
        for name in MEASURES:
            values = [row[name] for row in rows]
            columns[name] = np.array([np.nan if v is None else v for v in values], np.float64)
        order = (*self.parameters, "network", "seed", *MEASURES, "event_hash", "error")
        super().__init__({name: columns[name] for name in order}, _UNITS)

    def best(self, measure: str = "makespan", *, largest: bool = False) -> dict[str, Any]:
        """The row with the smallest (or largest) value of a column; points that failed do not count.

        Raises:
            ValueError: No point has a value.
        """
        values = self[measure]
        if not np.isfinite(values).any():
            raise ValueError(f"measure: no point has a {measure}")
        return self.row(int(np.nanargmax(values) if largest else np.nanargmin(values)))

    @property
    def failures(self) -> Table:
        """The rows of the points that failed."""
        return self.take(np.array([error is not None for error in self["error"]], bool))

    def __str__(self) -> str:
        # What is the same everywhere, or nowhere, says nothing.
        shown = {name: self[name] for name in self.columns if name != "event_hash"}
        for name in ("network", "seed"):
            if len(set(shown[name])) == 1:
                del shown[name]
        for name in ("energy", "p50", "p90", "p99", "unanswered"):
            if not np.nan_to_num(shown[name]).any():
                del shown[name]
        if not len(self.failures):
            del shown["error"]
        return Table.__str__(Table(shown, self.units))


def sweep(
    trace: Trace | Program,
    platforms: Platform | Mapping[str, Platform] | Sequence[Platform | Point],
    *,
    executor: Executor | None = None,
    network: str | Sequence[str] = "flow",
    seeds: Iterable[int] = (0,),
    progress: bool = True,
    resume: str | Path | None = None,
) -> Sweep:
    """Run a trace on every platform, with every network model and seed.

    Args:
        trace: What to run; a program is compiled once.
        platforms: By name, in a list, or the points of a `grid`.
        executor: Any `concurrent.futures.Executor`: a process pool, Dask's
            `Client.get_executor()`, mpi4py's. None: threads, one per core (a run does not hold
            Python's lock). It is not shut down.
        network: "flow" or "alpha-beta", or both.
        seeds: Of everything random.
        progress: Draw a progress bar on a terminal, if tqdm is installed.
        resume: A file that keeps what is done (JSON lines, by content of trace, platform and
            options): a sweep that was interrupted goes on from there. Points that failed for want
            of a worker are run again; points whose program fails are not.

    Returns:
        A row per point, in order: platforms, then networks, then seeds. A point that fails is a row
        with its error.

    Raises:
        ValueError: A platform, network or seed is none; nothing has run.
    """
    from leeboard.sim.program import Program
    from leeboard.sim.run import NETWORKS

    points = points_of(platforms)
    networks = [network] if isinstance(network, str) else list(network)
    for name in networks:
        if name not in NETWORKS:
            raise ValueError(f"network: got {name!r}, expected one of {', '.join(NETWORKS)}")
    compiled = trace.trace() if isinstance(trace, Program) else trace
    print_of_trace = fingerprint(__version__, compiled.core())
    chosen = [integer("seeds", seed, 0, 2**64 - 1) for seed in seeds]
    labels, tasks = [], []
    for point in points:
        print_of_platform = fingerprint(point.platform.core(), point.platform.power())
        for name in networks:
            for seed in chosen:
                key = fingerprint(print_of_trace, print_of_platform, name, seed)
                labels.append({**point.parameters, "network": name, "seed": seed})
                tasks.append((key, point.platform, name, seed))
    with _file(resume) as file:
        rows = {} if file is None else file.rows
        done = {key: row for key, row in rows.items() if set(row) >= {*MEASURES, "error"}}
        left = list({task[0]: task for task in tasks if task[0] not in done}.values())
        with _bar(len(left), progress) as advance, _pool(executor) as pool:
            for key, row, keep in _rows(pool, print_of_trace, compiled, left):
                done[key] = row
                if file is not None and keep:
                    file.add(key, row)
                advance(1)
    parameters = list(points[0].parameters) if points else []
    table = [{**done[task[0]], **label} for task, label in zip(tasks, labels, strict=True)]
    return Sweep(parameters, table)


def _rows(
    pool: Executor, name: str, trace: Trace, tasks: Sequence[Task]
) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """(key, row, whether it would come out the same again) of every task, as they come."""
    workers = getattr(pool, "_max_workers", None) or os.cpu_count() or 1
    size = max(1, min(len(tasks) // (workers * _CHUNKS), _LARGEST_CHUNK))
    chunks: dict[Future[Any], Sequence[Task]] = {}
    try:
        for begin in range(0, len(tasks), size):
            chunk = tasks[begin : begin + size]
            try:
                chunks[pool.submit(_run_chunk, name, trace, chunk)] = chunk
            except RuntimeError as error:
                # The pool broke.
                for task in chunk:
                    yield task[0], _failed(error), False
        for future in as_completed(chunks):
            died = future.exception()
            if died is not None:
                for task in chunks[future]:
                    yield task[0], _failed(died), False
            else:
                yield from future.result()
    finally:
        for future in chunks:
            future.cancel()


def _run_chunk(name: str, trace: Trace, tasks: Sequence[Task]) -> list[tuple[str, Any, bool]]:
    """In a worker."""
    return [(key, *_run(trace, platform, network, seed)) for key, platform, network, seed in tasks]


def _run(trace: Trace, platform: Platform, network: Any, seed: int) -> tuple[dict[str, Any], bool]:
    from leeboard.sim.errors import SimulationError
    from leeboard.sim.run import run

    try:
        result = run(trace, platform, network=network, seed=seed, timeline=False, links=False)
    except (SimulationError, ValueError) as error:
        return _failed(error), True
    except (ArithmeticError, LookupError, MemoryError, OSError, RuntimeError, TypeError) as error:
        return _failed(error), False
    return _measures(result), True


def _failed(error: BaseException) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys((*MEASURES, "event_hash"))
    first = str(error).split("\n", 1)[0]
    return row | {"error": f"{type(error).__name__}: {first}"}


def _measures(result: Result) -> dict[str, Any]:
    latency = [queue.latency for queue in result.queues]
    together = np.concatenate(latency) if latency else np.zeros(0)
    percentiles = np.percentile(together, (50, 90, 99)).tolist() if len(together) else [None] * 3
    asked = sum(len(queue) for queue in result.queues)
    return {
        "makespan": result.makespan,
        **result.shares(),
        "energy": result.energy,
        **dict(zip(("p50", "p90", "p99"), percentiles, strict=True)),
        "unanswered": asked - len(together) if latency else None,
        "messages": result.messages,
        "events": result.events,
        "event_hash": result.event_hash,
        "error": None,
    }


@contextmanager
def _file(path: str | Path | None) -> Iterator[SweepFile | None]:
    if path is None:
        yield None
        return
    file = SweepFile(path)
    try:
        yield file
    finally:
        file.close()


def _pool(executor: Executor | None) -> Any:
    if executor is not None:
        return nullcontext(executor)
    return ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="sweep")


@contextmanager
def _bar(total: int, wanted: bool) -> Iterator[Callable[[int], object]]:
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        yield lambda _: None
        return
    hidden = not wanted or not sys.stderr.isatty()
    with tqdm(total=total, desc="sweep", unit="point", disable=hidden) as bar:
        yield bar.update
