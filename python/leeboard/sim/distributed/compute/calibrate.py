"""How fast this host is, and what its time is worth on another device."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from time import thread_time_ns
from typing import Any

import torch

from leeboard.sim.distributed.compute.meters import single_threaded
from leeboard.sim.ops import PRECISIONS
from leeboard.sim.parts import Device

_FLOAT32 = PRECISIONS.index("float32")
_ROUNDS = 5


@dataclass(frozen=True)
class Timed:
    """A reference op and what it took here.

    Attributes:
        name: "gemm", "gemv" or "add", all of float32.
        flops: Floating-point operations.
        bytes: Of memory traffic.
        seconds: Of processor time on one thread, median.
    """

    name: str
    flops: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Host:
    """What one thread of this host does.

    Attributes:
        ops: The reference ops.
    """

    ops: tuple[Timed, ...]

    @property
    def flops(self) -> float:
        """FLOP/s of a float32 matrix multiplication."""
        gemm = self.ops[0]
        return gemm.flops / gemm.seconds

    @property
    def memory_bandwidth(self) -> float:
        """Bytes a second of the op that gets the most."""
        return max(op.bytes / op.seconds for op in self.ops[1:])

    def device(self, name: str = "this host") -> Device:
        """One thread of it as a device."""
        return Device(name, flops=self.flops, memory_bandwidth=self.memory_bandwidth)

    def scale(self, device: Device) -> float:
        """How long a device takes for what takes this host a second.

        The reference ops, repeated so that each takes this host as long, take the device that many
        times as long by its roofline. Its `speed` and `overhead` are left out: the engine adds them.
        """
        bare = dataclasses.replace(device, speed=1.0, overhead=0.0)
        return statistics.fmean(
            bare.seconds(op.flops, op.bytes, _FLOAT32) / op.seconds for op in self.ops
        )


@lru_cache(maxsize=1)
def calibrate() -> Host:
    """Time the reference ops on one thread of this host; takes less than a second, once a process.

    A product of two 512 x 512 matrices, a 4096 x 4096 matrix times a vector, and a sum of two
    vectors of 8 Mi elements, which no cache holds: float32, processor time, median of five.
    """
    with single_threaded(), torch.no_grad():
        a, b, out = (torch.full((512, 512), 0.5) for _ in range(3))
        matrix, vector = torch.full((4096, 4096), 0.5), torch.full((4096,), 0.5)
        x, y, total = (torch.full((1 << 23,), 0.5) for _ in range(3))
        return Host(
            (
                Timed("gemm", 2 * 512**3, 3 * 4 * 512**2, _time(torch.mm, a, b, out=out)),
                Timed("gemv", 2 * 4096**2, 4 * (4096**2 + 8192), _time(torch.mv, matrix, vector)),
                Timed("add", 1 << 23, 3 * 4 << 23, _time(torch.add, x, y, out=total)),
            )
        )


def _time(function: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
    function(*args, **kwargs)
    took = []
    for _ in range(_ROUNDS):
        start = thread_time_ns()
        function(*args, **kwargs)
        took.append(thread_time_ns() - start)
    return max(statistics.median(took), 1) * 1e-9
