"""Arrivals and distributions: their checks, and what the core is given."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from leeboard.sim.program import Program
from leeboard.sim.workload import (
    ArrivalTimes,
    ClosedLoop,
    Exponential,
    Lognormal,
    Poisson,
    Uniform,
)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Poisson(rate=0, count=1), "rate: got 0"),
        (lambda: Poisson(rate=math.inf, count=1), "rate: got inf"),
        (lambda: Poisson(rate=1, count=0), "count: got 0"),
        (lambda: Poisson(rate=1, count=1, seed=-1), "seed: got -1"),
        (lambda: Poisson(rate=1e-9, count=1), "1 / rate: got"),
        (lambda: ArrivalTimes([]), "times: got none"),
        (lambda: ArrivalTimes([1, "0.5 s"]), r"times\[1\]: got 0.5 after 1.0"),
        (lambda: ArrivalTimes([-1]), r"times\[0\]: got -1"),
        (lambda: ClosedLoop(clients=0, count=1), "clients: got 0"),
        (lambda: ClosedLoop(clients=1, think=-1, count=1), "think: got -1"),
        (lambda: Exponential(-1), "mean: got -1"),
        (lambda: Lognormal(1, 11), "sigma: got 11"),
        (lambda: Uniform(2, 1), "low: got 2"),
    ],
)
def test_workloads_are_checked(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_queues_are_encoded_for_the_core() -> None:
    program = Program(1)
    program.arrivals(Poisson(rate=4, count=10, seed=3), name="chat")
    program.arrivals(ArrivalTimes(["1 ms", 0.5]))
    program.arrivals(ClosedLoop(clients=2, think="1 s", count=7))
    first, second, third = program.trace().core()["queues"]
    assert (first["kind"], first["count"], first["mean"], first["seed"]) == (1, 10, 0.25, 3)
    assert (second["kind"], second["times"].tolist()) == (0, [10**9, 5 * 10**11])
    assert (third["kind"], third["clients"], third["mean"], third["count"]) == (2, 2, 1.0, 7)
    assert [queue["name"] for queue in program.trace().queues] == ["chat", "queue 1", "queue 2"]
