"""The timeline of a run as the core writes it: one record per thing that took time."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from leeboard.sim.ops import COLLECTIVES

PICOSECONDS = 10**12
NEVER = 2**64 - 1
NO_RECORD = 2**32 - 1

# csrc/sim/record.h. Times in picoseconds.
RECORD = np.dtype(
    [
        ("start", "<u8"),
        ("end", "<u8"),
        ("bytes", "<u8"),
        # A message's time on an idle network.
        ("ideal", "<u8"),
        # The record whose end let this one end.
        ("prev", "<u4"),
        ("rank", "<u4"),
        ("peer", "<i4"),
        ("op", "<u4"),
        ("tag", "<i4"),
        ("kind", "u1"),
        ("stream", "u1"),
        ("flags", "<u2"),
    ]
)


class Kind(IntEnum):
    """What a record tells."""

    COMPUTE = 1
    # The rank was blocked.
    SEND = 2
    RECV = 3
    WAIT = 4
    # Whole, on this rank; flags: which.
    COLLECTIVE = 5
    # In the network, from `rank` to `peer`: from ready to leave until arrived.
    MESSAGE = 6
    # tag: index of the name.
    MARK = 7
    # Waiting for a request; tag: queue.
    TAKE = 8
    # bytes: in use after it.
    OUT_OF_MEMORY = 9
    STOPPED = 10
    SYNC = 11
    # A request was answered; tag: queue.
    DONE = 12
    # The rank had nothing to do, for as long as it was told.
    SLEEP = 13


INSTANTS = (Kind.MARK, Kind.OUT_OF_MEMORY, Kind.STOPPED, Kind.DONE)

# csrc/sim/program.h, in the order of Collective.

_NAMES = {
    Kind.COMPUTE: "compute",
    Kind.SEND: "send",
    Kind.RECV: "recv",
    Kind.WAIT: "wait",
    Kind.MESSAGE: "message",
    Kind.MARK: "mark",
    Kind.TAKE: "waiting for a request",
    Kind.OUT_OF_MEMORY: "out of memory",
    Kind.STOPPED: "stopped",
    Kind.SYNC: "sync",
    Kind.DONE: "answered",
    Kind.SLEEP: "sleep",
}


def kind_name(kind: int, flags: int = 0) -> str:
    """ "compute", "send", ...; collectives by their own name, "all_reduce"."""
    if kind == Kind.COLLECTIVE:
        return COLLECTIVES[flags] if flags < len(COLLECTIVES) else "collective"
    return _NAMES[Kind(kind)]


def seconds(picoseconds: np.ndarray) -> np.ndarray:
    """float64 seconds of uint64 picoseconds; NEVER becomes NaN."""
    values = picoseconds.astype(np.float64) / PICOSECONDS
    values[picoseconds == NEVER] = np.nan
    return values
