"""The virtual clock behind the functions of the `time` module.

They are replaced for the time of a run, and only ranks' threads notice. A module that took one by
name before the run (`from time import perf_counter`) keeps the real one.
"""

from __future__ import annotations

import selectors
import sys
import time
import timeit
from collections.abc import Callable
from functools import wraps
from types import FrameType
from typing import Any

from leeboard.sim.distributed.patches import Patches
from leeboard.sim.distributed.rank import Rank, find

# Seconds since 1970 at which every run begins: 2025-01-01, so that runs are equal.
EPOCH = 1_735_689_600
_PICOSECONDS = 10**12
_ORIGINS = {"time": EPOCH, "perf_counter": 0, "monotonic": 0, "process_time": 0}
# Their own reading of the clock must not let another rank go on: they may hold a lock.
_LIBRARIES = frozenset(sys.stdlib_module_names) - {"asyncio", "test", "timeit"} | {"torch"}
_IMPORT = "<frozen importlib._bootstrap>"
_sleep = time.sleep


def install(patches: Patches) -> None:
    """Lead `time.time`, `perf_counter`, `monotonic`, `process_time`, their `_ns` forms and `sleep`
    to the clock of the rank that calls. `time.thread_time` stays real."""
    for name, origin in _ORIGINS.items():
        patches.set(time, name, _seconds(getattr(time, name), origin))
        patches.set(time, f"{name}_ns", _nanoseconds(getattr(time, f"{name}_ns"), origin))
    patches.set(time, "sleep", sleep)
    # It has taken the clock by name.
    patches.set(timeit, "default_timer", time.perf_counter)
    selector = selectors.DefaultSelector
    patches.set(selector, "select", _select(selector.select))


def _seconds(real: Callable[[], float], origin: int) -> Callable[[], float]:
    @wraps(real)
    def read() -> float:
        rank = find()
        return real() if rank is None else origin + _now(rank) / _PICOSECONDS

    return read


def _nanoseconds(real: Callable[[], int], origin: int) -> Callable[[], int]:
    @wraps(real)
    def read() -> int:
        rank = find()
        return real() if rank is None else origin * 10**9 + _now(rank) // 1000

    return read


def sleep(seconds: Any, /) -> None:
    """Let the rank be idle for a while, in virtual time; others go on meanwhile."""
    rank = find()
    if rank is None:
        _sleep(seconds)
        return
    if not seconds >= 0:
        raise ValueError(f"sleep length must be non-negative, got {seconds!r}")
    _idle(rank, seconds, _free(sys._getframe(1)))


def _idle(rank: Rank, seconds: float, free: bool) -> None:
    rank.flush()
    rank.core.sleep(rank.number, round(seconds * _PICOSECONDS))
    if free:
        # A program that polls what another rank writes must let it come to that.
        rank.give(rank.core.run(rank.number))
    else:
        rank.meter.resume(rank)


def _select(real: Callable[..., Any]) -> Callable[..., Any]:
    """What an asyncio loop waits in: its timers pass in virtual time."""

    @wraps(real)
    def select(self: Any, timeout: float | None = None) -> Any:
        rank = find()
        if rank is None or timeout is None or timeout <= 0:
            return real(self, timeout)
        ready = real(self, 0)
        if not ready:
            _idle(rank, timeout, free=True)
            ready = real(self, 0)
        return ready

    return select


def _now(rank: Rank) -> int:
    """The rank's clock; for libraries and imports, as it was when the rank last communicated."""
    if _free(sys._getframe(2)):
        rank.now()
    core = rank.core
    # A folded run knows better than its ranks.
    return int(getattr(core, "told", core.clock)(rank.number))


def _free(frame: FrameType | None) -> bool:
    """Whether the code that reads the clock holds no lock that another rank may need: it is neither
    a library's own, nor runs within an import."""
    if frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _LIBRARIES:
        return False
    while frame is not None:
        if frame.f_code.co_filename == _IMPORT:
            return False
        frame = frame.f_back
    return True
