"""Timed sections that all ranks begin together. The clock is one for all ranks: one host's, or the
simulator's."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from statistics import median

import torch
import torch.distributed as dist

# Ranks get the time of the next beginning this long before it.
_NOTICE = 0.012


def together(notice: float) -> float:
    """Return on all ranks at about the same time; when this rank did.

    Rank 0 sets the time: it calls this when it has heard of all the others that they are ready.
    """
    start = torch.zeros(1, dtype=torch.float64)
    if dist.get_rank() == 0:
        start[0] = time.perf_counter() + notice + _NOTICE
    dist.broadcast(start, 0)
    wait = float(start) - time.perf_counter()
    if wait > 0:
        time.sleep(wait)
    return time.perf_counter()


def timed(
    name: str, act: Callable[[], object], *, repeats: int, warm: int, notice: float, kind: str
) -> None:
    """Run `act` on all ranks, and print on rank 0 what it took: from begin to the last rank's end.

    What `act` did before it is timed (`warm` times) is thrown away; all that is timed is printed.
    """
    ranks, rank = dist.get_world_size(), dist.get_rank()
    seconds, spread = [], []
    # Nobody is late for the first time because its case took long to set up.
    dist.barrier()
    for repeat in range(warm + repeats):
        begin = together(notice)
        act()
        end = time.perf_counter()
        pairs = [torch.zeros(2, dtype=torch.float64) for _ in range(ranks)] if rank == 0 else None
        dist.gather(torch.tensor([begin, end], dtype=torch.float64), pairs, 0)
        if pairs is not None and repeat >= warm:
            begins = [float(pair[0]) for pair in pairs]
            ends = [float(pair[1]) for pair in pairs]
            seconds.append(max(ends) - max(begins))
            spread.append(max(begins) - min(begins))
    if rank == 0:
        report(name, seconds, kind=kind, spread=max(spread))


def report(name: str, seconds: list[float], **more: object) -> None:
    """Print a scenario's times as a line of JSON; the median counts, all are kept."""
    line = {"scenario": name, "seconds": median(seconds), "all": seconds, **more}
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()
