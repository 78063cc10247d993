"""Budgets as people write them."""

from __future__ import annotations

import dataclasses
import math

import pytest

from leeboard.prune import Budget


@pytest.mark.parametrize(
    ("given", "amount", "kind"),
    [
        ("50%", 0.5, "share"),
        (" 12.5 % ", 0.125, "share"),
        ("30%", 0.3, "share"),
        ("100%", 1.0, "share"),
        (0.5, 0.5, "share"),
        (1, 1.0, "share"),
        ("0.25", 0.25, "share"),
        ("2.5 ms", 2.5, "milliseconds"),
        ("800us", 0.8, "milliseconds"),
        ("800 µs", 0.8, "milliseconds"),
        ("0.01 s", 10.0, "milliseconds"),
        ("3 MMAC", 3e6, "macs"),
        ("3e6 MAC", 3e6, "macs"),
        ("1.5 GMACs", 1.5e9, "macs"),
        ("200 kB", 2e5, "bytes"),
        ("200 KiB", 204800.0, "bytes"),
        ("1 MiB", 2.0**20, "bytes"),
        (".5 MB", 5e5, "bytes"),
    ],
)
def test_parse(given: str | float, amount: float, kind: str) -> None:
    budget = Budget.parse(given)
    assert budget.amount == pytest.approx(amount, rel=1e-15)
    assert budget.kind == kind
    again = Budget.parse(str(budget))
    assert again.kind == kind
    assert again.amount == pytest.approx(amount, rel=1e-11)
    assert Budget.parse(budget) is budget


def test_text() -> None:
    texts = ["50%", "2.5 ms", "3 MMAC", "200 kB", "12.5%", "1.5 GMAC", "800 MAC"]
    assert [str(Budget.parse(text)) for text in texts] == texts
    assert str(Budget.parse("200 KiB")) == "204.8 kB"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "expected a share"),
        ("half", "expected a share"),
        ("50 percent", "got the unit 'percent'"),
        ("50", "without a unit"),
        ("5 MMACS", "did you mean MMACs"),
        ("3 mmac", "did you mean MMAC"),
        ("3 kb", "did you mean kB"),
        ("2 MS", "did you mean ms"),
        ("1 2 ms", "expected a share"),
        ("-3 ms", "expected a share"),
        ("0%", "expected a positive amount"),
        ("0 ms", "expected a positive amount"),
        ("150%", "at most 100%"),
        (50, "at most 100%"),
        (1.5, "at most 100%"),
        (0.0, "positive"),
        (-0.5, "positive"),
        (math.nan, "positive"),
        (math.inf, "positive"),
        ("nan", "expected a share"),
        ("1e999 ms", "expected a share"),
        ("9" * 400 + " ms", "expected a share"),
    ],
)
def test_what_is_no_budget(given: str | float, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Budget.parse(given)
    assert str(caught.value).startswith("budget: got ")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("given", [None, True, [0.5], b"50%"])
def test_what_is_no_budget_at_all(given: object) -> None:
    with pytest.raises(TypeError, match="budget: got"):
        Budget.parse(given)  # type: ignore[arg-type]


def test_a_budget_is_a_value() -> None:
    budget = Budget.parse("50%")
    assert budget == Budget.parse(0.5)
    assert hash(budget) == hash(Budget.parse(0.5))
    with pytest.raises(dataclasses.FrozenInstanceError):
        budget.amount = 1.0  # type: ignore[misc]
    with pytest.raises(ValueError, match="kind: got 'joules'"):
        Budget(1.0, "joules")  # type: ignore[arg-type]
