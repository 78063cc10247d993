"""P1, P2 and P3: what is asked of the method, and what the numbers answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from leeboard.prune.study.results import CaseResults, Side
from leeboard.prune.study.statistics import Interval

Answer = Literal["pass", "fail", "undecided"]

# Accuracy that the gate may lose to the table on masks that it never saw.
MARGIN = 0.005
# With fewer the spread between trainings is a guess.
FEWEST_SEEDS = 3

QUESTIONS = {
    "P1": "the system: prune-aware training with the gate, ranked by the gate, is more accurate "
    "than the best static ranking on the ordinarily trained net, for every number of missing "
    "modalities from 1 up",
    "P1 at equal compute": "the same, the ordinary net being trained with as many forward and backward "
    "passes",
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
        planning: How plans were made: "global", "per layer", or "chosen": the better of both on
            validation rows, for each side.
        answer: Undecided where an interval holds both answers, or where there are too few
            seeds.
        parts: What was compared, with its interval.
    """

    name: str
    case: str
    planning: str
    answer: Answer
    parts: tuple[tuple[str, Interval], ...]


def verdicts(results: CaseResults) -> list[Verdict]:
    """The answers that the measured arms allow."""
    made = [
        ask(results, planning)
        for planning in results.plannings
        for ask in (_system, _matched, _conditioning, _generalises)
    ]
    return [verdict for verdict in made if verdict is not None]


def _system(results: CaseResults, planning: str) -> Verdict | None:
    """P1: above zero at each k >= 1 is a pass; not above zero at one of them is a fail."""
    return _better(results, planning, "P1", "A")


def _matched(results: CaseResults, planning: str) -> Verdict | None:
    return _better(results, planning, "P1 at equal compute", "A-matched")


def _better(results: CaseResults, planning: str, name: str, rival: str) -> Verdict | None:
    ks = [k for k in results.missing if k > 0]
    if not _comparable(results, planning, rival) or not ks:
        return None
    left, right = results.side("B", "gate", planning), results.best_static_side(rival, planning)
    parts = [(f"{k} missing", results.difference(left, right, ks=[k])) for k in ks]
    intervals = [part for _, part in parts]
    answer: Answer = "undecided"
    if all(part.above_zero for part in intervals):
        answer = "pass"
    elif any(_not_above(part) for part in intervals):
        answer = "fail"
    return _verdict(name, results, planning, answer, parts)


def _conditioning(results: CaseResults, planning: str) -> Verdict | None:
    """P2: overall the mean is not below zero, and at the highest k the interval is above zero."""
    if not _comparable(results, planning, "C"):
        return None
    left, right = results.side("B", "gate", planning), results.best_static_side("C", planning)
    overall = results.difference(left, right)
    highest = results.difference(left, right, ks=[results.missing[-1]])
    answer: Answer = "undecided"
    if highest.above_zero and overall.mean >= 0:
        answer = "pass"
    elif overall.below_zero or _not_above(highest):
        answer = "fail"
    label = f"{results.missing[-1]} missing"
    return _verdict("P2", results, planning, answer, [("overall", overall), (label, highest)])


def _generalises(results: CaseResults, planning: str) -> Verdict | None:
    """P3: the interval lies above the margin, or below it."""
    left = Side("B", "gate, held out", planning)
    right = Side("B", "table", planning)
    if not results.has(left) or not results.has(right):
        return None
    ks = [k for k in results.missing if k > 0]
    part = results.difference(left, right, ks=ks, held_out=True)
    answer: Answer = "undecided"
    if part.low is not None and part.low >= -MARGIN:
        answer = "pass"
    elif part.high is not None and part.high < -MARGIN:
        answer = "fail"
    return _verdict("P3", results, planning, answer, [("held-out masks", part)])


def _comparable(results: CaseResults, planning: str, rival: str) -> bool:
    """Whether a static rival was measured beside the gate on B."""
    return (
        results.measured("B", "gate", planning)
        and bool(results.seeds("B", rival))
        and results.ranked(rival, planning)
    )


def _verdict(
    name: str,
    results: CaseResults,
    planning: str,
    answer: Answer,
    parts: list[tuple[str, Interval]],
) -> Verdict:
    if min(part.seeds for _, part in parts) < FEWEST_SEEDS:
        answer = "undecided"
    return Verdict(name, results.case.title, planning, answer, tuple(parts))


def _not_above(part: Interval) -> bool:
    """Whether a gain is ruled out."""
    return part.high is not None and part.high <= 0
