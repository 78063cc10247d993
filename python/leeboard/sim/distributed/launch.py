"""Running a script on simulated ranks: threads of one process that hold the baton in turn."""

from __future__ import annotations

import ctypes
import shlex
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from leeboard import _C
from leeboard._progress import progress_line
from leeboard.sim.distributed import clock, failures, where, world
from leeboard.sim.distributed import compute as costs
from leeboard.sim.distributed.exchange import Exchange
from leeboard.sim.distributed.isolation import Isolation, ProcessState, Spaces
from leeboard.sim.distributed.patches import Patches
from leeboard.sim.distributed.rank import Meter, NoMeter, Rank, Stuck
from leeboard.sim.distributed.script import Prefixed, Script, environment, resolve
from leeboard.sim.distributed.session import Session
from leeboard.sim.errors import SimulationError
from leeboard.sim.names import integer
from leeboard.sim.ops import OP
from leeboard.sim.result import Result
from leeboard.sim.run import NETWORKS
from leeboard.sim.run import options as core_options
from leeboard.sim.table import text_of
from leeboard.sim.trace import COLUMNS, Trace

if TYPE_CHECKING:
    from leeboard.sim.platform import Platform

COMPUTE = costs.MODES
# Address space of a rank's stack; only what is touched takes memory.
_STACK = 16 << 20
_POLL = 0.2
_PATIENCE, _HASTE = 5.0, 0.5


@dataclass(frozen=True)
class Launched:
    """What `launch` gives back.

    Attributes:
        result: What the run took.
        trace: The program that the ranks turned out to be, for `replay`.
        values: What the function returned on each rank; of a script None.
        compute: What computing was charged for, by op where ops were seen.
    """

    result: Result
    trace: Trace
    values: list[Any] = field(default_factory=list)
    compute: costs.Report | None = None


def launch(
    target: str | Path | Callable[..., Any],
    platform: Platform,
    *,
    ranks: int | None = None,
    args: Sequence[Any] = (),
    compute: str | Callable[[Platform, int], Meter] = "measured",
    network: Literal["flow", "alpha-beta"] = "flow",
    seed: int = 0,
    timeline: bool | None = None,
    links: bool = True,
    profile: str | Path | None = None,
    scale: float | Literal["auto"] = "auto",
    fold: str | None = None,
    per_node: int | None = None,
    prefix: bool = False,
    progress: bool = False,
) -> Launched:
    """Run an ordinary torch.distributed program on a simulated platform.

    Args:
        target: A script, "-m module" as on python's command line, or a function that every rank
            calls with `args`.
        platform: What it runs on. Rank r runs on device r unless the platform places it.
        ranks: How many; None: as many as the platform has room for.
        args: The script's words; the function's arguments.
        compute: What computing costs (docs/sim/compute.md). "measured": the time it takes here,
            times `scale`; "profiled": what `profile` says; "roofline": by flops and bytes; "none":
            nothing. Or a function of the platform and a rank that makes its meter.
        network: As of `run`.
        seed: As of `run`; each rank's generators of random numbers start from it and the rank.
        timeline: As of `run`.
        links: As of `run`.
        profile: A file of `leeboard sim profile`, for "profiled".
        scale: How long a device of speed 1 takes for what takes this host a second, for "measured";
            "auto": 1 where the platform says nothing of the device's speed, else by a calibration.
        fold: Which ranks are alike (docs/sim/folding.md), such as "dp=8 tp=4"; None: each runs.
        per_node: Ranks of a node, which LOCAL_RANK counts; None: all are on one.
        prefix: Whether a line that rank 3 prints begins with "[rank 3] ".
        progress: Whether to show simulated time on a terminal.

    Raises:
        RankError: A rank's program raised, or exited with an error.
        DeadlockError: Nothing can happen any more; it says which rank waits where for what.
        CollectiveMismatchError: Ranks disagree on a collective.
        SimulationError: The script asks for something impossible, or never calls
            init_process_group.
        ValueError: An argument is wrong.
    """
    if not callable(compute) and compute not in COMPUTE:
        raise ValueError(f"compute: got {compute!r}, expected one of {', '.join(COMPUTE)}")
    if network not in NETWORKS:
        raise ValueError(f"network: got {network!r}, expected one of {', '.join(NETWORKS)}")
    seed = integer("seed", seed, 0, 2**64 - 1)
    ranks = _count(ranks, platform)
    per_node = ranks if per_node is None else integer("per_node", per_node, 1, ranks)
    script = resolve(target, args)
    core = platform.core()
    options = core_options(core, network, seed, timeline, links)
    live, exchange, numbers = _engine(platform, core, options, ranks, fold)
    session = Session(live, exchange, ranks)
    meters = _meters(compute, platform, profile, scale)
    outputs = {number: Prefixed(sys.stdout, number) for number in numbers if prefix}
    with Patches() as patches, Isolation() as isolation:
        world.install(patches)
        clock.install(patches)
        failures.forbid_processes(patches)
        crew = _Crew(session, script)
        for number in numbers:
            main = script.main()
            state = ProcessState(
                isolation.spaces,
                environment(number, ranks, per_node),
                _seed(seed, number),
                _own(script, outputs.get(number)),
                main,
            )
            crew.add(Rank(number, session, meters(number), state), main)
        with _told(crew, isolation.spaces, progress) as tell:
            crew.run(tell)
        for output in outputs.values():
            output.finish()
    crew.check()
    raw = live.outcome()
    report = costs.report_of(compute, [rank.meter for rank in session.ranks.values()])
    trace = _trace(live, session, script, report)
    failures.raise_for(raw, trace, platform, core, session, crew.lines)
    result = Result.from_core(raw, trace, platform, network=network, seed=seed, core=core)
    values = [crew.values.get(number) for number in range(ranks)]
    return Launched(result, trace, values, report)


