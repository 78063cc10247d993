"""Running a script on simulated ranks: threads of one process that hold the baton in turn."""

from __future__ import annotations

import shlex
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from leeboard import _C
from leeboard.sim.distributed import clock, failures, futures, world
from leeboard.sim.distributed import compute as costs
from leeboard.sim.distributed.compute.make import Profiles
from leeboard.sim.distributed.crew import Crew, told
from leeboard.sim.distributed.exchange import Exchange
from leeboard.sim.distributed.isolation import Isolation, ProcessState
from leeboard.sim.distributed.leftovers import put_back
from leeboard.sim.distributed.patches import Patches
from leeboard.sim.distributed.rank import Meter, NoMeter, Rank
from leeboard.sim.distributed.readings import Held, Readings, settled
from leeboard.sim.distributed.script import Prefixed, Script, environment, resolve
from leeboard.sim.distributed.session import Session
from leeboard.sim.errors import SimulationError
from leeboard.sim.names import integer
from leeboard.sim.ops import OP
from leeboard.sim.result import Result
from leeboard.sim.run import NETWORKS
from leeboard.sim.run import options as core_options
from leeboard.sim.trace import COLUMNS, Trace

if TYPE_CHECKING:
    from leeboard.sim.platform import Platform

COMPUTE = costs.MODES

_RUNNING = threading.Lock()


@dataclass(frozen=True)
class Launched:
    """What `launch` gives back.

    Attributes:
        result: What the run took.
        trace: The program that the ranks turned out to be, for `replay`.
        values: What the function returned on each rank; of a script None.
        compute: What computing was charged for, by op where ops were seen.
        notes: What is not as it should be (docs/sim/folding.md); it goes to stderr, too.
    """

    result: Result
    trace: Trace
    values: list[Any] = field(default_factory=list)
    compute: costs.Report | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Ran:
    live: Any
    session: Session
    crew: Crew


