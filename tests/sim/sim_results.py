"""Results made by hand, in the shape in which the core returns them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from leeboard.sim import Device, Platform
from leeboard.sim.records import NEVER, NO_RECORD, RECORD, Kind
from leeboard.sim.result import Result

US = 10**6


def star(ranks: int, *, idle: float = 10.0, active: float = 30.0, duplex: str = "full") -> Platform:
    """A platform of devices around a switch."""
    device = Device(idle_power=idle, active_power=active)
    return Platform.star(ranks, bandwidth="1 Gbit/s", device=device, duplex=duplex)


def record(kind: Kind, rank: int, start: float, end: float, **fields: Any) -> tuple[Any, ...]:
    """A record; times in microseconds."""
    given = {"prev": NO_RECORD, "peer": -1, "tag": 0, "ideal": 0} | fields
    given |= {"kind": kind, "rank": rank, "start": round(start * US), "end": round(end * US)}
    given["ideal"] = round(given["ideal"] * US)
    return tuple(given.get(name, 0) for name in RECORD.names)


def ping(bins: int = 8) -> dict[str, Any]:
    """Rank 0 computes and sends to rank 1, which computes and answers; then rank 0 is done.

    The way there is 1,000 bytes behind another flow: 12 us instead of the 10 us of an idle network.
    """
    records = np.array(
        [
            record(Kind.MARK, 0, 0, 0, tag=0),
            record(Kind.COMPUTE, 0, 0, 5, prev=0),
            record(Kind.MESSAGE, 0, 5, 17, peer=1, bytes=1000, ideal=10, prev=1),
            record(Kind.SEND, 0, 5, 13, peer=1, bytes=1000, prev=1, op=2),
            record(Kind.RECV, 1, 0, 17, peer=0, bytes=1000, prev=2, op=5),
            record(Kind.COMPUTE, 1, 17, 20, prev=4, op=6),
            record(Kind.MESSAGE, 1, 20, 30, peer=0, bytes=1000, ideal=10, prev=5, op=7),
            record(Kind.SEND, 1, 20, 28, peer=0, bytes=1000, prev=5, op=7),
            record(Kind.RECV, 0, 13, 31, peer=1, bytes=1000, prev=6, op=3),
        ],
        RECORD,
    )
    use = np.zeros((4, bins), np.float32)
    use[0, : bins // 2], use[3, : bins // 2] = 0.75, 0.75
    return {
        "makespan": 31 * US,
        "events": 12,
        "messages": 2,
        "hash": "0123456789abcdef",
        "status": "done",
        "message": "",
        "ranks": {
            "finish": np.array([31, 28], np.uint64) * US,
            "compute": np.array([5, 3], np.uint64) * US,
            "communication": np.array([26, 25], np.uint64) * US,
            "sent": np.array([1000, 1000], np.uint64),
            "received": np.array([1000, 1000], np.uint64),
            "peak_memory": np.array([4096, 0], np.uint64),
        },
        "links": {
            # 2 * link + direction: each link there and back.
            "bytes": np.array([1000.0, 1000.0, 1000.0, 1000.0]),
            "busy": np.array([8, 8, 8, 8], np.uint64) * US,
        },
        "utilisation": use,
        "bin_ps": 31 * US // bins,
        "records": records,
        "records_dropped": False,
        "unmatched": 0,
        "requests": [],
        "blocked": [],
        "failed": [(1, 30 * US)],
        "out_of_memory": [(0, 2 * US, 4000, 4050, 96)],
    }


def served(count: int = 100) -> dict[str, Any]:
    """One queue: request i comes at 10 i us, is taken 2 us later, answered i + 1 us after that.

    The last one is never answered.
    """
    arrived = np.arange(count, dtype=np.uint64) * 10 * US
    taken = arrived + 2 * US
    done = taken + np.arange(1, count + 1, dtype=np.uint64) * US
    done[-1] = NEVER
    return {"arrived": arrived, "taken": taken, "done": done}


def result(
    raw: dict[str, Any], platform: Platform | None = None, names: tuple[str, ...] = ()
) -> Result:
    """What a run with this outcome gives back."""
    platform = platform or star(len(raw["ranks"]["finish"]))
    queues = [{"name": f"queue {number}"} for number in range(len(raw["requests"]))]
    trace = SimpleNamespace(names=names, queues=queues)
    return Result.from_core(raw, trace, platform, network="flow", seed=7)
