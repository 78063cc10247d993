"""What a rank's computing costs: three ways to know, and none.

A meter belongs to one rank and is called on its thread. `resume` says that the program's own code
goes on, `flush` that the simulator takes over: what ran in between becomes ops of the rank.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager

# The module's functions are virtual in a rank's thread; this is the real one.
from time import thread_time_ns
from typing import Any, Protocol

import torch

from leeboard.sim.distributed.compute.memory import Storages, resizes_seen
from leeboard.sim.distributed.compute.mode import Call, OpMode
from leeboard.sim.distributed.compute.report import Tally


class Place(Protocol):
    """What a meter needs of a rank."""

    @property
    def number(self) -> int:
        """Which rank."""

    @property
    def core(self) -> Any:
        """What takes ops: `delay(rank, ps)` and `compute(rank, flops, bytes, precision)`."""


class NoneMeter:
    """Computing costs nothing: only communication takes time."""

    def __init__(self) -> None:
        self.tally = Tally()

    def resume(self, rank: Place) -> None:
        """Nothing to do."""

    def flush(self, rank: Place) -> None:
        """Nothing to do."""

    def modes(self) -> Sequence[AbstractContextManager[object]]:
        """None."""
        return ()


class MeasuredMeter:
    """The processor time of the rank's thread, times a factor.

    Where CUDA is in use it is the time between two CUDA events around the stretch instead, which
    covers both the device's work and the host's. torch computes with one thread meanwhile.

    Args:
        scale: Times the time that was measured.
    """

    def __init__(self, scale: float = 1.0) -> None:
        self.tally = Tally()
        self._picoseconds = 1000.0 * scale
        self._since = -1
        self._event: Any = None

    def resume(self, rank: Place) -> None:
        """The time counts from now on."""
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            self._event = _event()
        self._since = thread_time_ns()

    def flush(self, rank: Place) -> None:
        """The time since `resume` becomes a delay."""
        if self._since < 0:
            return
        passed: float = thread_time_ns() - self._since
        self._since = -1
        if self._event is not None:
            passed = _until(self._event)
            self._event = None
        length = round(passed * self._picoseconds)
        self.tally.stretches += 1
        self.tally.picoseconds += length
        rank.core.delay(rank.number, length)

    def modes(self) -> Sequence[AbstractContextManager[object]]:
        """One thread for torch."""
        return (single_threaded(),)


def _event() -> Any:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def _until(event: Any) -> float:
    """Nanoseconds since the event."""
    end = _event()
    end.synchronize()
    return float(event.elapsed_time(end)) * 1e6


_threads = threading.Lock()
_within = 0
_before = 0


@contextmanager
def single_threaded() -> Iterator[None]:
    """torch computes with one thread; the last one out puts back what was."""
    global _within, _before
    with _threads:
        if _within == 0:
            _before = torch.get_num_threads()
        _within += 1
    # Each thread has a number of its own.
    torch.set_num_threads(1)
    try:
        yield
    finally:
        with _threads:
            _within -= 1
            if _within == 0:
                torch.set_num_threads(_before)


class OpMeter:
    """Sees ops while the program's own code runs, and charges for them at `flush`.

    Args:
        meta: Whether ops on torch's meta device count.
        memory: Whether to tell the engine what tensors take: as much as there is at once between
            two flushes, at the beginning of what runs between them.
    """

    def __init__(self, *, meta: bool = False, memory: bool = False) -> None:
        self.tally = Tally()
        self._storages = Storages(self._changed) if memory else None
        self._changes: list[int] = []
        self._running = False
        self._seen: list[Call] = []
        self._meta = meta

    def resume(self, rank: Place) -> None:
        """Ops count from now on."""
        self._running = True

    def flush(self, rank: Place) -> None:
        """Ops that ran become ops of the rank."""
        self._running = False
        if self._changes:
            self._tell(rank)
        if self._seen:
            self.charge(rank, self._seen)
            self._seen = []

    def modes(self) -> Sequence[AbstractContextManager[object]]:
        """The mode that sees ops."""
        if self._storages is None:
            return (OpMode(self._see, meta=self._meta),)
        watched = OpMode(self._see, meta=self._meta, used=self._used)
        return (resizes_seen(), closing(self._storages), watched)

    def _used(self, values: Any) -> None:
        if self._running and self._storages is not None:
            self._storages.made(values)

    def _changed(self, size: int) -> None:
        changes = self._changes
        if changes and (changes[-1] > 0) == (size > 0):
            changes[-1] += size
        else:
            changes.append(size)

    def _tell(self, rank: Place) -> None:
        for size in self._changes:
            if size > 0:
                rank.core.alloc(rank.number, size)
            else:
                rank.core.free(rank.number, -size)
        self._changes = []

    def _see(self, call: Call, args: Any, kwargs: Any) -> None:
        # The simulator's own copies and reductions are no work of the program's.
        if self._running:
            self._seen.append(call)

    def charge(self, rank: Place, calls: list[Call]) -> None:
        """Append ops for calls."""
        raise NotImplementedError


class RooflineMeter(OpMeter):
    """One compute op for each op of torch: flops, bytes, precision; the platform knows the time."""

    def charge(self, rank: Place, calls: list[Call]) -> None:
        """Append a compute op for each call."""
        compute, number, count = rank.core.compute, rank.number, self.tally.count
        for call in calls:
            cost = call.cost
            count(call)
            if cost.flops or cost.bytes:
                compute(number, cost.flops, cost.bytes, cost.precision)


class ProfiledMeter(OpMeter):
    """The time that a table of a real device gives for each op.

    What the table does not know is estimated from the nearest call of the same op, or, failing
    that, left to the platform's roofline; both are counted.

    Args:
        table: Gives picoseconds for a call, or None.
    """

    def __init__(self, table: Any, *, meta: bool = False, memory: bool = False) -> None:
        super().__init__(meta=meta, memory=memory)
        self.table = table

    def charge(self, rank: Place, calls: list[Call]) -> None:
        """Append a delay for each call, or a compute op for one that the table does not know."""
        core, number, count, find = rank.core, rank.number, self.tally.count, self.table.find
        for call in calls:
            found = find(call)
            count(call, found)
            if found.picoseconds is not None:
                core.delay(number, found.picoseconds)
            elif call.cost.flops or call.cost.bytes:
                core.compute(number, call.cost.flops, call.cost.bytes, call.cost.precision)