def record(target: str | Path | Callable[..., Any], platform: Platform, **options: Any) -> Trace:
    """The program that a script's ranks turn out to be: `launch(...).trace`, for `replay`.

    Args:
        target: See `launch`.
        platform: See `launch`.
        options: Those of `launch`.
    """
    return launch(target, platform, **options).trace


class _Crew:
    """The threads of all ranks, from the first that starts to the end of the run."""

    def __init__(self, run: Session, script: Script) -> None:
        self.session = run
        self.script = script
        self.values: dict[int, Any] = {}
        self.error: BaseException | None = None
        self.lines: dict[int, str] = {}
        self._ranks: list[Rank] = []
        self._threads: list[threading.Thread] = []
        self._over = threading.Event()

    def add(self, rank: Rank, main: Any) -> None:
        """One rank more, and its `__main__`."""
        self._ranks.append(rank)
        thread = threading.Thread(
            target=self._live, args=(rank, main), name=f"rank {rank.number}", daemon=True
        )
        self._threads.append(thread)

    def run(self, tell: Callable[[], None]) -> None:
        """Run all programs to their end; `tell` is called now and then meanwhile."""
        core = self.session.core
        try:
            self._start()
            core.leave(self._ranks[0].number)
            while not self._over.wait(_POLL):
                tell()
        except BaseException:
            self._stop()
            raise
        self._join(_PATIENCE)

    def check(self) -> None:
        """Raise what a rank raised, or what is wrong with a script that ended well."""
        if self.error is not None:
            raise self.error
        session = self.session
        if len(self._ranks) > 1 and not session.joined and not self.script.plain:
            raise SimulationError(
                f"{self.script.name}: no rank called torch.distributed.init_process_group(), so "
                f"that {session.size} copies ran on their own: call it (no arguments are needed), "
                "or run with --nproc-per-node 1"
            )

    def _start(self) -> None:
        before = threading.stack_size(_STACK)
        try:
            for thread in self._threads:
                thread.start()
        except RuntimeError as error:
            raise SimulationError(
                f"ranks: this host lets no more threads than {len(threading.enumerate())} run "
                f"({error}), expected room for {len(self._threads)}: see `ulimit -u`, or use fewer"
            ) from error
        finally:
            threading.stack_size(before)

    def _live(self, rank: Rank, main: Any) -> None:
        """A rank's thread."""
        number, core = rank.number, rank.core
        rank.enter()
        try:
            core.enter(number)
            if rank.state is not None:
                rank.state.enter()
            self.values[number] = self._call(rank, main)
            following = core.finish(number)
            if following < 0:
                self._end()
            else:
                core.leave(following)
        except _C.SimAborted:
            pass
        except Stuck as error:
            self._end({number: where.line(_innermost(error))})
        except BaseException as error:  # noqa: BLE001
            self._fail(rank, error)

    def _fail(self, rank: Rank, error: BaseException) -> None:
        """A rank's program raised, unless another one did earlier in simulated time."""
        try:
            if not isinstance(error, SimulationError):
                rank.now()
        except _C.SimAborted:
            return
        except Stuck:
            pass
        self.error = failures.raised(self.session, rank.number, rank.core.clock(rank.number), error)
        self._end()

    def _call(self, rank: Rank, main: Any) -> Any:
        with ExitStack() as stack:
            # A backward pass stays on the rank's thread.
            stack.enter_context(torch.autograd.set_multithreading_enabled(False))
            for mode in rank.meter.modes():
                stack.enter_context(mode)
            rank.meter.resume(rank)
            value, how = None, "its program returned"
            try:
                value = self.script.call(main)
            except SystemExit as error:
                if error.code not in (None, 0):
                    raise
                how = "it called sys.exit"
            rank.flush()
        self.session.ended[rank.number] = how
        return value

    def _end(self, lines: dict[int, str] | None = None) -> None:
        """Nothing goes on from here; called by the rank that has the baton."""
        self.lines = {**failures.lines(self.session), **(lines or {})}
        self._over.set()
        self.session.core.abort()

    def _stop(self) -> None:
        """End everything at once: ranks that compute are interrupted, too."""
        self._over.set()
        self.session.core.abort()
        for thread in self._threads:
            if thread.ident is not None and thread.is_alive():
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(thread.ident), ctypes.py_object(Stuck)
                )
        self._join(_HASTE)

    def _join(self, patience: float) -> None:
        until = monotonic() + patience
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, until - monotonic()))


