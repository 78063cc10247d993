"""What the tests of the two verification ops share: a walk in plain Python, and a chi-square."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# A test of distributions fails by chance once in this many seeds; the seed is fixed.
SIGNIFICANCE = 1e-4


def p_value(counts: Tensor, probabilities: Tensor) -> float:
    """Pearson's chi-square test of counts against probabilities, both of any shape.

    Cells that must be empty have to be, and count for nothing.
    """
    expected = probabilities.double() * counts.sum()
    possible = expected > 0
    if bool(counts[~possible].any()):
        return 0.0
    # The approximation wants five in a cell.
    assert expected[possible].min() >= 5
    statistic = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    degrees = torch.tensor(int(possible.sum()) - 1, dtype=torch.float64)
    # The survival function of the distribution with so many degrees of freedom.
    return float(torch.special.gammaincc(degrees / 2, statistic / 2))


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
