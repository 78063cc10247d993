"""The paired bootstrap over prompts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from leeboard.draft.probe import paired_difference, ratio
from leeboard.draft.probe.bootstrap import mean


def test_difference_and_ratio_of_known_values() -> None:
    a, b = np.array([3.0, 5.0, 7.0]), np.array([1.0, 3.0, 5.0])
    # The difference is 2 for every prompt: no resample can differ.
    assert paired_difference(a, b, n=200) == pytest.approx((2.0, 2.0, 2.0))
    assert ratio(a, a, n=200) == pytest.approx((1.0, 1.0, 1.0))
    assert ratio(a, b, n=2000).mean == pytest.approx(15 / 9)


def test_interval_is_that_of_the_normal_limit() -> None:
    rng = np.random.default_rng(3)
    difference = rng.normal(0.5, 2.0, size=400)
    b = rng.normal(size=400)
    found = paired_difference(b + difference, b, n=4000, seed=1)
    assert found.mean == pytest.approx(difference.mean())
    half = 1.96 * difference.std() / 20
    assert found.low == pytest.approx(difference.mean() - half, abs=0.05 * half + 0.02)
    assert found.high == pytest.approx(difference.mean() + half, abs=0.05 * half + 0.02)


def test_covers_as_often_as_it_says() -> None:
    """Of 200 intervals about nine in ten hold the truth: the binomial's limits."""
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        values = rng.exponential(size=(2, 60))
        found = paired_difference(values[0], values[1], n=400, seed=7, level=0.9)
        inside += found.low <= 0.0 <= found.high
    assert 165 <= inside <= 195


def test_counts_pool_rows_and_skip_empty_depths() -> None:
    sums = np.array([[6.0, 0.0], [2.0, 4.0]])
    counts = np.array([[2.0, 0.0], [2.0, 4.0]])
    # Depth 1: 8 of 4 rows; depth 2: 4 of 4.
    assert mean((sums, counts), n=100).mean == pytest.approx((2.0 + 1.0) / 2)
    sums[0, 1] = np.nan
    assert mean((sums, counts), n=100).mean == pytest.approx(1.5)
    assert mean(([1.0, 3.0], [1.0, 3.0]), n=10) == pytest.approx((1, 1, 1))


def test_repeatable_and_seeded() -> None:
    a, b = np.random.default_rng(2).normal(size=(2, 30))
    assert paired_difference(a, b, seed=4, n=700) == paired_difference(a, b, seed=4, n=700)
    assert paired_difference(a, b, seed=4, n=700) != paired_difference(a, b, seed=5, n=700)


def test_nothing_to_estimate_from() -> None:
    found = ratio([1.0, 2.0], [0.0, 0.0], n=50)
    assert np.isnan(found).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (([1.0], [1.0, 2.0]), "got 2 prompts, expected 1"),
        (([], []), "P at least 1"),
        ((([1.0], [-1.0]), [1.0]), "a count is -1"),
        ((([1.0], [1.0, 2.0]), [1.0]), "expected both"),
    ],
)
def test_refuses(given: tuple[Any, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paired_difference(*given)
    with pytest.raises(ValueError, match="n: got 0"):
        paired_difference([1.0], [1.0], n=0)
