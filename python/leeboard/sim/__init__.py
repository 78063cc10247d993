"""Rehearse a distributed deployment: platforms, programs, simulated time.

Quantities are numbers in plain SI units or text with a unit ("10 Gbit/s", "50 us").
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leeboard.sim.calibration import PointToPoint, fit_point_to_point
from leeboard.sim.chakra import load_chakra
from leeboard.sim.collectives import closed_form
from leeboard.sim.errors import (
    Blocked,
    CollectiveMismatchError,
    DeadlockError,
    SimulationError,
)
from leeboard.sim.faults import Fault, RandomFaults
from leeboard.sim.formats import load_trace
from leeboard.sim.library import Preset, presets
from leeboard.sim.names import PlatformError
from leeboard.sim.ops import ProgramError
from leeboard.sim.parts import Device, Link, Protocol
from leeboard.sim.platform import Platform
from leeboard.sim.platform_schema import schema as platform_schema
from leeboard.sim.program import Program
from leeboard.sim.result import Result
from leeboard.sim.result_file import ResultError
from leeboard.sim.run import replay, run
from leeboard.sim.selector import Rule
from leeboard.sim.sweep import Sweep, grid, sweep
from leeboard.sim.trace import Trace, TraceError
from leeboard.sim.units import UnitError
from leeboard.sim.workload import (
    ArrivalTimes,
    ClosedLoop,
    Exponential,
    Lognormal,
    Poisson,
    Uniform,
)

if TYPE_CHECKING:
    from leeboard.sim.distributed.launch import Launched, launch, record

__all__ = [
    "ArrivalTimes",
    "Blocked",
    "ClosedLoop",
    "CollectiveMismatchError",
    "DeadlockError",
    "Device",
    "Exponential",
    "Fault",
    "Launched",
    "Link",
    "Lognormal",
    "Platform",
    "PlatformError",
    "PointToPoint",
    "Poisson",
    "Preset",
    "Program",
    "ProgramError",
    "Protocol",
    "RandomFaults",
    "Result",
    "ResultError",
    "Rule",
    "SimulationError",
    "Sweep",
    "Trace",
    "TraceError",
    "Uniform",
    "UnitError",
    "closed_form",
    "fit_point_to_point",
    "grid",
    "launch",
    "load_chakra",
    "load_trace",
    "platform_schema",
    "presets",
    "record",
    "replay",
    "run",
    "sweep",
]


def __getattr__(name: str) -> Any:
    # These need torch, which nothing else here does.
    if name in ("Launched", "launch", "record"):
        from leeboard.sim.distributed import launch as module

        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
