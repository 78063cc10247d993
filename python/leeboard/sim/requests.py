"""Requests of a run: when they came, were taken up and answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leeboard.sim.records import NEVER, PICOSECONDS, seconds
from leeboard.sim.table import Table

TIMES = ("arrived", "taken", "done")
_UNITS = dict.fromkeys(("waiting", "service", "mean", "p50", "p90", "p99", "max"), "s")


@dataclass(frozen=True, eq=False)
class Requests:
    """The requests of the queue of that name, in order of arrival.

    `arrived`, `taken`, `done`: uint64 picoseconds of shape [N]; 2**64 - 1 where it never happened.
    """

    name: str
    arrived: np.ndarray
    taken: np.ndarray
    done: np.ndarray

    def __len__(self) -> int:
        return len(self.arrived)

    @property
    def answered(self) -> np.ndarray:
        """Which requests were answered: bool [N]."""
        mask: np.ndarray = self.done != NEVER
        return mask

    @property
    def latency(self) -> np.ndarray:
        """Seconds from arrival to answer, of the answered ones, in order of arrival."""
        return self._between(self.arrived, self.done)

    @property
    def waiting(self) -> np.ndarray:
        """Seconds from arrival until a rank took the request up, of the answered ones."""
        return self._between(self.arrived, self.taken)

    @property
    def service(self) -> np.ndarray:
        """Seconds from then to the answer, of the answered ones."""
        return self._between(self.taken, self.done)

    @property
    def throughput(self) -> float:
        """Answers a second, from the first arrival to the last answer; NaN without any."""
        done = self.done[self.answered]
        span = int(done.max()) - int(self.arrived.min()) if len(done) else 0
        return len(done) * PICOSECONDS / span if span else float("nan")

    def _between(self, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        return seconds((end - start)[self.answered])


def summary(queues: Sequence[Requests]) -> Table:
    """A row per queue. Percentiles are of the answered requests, by linear interpolation."""
    rows = [_row(requests) for requests in queues]
    names = ("queue", "count", "unanswered", "throughput", *_UNITS)
    columns = {name: [row[name] for row in rows] for name in names}
    return Table(columns, {**_UNITS, "throughput": "/s"})


def _row(requests: Requests) -> dict[str, Any]:
    latency = requests.latency
    some = len(latency) > 0
    p50, p90, p99 = np.percentile(latency, (50, 90, 99)) if some else (np.nan,) * 3
    return {
        "queue": requests.name,
        "count": len(requests),
        "unanswered": len(requests) - len(latency),
        "throughput": requests.throughput,
        "waiting": requests.waiting.mean() if some else np.nan,
        "service": requests.service.mean() if some else np.nan,
        "mean": latency.mean() if some else np.nan,
        "p50": p50,
        "p90": p90,
        "p99": p99,
        "max": latency.max() if some else np.nan,
    }
