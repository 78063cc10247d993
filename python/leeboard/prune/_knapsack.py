"""A knapsack over layers: how many units of each to keep within a budget.

Each layer has one choice, the number n of blocks that it keeps, with a value that is concave in n
and a cost that does not fall. That is a multiple-choice knapsack. Where the budget may be split,
taking the steps of each layer's upper convex hull by their gain for their cost is optimal (Sinha
and Zoltners 1979); the whole steps of that solution are taken, and the rest of the budget is filled
by single improvements and exchanges. What that loses is less than the value of one step of a hull:
the first that did not fit.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

# Of sums of costs against budgets: 1e-12 is far above float64's rounding of a few hundred terms.
SLACK = 1e-12
# Exchanges take at most so many blocks from a layer, or all; there are at most so many of them, and
# none in models of more layers: bounds on the time this takes.
_BACK = 8
_EXCHANGES = 64
_PAIRED = 32
# Of a layer's value: smaller gains are rounding.
_LEAST = 1e-12


class Choices(NamedTuple):
    """What a layer can keep: n = 0 (all is dropped), 1, ... blocks.

    Attributes:
        values: Of n blocks; values[0] = 0, concave, not falling.
        costs: Of n blocks, not falling.
    """

    values: Sequence[float]
    costs: Sequence[float]


class Step(NamedTuple):
    """A step along a layer's hull, from `start` to `stop` blocks."""

    gain: float
    cost: float
    layer: int
    start: int
    stop: int


def solve(layers: Sequence[Choices], budget: float, *, fewest: int = 0) -> list[int]:
    """Blocks to keep of each layer, at a total cost of at most `budget`.

    Ties go to the earlier layer, so that the same input has the same answer everywhere.

    Args:
        layers: What each can keep.
        budget: Not less than `smallest(layers, fewest=fewest)`.
        fewest: Of the blocks of each layer.
    """
    limit = budget * (1.0 + SLACK)
    counts = [fewest] * len(layers)
    spent = sum(layer.costs[fewest] for layer in layers)
    blocked: set[int] = set()
    for step in steps(layers, fewest):
        # A later step of a layer needs the earlier ones.
        if step.layer in blocked:
            continue
        if spent + step.cost > limit:
            blocked.add(step.layer)
            continue
        counts[step.layer] = step.stop
        spent += step.cost
    _improve(layers, counts, limit, fewest)
    return counts


def smallest(layers: Sequence[Choices], *, fewest: int = 0) -> float:
    """The least that anything can cost; one block at least is kept somewhere."""
    if fewest:
        return sum(layer.costs[fewest] for layer in layers)
    first = _cheapest(layers)
    return sum(layer.costs[1 if i == first else 0] for i, layer in enumerate(layers))


def uniform(layers: Sequence[Choices], budget: float) -> list[int]:
    """The same share of each layer's blocks, as large as fits, within a block; at least one.

    The share grows, and a layer takes its n-th of N blocks when it reaches n / N, earlier layers
    first, until the first block that no longer fits; others of that share are still tried.
    The budget must not be less than `smallest(layers, fewest=1)`.
    """
    limit = budget * (1.0 + SLACK)
    counts = [1] * len(layers)
    spent = sum(layer.costs[1] for layer in layers)
    sizes = [len(layer.values) - 1 for layer in layers]
    # Exact shares: 1/3 of 6 blocks and of 12 are the same.
    order = sorted(
        (Fraction(n, size), i) for i, size in enumerate(sizes) for n in range(2, size + 1)
    )
    last: Fraction | None = None
    for share, i in order:
        if last is not None and share > last:
            break
        cost = layers[i].costs[counts[i] + 1] - layers[i].costs[counts[i]]
        if spent + cost > limit:
            last = share
            continue
        counts[i] += 1
        spent += cost
    return counts


def steps(layers: Sequence[Choices], fewest: int = 0) -> list[Step]:
    """Of all layers' upper hulls, those with the largest gain for their cost first."""
    found = [step for i, layer in enumerate(layers) for step in _hull(layer, i, fewest)]
    return sorted(found, key=lambda s: (-_slope(s.gain, s.cost), s.layer, s.start))


def _slope(gain: float, cost: float) -> float:
    return gain / cost if cost > 0.0 else float("inf")


def _hull(layer: Choices, index: int, fewest: int) -> list[Step]:
    corners: list[int] = []
    for n in range(fewest, len(layer.values)):
        while len(corners) > 1 and _rise(layer, corners[-1], n) >= _rise(
            layer, corners[-2], corners[-1]
        ):
            corners.pop()
        corners.append(n)
    return [
        Step(
            layer.values[stop] - layer.values[start],
            layer.costs[stop] - layer.costs[start],
            index,
            start,
            stop,
        )
        for start, stop in itertools.pairwise(corners)
    ]


def _rise(layer: Choices, start: int, stop: int) -> float:
    return _slope(layer.values[stop] - layer.values[start], layer.costs[stop] - layer.costs[start])


def _cheapest(layers: Sequence[Choices]) -> int:
    return min(range(len(layers)), key=lambda i: (layers[i].costs[1] - layers[i].costs[0], i))


def _improve(layers: Sequence[Choices], counts: list[int], limit: float, fewest: int) -> None:
    """Larger value for what is left of the budget: one layer up, or one up and another down."""
    for _ in range(_EXCHANGES):
        left = limit - sum(x.costs[n] for x, n in zip(layers, counts, strict=True))
        best, change = 0.0, None
        for down, lower in _downs(counts, fewest):
            lost = freed = 0.0
            if down >= 0:
                given = layers[down]
                lost = given.values[counts[down]] - given.values[lower]
                freed = given.costs[counts[down]] - given.costs[lower]
            for up, layer in enumerate(layers):
                n = counts[up]
                if up == down or n == len(layer.values) - 1:
                    continue
                # Values do not fall: of those that fit, the last.
                to = bisect.bisect_right(layer.costs, layer.costs[n] + left + freed) - 1
                if to <= n:
                    continue
                gain = layer.values[to] - layer.values[n] - lost
                # Blocks that are worth nothing stay where they cost nothing else.
                free = down < 0 and change is None and gain >= 0.0
                if free or gain > best + _LEAST * layer.values[-1]:
                    best, change = max(gain, 0.0), (up, to, down, lower)
        if change is None:
            return
        up, to, down, lower = change
        counts[up] = to
        if down >= 0:
            counts[down] = lower


def _downs(counts: Sequence[int], fewest: int) -> list[tuple[int, int]]:
    """Layers that could give way and to how many blocks; (-1, 0) for none."""
    found = [(-1, 0)]
    if len(counts) <= _PAIRED:
        for layer, n in enumerate(counts):
            few = range(max(fewest, n - _BACK), n)
            found += [(layer, lower) for lower in few]
            if fewest < n - _BACK:
                found.append((layer, fewest))
    return found
