"""The event queue, through the binding that the benchmark uses; tests/sim/native has the others."""

from __future__ import annotations

import pytest

from leeboard import _C

JUMPS = ("exponential", "bimodal", "ties", "now", "far")


@pytest.mark.parametrize("jumps", JUMPS)
@pytest.mark.parametrize("pending", [1, 100, 129, 3000, 40_000])
def test_queues_pop_the_same_events(jumps: str, pending: int) -> None:
    sums = {
        structure: _C.sim_hold(structure, pending, 30_000, jumps, 3)[1]
        for structure in ("queue", "heap", "standard")
    }
    assert len(set(sums.values())) == 1, sums


def test_a_checksum_tells_runs_apart() -> None:
    sums = {
        _C.sim_hold("queue", pending, holds, jumps, seed)[1]
        for pending in (100, 101)
        for holds in (1000, 1001)
        for jumps in JUMPS
        for seed in (1, 2)
    }
    # A constant jump is the same from every seed.
    assert len(sums) == 2 * 2 * (2 * len(JUMPS) - 1)


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("structure", "tree", "structure: got 'tree'; expected queue, heap or standard"),
        ("pending", 0, "pending: got 0; expected 1 or more"),
        ("holds", 0, "holds: got 0; expected 1 or more"),
        ("distribution", "flat", "distribution: got 'flat'; expected exponential, bimodal"),
    ],
)
def test_errors_name_the_argument(argument: str, value: object, message: str) -> None:
    arguments: dict[str, object] = {
        "structure": "queue",
        "pending": 10,
        "holds": 10,
        "distribution": "ties",
        "seed": 0,
    }
    with pytest.raises(ValueError, match=message):
        _C.sim_hold(**(arguments | {argument: value}))
