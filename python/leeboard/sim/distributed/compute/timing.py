"""Timing calls on the device at hand."""

from __future__ import annotations

import itertools
import os
import platform
import statistics
from collections.abc import Iterable, Iterator
from time import thread_time_ns
from typing import Any

import torch

from leeboard.sim.distributed.compute.calibrate import Host, calibrate
from leeboard.sim.distributed.compute.collect import Example
from leeboard.sim.distributed.compute.meters import single_threaded
from leeboard.sim.distributed.compute.profile import Profile

# Copies of the arguments take turns, so that weights come from memory and not from a cache. What is
# small comes from a cache in programs, too.
_ROTATED = 96 << 20
_COPIES = 256
_SMALL = 1 << 18
# Of one set of arguments, by an op that writes to them.
_CHANGES = 8
# One reading of the clock covers at least so long.
_SHORTEST = 100_000
_ROUNDS = 7


def profiled(
    examples: Iterable[Example],
    *,
    device: str | None = None,
    seconds: float = 0.1,
    progress: Any = None,
) -> tuple[Profile, dict[str, str]]:
    """Time calls on this device.

    Each is made on arguments like those it was seen with, several sets of which take turns, after a
    call to warm up. The time is the median of rounds of at least 0.1 ms: processor time of one
    thread, or of CUDA events where the arguments lie on a GPU.

    Args:
        examples: The calls.
        device: Its name; None: the processor's.
        seconds: To spend on a call, about.
        progress: Has `update(1)` called after each call.

    Returns:
        The profile, and why operators could not be timed, by operator.
    """
    host = calibrate()
    profile = Profile(device or processor(), host.flops, host.memory_bandwidth, about(host))
    failed: dict[str, str] = {}
    with single_threaded(), torch.no_grad():
        for example in examples:
            name = str(example.call.rule.func)
            try:
                took = time_call(example, seconds)
            except Exception as error:  # noqa: BLE001 (whatever an op refuses)
                failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            else:
                profile.add(example.call, took, example.count)
            if progress is not None:
                progress.update(1)
    return profile, failed


def time_call(example: Example, seconds: float = 0.1) -> float:
    """Seconds that a call takes, median."""
    size = max(1, example.bytes)
    copies = 2 if size <= _SMALL else max(1, min(_COPIES, _ROTATED // size))
    # What is changed again and again must not run off to infinity or to nothing.
    fresh = bool(example.call.rule.written)
    timer = _Timer(example, copies)
    timer(1)
    repeats, took = 1, timer(1)
    most = _CHANGES * copies if fresh else 1 << 14
    while took < _SHORTEST and repeats < most:
        repeats = min(most, max(2 * repeats, int(1.2 * repeats * _SHORTEST / max(took, 1000))))
        if fresh:
            timer.renew()
        took = timer(repeats)
    times = []
    for _ in range(max(3, min(_ROUNDS, int(seconds * 1e9 / max(took, 1))))):
        if fresh:
            timer.renew()
        times.append(timer(repeats))
    return max(statistics.median(times), 1.0) / repeats * 1e-9


class _Timer:
    """Makes a call on sets of arguments that take turns, and tells how long that took.

    Args:
        example: The call.
        copies: Sets of arguments.
    """

    def __init__(self, example: Example, copies: int) -> None:
        self._example = example
        self._copies = copies
        self.renew()
        args, kwargs = self._first
        self._on_gpu = any(tensor.is_cuda for tensor in _flat((args, kwargs)))

    def renew(self) -> None:
        """New sets."""
        sets = [self._example.make() for _ in range(self._copies)]
        self._first = sets[0]
        self._turns = itertools.cycle(sets)

    def __call__(self, repeats: int) -> float:
        """Nanoseconds of so many calls; the next one goes on where this one ended."""
        func, turns = self._example.call.rule.func, itertools.islice(self._turns, repeats)
        if not self._on_gpu:
            start = thread_time_ns()
            for args, kwargs in turns:
                func(*args, **kwargs)
            return thread_time_ns() - start
        made: Any = torch.cuda.Event
        begin, end = (made(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        for args, kwargs in turns:
            func(*args, **kwargs)
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) * 1e6


def _flat(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _flat(item)
    elif isinstance(value, dict):
        yield from _flat(list(value.values()))


def processor() -> str:
    """The name of the processor, or of the GPU."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def about(host: Host) -> dict[str, str]:
    """What the device is, for people."""
    shown = {
        "processor": processor(),
        "cores": str(os.cpu_count()),
        "threads": "1",
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    return shown | {op.name: f"{op.seconds:.4g} s" for op in host.ops}
