"""What patterns are made of: their numbers, checked, and the sample of TopU."""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any, TypeGuard

from leeboard.ops._numpy import Integers, np


def is_sequence(value: object) -> TypeGuard[Sequence[Any]]:
    """Anything to go through but text."""
    return isinstance(value, Iterable) and not isinstance(value, str)


def integer(name: str, value: object, least: int) -> int:
    """An int of any integer type."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}")
    number = operator.index(value)
    if number < least:
        raise ValueError(f"{name}: {number} was given; expected at least {least}")
    return number


def ascending(name: str, row: object) -> tuple[int, ...]:
    """Numbers of key blocks as they must stand."""
    if not is_sequence(row):
        raise TypeError(f"{name}: expected a list of key blocks, got {type(row).__name__}")
    numbers = tuple(integer(name, number, 0) for number in row)
    for first, second in itertools.pairwise(numbers):
        if first >= second:
            raise ValueError(
                f"{name}: {second} was given after {first}; expected ascending numbers of key blocks"
            )
    return numbers


def tiling(spans: object) -> tuple[tuple[int, int], ...]:
    """Spans that follow each other from 0, checked."""
    if not is_sequence(spans):
        raise TypeError(f"spans: expected pairs (start, stop), got {type(spans).__name__}")
    result: list[tuple[int, int]] = []
    before = 0
    for n, span in enumerate(spans):
        if not is_sequence(span):
            raise TypeError(f"spans[{n}]: expected a pair (start, stop), got {type(span).__name__}")
        numbers = [integer(f"spans[{n}]", number, 0) for number in span]
        if len(numbers) != 2:
            raise ValueError(f"spans[{n}]: {len(numbers)} numbers were given; expected 2")
        start, stop = numbers
        if stop <= start:
            raise ValueError(
                f"spans[{n}]: ({start}, {stop}) was given; expected a stop beyond the start"
            )
        if start != before:
            what = "overlaps" if start < before else "leaves a gap to"
            previous = f"spans[{n - 1}], which ends at {before}" if n else "0, where spans begin"
            raise ValueError(
                f"spans[{n}]: ({start}, {stop}) {what} {previous}; expected it to start at {before}"
            )
        result.append((start, stop))
        before = stop
    if not result:
        raise ValueError("spans: none was given; expected at least one modality")
    return tuple(result)


def share(factor: int, count: int) -> int:
    """min(factor * ceil(ln count), count), at least 1 of what there is."""
    return min(max(factor * math.ceil(math.log(count)), 1), count) if count else 0


@functools.lru_cache(256)
def sample(factor: int, seed: int, keys: int) -> Integers:
    """`TopU.sampled`, made once; read-only."""
    count = share(factor, keys)
    r = np.random.Generator(np.random.Philox(key=seed)).random(count)
    places = ((np.arange(count) + r) * keys / max(count, 1)).astype(np.int64)
    # The quotient may be rounded up to a whole number.
    result = np.minimum(places, keys - 1)
    result.setflags(write=False)
    return result
