"""The comparisons that the report shows, in one place: what against what, and what it asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from leeboard.prune.study.results import CHOSEN, CaseResults, Side
from leeboard.prune.study.settings import HELD_OUT
from leeboard.prune.study.statistics import Interval


@dataclass(frozen=True)
class Comparison:
    """Two sides and what their difference asks."""

    left: Side
    right: Side
    question: str

    @property
    def title(self) -> str:
        return f"{self.left.title} - {self.right.title}"


@dataclass(frozen=True)
class Row:
    """A comparison with its figures.

    Attributes:
        comparison: What against what.
        overall: The mean over k.
        per_k: For each number of missing modalities.
        reference: Accuracy of the right side over all, for relative gains.
    """

    comparison: Comparison
    overall: Interval
    per_k: tuple[tuple[int, Interval], ...]
    reference: Interval

    @property
    def relative(self) -> float:
        """Gain relative to the right side's accuracy."""
        return self.overall.mean / max(self.reference.mean, 1e-9)


def training(results: CaseResults, planning: str = "global") -> list[Row]:
    """The gate on B against other trainings, each with its best static ranking."""
    if not results.measured("B", "gate", planning):
        return []
    gate = results.side("B", "gate", planning)
    questions = {
        "A": "the whole system against a static ranking of an ordinary net",
        "A-matched": "the same, the ordinary net having had the same compute",
        "C": "does it matter that the masks in training know the modalities?",
        "R": "does it matter that the masks in training are ranked at all?",
    }
    made = [
        Comparison(gate, results.best_static_side(arm, planning), question)
        for arm, question in questions.items()
        if results.ranked(arm, planning)
    ]
    if planning != CHOSEN and results.statics("A", planning):
        per_k = Side("A", results.best_static_per_k("A", planning), planning)
        made.insert(1, Comparison(gate, per_k, "the rival being chosen anew for each k"))
    return rows(results, made)


def ranking(results: CaseResults) -> list[Row]:
    """Rankers against one another on the same net."""
    made = []
    for arm in results.arms:
        gate = Side(arm, "gate")
        if results.statics(arm):
            best = Side(arm, results.best_static(arm))
            made.append(Comparison(gate, best, "the gate against the best static ranking"))
        made.append(Comparison(gate, Side(arm, "table"), "the gate against the exact table"))
    return rows(results, made)


def switches(results: CaseResults) -> list[Row]:
    """Compensation on and off, global against per-layer planning."""
    made = []
    for arm in results.arms:
        made += [
            Comparison(
                Side(arm, "gate+bias"), Side(arm, "gate"), "mean inputs that know the modalities"
            ),
            Comparison(
                Side(arm, "flap+bias/full"), Side(arm, "flap/full"), "mean inputs of complete data"
            ),
            Comparison(
                Side(arm, "flap+bias/mix"), Side(arm, "flap/mix"), "mean inputs of the mixture"
            ),
        ]
    made += [
        Comparison(Side(arm, ranker), Side(arm, ranker, "per layer"), "one budget for all layers")
        for arm in results.arms
        for ranker in results.case.per_layer
        if ranker not in HELD_OUT
    ]
    return rows(results, made)


def rows(results: CaseResults, made: Sequence[Comparison]) -> list[Row]:
    """Figures of those comparisons of which both sides were measured."""
    found = []
    for comparison in made:
        left, right = comparison.left, comparison.right
        if not (results.has(left) and results.has(right)):
            continue
        if not results.seeds(left.arm, right.arm):
            continue
        # Both sides at the levels that both were planned for.
        levels = [x for x in results.levels(left) if x in results.levels(right)]
        per_k = tuple(
            (k, results.difference(left, right, ks=[k], levels=levels)) for k in results.missing
        )
        found.append(
            Row(
                comparison,
                results.difference(left, right, levels=levels),
                per_k,
                results.accuracy(right, levels=levels),
            )
        )
    return found
