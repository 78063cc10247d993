"""The answer of `plan_edge`: tables, text, picture, file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from leeboard.scenarios.edge_programs import EDGE_PLACEMENTS
from leeboard.scenarios.edge_question import Choice, EdgeQuestion, Trial, first
from leeboard.scenarios.report import write_report
from leeboard.scenarios.sensitivity import Sensitivity
from leeboard.sim.table import Table, aligned, text_of

FORMAT = "leeboard.plan.edge"
_UNITS = {"accuracy": "%", "latency": "s", "energy": "J"}


@dataclass(frozen=True)
class EdgePlan:
    """The answer of `plan_edge`; `print(plan)` shows it.

    Attributes:
        question: All inputs.
        trials: Every plan in every placement.
        choices: Each placement with its plans by set of sensors.
        best: The one with the highest expected accuracy.
        sensitivity: How far that depends on the inputs; None if it was not asked.
    """

    question: EdgeQuestion
    trials: tuple[Trial, ...]
    choices: tuple[Choice, ...]
    best: Choice
    sensitivity: Sensitivity | None = None

    @cached_property
    def table(self) -> Table:
        """A row a plan and placement: placement, sensors, plan, accuracy, latency (at the quantile),
        energy (joules a window), chosen (for some set in the best placement), note (why it fails)."""
        return _table(self.trials, [self._note(t) for t in self.trials])

    @property
    def sets(self) -> Table:
        """A row a set of sensors: there, chance, plan, uses (its sensors), accuracy, latency, energy of
        what the best placement runs then."""
        rows = [(n, self.best.chances[n], t) for n, t in self.best.plans.items()]
        return Table(
            {
                "there": [name for name, _, _ in rows],
                "chance": [chance for _, chance, _ in rows],
                "plan": ["nothing" if t is None else t.plan.name for _, _, t in rows],
                "uses": ["" if t is None else t.plan.set_name for _, _, t in rows],
                "accuracy": [0.0 if t is None else t.plan.accuracy for _, _, t in rows],
                "latency": [math.nan if t is None else t.latency for _, _, t in rows],
                "energy": [math.nan if t is None else t.energy for _, _, t in rows],
            },
            {**_UNITS, "chance": "%"},
        )

    def _chosen(self, trial: Trial) -> bool:
        return trial.placement == self.best.placement and any(
            t is not None and t.plan is trial.plan for t in self.best.plans.values()
        )

    def _note(self, trial: Trial) -> str:
        if trial.fails:
            return trial.fails
        if self._chosen(trial):
            return "best"
        own = next(c for c in self.choices if c.placement == trial.placement)
        used = any(t is not None and t.plan is trial.plan for t in own.plans.values())
        if used:
            return f"would be chosen here, but {self.best.placement} is better"
        return "less accurate than another plan"

    def plot(self, path: str | Path | None = None) -> Any:
        """Draw accuracy against latency, the placements, and what moves the answer.

        Args:
            path: Where to (.png, .svg, .pdf); None: nowhere.

        Returns:
            The matplotlib Figure.
        """
        from leeboard.scenarios.pictures import edge

        return edge(self, path)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        q = self.question

        def entry(trial: Trial | None) -> dict[str, Any] | None:
            if trial is None:
                return None
            return {
                "placement": trial.placement,
                "plan": trial.plan.name,
                "sensors": list(trial.plan.sensors),
                "accuracy": trial.plan.accuracy,
                "latency": trial.latency,
                "energy": trial.energy,
                "fails": trial.fails,
            }

        return {
            "plans_source": q.plans.source,
            "deadline": q.deadline,
            "quantile": q.quantile,
            "energy_budget": q.energy,
            "energy_counts": q.counts,
            "rate": q.rate,
            "arrivals": q.arrivals,
            "windows": q.windows,
            "dropout": dict(q.dropout),
            "platform": q.site.platform.describe(),
            "nodes": {name: list(sensors) for name, sensors in q.wiring.nodes.items()},
            "trials": [entry(t) for t in self.trials],
            "choices": [
                {
                    "placement": c.placement,
                    "accuracy": c.accuracy,
                    "plans": {n: entry(t) for n, t in c.plans.items()},
                    "chances": dict(c.chances),
                }
                for c in self.choices
            ],
            "best": self.best.placement,
            "sensitivity": None if self.sensitivity is None else self.sensitivity.to_dict(),
        }

    def to_json(self, path: str | Path) -> None:
        """Write everything to a JSON file, whole or not at all."""
        write_report(path, FORMAT, self.to_dict())

    def __str__(self) -> str:
        q = self.question
        asked = f"deadline {text_of(q.deadline, 's')} at P{100 * q.quantile:g}"
        if math.isfinite(q.energy):
            asked += f", {text_of(q.energy)} J a window"
        coming = f"{text_of(q.rate)} windows a second, {q.arrivals}"
        parts = [
            f"{len(q.plans.rows)} plans of {len(q.plans.sensors)} sensors ({q.plans.source})",
            f"{asked}; {coming}",
            "",
            f"plans with {'+'.join(q.plans.sensors)} there",
            self._full(),
            "",
            "expected accuracy over all sets of sensors (* best)",
            self._placements(),
            "",
            f"what runs on which set that may occur ({self.best.placement})",
            self._sets(),
            "",
            self._verdict(),
        ]
        if self.sensitivity is not None:
            parts += ["", str(self.sensitivity)]
        return "\n".join(parts)

    def _full(self) -> str:
        everything = tuple(self.question.plans.sensors)
        own = [t for t in self.trials if t.plan.sensors == everything]
        if not own:
            own = list(self.trials)
        name = f"P{100 * self.question.quantile:g}"
        header = ("placement", "plan", "accuracy", name, "J/window", "note")
        rows = [
            (
                t.placement,
                t.plan.name,
                text_of(t.plan.accuracy, "%"),
                text_of(t.latency, "s"),
                text_of(t.energy),
                self._note(t),
            )
            for t in own
        ]
        return aligned(header, rows)

    def _placements(self) -> str:
        rows = []
        for c in self.choices:
            answered = sum(c.chances[n] for n, t in c.plans.items() if t is not None)
            mark = "*" if c is self.best else ""
            words = EDGE_PLACEMENTS[c.placement]
            rows.append(
                (c.placement + mark, text_of(c.accuracy, "%"), text_of(answered, "%"), words)
            )
        return aligned(("placement", "accuracy", "answered", "where"), rows)

    def _sets(self) -> str:
        likely = self.sets.take(np.argsort(-self.sets["chance"], kind="stable"))
        return str(likely.take(likely["chance"] > 0.0))

    def _verdict(self) -> str:
        best = self.best
        words = f"Best: {best.placement}, {text_of(best.accuracy, '%')} expected"
        equal = [
            c.placement
            for c in self.choices
            if c is not best and math.isclose(c.accuracy, best.accuracy, rel_tol=1e-12)
        ]
        if equal:
            known = math.isfinite(first(best).energy)
            what = "takes less energy" if known else "answers sooner"
            words += f"; {', '.join(equal)} as accurate, but {best.placement} {what}"
        return f"{words}."


class NothingMeetsError(ValueError):
    """No plan meets deadline, energy budget and memory in any placement.

    Attributes:
        trials: Every plan in every placement, and why it fails.
    """

    def __init__(self, message: str, trials: tuple[Trial, ...]) -> None:
        super().__init__(message)
        self.trials = trials

    @property
    def table(self) -> Table:
        """As `EdgePlan.table`."""
        return _table(self.trials, [t.fails for t in self.trials])


def _table(rows: Sequence[Trial], notes: Sequence[str]) -> Table:
    return Table(
        {
            "placement": [t.placement for t in rows],
            "sensors": [t.plan.set_name for t in rows],
            "plan": [t.plan.name for t in rows],
            "accuracy": [t.plan.accuracy for t in rows],
            "latency": [t.latency for t in rows],
            "energy": [t.energy for t in rows],
            "chosen": [note == "best" for note in notes],
            "note": list(notes),
        },
        _UNITS,
    )
