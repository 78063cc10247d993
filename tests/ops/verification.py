"""What the tests of the two verification ops share: a walk in plain Python, and a chi-square."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Upper quantiles of the chi-square distribution at significance 1e-4, by degrees of freedom:
# Wilson and Hilferty's cube, within 1% of the tables for the degrees used here.
NORMAL_QUANTILE = 3.719016485


def critical_value(degrees: int) -> float:
    """What a chi-square statistic exceeds with probability 1e-4 under the hypothesis."""
    part = 2.0 / (9.0 * degrees)
    return float(degrees * (1.0 - part + NORMAL_QUANTILE * part**0.5) ** 3)


def chi_square(counts: Tensor, probabilities: Tensor) -> tuple[float, int]:
    """(statistic, degrees of freedom) of counts against probabilities, both of any shape.

    Cells that must be empty have to be, and count for nothing.
    """
    expected = probabilities.double() * counts.sum()
    possible = expected > 0
    assert not counts[~possible].any()
    # The approximation wants five in a cell.
    assert expected[possible].min() >= 5
    statistic = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    return float(statistic), int(possible.sum()) - 1


def walk(
    drafts: Sequence[int], parents: Sequence[int], accepts: Callable[[int, int], bool]
) -> list[int]:
    """The accepted nodes: from each node on, the first child that `accepts(node, child)`."""
    path: list[int] = []
    node = -1
    while True:
        children = [i for i in range(len(drafts)) if parents[i] == node]
        chosen = next((i for i in children if accepts(node, i)), None)
        if chosen is None:
            return path
        path.append(chosen)
        node = chosen
