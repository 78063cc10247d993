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


def points_of(subject: Subject) -> list[Point]:
    """All points. Rivals follow each other, so that a drift meets them alike."""
    return [
        Point(case, threads, variant)
        for case in subject.cases
        for threads in sorted({1, CPUS})
        for variant in variants(subject, case)
    ]


def grid(subject: Subject) -> list[Any]:
    """The points as parameters with readable ids."""
    return [
        pytest.param(p, id=f"{p.case.id}-T{p.threads}-{p.variant.replace('-', '_')}")
        for p in points_of(subject)
    ]
