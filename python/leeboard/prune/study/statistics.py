"""Paired bootstrap of differences over seeds and masks."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval.

    Attributes:
        mean: The estimate.
        low: Lower end; None for one seed, which says nothing about the next one.
        high: Upper end, or None.
        seeds: Independent trainings behind it.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: int

    @property
    def above_zero(self) -> bool:
        return self.low is not None and self.low > 0

    @property
    def below_zero(self) -> bool:
        return self.high is not None and self.high < 0


class Bootstrap:
    """Resamples seeds, and within a seed its masks.

    A difference is given as one list for each seed, of one array [masks] for each stratum (a number
    of missing modalities); its entries are means over test rows. The estimate is the mean over
    masks, strata and seeds, in this order. Every seed has a split of its own, so drawing seeds draws
    test rows, too.

    The interval is the mean -+ t(n - 1) * sqrt(n / (n - 1)) * the standard deviation of the
    resampled means, with the 97.5 % point of Student's t. Percentiles would be too narrow for a few
    seeds: resamples spread like the n seeds divided by n, not by n - 1, and never go beyond the
    outermost seeds. If nothing varies within a seed this is Student's interval over seeds; if
    masks do, it is wider, since what they do to the seeds' means counts twice.

    Args:
        replicates: Resamplings.
        seed: Of the random numbers; the same ones serve every interval.
    """

    def __init__(self, replicates: int = 2000, seed: int = 0) -> None:
        if replicates < 100:
            raise ValueError(f"replicates: got {replicates}, expected 100 or more")
        self.replicates = replicates
        self._seed = seed
        self._shares: dict[tuple[int, ...], Array] = {}

    def interval(self, values: Sequence[Sequence[Array]]) -> Interval:
        """The mean of a difference with its 95 % interval.

        Args:
            values: For each seed, for each stratum, numbers [masks].

        Raises:
            ValueError: There is no seed, or a seed without strata.
        """
        if not values or any(not strata for strata in values):
            raise ValueError("values: got no seed, or a seed without strata")
        means = [float(np.mean([stratum.mean() for stratum in strata])) for strata in values]
        count, mean = len(means), float(np.mean(means))
        if count == 1:
            return Interval(mean, None, None, 1)
        # Each place among the seeds draws one of them, with masks of the place's own.
        chosen = self._chosen(count)
        drawn = np.zeros(self.replicates)
        for place in range(count):
            for index, strata in enumerate(values):
                here = chosen[:, place] == index
                for at, stratum in enumerate(strata):
                    shares = self._draws(place, at, len(stratum))[here]
                    drawn[here] += (shares * stratum).sum(axis=1) / (len(strata) * count)
        half = student(count - 1) * math.sqrt(count / (count - 1)) * float(drawn.std())
        return Interval(mean, mean - half, mean + half, count)

    def _chosen(self, count: int) -> Array:
        """Indices of seeds, int64 [replicates, count]."""
        if (count,) not in self._shares:
            random = np.random.default_rng((self._seed, 1, count))
            self._shares[count,] = random.integers(count, size=(self.replicates, count))
        return self._shares[count,]

    def _draws(self, *key: int) -> Array:
        """How often each mask is drawn, as shares, float64 [replicates, masks]."""
        if key not in self._shares:
            random = np.random.default_rng((self._seed, 2, *key))
            masks = key[-1]
            draws = random.multinomial(masks, np.full(masks, 1 / masks), self.replicates)
            self._shares[key] = draws / masks
        return self._shares[key]


@functools.cache
def student(freedom: int | None) -> float:
    """The 97.5 % point of Student's t; `freedom` None is the normal distribution.

    With x = sqrt(n) tan(a) the density is proportional to cos(a)^(n - 1): its integral is summed.
    """
    if freedom is None:
        return 1.959963984540054
    if freedom < 1:
        raise ValueError(f"freedom: got {freedom}, expected 1 or more")
    # Midpoints, fine enough for five digits.
    edges = np.linspace(0, math.pi / 2, 400_001)
    density = np.cos((edges[1:] + edges[:-1]) / 2) ** (freedom - 1)
    below = np.concatenate(([0.0], np.cumsum(density)))
    angle = float(np.interp(0.95, below / below[-1], edges))
    return math.sqrt(freedom) * math.tan(angle)
