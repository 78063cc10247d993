"""Timing calls on the device at hand."""

from __future__ import annotations

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
_COPIES = 16
_SMALL = 1 << 18
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
    func, sets = example.call.rule.func, [example.make() for _ in range(copies)]
    on_gpu = any(tensor.is_cuda for args, kwargs in sets[:1] for tensor in _flat((args, kwargs)))
    clock = _cuda_time if on_gpu else _thread_time
    _repeated(func, sets, 1)
    repeats, took = 1, clock(func, sets, 1)
    while took < _SHORTEST and repeats < 1 << 14:
        repeats = min(1 << 14, max(2 * repeats, int(1.2 * repeats * _SHORTEST / max(took, 1000))))
        if example.call.rule.written:
            # What is changed again and again must not run off to infinity or to nothing.
            sets = [example.make() for _ in range(copies)]
            repeats = min(repeats, 8 * copies)
        took = clock(func, sets, repeats)
        if example.call.rule.written and repeats == 8 * copies:
            break
    rounds = max(3, min(_ROUNDS, int(seconds * 1e9 / max(took, 1))))
    times = []
    for _ in range(rounds):
        if example.call.rule.written:
            sets = [example.make() for _ in range(copies)]
        times.append(clock(func, sets, repeats))
    return max(statistics.median(times), 1.0) / repeats * 1e-9


def _repeated(func: Any, sets: list[tuple[Any, dict[str, Any]]], repeats: int) -> None:
    count = len(sets)
    for number in range(repeats):
        args, kwargs = sets[number % count]
        func(*args, **kwargs)


def _thread_time(func: Any, sets: list[tuple[Any, dict[str, Any]]], repeats: int) -> float:
    start = thread_time_ns()
    _repeated(func, sets, repeats)
    return thread_time_ns() - start


def _cuda_time(func: Any, sets: list[tuple[Any, dict[str, Any]]], repeats: int) -> float:
    made: Any = torch.cuda.Event
    start, end = (made(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    _repeated(func, sets, repeats)
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e6


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
