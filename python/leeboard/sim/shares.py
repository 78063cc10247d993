"""Who did what when, in bins of time: for pictures of runs with more events than pixels."""

from __future__ import annotations

import numpy as np

from leeboard.sim.records import Kind

BLOCKED = (Kind.SEND, Kind.RECV, Kind.WAIT, Kind.COLLECTIVE, Kind.SYNC)


def coverage(
    row: np.ndarray, start: np.ndarray, end: np.ndarray, rows: int, bins: int
) -> np.ndarray:
    """How much of each bin the intervals of a row cover: float64 [rows, bins].

    Args:
        row: Of each interval, [N].
        start, end: In bins, 0 <= start <= end <= bins, [N].
        rows: How many.
        bins: How many; each is 1 long.
    """
    # The slope of the running total changes where an interval begins and where it ends.
    change = np.zeros((rows, bins + 2))
    for at, sign in ((start, 1.0), (end, -1.0)):
        whole = np.minimum(at.astype(np.int64), bins)
        np.add.at(change, (row, whole), sign * (whole + 1 - at))
        np.add.at(change, (row, whole + 1), sign * (at - whole))
    return np.cumsum(change, axis=1)[:, :bins]


def time_shares(
    records: np.ndarray, ranks: int, makespan: int, bins: int, group: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Shares of time in which ranks compute, and in which they only wait for communication.

    Args:
        records: RECORD array [N].
        ranks: How many.
        makespan: Picoseconds.
        bins: Of time.
        group: Ranks that share a row.

    Returns:
        compute, communication: float64 [ceil(ranks / group), bins], in 0..1.
    """
    rows = -(-ranks // group)
    sizes = np.bincount(np.arange(ranks) // group, minlength=rows)[:, None]
    scale = bins / max(makespan, 1)

    def share(chosen: np.ndarray) -> np.ndarray:
        part = records[chosen]
        start, end = (np.minimum(part[name] * scale, bins) for name in ("start", "end"))
        return coverage(part["rank"] // group, start, end, rows, bins) / sizes

    kind = records["kind"]
    compute = np.minimum(share(kind == Kind.COMPUTE), 1.0)
    blocked = share(np.isin(kind, np.asarray(BLOCKED, np.uint8)) & (records["stream"] == 0))
    return compute, np.clip(blocked, 0.0, 1.0 - compute)
