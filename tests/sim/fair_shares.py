"""Oracles of the network's tests: progressive filling, and a fluid simulation on top of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Shares = Mapping[int, float]


def matrix(flows: Sequence[Shares], resources: int) -> NDArray[np.float64]:
    """[resources, flows]: the weight of each flow on each resource."""
    weights = np.zeros((resources, len(flows)))
    for number, shares in enumerate(flows):
        for resource, weight in shares.items():
            weights[resource, number] += weight
    return weights


def fair_rates(
    weights: NDArray[np.float64], capacity: NDArray[np.float64], limit: float = np.inf
) -> NDArray[np.float64]:
    """Max-min fair rates by progressive filling: all rise together until something is full.

    Args:
        weights: [resources, flows].
        capacity: [resources].
        limit: No flow goes faster.
    """
    rates = np.zeros(weights.shape[1])
    rising = np.ones(weights.shape[1], bool)
    while rising.any():
        taken = weights[:, rising].sum(axis=1)
        used = taken > 0
        left = np.maximum(capacity - weights[:, ~rising] @ rates[~rising], 0.0)
        levels = np.full(len(capacity), np.inf)
        levels[used] = left[used] / taken[used]
        level = levels.min()
        if level >= limit:
            rates[rising] = limit
            break
        full = levels <= level * (1 + 1e-13)
        stopped = rising & (weights[full] > 0).any(axis=0)
        rates[stopped] = level
        rising &= ~stopped
    return rates


def fluid(
    start: NDArray[np.float64],
    size: NDArray[np.float64],
    weights: NDArray[np.float64],
    capacity: NDArray[np.float64],
    limit: float = np.inf,
) -> NDArray[np.float64]:
    """When flows end that start at given times and share max-min fairly, by brute force.

    Args:
        start: [flows], seconds.
        size: [flows], bytes.
        weights: [resources, flows].
        capacity: [resources], bytes a second.
        limit: No flow goes faster.
    """
    end = np.full(len(start), np.inf)
    left = size.astype(float)
    order = list(np.argsort(start, kind="stable"))
    now, active = 0.0, np.zeros(len(start), bool)
    while order or active.any():
        rates = np.zeros(len(start))
        if active.any():
            rates[active] = fair_rates(weights[:, active], capacity, limit)
        moving = active & (rates > 0)
        wait = np.full(len(start), np.inf)
        wait[moving] = left[moving] / rates[moving]
        then = min(now + wait.min(), start[order[0]] if order else np.inf)
        left[moving] -= rates[moving] * (then - now)
        # Rounding may leave some bytes of the flow whose end this is.
        done = moving & ((left <= size * 1e-12) | (now + wait <= then))
        now = then
        end[done] = now
        active &= ~done
        while order and start[order[0]] <= now:
            active[order.pop(0)] = True
    return end
