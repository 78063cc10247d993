"""Failures and slow-downs of devices and links, at given times or at random ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leeboard.sim import units
from leeboard.sim.names import Names, PlatformError, Selector, integer
from leeboard.sim.parts import Quantity
from leeboard.sim.units import RATIO, TIME

# What the C++ core takes: who changes, when (ps, ascending), and to what times the speed.
Changes = tuple[NDArray[np.uint32], NDArray[np.uint64], NDArray[np.float64]]
# Intervals in which a factor holds: who, from, until, factor.
_Spans = tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.uint64], NDArray[np.float64]]

_NEVER = np.uint64(2**64 - 1)
_MOST_FAILURES = 10_000_000


def _selector(device: Selector | None, link: Selector | None) -> tuple[Selector | None, ...]:
    if (device is None) == (link is None):
        raise PlatformError(f"fault: got device={device!r}, link={link!r}, expected one of them")
    return _plain(device), _plain(link)


def _plain(selector: Selector | None) -> Selector | None:
    """The selector as a value that compares and is written: no arrays, no generators."""
    if selector is None or isinstance(selector, str):
        return selector
    if isinstance(selector, (int, np.integer)):
        return int(selector)
    return tuple(one if isinstance(one, str) else int(one) for one in selector)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Devices or links that run at `factor` times their speed for a while.

    Attributes:
        device: Which devices (see `Selector`); or
        link: which links.
        at: Seconds from the start.
        duration: Seconds; "forever" (0).
        factor: Times the speed; 0: down. Faults that overlap multiply.
    """

    device: Selector | None = None
    link: Selector | None = None
    at: Quantity = Quantity(TIME, 0.0)
    duration: Quantity = Quantity(TIME, 0.0, forever=0.0)
    factor: Quantity = Quantity(RATIO, 0.0)

    def __post_init__(self) -> None:
        device, link = _selector(self.device, self.link)
        object.__setattr__(self, "device", device)
        object.__setattr__(self, "link", link)

    def spans(self, rows: NDArray[Any], number: int) -> _Spans:
        """The intervals in which the factor holds."""
        begin = units.picoseconds(self.at)
        end = begin + units.picoseconds(self.duration)
        if not self.duration or end >= 2**63:
            end = int(_NEVER)
        size = len(rows)
        first, last = np.full(size, begin, np.uint64), np.full(size, end, np.uint64)
        return rows.astype(np.int64), first, last, np.full(size, self.factor)


