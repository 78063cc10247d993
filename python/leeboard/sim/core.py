"""A platform as the C++ core takes it: columns in SI units, times in whole picoseconds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from leeboard.sim import selector
from leeboard.sim.faults import changes
from leeboard.sim.parts import PEAKS, Curve, Device, Link
from leeboard.sim.units import picoseconds

if TYPE_CHECKING:
    from leeboard.sim.platform import Platform


def core(platform: Platform) -> dict[str, Any]:
    """The columns of a platform, as `leeboard._C.sim_run` takes them."""
    graph = platform.graph
    protocol = platform.protocol.core()
    return {
        **_devices(platform),
        "switches": len(graph.switches),
        "link_a": graph.link_a,
        "link_b": graph.link_b,
        **_links(graph.kinds, graph.link_kind),
        "routes": [
            (route.source, route.target, np.array(route.links, np.uint32))
            for route in platform.routes
        ],
        "protocol": protocol,
        "selector": selector.core(platform.collectives),
        "device_changes": changes(platform.faults, platform.devices, "device"),
        "link_changes": changes(platform.faults, graph.links, "link"),
        "placement": platform.placement,
        "island": graph.island,
    }


def _floats(kinds: tuple[Any, ...], name: str) -> NDArray[np.float64]:
    return np.array([getattr(kind, name) for kind in kinds], np.float64)


def _whole(values: Iterable[float]) -> NDArray[np.uint64]:
    return np.array([int(value) for value in values], np.uint64)


def _devices(platform: Platform) -> dict[str, Any]:
    kinds, column = platform.kinds, platform.device_kind
    curves = _Curves()
    flops_curve = curves.ranges(kind.flops_curve for kind in kinds)
    bytes_curve = curves.ranges(kind.bytes_curve for kind in kinds)
    return {
        "device_flops": _floats(kinds, "flops")[column],
        "device_memory_bandwidth": _floats(kinds, "memory_bandwidth")[column],
        "device_memory": _whole(kind.memory for kind in kinds)[column],
        "device_speed": _floats(kinds, "speed")[column] * platform.device_factor,
        "device_overhead": _whole(picoseconds(kind.overhead) for kind in kinds)[column],
        "device_jitter": _floats(kinds, "jitter")[column],
        "device_reduce_bandwidth": _floats(kinds, "reduce_bandwidth")[column],
        "device_flops_curve": flops_curve[column],
        "device_bytes_curve": bytes_curve[column],
        "curve_work": np.array([work for work, _ in curves.points], np.float64),
        "curve_efficiency": np.array([share for _, share in curves.points], np.float64),
        **_peaks(kinds, column),
    }


def _peaks(kinds: tuple[Device, ...], column: NDArray[np.uint32]) -> dict[str, Any]:
    """FLOP/s in each precision that some kind has a figure of its own for; 0: as `flops`."""
    columns = {number: _floats(kinds, name) for number, name in enumerate(PEAKS) if number}
    return {
        f"device_flops_{number}": peaks[column] for number, peaks in columns.items() if peaks.any()
    }


class _Curves:
    """All curves end to end, equal ones once."""

    def __init__(self) -> None:
        self.points: list[tuple[float, float]] = []
        self.known: dict[Curve, tuple[int, int]] = {(): (0, 0)}

    def ranges(self, curves: Iterable[Curve]) -> NDArray[np.uint32]:
        """[curves, 2]: begin and end of each among the points."""
        rows = []
        for curve in curves:
            if curve not in self.known:
                begin = len(self.points)
                self.points.extend(curve)
                self.known[curve] = begin, len(self.points)
            rows.append(self.known[curve])
        return np.array(rows, np.uint32).reshape(-1, 2)


def _links(kinds: tuple[Link, ...], column: NDArray[np.uint32]) -> dict[str, Any]:
    duplex = np.array([kind.duplex == "full" for kind in kinds], np.uint8)
    return {
        "link_bandwidth": _floats(kinds, "bandwidth")[column],
        "link_latency": _whole(picoseconds(kind.latency) for kind in kinds)[column],
        "link_overhead": _whole(picoseconds(kind.overhead) for kind in kinds)[column],
        "link_full_duplex": duplex[column],
    }


def power(kinds: tuple[Device, ...], column: NDArray[np.uint32]) -> NDArray[np.float64]:
    """[devices, 2]: idle and active power, watts."""
    return np.stack([_floats(kinds, "idle_power"), _floats(kinds, "active_power")], 1)[column]
