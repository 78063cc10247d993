"""Settings that every test shares."""

from __future__ import annotations

import os
from collections.abc import Iterator

# Triton reads both when it is imported: kernels on CPU tensors run in its interpreter, and the
# contraction default, which changes between releases, is pinned.
os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
# torch's idle threads sleep instead of spinning: a test run shares its processors.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch
from hypothesis import settings
from hypothesis.internal.conjecture import providers

import leeboard.ops
from leeboard import _C

SEED = 20260101

# The same examples every time; HYPOTHESIS_PROFILE=explore looks for new ones.
settings.register_profile(
    "repeatable", deadline=None, database=None, derandomize=True, max_examples=100
)
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))
# Hypothesis also draws constants that it finds in whatever modules are loaded: which examples there
# are would depend on which tests ran before in the process.
if hasattr(providers, "_get_local_constants"):
    providers._get_local_constants = lambda: providers._local_constants


# Where every test stands alone. Elsewhere those of a file share what is slow to make.
SPREAD = ("tests/ops/", "tests/kernels/test_triton_")


# Before pytest-xdist reads the groups.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Under pytest-xdist a file stays on one process, but for those of SPREAD."""
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        file = item.nodeid.partition("::")[0]
        if not file.startswith(SPREAD):
            item.add_marker(pytest.mark.xdist_group(file))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers whatever the order of the tests."""
    torch.manual_seed(SEED)


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fresh tensors hold NaN, or the largest integer: an output that is never written shows.

    torch fills them itself, `torch.empty` and its relatives alike, eager and compiled.
    """
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(autouse=True)
def same_thread_count() -> Iterator[None]:
    """A test may change the number of threads."""
    before = torch.get_num_threads()
    yield
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)


@pytest.fixture(params=[name for _, name in _C.isa_levels()])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test at every instruction-set level of this machine."""
    with leeboard.ops.isa(request.param):
        yield request.param
