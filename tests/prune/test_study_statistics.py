"""The bootstrap against closed forms and against its promise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from leeboard.prune.study.statistics import Bootstrap, student


@pytest.mark.parametrize(
    ("freedom", "point"), [(1, 12.7062), (2, 4.30265), (4, 2.77645), (9, 2.26216), (30, 2.04227)]
)
def test_student(freedom: int, point: float) -> None:
    """Printed tables of the 97.5 % point."""
    assert student(freedom) == pytest.approx(point, rel=1e-4)


def test_student_tends_to_the_normal_distribution() -> None:
    assert student(100_000) == pytest.approx(student(None), rel=1e-4)
    with pytest.raises(ValueError, match="freedom: got 0, expected 1 or more"):
        student(0)


def test_seeds_alone_give_the_interval_of_students_t() -> None:
    """With nothing to draw within a seed the spread is that of the seeds' means."""
    means = np.random.default_rng(0).standard_normal(40)
    found = Bootstrap(20_000).interval([[np.full(1, mean)] for mean in means])
    half = student(39) * means.std(ddof=1) / math.sqrt(40)
    assert found.mean == pytest.approx(means.mean())
    assert found.seeds == 40
    assert found.low is not None
    assert found.high is not None
    assert found.high - found.low == pytest.approx(2 * half, rel=0.02)


def test_two_seeds_by_hand() -> None:
    """Means of resamples are 0, 1/2 or 1 with probability 1/4, 1/2, 1/4: deviation 1/sqrt(8)."""
    found = Bootstrap(50_000).interval([[np.zeros(1)], [np.ones(1)]])
    half = student(1) * math.sqrt(2) / math.sqrt(8)
    assert (found.low, found.high) == (
        pytest.approx(0.5 - half, rel=0.02),
        pytest.approx(0.5 + half, rel=0.02),
    )


def test_one_seed_has_no_interval() -> None:
    found = Bootstrap().interval([[np.ones(2)]])
    assert (found.mean, found.low, found.high, found.seeds) == (1.0, None, None, 1)
    assert not found.above_zero
    assert not found.below_zero


def test_strata_weigh_the_same_whatever_their_masks() -> None:
    found = Bootstrap().interval([[np.zeros(1), np.ones(3)]])
    assert found.mean == 0.5


def test_masks_alone_are_drawn_within_a_seed() -> None:
    """Two masks at 0 and 1 in each of n seeds: a seed's mean has the variance 1/8, theirs 1/8n."""
    values = [[np.array([0.0, 1.0])] for _ in range(5)]
    found = Bootstrap(50_000).interval(values)
    assert found.low is not None
    half = student(4) * math.sqrt(5 / 4) * math.sqrt(1 / 8 / 5)
    assert 0.5 - found.low == pytest.approx(half, rel=0.02)


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("spread", [(1.0, 0.0), (0.3, 1.0)])
def test_coverage(seeds: int, spread: tuple[float, float]) -> None:
    """At least 95 of 100 intervals hold the truth, whichever level the noise is on."""
    random = np.random.default_rng(seeds)
    bootstrap = Bootstrap(300)
    held, trials = 0, 400
    for _ in range(trials):
        values = []
        for _ in range(seeds):
            centre = 0.7 + spread[0] * random.standard_normal()
            values.append([centre + spread[1] * random.standard_normal(3)])
        found = bootstrap.interval(values)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0.7 <= found.high
    # Three standard errors of 400 trials at 95 % are 3.3 %.
    assert held / trials >= 0.95 - 0.033
    if spread[1] == 0:
        assert held / trials <= 0.95 + 0.033


def test_equal_input_gives_equal_intervals() -> None:
    values = [[np.random.default_rng(i).random(2)] for i in range(4)]
    assert Bootstrap().interval(values) == Bootstrap().interval(values)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="replicates: got 5, expected 100 or more"):
        Bootstrap(5)
    with pytest.raises(ValueError, match="values: got no seed"):
        Bootstrap().interval([])