@dataclass(frozen=True, kw_only=True)
class RandomFaults:
    """Devices or links that fail at random and come back: exponential times, seeded.

    The draws of a device or link depend on the seed, on the place of this among the platform's
    faults, and on its own number, so that they stay when the platform grows.

    Attributes:
        device: Which devices (see `Selector`), each on its own; or
        link: which links.
        mtbf: Mean seconds from coming up to the next failure.
        mttr: Mean seconds of a failure.
        factor: Times the speed meanwhile; 0: down.
        seed: From 0 to 2^63 - 1.
        horizon: Seconds up to which failures begin.
    """

    device: Selector | None = None
    link: Selector | None = None
    mtbf: Quantity = Quantity(TIME, positive=True)
    mttr: Quantity = Quantity(TIME, positive=True)
    factor: Quantity = Quantity(RATIO, 0.0)
    seed: int = 0
    horizon: Quantity = Quantity(TIME, positive=True)

    def __post_init__(self) -> None:
        device, link = _selector(self.device, self.link)
        object.__setattr__(self, "device", device)
        object.__setattr__(self, "link", link)
        integer("seed", self.seed, 0, 2**63 - 1)

    def check(self, rows: int) -> None:
        """Raise PlatformError where so many devices or links would fail too often to count."""
        expected = rows * self.horizon / (self.mtbf + self.mttr)
        if expected > _MOST_FAILURES:
            raise PlatformError(
                f"mtbf: about {expected:.2g} failures within the horizon, expected at most "
                f"{_MOST_FAILURES}"
            )

    def spans(self, rows: NDArray[Any], number: int) -> _Spans:
        """The intervals in which the factor holds; `number` tells apart what has equal seeds."""
        rows = np.unique(rows)
        base = _mix(_mix(np.array([self.seed], np.uint64)) ^ np.uint64(number))
        ids, begins, ends = [], [], []
        now = np.zeros(len(rows))
        draw = 0
        while rows.size:
            # Many times of few rows at once, or few of many: the sums are the same.
            pairs = min(4096, 1 + (1 << 18) // rows.size)
            draws = np.arange(draw, draw + 2 * pairs, dtype=np.uint64)
            gaps = _exponential(base, rows[:, None], draws) * np.tile([self.mtbf, self.mttr], pairs)
            gaps[:, 0] += now
            times = np.cumsum(gaps, axis=1)
            failed = times[:, ::2] < self.horizon
            ids.append(np.repeat(rows, failed.sum(axis=1)))
            begins.append(times[:, ::2][failed])
            ends.append(times[:, 1::2][failed])
            alive = failed[:, -1]
            rows, now = rows[alive], times[alive, -1]
            draw += 2 * pairs
        who, begin, end = (np.concatenate(column) for column in (ids, begins, ends))
        return who.astype(np.int64), _ps(begin), _ps(end), np.full(len(who), self.factor)


def _ps(seconds: NDArray[np.float64]) -> NDArray[np.uint64]:
    whole: NDArray[np.float64] = np.rint(np.minimum(seconds, units.TIME.largest) * 1e12)
    return whole.astype(np.uint64)


def _exponential(
    base: NDArray[np.uint64], rows: NDArray[Any], draws: NDArray[np.uint64]
) -> NDArray[np.float64]:
    """Draws of each row, of mean 1: a hash of (base, row, draw), no state; broadcasts."""
    word = _mix(base ^ rows.astype(np.uint64))
    word = _mix(word ^ (draws + np.uint64(1)))
    # In (0, 1]: the logarithm is finite.
    uniform = ((word >> np.uint64(11)) + np.uint64(1)).astype(np.float64) * 2.0**-53
    return -np.log(uniform)


def _mix(word: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's output function (Steele, Lea, Flood, OOPSLA 2014)."""
    word = word + np.uint64(0x9E3779B97F4A7C15)
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = word ^ (word >> np.uint64(31))
    return mixed


def changes(faults: Iterable[Fault | RandomFaults], names: Names, part: str) -> Changes:
    """Expand faults of devices or of links into changes of speed, ascending in time.

    Args:
        faults: Of both.
        names: Of the devices or the links.
        part: "device" or "link".
    """
    spans = [
        fault.spans(names.select(getattr(fault, part), part), number)
        for number, fault in enumerate(faults)
        if getattr(fault, part) is not None
    ]
    if not spans:
        return np.zeros(0, np.uint32), np.zeros(0, np.uint64), np.zeros(0)
    who, begin, end, factor = (np.concatenate(column) for column in zip(*spans, strict=True))
    return _combine(who, begin, end, factor)


def _combine(
    who: NDArray[np.int64],
    begin: NDArray[np.uint64],
    end: NDArray[np.uint64],
    factor: NDArray[np.float64],
) -> Changes:
    ends = end != _NEVER
    rows = np.concatenate([who, who[ends]])
    at = np.concatenate([begin, end[ends]])
    step = np.concatenate([np.ones(len(who), np.int32), np.full(int(ends.sum()), -1, np.int32)])
    of = np.concatenate([factor, factor[ends]])
    order = np.lexsort((at, rows))
    rows, at, step, of = rows[order], at[order], step[order], of[order]
    # How many faults of each factor hold: whole numbers, so that all over means exactly 1. A row's
    # last count is 0 or stays, and must not leak into the next row's.
    first = np.flatnonzero(np.diff(rows, prepend=-1))
    run = np.repeat(np.arange(len(first)), np.diff(np.append(first, len(rows))))
    speed = np.ones(len(rows))
    for value in np.unique(of):
        count = np.cumsum(np.where(of == value, step, 0))
        before = np.append(0, count)[first]
        speed *= value ** (count - before[run])
    # Of several changes at one time the last holds all; changes to the same speed are none.
    last = np.append((rows[1:] != rows[:-1]) | (at[1:] != at[:-1]), True)
    rows, at, speed = rows[last], at[last], speed[last]
    first_of_row = np.append(True, rows[1:] != rows[:-1])
    previous = np.where(first_of_row, 1.0, np.append(1.0, speed[:-1]))
    real = speed != previous
    rows, at, speed = rows[real], at[real], speed[real]
    order = np.argsort(at, kind="stable")
    return rows[order].astype(np.uint32), at[order], speed[order]
