"""Argument checks shared by this package."""

from __future__ import annotations


def positive_int(name: str, value: object) -> None:
    """Raise ValueError unless `value` is an integer (not a bool) of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: got {value!r}, expected a positive integer")
