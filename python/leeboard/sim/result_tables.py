"""What the core counted, with the names and powers of the platform it ran on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from leeboard.sim.records import PICOSECONDS
from leeboard.sim.table import Table

RANK_UNITS = {
    **dict.fromkeys(("finish", "compute", "communication", "idle"), "s"),
    **dict.fromkeys(("sent", "received", "peak_memory"), "B"),
    "energy": "J",
}
LINK_UNITS = {"bytes": "B", "busy": "s", "utilisation": "%", "bandwidth": "B/s"}


def rank_table(
    counted: Mapping[str, np.ndarray],
    makespan: int,
    device_of: np.ndarray,
    device_names: Sequence[str],
    energy: np.ndarray,
) -> Table:
    """A row per rank; times in seconds, `energy` in joules [R]."""
    compute = counted["compute"].astype(np.int64)
    communication = counted["communication"].astype(np.int64)
    # What a rank does beside its own thread may run on while that waits for a request.
    idle = np.maximum(makespan - compute - communication, 0)
    columns = {
        "rank": np.arange(len(compute)),
        "device": np.asarray([device_names[d] for d in device_of], dtype=object),
        "finish": counted["finish"] / PICOSECONDS,
        "compute": compute / PICOSECONDS,
        "communication": communication / PICOSECONDS,
        "idle": idle / PICOSECONDS,
        "sent": counted["sent"].astype(np.uint64),
        "received": counted["received"].astype(np.uint64),
        "peak_memory": counted["peak_memory"].astype(np.uint64),
        "energy": energy,
    }
    return Table(columns, RANK_UNITS)


def energies(
    compute: np.ndarray, makespan: int, device_of: np.ndarray, power: np.ndarray
) -> tuple[np.ndarray, float]:
    """Joules of each rank [R], and of all devices, those without a rank too.

    A device draws its idle power throughout, and the difference to its active power while it
    computes (`power`: both, in watts, [devices, 2]). Ranks of one device share its idle power evenly.
    """
    idle_power, active_power = power[:, 0], power[:, 1]
    seconds = makespan / PICOSECONDS
    sharing = np.bincount(device_of, minlength=len(idle_power))[device_of]
    computing = compute / PICOSECONDS * (active_power - idle_power)[device_of]
    ranks = idle_power[device_of] * seconds / sharing + computing
    return ranks, float(idle_power.sum() * seconds + computing.sum())


def link_table(
    counted: Mapping[str, np.ndarray],
    makespan: int,
    link_names: Sequence[str],
    nodes: Sequence[str],
    core: Mapping[str, Any],
) -> tuple[Table, np.ndarray]:
    """A row per link and direction (half duplex: one row); and which rows of the core's they are.

    `utilisation` is the share of what the link could have carried in the whole run.
    """
    # None, if the run did not watch them.
    count = len(link_names) if len(counted["bytes"]) else 0
    a, b = (np.asarray(core[end], np.int64) for end in ("link_a", "link_b"))
    rows = np.arange(2 * count)
    full = np.repeat(np.asarray(core["link_full_duplex"], bool)[:count], 2)
    rows = rows[(rows % 2 == 0) | full]
    link, back = rows // 2, rows % 2 == 1
    carried = np.asarray(counted["bytes"], np.float64)[rows]
    busy = np.asarray(counted["busy"])[rows] / PICOSECONDS
    bandwidth = np.asarray(core["link_bandwidth"], np.float64)[link]
    capacity = bandwidth * (makespan / PICOSECONDS)
    columns = {
        "link": np.asarray([link_names[i] for i in link], dtype=object),
        "source": np.asarray([nodes[i] for i in np.where(back, b[link], a[link])], dtype=object),
        "target": np.asarray([nodes[i] for i in np.where(back, a[link], b[link])], dtype=object),
        "bandwidth": bandwidth,
        "bytes": carried,
        "busy": busy,
        "utilisation": np.divide(carried, capacity, out=np.zeros(len(rows)), where=capacity > 0),
    }
    return Table(columns, LINK_UNITS), rows
