"""Rivals timed in turns, so that a drift of the machine meets them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bench.environment import CPUS

Call = Callable[[], object]


def thread_counts() -> list[int]:
    """One thread, and as many as there are cores."""
    return sorted({1, CPUS})


def medians(calls: Mapping[str, Call], threads: int, seconds: float) -> dict[str, float]:
    """Seconds of one call of each, the median over rounds of 10 ms.

    A round is that long because a model in use is called again and again: the first call after
    another model finds the caches cold, and takes a fifth longer.
    """
    torch.set_num_threads(threads)
    with torch.no_grad():
        repeats: dict[str, int] = {}
        for name, call in calls.items():
            for _ in range(5):
                call()
            start = time.perf_counter()
            call()
            repeats[name] = max(1, round(1e-2 / (time.perf_counter() - start)))
        times: dict[str, list[float]] = {name: [] for name in calls}
        end = time.perf_counter() + seconds * len(calls)
        while time.perf_counter() < end or len(times[next(iter(calls))]) < 5:
            for name, call in calls.items():
                start = time.perf_counter()
                for _ in range(repeats[name]):
                    call()
                times[name].append((time.perf_counter() - start) / repeats[name])
    torch.set_num_threads(CPUS)
    return {name: statistics.median(found) for name, found in times.items()}


def compiled(model: nn.Module) -> Any:
    """The model under `torch.compile`, of which only the latest is kept: its guards hold the number
    of threads, and code that many models share is compiled a few times only.
    """
    torch.compiler.reset()
    return torch.compile(model)


def require_equal(outputs: Mapping[str, Tensor], names: Sequence[str], tolerance: float) -> None:
    """AssertionError unless these outputs are the same: no time is believed otherwise."""
    first = outputs[names[0]]
    scale = first.abs().max()
    for name in names[1:]:
        error = ((outputs[name] - first).abs().max() / scale).item()
        assert error <= tolerance, f"{name} differs from {names[0]} by {error:.1e} of its size"
