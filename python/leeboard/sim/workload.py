"""What is drawn at random in a program: compute times, and when requests arrive."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from leeboard.sim.ops import integer
from leeboard.sim.units import RATIO, TIME, Value, parse, picoseconds

_MOST = 2**40


@dataclass(frozen=True)
class Exponential:
    """A time drawn from the exponential distribution.

    Attributes:
        mean: Seconds, or text with a unit.
    """

    mean: Value

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", parse("mean", self.mean, TIME))


@dataclass(frozen=True)
class Lognormal:
    """A time whose logarithm is normal.

    Attributes:
        mean: Of the time itself, in seconds, or text with a unit.
        sigma: Standard deviation of the logarithm, 0 to 10; kept to a millionth.
    """

    mean: Value
    sigma: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", parse("mean", self.mean, TIME))
        sigma = parse("sigma", self.sigma, RATIO)
        if sigma > 10.0:
            raise ValueError(f"sigma: got {self.sigma!r}, expected a number from 0 to 10")
        object.__setattr__(self, "sigma", sigma)


@dataclass(frozen=True)
class Uniform:
    """A time drawn evenly between two times.

    Attributes:
        low: Seconds, or text with a unit.
        high: At least `low`.
    """

    low: Value
    high: Value

    def __post_init__(self) -> None:
        low, high = parse("low", self.low, TIME), parse("high", self.high, TIME)
        if low > high:
            raise ValueError(f"low: got {self.low!r}, expected at most high ({self.high!r})")
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)


Distribution = Exponential | Lognormal | Uniform


@dataclass(frozen=True)
class Poisson:
    """Requests that arrive by themselves, at exponential distances (open loop).

    Attributes:
        rate: Requests a second.
        count: Requests in all.
        seed: Of the arrival times, beside the seed of the run.
    """

    rate: float
    count: int
    seed: int = 0

    def __post_init__(self) -> None:
        rate = parse("rate", self.rate, RATIO)
        if rate == 0:
            raise ValueError("rate: got 0, expected a positive number of requests a second")
        object.__setattr__(self, "rate", rate)
        parse("1 / rate", 1 / rate, TIME)
        object.__setattr__(self, "count", integer("count", self.count, 1, _MOST))
        object.__setattr__(self, "seed", integer("seed", self.seed, 0, 2**64 - 1))


@dataclass(frozen=True)
class ArrivalTimes:
    """Requests that arrive at given times.

    Attributes:
        times: Ascending, at least one; seconds, or text with a unit each.
    """

    times: tuple[float, ...]

    def __init__(self, times: Sequence[Value]) -> None:
        read = tuple(parse(f"times[{i}]", time, TIME) for i, time in enumerate(times))
        if not read:
            raise ValueError("times: got none, expected at least one")
        for i, (a, b) in enumerate(itertools.pairwise(read)):
            if a > b:
                raise ValueError(f"times[{i + 1}]: got {b!r} after {a!r}, expected ascending times")
        object.__setattr__(self, "times", read)


@dataclass(frozen=True)
class ClosedLoop:
    """Clients that wait for an answer, think, and ask again (closed loop).

    Attributes:
        clients: How many ask at once at most.
        count: Requests in all.
        think: Mean of a client's exponential time between an answer (or the start) and its next
            request; 0: none.
        seed: Of the think times, beside the seed of the run.
    """

    clients: int
    think: Value = 0.0
    count: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "clients", integer("clients", self.clients, 1, 2**24))
        object.__setattr__(self, "think", parse("think", self.think, TIME))
        object.__setattr__(self, "count", integer("count", self.count, 1, _MOST))
        object.__setattr__(self, "seed", integer("seed", self.seed, 0, 2**64 - 1))


Arrivals = Poisson | ArrivalTimes | ClosedLoop

# Queue::Kind in csrc/sim/program.h.
_TIMES, _POISSON, _CLOSED = 0, 1, 2


def encode(arrivals: Arrivals) -> dict[str, object]:
    """The queue that `leeboard._C.SimProgram` takes: kind, count, mean, clients, seed, times."""
    queue: dict[str, object] = {
        "kind": _TIMES,
        "count": 0,
        "mean": 0.0,
        "clients": 0,
        "seed": 0,
        "times": (),
    }
    if isinstance(arrivals, Poisson):
        queue |= {
            "kind": _POISSON,
            "count": arrivals.count,
            "mean": 1 / arrivals.rate,
            "seed": arrivals.seed,
        }
    elif isinstance(arrivals, ArrivalTimes):
        times = tuple(picoseconds(time) for time in arrivals.times)
        queue |= {"count": len(times), "times": times}
    elif isinstance(arrivals, ClosedLoop):
        queue |= {
            "kind": _CLOSED,
            "count": arrivals.count,
            "mean": arrivals.think,
            "clients": arrivals.clients,
            "seed": arrivals.seed,
        }
    return queue
