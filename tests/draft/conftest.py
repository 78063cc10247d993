from __future__ import annotations

from typing import Any

import pytest

from drafter_models import VARIANTS, make_target


@pytest.fixture(params=VARIANTS, scope="session")
def variant(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Config overrides of one kind of drafter."""
    return VARIANTS[request.param]


@pytest.fixture(scope="session")
def llama() -> Any:
    """A tiny Llama with random weights."""
    return make_target("llama")
