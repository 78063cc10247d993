"""Running a script on simulated ranks: threads of one process that hold the baton in turn."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from leeboard import _C
from leeboard.sim import run as runs
from leeboard.sim.distributed import clock, failures, group, world
from leeboard.sim.distributed.exchange import Exchange
from leeboard.sim.distributed.isolation import Isolation, ProcessState
from leeboard.sim.distributed.patches import Patches
from leeboard.sim.distributed.rank import Meter, NoMeter, Rank, Stuck
from leeboard.sim.distributed.script import Prefixed, Script, environment, resolve
from leeboard.sim.distributed.session import Session
from leeboard.sim.errors import SimulationError
from leeboard.sim.names import integer
from leeboard.sim.result import Result
from leeboard.sim.trace import Trace

if TYPE_CHECKING:
    from leeboard.sim.platform import Platform

COMPUTE = ("measured", "profiled", "roofline", "none")
# Address space of a rank's stack; only what is touched takes memory.
_STACK = 16 << 20
_POLL = 0.2
_PATIENCE = 5.0


@dataclass(frozen=True)
class Launched:
    """What `launch` gives back.

    Attributes:
        result: What the run took.
        trace: The program that the ranks turned out to be, for `replay`.
        values: What the function returned on each rank; of a script None.
    """

    result: Result
    trace: Trace
    values: list[Any] = field(default_factory=list)


def launch(
    target: str | Path | Callable[..., Any],
    platform: Platform,
    *,
    ranks: int | None = None,
    args: Sequence[Any] = (),
    compute: Literal["measured", "profiled", "roofline", "none"] = "measured",
    network: Literal["flow", "alpha-beta"] = "flow",
    seed: int = 0,
    timeline: bool | None = None,
    links: bool = True,
    profile: str | Path | None = None,
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
            scaled by the device's speed; "profiled": what `profile` says; "roofline": by flops and
            bytes; "none": nothing.
        network: As of `run`.
        seed: As of `run`; each rank's generators of random numbers start from it and the rank.
        timeline: As of `run`.
        links: As of `run`.
        profile: A file of `leeboard sim profile`, for "profiled".
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
    if compute not in COMPUTE:
        raise ValueError(f"compute: got {compute!r}, expected one of {', '.join(COMPUTE)}")
    if network not in runs.NETWORKS:
        raise ValueError(f"network: got {network!r}, expected one of {', '.join(runs.NETWORKS)}")
    seed = integer("seed", seed, 0, 2**64 - 1)
    ranks = _count(ranks, platform)
    per_node = ranks if per_node is None else integer("per_node", per_node, 1, ranks)
    script = resolve(target, args)
    core = platform.core()
    live = _C.SimLive(ranks, core, runs.options(core, network, seed, timeline, links))
    session = Session(live, Exchange(), ranks)
    meters = _meters(compute, platform, ranks, profile)
    outputs = [Prefixed(sys.stdout, rank) if prefix else None for rank in range(ranks)]
    with Patches() as patches, Isolation() as isolation:
        world.install(patches, group.create)
        clock.install(patches)
        failures.forbid_processes(patches)
        crew = _Crew(session, script)
        for number in range(ranks):
            state = ProcessState(
                isolation.spaces,
                environment(number, ranks, per_node),
                _seed(seed, number),
                _own(script, outputs[number]),
                script.main(),
            )
            crew.add(Rank(number, session, meters(number), state))
        crew.run(progress)
    for output in outputs:
        if output is not None:
            output.finish()
    trace = _trace(live, session, script, compute, args)
    return Launched(_result(crew, trace, platform, core, network, seed), trace, crew.values)
