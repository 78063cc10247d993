"""Estimates with paired bootstrap intervals over prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leeboard.draft.probe.bootstrap import over, resamples

Array = NDArray[np.float64]

RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval; the ends are None where no resample gives one.

    Attributes:
        value: The figure.
        low: 2.5 % of the resamples lie below.
        high: 2.5 % of them lie above.
    """

    value: float
    low: float | None
    high: float | None

    def to_dict(self) -> dict[str, float | None]:
        return {"value": _plain(self.value), "low": self.low, "high": self.high}

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> Interval:
        value = given["value"]
        return cls(math.nan if value is None else float(value), given["low"], given["high"])


@dataclass(frozen=True)
class Estimate:
    """A figure and the same figure on every resample; two of one bootstrap are paired.

    Attributes:
        value: The figure; NaN where there is nothing to divide by.
        replicates: float64 [R].
    """

    value: float
    replicates: Array

    def __sub__(self, other: Estimate | float) -> Estimate:
        return self._with(other, np.subtract)

    def __truediv__(self, other: Estimate | float) -> Estimate:
        return self._with(other, np.divide)

    def __abs__(self) -> Estimate:
        return Estimate(abs(self.value), np.abs(self.replicates))

    def _with(self, other: Estimate | float, operation: Callable[..., Any]) -> Estimate:
        value, replicates = (
            (other.value, other.replicates) if isinstance(other, Estimate) else (other, other)
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            return Estimate(
                float(operation(np.float64(self.value), np.float64(value))),
                operation(self.replicates, replicates),
            )

    def interval(self) -> Interval:
        """The middle 95 % of the resamples.

        Resamples without a value (nothing to divide by) are left out; where they are more than one
        in twenty there is no interval.
        """
        known = self.replicates[np.isfinite(self.replicates)]
        if not math.isfinite(self.value) or len(known) < 0.95 * len(self.replicates):
            return Interval(self.value, None, None)
        low, high = np.percentile(known, (2.5, 97.5))
        return Interval(self.value, float(low), float(high))


def mean(estimates: Sequence[Estimate]) -> Estimate:
    """Their mean, paired: one set of prompts was drawn for all of them."""
    return Estimate(
        float(np.mean([e.value for e in estimates])),
        np.mean([e.replicates for e in estimates], axis=0),
    )


def least(*estimates: Estimate) -> Estimate:
    """The least of them, on every resample anew: it lies above 0 where all of them do."""
    return Estimate(
        float(np.min([e.value for e in estimates])),
        np.min([e.replicates for e in estimates], axis=0),
    )


class Bootstrap:
    """Resamples prompts, the same ones for whatever is counted on equally many of them.

    Args:
        replicates: Resamples.
        seed: Of the random numbers.
    """

    def __init__(self, replicates: int = RESAMPLES, seed: int = 0) -> None:
        if replicates < 100:
            raise ValueError(f"replicates: got {replicates}, expected 100 or more")
        self.replicates = replicates
        self._seed = seed
        self._draws: dict[int, Array] = {}

    def ratio(self, numerators: Any, denominators: Any) -> Estimate:
        """Sum over prompts of the one by the sum of the other, as [P] numbers each.

        Raises:
            ValueError: They are not two vectors of one length, or empty.
        """
        top, bottom = (np.asarray(x, dtype=np.float64) for x in (numerators, denominators))
        if top.ndim != 1 or top.shape != bottom.shape or not len(top):
            raise ValueError(
                f"numerators, denominators: got shapes {top.shape}, {bottom.shape}, expected two "
                "vectors with one entry a prompt"
            )
        drawn = self._drawn(len(top))
        whole = over(top.sum(keepdims=True), bottom.sum(keepdims=True))
        return Estimate(float(whole[0]), over(drawn @ top, drawn @ bottom))

    def _drawn(self, prompts: int) -> Array:
        """How often each prompt is drawn, float64 [R, P]."""
        if prompts not in self._draws:
            rng = np.random.default_rng((self._seed, prompts))
            self._draws[prompts] = resamples(rng, prompts, self.replicates).astype(np.float64)
        return self._draws[prompts]


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
