"""P1, P2 and P3: what is asked of the method, and what the numbers answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from leeboard.prune.study.results import CaseResults, Side
from leeboard.prune.study.statistics import Interval

Answer = Literal["pass", "fail", "undecided"]

# Accuracy that the gate may lose to the table on masks that it never saw.
MARGIN = 0.005

QUESTIONS = {
    "P1": "the system: prune-aware training with the gate, ranked by the gate, is more accurate "
    "than the best static ranking on the ordinarily trained net, for every number of missing "
    "modalities from 1 up",
    "P2": "conditioning alone: the same is not worse than prune-aware training with a static "
    "ranking and the best static ranking on it, over all, and better where the most modalities "
    "are missing",
    "P3": "the gate generalises: on sets of modalities that it was not trained on, it stays within "
    "0.5 points of a table that was trained on them",
}


@dataclass(frozen=True)
class Verdict:
    """An answer with the differences that it rests on.

    Attributes:
        name: "P1", "P2" or "P3".
        case: Title of the case.
        answer: Undecided where an interval holds both answers, or where there is one seed.
        parts: What was compared, with its interval.
    """

    name: str
    case: str
    answer: Answer
    parts: tuple[tuple[str, Interval], ...]


def verdicts(results: CaseResults) -> list[Verdict]:
    """The answers that the measured arms allow."""
    found = (_system(results), _conditioning(results), _generalises(results))
    return [verdict for verdict in found if verdict is not None]


def _system(results: CaseResults) -> Verdict | None:
    """P1: above zero at each k >= 1 is a pass; not above zero at one of them is a fail."""
    left = Side("B", "gate")
    ks = [k for k in results.missing if k > 0]
    if not results.has(left) or not results.seeds("A", "B") or not ks:
        return None
    right = Side("A", results.best_static("A"))
    parts = [(f"{k} missing", results.difference(left, right, ks=[k])) for k in ks]
    intervals = [part for _, part in parts]
    answer: Answer = "undecided"
    if all(part.above_zero for part in intervals):
        answer = "pass"
    elif any(_not_above(part) for part in intervals):
        answer = "fail"
    return Verdict("P1", results.case.title, answer, tuple(parts))


def _conditioning(results: CaseResults) -> Verdict | None:
    """P2: overall the mean is not below zero, and at the highest k the interval is above zero."""
    left = Side("B", "gate")
    if not results.has(left) or not results.seeds("B", "C"):
        return None
    right = Side("C", results.best_static("C"))
    overall = results.difference(left, right)
    highest = results.difference(left, right, ks=[results.missing[-1]])
    answer: Answer = "undecided"
    if highest.above_zero and overall.mean >= 0:
        answer = "pass"
    elif overall.below_zero or _not_above(highest):
        answer = "fail"
    label = f"{results.missing[-1]} missing"
    return Verdict("P2", results.case.title, answer, (("overall", overall), (label, highest)))


def _generalises(results: CaseResults) -> Verdict | None:
    """P3: the interval lies above the margin, or below it."""
    left, right = Side("B", "gate, held out"), Side("B", "table")
    if not results.has(left) or not results.has(right):
        return None
    ks = [k for k in results.missing if k > 0]
    part = results.difference(left, right, ks=ks, held_out=True)
    answer: Answer = "undecided"
    if part.low is not None and part.low >= -MARGIN:
        answer = "pass"
    elif part.high is not None and part.high < -MARGIN:
        answer = "fail"
    return Verdict("P3", results.case.title, answer, (("held-out masks", part),))


def _not_above(part: Interval) -> bool:
    """Whether a gain is ruled out."""
    return part.high is not None and part.high <= 0