def launch(
    target: str | Path | Callable[..., Any],
    platform: Platform,
    *,
    ranks: int | None = None,
    args: Sequence[Any] = (),
    compute: str | Callable[[Platform, int], Meter] | None = None,
    network: Literal["flow", "alpha-beta"] = "flow",
    seed: int = 0,
    timeline: bool | None = None,
    links: bool = True,
    profile: Profiles | None = None,
    scale: float | Literal["auto"] = "auto",
    memory: bool = False,
    fold: str | None = None,
    fake: bool | None = None,
    witness: str = "one",
    collective_call: float = 0.0,
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
            nothing. Or a function of the platform and a rank that makes its meter. None: "roofline"
            where tensors are fake, else "measured".
        network: As of `run`.
        seed: As of `run`; each rank's generators of random numbers start from it and the rank.
        timeline: As of `run`.
        links: As of `run`.
        profile: A file of `leeboard sim profile`, or several for devices of several kinds, for
            "profiled".
        scale: How long a device of speed 1 takes for what takes this host a second, for "measured";
            "auto": 1 where the platform says nothing of the device's speed, else by a calibration.
        memory: Whether to follow what tensors take, for the ranks' peaks and for devices that cannot
            hold it; with "profiled" and "roofline".
        fold: Which ranks are alike (docs/sim/folding.md), such as "dp=8 tp=4"; None: each runs.
        fake: Whether tensors have shapes but no values, and nothing is computed
            (docs/sim/folding.md). None: if the run is folded, unless `compute` is "measured".
        witness: Of a folded run: which ranks besides the representatives run, to check that they do
            the same: "one" of each class, "all", or "none".
        collective_call: Seconds that a rank waits at every call of a collective before anything is
            sent: what handing it to a library's own thread and back takes (`leeboard sim validate`
            measures gloo's on this host).
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
    compute, fake = _mode(compute, fold, fake)
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
    meters = _meters(compute, platform, profile, scale, memory)

    def once(readings: Readings | None = None, held: Held | None = None) -> _Ran:
        live, exchange, numbers = _engine(
            platform, core, options, ranks, fold, fake, witness, readings
        )
        session = Session(live, exchange, ranks)
        session.collective_call = round(collective_call * 1e12)
        out, err = (sys.stdout, None) if held is None else (held.out, held.err)
        outputs = {number: Prefixed(out, number) for number in numbers if prefix}
        with (
            put_back(),
            Patches() as patches,
            script.modules(),
            Isolation() as isolation,
        ):
            world.install(patches)
            clock.install(patches)
            futures.install(patches)
            failures.forbid_processes(patches)
            failures.one_profiler(patches)
            crew = Crew(session, script)
            crew.exits.install(patches)
            if fake:
                from leeboard.sim.distributed import fake as fakes
                from leeboard.sim.distributed import fake_patches

                fake_patches.install(patches.set)
                crew.modes = fakes.modes
            for number in numbers:
                main = script.main()
                state = ProcessState(
                    isolation.spaces,
                    environment(number, ranks, per_node),
                    _seed(seed, number),
                    _own(script, outputs.get(number, out), err),
                    main,
                )
                crew.add(Rank(number, session, meters(number), state), main)
            with told(isolation.spaces, progress) as tell:
                crew.run(tell)
            for output in outputs.values():
                output.finish()
        return _Ran(live, session, crew)

    notes: tuple[str, ...] = ()
    with _alone():
        if fold is None:
            ran = shown = once()
        else:
            ran, shown, notes = settled(once, compute == "measured")
    shown.crew.check()
    raw = ran.live.outcome()
    report = costs.report_of(compute, [rank.meter for rank in ran.session.ranks.values()])
    trace = _trace(ran.live, ran.session, script, report, fold)
    failures.raise_for(raw, trace, platform, core, ran.session, ran.crew.lines)
    result = Result.from_core(raw, trace, platform, network=network, seed=seed, core=core)
    values = [shown.crew.values.get(number) for number in range(ranks)]
    for note in notes:
        print(f"leeboard sim: {note}", file=sys.stderr, flush=True)
    return Launched(result, trace, values, report, notes)


def record(target: str | Path | Callable[..., Any], platform: Platform, **options: Any) -> Trace:
    """The program that a script's ranks turn out to be: `launch(...).trace`, for `replay`.

    Args:
        target: See `launch`.
        platform: See `launch`.
        options: Those of `launch`.
    """
    return launch(target, platform, **options).trace


@contextmanager
def _alone() -> Iterator[None]:
    """No other run of this process may be under way: ranks replace what a process has."""
    if not _RUNNING.acquire(blocking=False):
        raise SimulationError(
            "launch: a simulation runs in this process already; expected one after the other, or a "
            "process for each"
        )
    try:
        yield
    finally:
        _RUNNING.release()


def _count(ranks: int | None, platform: Platform) -> int:
    room = platform.ranks
    if ranks is None:
        return room
    ranks = integer("ranks", ranks, 1, 2**24)
    if ranks > room or (len(platform.placement) and ranks != room):
        what = f"places {room} ranks" if len(platform.placement) else f"has {room} devices"
        raise ValueError(
            f"ranks: got {ranks}, but the platform {what}: use {room} (--nproc-per-node), or a "
            "platform with more (a placement may put several ranks on one device)"
        )
    return ranks


def _engine(
    platform: Platform,
    core: dict[str, Any],
    options: dict[str, Any],
    ranks: int,
    fold: str | None,
    fake: bool,
    witness: str,
    readings: Readings | None = None,
) -> tuple[Any, Any, list[int]]:
    """Engine, exchange, and which ranks run."""
    if fold is None and not fake:
        return _C.SimLive(ranks, core, options), Exchange(), list(range(ranks))
    from leeboard.sim.distributed import fold as folds

    if fold is None:
        return _C.SimLive(ranks, core, options), folds.FakeExchange(), list(range(ranks))
    folding = folds.Folding.parse(fold, ranks, witness)

    def part(count: int, devices: tuple[int, ...]) -> Any:
        placed = [int(platform.placement[d]) if len(platform.placement) else d for d in devices]
        return _C.SimLive(count, platform.with_placement(placed).core(), options)

    live = folds.FoldCore(part, folding, folds.replay_raw(core, options), readings)
    return live, folds.FoldExchange(live), list(folding.live)


def _mode(compute: Any, fold: str | None, fake: bool | None) -> tuple[Any, bool]:
    """What computing costs, and whether tensors are fake."""
    if fake is None:
        fake = fold is not None and compute != "measured"
    if compute is None:
        compute = "roofline" if fake else "measured"
    if fake and compute == "measured":
        raise ValueError(
            "compute: got 'measured', but fake tensors compute nothing that could be measured; "
            "expected 'roofline', 'profiled' or 'none', or fake=False"
        )
    return compute, fake


def _meters(
    compute: str | Callable[[Platform, int], Meter],
    platform: Platform,
    profile: Profiles | None,
    scale: float | Literal["auto"],
    memory: bool,
) -> Callable[[int], Meter]:
    if compute == "none" and not memory:
        return lambda rank: NoMeter()
    options: dict[str, Any] = {"profile": profile, "scale": scale, "memory": memory}
    return lambda rank: costs.meter(compute, platform, rank, **options)


def _seed(seed: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _own(script: Script, out: Any, err: Any) -> dict[str, Any]:
    own: dict[str, Any] = {"argv": list(script.argv), "stdout": out}
    if script.folder:
        own["path"] = [script.folder, *sys.path]
    if err is not None:
        own["stderr"] = err
    return own


def _trace(
    live: Any, session: Session, script: Script, report: costs.Report, fold: str | None
) -> Trace:
    columns = {**live.program()}
    columns["ops"] = np.asarray(columns["ops"]).view(OP)
    return Trace(
        **{name: columns[name] for name in COLUMNS},
        names=tuple(session.names),
        metadata={
            "program": script.name,
            "arguments": shlex.join(script.argv[1:]) if not script.plain else "",
            **report.metadata(),
            **({} if fold is None else {"fold": fold}),
            "torch": torch.__version__,
        },
    )
