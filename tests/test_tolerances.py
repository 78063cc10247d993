"""The tolerance itself: what it must accept and what it must reject."""

from __future__ import annotations

import pytest
import torch

from tolerances import assert_close_to_reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(params=DTYPES, ids=str)
def rounded(request: pytest.FixtureRequest) -> tuple[torch.Tensor, torch.Tensor]:
    """(low, exact): random values and their rounding to a dtype."""
    exact = torch.randn(64, 100, dtype=torch.float64)
    return exact.to(request.param), exact


def test_accepts_the_reference_and_another_rounding(rounded):
    low, exact = rounded
    assert_close_to_reference(low, low, exact)
    noise = torch.empty_like(exact).uniform_(-0.5, 0.5) * torch.finfo(low.dtype).eps * exact.abs()
    assert_close_to_reference((exact + 0.5 * noise).to(low.dtype), low, exact)


def test_accepts_one_rounding_when_the_reference_is_exact():
    exact = torch.ones(1, dtype=torch.float64)
    next_up = torch.nextafter(torch.ones(1), torch.tensor(2.0))
    assert_close_to_reference(next_up, exact.float(), exact)


def test_rejects_four_times_the_error_everywhere(rounded):
    low, exact = rounded
    worse = (exact + 4 * (low.double() - exact)).to(low.dtype)
    with pytest.raises(AssertionError, match="RMS error"):
        assert_close_to_reference(worse, low, exact)


def test_rejects_one_bad_element(rounded):
    low, exact = rounded
    bad = low.clone()
    at = exact.abs().flatten().argmax()
    bad.view(-1)[at] += 8 * torch.finfo(low.dtype).eps * low.view(-1)[at]
    with pytest.raises(AssertionError, match="maximum error"):
        assert_close_to_reference(bad, low, exact)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_rejects_misplaced_specials(rounded, value):
    low, exact = rounded
    special = low.clone()
    special[3, 4] = value
    for actual, reference in ((special, low), (low, special)):
        with pytest.raises(AssertionError, match=r"first at \(3, 4\)"):
            assert_close_to_reference(actual, reference, exact)
    both = exact.clone()
    both[3, 4] = value
    assert_close_to_reference(special, special, both)


def test_rejects_the_wrong_sign_of_infinity():
    inf = torch.full((2,), float("inf"))
    with pytest.raises(AssertionError, match="inf"):
        assert_close_to_reference(-inf, inf, inf.double())


def test_rejects_shape_and_dtype(rounded):
    low, exact = rounded
    with pytest.raises(AssertionError, match="shape"):
        assert_close_to_reference(low[:1], low, exact)
    with pytest.raises(AssertionError, match="shape"):
        assert_close_to_reference(low.flatten(), low.flatten(), exact)
    with pytest.raises(AssertionError, match="dtype"):
        assert_close_to_reference(low.double(), low, exact)
    with pytest.raises(AssertionError, match="float64"):
        assert_close_to_reference(low, low, exact.float())


def test_accepts_nothing_to_compare():
    empty = torch.empty(0, 4)
    assert_close_to_reference(empty, empty, empty.double())


def test_fresh_memory_is_poisoned():
    like = torch.ones(2, 3)
    for fresh in (torch.empty(2, 3), torch.empty_like(like), like.new_empty(2, 3)):
        assert fresh.isnan().all()
    assert (torch.empty(3, dtype=torch.int64) == torch.iinfo(torch.int64).max).all()
