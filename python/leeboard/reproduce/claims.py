"""Claims with criteria in code, and the verdicts that follow from figures with intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from leeboard.reproduce.readings import Readings
from leeboard.reproduce.statistics import Estimate, Interval

Verdict = Literal["holds at this scale", "does not hold", "not decided", "not measured"]

Figures = list[tuple[str, float, Callable[[int | None], Estimate]]]


@dataclass(frozen=True)
class Part:
    """One inequality of a claim: a figure that has to lie above a bound.

    Attributes:
        label: What the figure is.
        bound: What it has to lie above.
        pooled: The mean over seeds, resampled over prompts.
        seeds: The same of every seed.
    """

    label: str
    bound: float
    pooled: Interval
    seeds: tuple[Interval, ...]

    @property
    def holds(self) -> bool:
        """Pooled and for each seed the interval lies above the bound."""
        return all(
            part.low is not None and part.low > self.bound for part in (self.pooled, *self.seeds)
        )

    @property
    def fails(self) -> bool:
        """The pooled interval lies below the bound, and no seed's lies above it."""
        return (
            self.pooled.high is not None
            and self.pooled.high < self.bound
            and not any(part.low is not None and part.low > self.bound for part in self.seeds)
        )


@dataclass(frozen=True)
class Claim:
    """A claim before the run.

    Attributes:
        name: A few words; with the TTT depth it is unique.
        statement: What is claimed.
        criterion: When it holds, in words; `measure` is the same in code.
        notes: What is reported of large models, from secondary sources; "" for nothing.
        measure: The inequalities: (label, bound, figure of a seed, or of None for all).
        needs: Readings: (arm, name of a reading) that must be there.
        parts: How many of the inequalities must hold: all, or one.
        across: It compares TTT depths, and is asked once.
    """

    name: str
    statement: str
    criterion: str
    notes: str
    measure: Callable[[Readings, int], Figures]
    needs: tuple[tuple[str, str], ...]
    parts: Literal["all", "one"] = "all"
    across: bool = False


@dataclass(frozen=True)
class Answer:
    """A claim after the run.

    Attributes:
        name: With the TTT depth.
        statement: See `Claim`.
        criterion: See `Claim`.
        notes: See `Claim`.
        verdict: "holds at this scale" if the inequalities do, each pooled and for every seed; "does
            not hold" if one of them (all, where one would do) is refuted; else "not decided".
        parts: The inequalities with their figures.
    """

    name: str
    statement: str
    criterion: str
    notes: str
    verdict: Verdict
    parts: tuple[Part, ...]

    def to_dict(self) -> dict[str, Any]:
        made = dataclasses.asdict(self)
        made["parts"] = [
            {
                "label": part.label,
                "bound": part.bound,
                "pooled": part.pooled.to_dict(),
                "seeds": [seed.to_dict() for seed in part.seeds],
            }
            for part in self.parts
        ]
        return made

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> Answer:
        parts = tuple(
            Part(
                part["label"],
                part["bound"],
                Interval.from_dict(part["pooled"]),
                tuple(Interval.from_dict(seed) for seed in part["seeds"]),
            )
            for part in given["parts"]
        )
        return cls(**{**given, "parts": parts})


def answers(claims: Sequence[Claim], readings: Readings) -> list[Answer]:
    """Every claim at every TTT depth, in order."""
    return [
        _answer(claim, readings, ttt)
        for claim in claims
        for ttt in readings.settings.ttt
        if not claim.across or ttt == min(readings.settings.ttt)
    ]


def _answer(claim: Claim, readings: Readings, ttt: int) -> Answer:
    name = claim.name if claim.across else f"{claim.name}, TTT {ttt}"
    words = (claim.statement, claim.criterion, claim.notes)
    depths = readings.settings.ttt if claim.across else (ttt,)
    if not all(readings.has(arm, at, reading) for arm, reading in claim.needs for at in depths):
        return Answer(name, *words, "not measured", ())
    parts = tuple(
        Part(
            label,
            bound,
            figure(None).interval(),
            tuple(figure(seed).interval() for seed in readings.seeds()),
        )
        for label, bound, figure in claim.measure(readings, ttt)
    )
    return Answer(name, *words, verdict(parts, claim.parts), parts)


def verdict(parts: Sequence[Part], how: Literal["all", "one"]) -> Verdict:
    """The verdict that the inequalities allow."""
    enough, refuted = (all, any) if how == "all" else (any, all)
    if enough(part.holds for part in parts):
        return "holds at this scale"
    if refuted(part.fails for part in parts):
        return "does not hold"
    return "not decided"
