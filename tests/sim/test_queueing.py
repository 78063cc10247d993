"""Queues of requests against queueing theory.

Tolerances: four standard errors, estimated from the means of 50 batches of consecutive requests,
which are longer than the queues remember; each test also asks that the standard error is small.
Seeds are fixed, so a test either always passes or never.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from leeboard.sim import ArrivalTimes, ClosedLoop, Exponential, Platform, Poisson, Program, run
from leeboard.sim.workload import Distribution

COUNT = 300_000
BATCHES = 50
SERVICE = 1e-3

Values = NDArray[np.float64]


def check(values: Values, expected: float, precision: float) -> None:
    """The mean of `values` is `expected`, as far as so many of them can tell.

    Args:
        values: Of consecutive requests.
        expected: The theory's mean.
        precision: The standard error may be at most this share of it.
    """
    batches = values[: len(values) // BATCHES * BATCHES].reshape(BATCHES, -1).mean(axis=1)
    error = batches.std(ddof=1) / math.sqrt(BATCHES)
    assert error <= precision * expected
    assert abs(batches.mean() - expected) <= 4 * error


def platform(ranks: int = 1) -> Platform:
    return Platform.star(ranks, bandwidth="100 Gbit/s", latency="1 ns")


def times(program: Program) -> tuple[Values, Values, Values]:
    """Arrival, start and end of every request of the first queue, in seconds."""
    result = run(program, platform(program.ranks), network="alpha-beta", timeline=False)
    queue = result.queues[0]
    arrived, taken, done = (
        getattr(queue, name).astype(np.float64) * 1e-12 for name in ("arrived", "taken", "done")
    )
    return arrived, taken, done


def single_server(load: float, service: Distribution | float, seed: int) -> Program:
    program = Program(1)
    queue = program.arrivals(Poisson(rate=load / SERVICE, count=COUNT, seed=seed))
    with program[0].serve(queue):
        program[0].compute(seconds=service)
        program[0].done(queue)
    return program


@pytest.mark.parametrize(("load", "precision"), [(0.3, 0.02), (0.6, 0.03), (0.8, 0.05)])
def test_mm1(load: float, precision: float) -> None:
    """M/M/1: mean wait rho / (mu - lambda); the response is exponential of rate mu - lambda."""
    arrived, taken, done = times(single_server(load, Exponential(SERVICE), seed=11))
    mean_response = SERVICE / (1 - load)
    check(np.diff(arrived), SERVICE / load, 0.01)
    check(done - taken, SERVICE, 0.01)
    check(taken - arrived, load * mean_response, precision)
    check(done - arrived, mean_response, precision)
    for share in (0.5, 0.9, 0.99):
        percentile = -math.log(1 - share) * mean_response
        check((done - arrived > percentile).astype(np.float64), 1 - share, 0.2)


@pytest.mark.parametrize(("load", "precision"), [(0.3, 0.02), (0.8, 0.05)])
def test_md1(load: float, precision: float) -> None:
    """M/D/1 (Pollaczek-Khinchine): mean wait rho / (2 mu (1 - rho))."""
    arrived, taken, done = times(single_server(load, SERVICE, seed=12))
    assert np.allclose(done - taken, SERVICE, rtol=1e-6)
    check(taken - arrived, load * SERVICE / (2 * (1 - load)), precision)


def test_mm3() -> None:
    """M/M/3: three ranks take from one queue; the mean wait is Erlang's C formula."""
    servers, load = 3, 0.7
    program = Program(servers)
    queue = program.arrivals(Poisson(rate=servers * load / SERVICE, count=COUNT, seed=13))
    with program.serve(queue):
        program.compute(seconds=Exponential(SERVICE))
        program.done(queue)
    arrived, taken, _ = times(program)
    offered = servers * load
    full = offered**servers / math.factorial(servers) / (1 - load)
    waiting = full / (sum(offered**k / math.factorial(k) for k in range(servers)) + full)
    check((taken > arrived).astype(np.float64), waiting, 0.02)
    check(taken - arrived, waiting * SERVICE / (servers * (1 - load)), 0.05)


@pytest.mark.parametrize("clients", [1, 4, 20])
def test_closed_loop(clients: int) -> None:
    """Machine repair (M/M/1//N): response N / X - Z with X from the state probabilities."""
    think = 8 * SERVICE
    program = Program(1)
    queue = program.arrivals(ClosedLoop(clients, think=think, count=COUNT, seed=14))
    with program[0].serve(queue):
        program[0].compute(seconds=Exponential(SERVICE))
        program[0].done(queue)
    arrived, _, done = times(program)
    weights = [
        math.perm(clients, waiting) * (SERVICE / think) ** waiting for waiting in range(clients + 1)
    ]
    throughput = (1 - weights[0] / sum(weights)) / SERVICE
    check(done - arrived, clients / throughput - think, 0.01)
    check(np.diff(np.sort(done)), 1 / throughput, 0.01)
    # No client asks while its request is open.
    at = np.concatenate([arrived, done])
    change = np.repeat([1, -1], len(arrived))
    assert np.cumsum(change[np.lexsort((change, at))]).max() <= clients


def pipeline(program: Program, stages: list[Distribution | float], count: int) -> None:
    """Rank 0 takes requests, each rank works and passes them on, the last one answers."""
    queue = next(iter(program._queues))
    for rank, seconds in enumerate(stages):
        here = program[rank]
        with here.serve(queue) if rank == 0 else here.loop(count):
            if rank > 0:
                here.recv(rank - 1)
            here.compute(seconds=seconds)
            if rank + 1 < len(stages):
                here.send(rank + 1, bytes=8)
            else:
                here.done(queue)


def test_requests_travel_with_messages() -> None:
    """Every request leaves a three-stage pipeline when the recurrence of its stages says so."""
    stages: list[Distribution | float] = [1e-3, 3e-3, 2e-3]
    arrivals = [0.0, 0.0, 0.0, 4e-3, 50e-3, 50e-3, 51e-3]
    program = Program(3)
    program.arrivals(ArrivalTimes(arrivals))
    pipeline(program, stages, len(arrivals))
    arrived, _, done = times(program)
    free = [0.0] * 3
    for request, came in enumerate(arrivals):
        at = came
        for stage, seconds in enumerate(stages):
            assert isinstance(seconds, float)
            at = free[stage] = max(at, free[stage]) + seconds
        assert arrived[request] == pytest.approx(came, abs=1e-9)
        # Two messages of 8 bytes on the fast star.
        assert done[request] == pytest.approx(at, abs=1e-7)


def test_tandem_queues() -> None:
    """Burke: stations in a row behave as M/M/1 each, so mean responses add up."""
    means, rate = [0.5 * SERVICE, 0.7 * SERVICE, 0.6 * SERVICE], 1 / SERVICE
    program = Program(3)
    program.arrivals(Poisson(rate=rate, count=COUNT, seed=15))
    pipeline(program, [Exponential(mean) for mean in means], COUNT)
    arrived, _, done = times(program)
    check(done - arrived, sum(1 / (1 / mean - rate) for mean in means), 0.04)


def test_seeds_change_arrivals_and_nothing_else_does() -> None:
    first, again, other = (times(single_server(0.5, SERVICE, seed=seed))[0] for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()
