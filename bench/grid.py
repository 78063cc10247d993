"""The measured points of a subject: every case, thread count and variant, next to one another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import pytest

from bench.cases import Case, Subject, Variant, variants
from bench.environment import CPUS


@dataclass(frozen=True)
class Point:
    """One measurement."""

    case: Case
    threads: int
    variant: Variant

    @property
    def quick(self) -> bool:
        return self.case.quick and self.threads == CPUS


class Measure(Protocol):
    """The fixture that checks a point's result and then times it."""

    def __call__(self, subject: Subject, point: Point) -> None: ...


def grid(subject: Subject) -> list[Any]:
    """All points with readable ids. Rivals follow each other, so that a drift meets them alike."""
    return [
        pytest.param(
            Point(case, threads, variant), id=f"{case.id}-T{threads}-{variant.replace('-', '_')}"
        )
        for case in subject.cases
        for threads in sorted({1, CPUS})
        for variant in variants(case)
    ]
