"""The same programs under gloo and in the simulator give the same numbers."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

import conformance_parallel
from conformance_cases import CASES, plain
from gloo_pool import run_gloo
from leeboard import sim

assert conformance_parallel
SIZES = (2, 4)


def simulated(name: str, size: int) -> list[Any]:
    """What the case gives on each simulated rank."""

    def program() -> Any:
        import torch.distributed as dist

        dist.init_process_group("gloo")
        torch.manual_seed(1234)
        value = plain(CASES[name](dist.get_rank(), size))
        dist.destroy_process_group()
        return value

    platform = sim.Platform.star(size, bandwidth="1 Gbit/s", latency="100 us", protocol="gloo")
    return sim.launch(program, platform, compute="none").values


@pytest.fixture(scope="module", params=SIZES)
def real(request: pytest.FixtureRequest) -> tuple[int, list[dict[str, Any]]]:
    return request.param, run_gloo(request.param)


def agree(got: Any, expected: Any, exact: bool, where: str) -> None:
    assert type(got) is type(expected), f"{where}: {type(got)} instead of {type(expected)}"
    if isinstance(expected, torch.Tensor):
        assert got.dtype == expected.dtype, where
        if exact:
            assert got.shape == expected.shape, where
            assert torch.equal(got, expected), f"{where}: {got} instead of {expected}"
        else:
            torch.testing.assert_close(got, expected, msg=lambda text: f"{where}: {text}")
    elif isinstance(expected, dict):
        assert got.keys() == expected.keys(), where
        for key in expected:
            agree(got[key], expected[key], exact, f"{where}[{key!r}]")
    elif isinstance(expected, list):
        assert len(got) == len(expected), where
        for i, pair in enumerate(zip(got, expected, strict=True)):
            agree(*pair, exact, f"{where}[{i}]")
    else:
        assert got == expected, where


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_program_gives_what_gloo_gives(name: str, real: tuple[int, list[dict[str, Any]]]) -> None:
    size, outcomes = real
    with warnings.catch_warnings():
        # torch's own, on both sides.
        warnings.simplefilter("ignore")
        got = simulated(name, size)
    for rank, outcome in enumerate(outcomes):
        assert "error" not in outcome[name], f"gloo, rank {rank}: {outcome[name]['error']}"
        # Two ranks leave no choice of an order of summation.
        agree(got[rank], outcome[name]["value"], size == 2, f"rank {rank}")
