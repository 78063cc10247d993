"""Paired bootstrap over prompts: how sure a difference or a ratio of two means is.

Both ways are measured on the same prompts, so a resample draws prompts, and with a prompt both of
its values (Efron and Tibshirani, 1993, chapters 8 and 13: percentile intervals).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Values = ArrayLike | tuple[ArrayLike, ArrayLike]

# Resamples at a time: a few megabytes for a thousand prompts.
_BLOCK = 500


class Interval(NamedTuple):
    """An estimate and the ends of its interval; nan where there is nothing to estimate from."""

    mean: float
    low: float
    high: float


def mean(a: Values, *, n: int = 10000, seed: int = 0, level: float = 0.95) -> Interval:
    """The mean of one way; arguments as of `paired_difference`."""
    return _interval([a], lambda found: found[0], n, seed, level)


def paired_difference(
    a: Values, b: Values, *, n: int = 10000, seed: int = 0, level: float = 0.95
) -> Interval:
    """mean(a) - mean(b), with an interval from resampled prompts.

    Args:
        a: One value a prompt, [P]; or (sums, counts), both [P], whose mean is the sum of sums over
            the sum of counts: every round or row counts the same. Both may be [P, D] (chain
            depths): the mean is taken for each of the D columns, then over the columns that have a
            count.
        b: The same of the other way, for the same prompts in the same order.
        n: Resamples.
        seed: Of the resamples: the same seed draws the same prompts.
        level: Share of the resamples that lie inside.

    Returns:
        (mean, low, high): the difference of all prompts, and percentiles of the resamples.

    Raises:
        ValueError: Shapes differ, there is no prompt, a count is negative, or `n` or `level` is out
            of range.
    """
    return _interval([a, b], lambda found: found[0] - found[1], n, seed, level)


def ratio(a: Values, b: Values, *, n: int = 10000, seed: int = 0, level: float = 0.95) -> Interval:
    """mean(a) / mean(b), as `paired_difference`; nan where mean(b) is 0."""
    return _interval([a, b], lambda found: over(found[0], found[1]), n, seed, level)


def _interval(ways: list[Values], figure: Any, n: int, seed: int, level: float) -> Interval:
    if n < 1:
        raise ValueError(f"n: got {n}, expected at least 1 resample")
    if not 0.0 < level < 1.0:
        raise ValueError(f"level: got {level}, expected a share between 0 and 1")
    pairs = [_pair(name, values) for name, values in zip("ab", ways, strict=False)]
    prompts = pairs[0][0].shape[0]
    if any(sums.shape[0] != prompts for sums, _ in pairs):
        raise ValueError(
            f"b: got {pairs[1][0].shape[0]} prompts, expected {prompts} as in a: they are paired"
        )
    rng = np.random.default_rng(seed)
    resampled = []
    for start in range(0, n, _BLOCK):
        drawn = resamples(rng, prompts, min(_BLOCK, n - start))
        resampled.append(figure([_mean(pair, drawn) for pair in pairs]))
    whole = figure([_mean(pair, np.ones((1, prompts), dtype=np.int64)) for pair in pairs])
    values = np.concatenate(resampled)
    values = values[np.isfinite(values)]
    if not len(values) or not np.isfinite(whole[0]):
        return Interval(float(whole[0]), float("nan"), float("nan"))
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(whole[0]), float(low), float(high))


def resamples(rng: np.random.Generator, prompts: int, n: int) -> NDArray[np.int64]:
    """How often each prompt is drawn, int64 [n, P]."""
    return rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=n)


def _pair(name: str, values: Values) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(sums, counts), float64 [P, D]."""
    given = values if isinstance(values, tuple) else (values, None)
    if len(given) != 2:
        raise ValueError(f"{name}: got a tuple of {len(given)}, expected (sums, counts)")
    sums = np.asarray(given[0], dtype=np.float64)
    counts = np.ones_like(sums) if given[1] is None else np.asarray(given[1], dtype=np.float64)
    if sums.ndim not in (1, 2) or sums.shape[0] == 0 or counts.shape != sums.shape:
        raise ValueError(
            f"{name}: got sums {sums.shape} and counts {counts.shape}, expected both [P] or [P, D], "
            "P at least 1"
        )
    if (counts < 0).any():
        raise ValueError(f"{name}: a count is {counts.min():g}, expected none below 0")
    columns = (len(sums), -1)
    # A prompt without a row has no value, whatever its sum says.
    return np.where(counts > 0, sums, 0.0).reshape(columns), counts.reshape(columns)


def _mean(
    pair: tuple[NDArray[np.float64], NDArray[np.float64]], drawn: NDArray[np.int64]
) -> NDArray[np.float64]:
    """[n] means of the resamples drawn [n, P]."""
    columns = over(drawn @ pair[0], drawn @ pair[1])
    there = np.isfinite(columns)
    return over(np.where(there, columns, 0.0).sum(1), there.sum(1).astype(np.float64))


def over(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """a / b, nan where b is 0."""
    found: NDArray[np.float64] = np.full(np.shape(a), np.nan)
    np.divide(a, b, out=found, where=b != 0)
    return found