def _innermost(error: BaseException) -> FrameType | None:
    trace, frame = error.__traceback__, None
    while trace is not None:
        frame, trace = trace.tb_frame, trace.tb_next
    return frame


def _count(ranks: int | None, platform: Platform) -> int:
    room = platform.ranks
    if ranks is None:
        return room
    ranks = integer("ranks", ranks, 1, 2**24)
    if ranks > room or (len(platform.placement) and ranks != room):
        what = f"places {room} ranks" if len(platform.placement) else f"has {room} devices"
        raise ValueError(
            f"ranks: got {ranks}, but the platform {what}: use {room} (--nproc-per-node), or a platform with "
            "more (a placement may put several ranks on one device)"
        )
    return ranks


def _engine(
    platform: Platform,
    core: dict[str, Any],
    options: dict[str, Any],
    ranks: int,
    fold: str | None,
) -> tuple[Any, Any, list[int]]:
    """Engine, exchange, and which ranks run."""
    if fold is None:
        return _C.SimLive(ranks, core, options), Exchange(), list(range(ranks))
    from leeboard.sim.distributed import fold as folds

    folding = folds.Folding.parse(fold, ranks)

    def part(count: int, devices: tuple[int, ...]) -> Any:
        placed = [int(platform.placement[d]) if len(platform.placement) else d for d in devices]
        return _C.SimLive(count, platform.with_placement(placed).core(), options)

    live = folds.FoldCore(part, folding, folds.replay_raw(core, options))
    return live, folds.FoldExchange(live), list(folding.live)


def _meters(
    compute: str | Callable[[Platform, int], Meter],
    platform: Platform,
    profile: str | Path | None,
    scale: float | Literal["auto"],
) -> Callable[[int], Meter]:
    if compute == "none":
        return lambda rank: NoMeter()
    return lambda rank: costs.meter(compute, platform, rank, profile=profile, scale=scale)


def _seed(seed: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _own(script: Script, output: Any) -> dict[str, Any]:
    own: dict[str, Any] = {"argv": list(script.argv)}
    if script.folder:
        own["path"] = [script.folder, *sys.path]
    if output is not None:
        own["stdout"] = output
    return own


def _trace(live: Any, session: Session, script: Script, report: costs.Report) -> Trace:
    columns = {**live.program()}
    columns["ops"] = np.asarray(columns["ops"]).view(OP)
    return Trace(
        **{name: columns[name] for name in COLUMNS},
        names=tuple(session.names),
        metadata={
            "program": script.name,
            "arguments": shlex.join(script.argv[1:]) if not script.plain else "",
            **report.metadata(),
            "torch": torch.__version__,
        },
    )


@contextmanager
def _told(crew: _Crew, spaces: Spaces, progress: bool) -> Iterator[Callable[[], None]]:
    """Show simulated time and turns on a terminal."""
    if not (progress and sys.stderr.isatty()):
        yield lambda: None
        return
    with progress_line("simulating") as line:

        def tell() -> None:
            line.set_postfix_str(f"{text_of(spaces.clock / 1e12, 's')} simulated", refresh=True)
            spaces.asked = True

        yield tell
