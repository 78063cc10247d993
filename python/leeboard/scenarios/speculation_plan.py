"""The answer of `plan_speculation`: table, text, picture, file."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from leeboard.scenarios.decoding import Candidate, Question
from leeboard.scenarios.report import write_report
from leeboard.scenarios.rounds import PLACEMENTS
from leeboard.scenarios.sensitivity import Sensitivity
from leeboard.sim.table import Table, aligned, text_of

FORMAT = "leeboard.plan.speculation"
_UNITS = {"seconds": "s", "energy": "J"}


@dataclass(frozen=True)
class SpeculationPlan:
    """The answer of `plan_speculation`; `print(plan)` shows it.

    Attributes:
        question: All inputs.
        candidates: Every placement and depth.
        best: The fastest that can be.
        sensitivity: How far that depends on the inputs; None if it was not asked.
    """

    question: Question
    candidates: tuple[Candidate, ...]
    best: Candidate
    sensitivity: Sensitivity | None = None

    @cached_property
    def table(self) -> Table:
        """A row a candidate: placement, depth, rate (tokens a second), seconds (a token), tau,
        energy (joules a token), best, note (why it fails, or how much slower it is)."""
        return _table(self.candidates, [self._note(c) for c in self.candidates])

    def _note(self, candidate: Candidate) -> str:
        if candidate.fails:
            return candidate.fails
        if candidate is self.best:
            return "best"
        return f"{100 * (1 - candidate.rate / self.best.rate):.1f} % slower"

    def plot(self, path: str | Path | None = None) -> Any:
        """Draw tokens a second by depth, and what moves them.

        Args:
            path: Where to (.png, .svg, .pdf); None: nowhere.

        Returns:
            The matplotlib Figure.
        """
        from leeboard.scenarios.pictures import speculation

        return speculation(self, path)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        q = self.question
        return {
            "acceptance_by_depth": list(q.acceptance.by_depth),
            "acceptance_source": q.acceptance.source,
            "target": dataclasses.asdict(q.decoding.target),
            "drafter": dataclasses.asdict(q.decoding.drafter),
            "context": q.decoding.context,
            "batch": q.decoding.batch,
            "tokens": q.tokens,
            "draws": "even" if q.seeds == (None,) else {"seeds": list(q.seeds)},
            "devices": dict(q.site.roles),
            "platform": q.site.platform.describe(),
            "candidates": [dataclasses.asdict(c) for c in self.candidates],
            "best": dataclasses.asdict(self.best),
            "sensitivity": None if self.sensitivity is None else self.sensitivity.to_dict(),
        }

    def to_json(self, path: str | Path) -> None:
        """Write everything to a JSON file, whole or not at all."""
        write_report(path, FORMAT, self.to_dict())

    def __str__(self) -> str:
        q = self.question
        kinds = [f"{role} {q.site.device(role).name or 'of no name'}" for role in q.site.roles]
        parts = [
            f"{q.decoding.target.name} with {q.decoding.drafter.name}; {', '.join(kinds)}; "
            f"context {q.decoding.context:,}, replies of {q.tokens:,} tokens"
            + (f", batch {q.decoding.batch} on the server" if q.decoding.batch > 1 else ""),
            f"acceptance ({q.acceptance.source}): "
            + " ".join(f"{share:.0%}" for share in q.acceptance.by_depth),
            "",
            "tokens a second by depth (* best; ! does not fit)",
            self._matrix(),
            "",
            self._summary(),
            "",
            self._verdict(),
        ]
        if self.sensitivity is not None:
            parts += ["", str(self.sensitivity)]
        return "\n".join(parts)

    def _matrix(self) -> str:
        depths = self.question.depths
        found = {(c.placement, c.depth): c for c in self.candidates}
        rows = []
        for placement in self.question.placements:
            cells: list[str] = [placement]
            for depth in depths:
                c = found.get((placement, depth))
                mark = "" if c is None else "!" if c.fails else "*" if c is self.best else " "
                cells.append("" if c is None else f"{_rate(c.rate)}{mark}")
            rows.append(cells)
        return aligned(["placement", *(f"{d} " for d in depths)], rows)

    def _summary(self) -> str:
        header = ("best of", "depth", "tokens/s", "a token", "tau", "J/token", "note")
        rows = []
        for placement in self.question.placements:
            own = [c for c in self.candidates if c.placement == placement]
            if own:
                c = max(own, key=lambda c: (not c.fails, c.rate))
                cells = [str(placement), str(c.depth), _rate(c.rate), text_of(1 / c.rate, "s")]
                rows.append([*cells, f"{c.tau:.2f}", text_of(c.energy), self._note(c)])
        return aligned(header, rows)

    def _verdict(self) -> str:
        best = self.best
        alone = [c for c in self.candidates if c.depth == 0 and not c.fails]
        words = f"Best: {best.name} ({PLACEMENTS[best.placement]}): {_rate(best.rate)} tokens/s"
        if best.depth and alone:
            base = max(alone, key=lambda c: c.rate)
            words += f", {best.rate / base.rate:.2f}x the best without a drafter ({base.placement})"
        return words + "."


class NothingFitsError(ValueError):
    """No candidate fits into the devices' memory.

    Attributes:
        candidates: All of them, and why they fail.
    """

    def __init__(self, message: str, candidates: tuple[Candidate, ...]) -> None:
        super().__init__(message)
        self.candidates = candidates

    @property
    def table(self) -> Table:
        """As `SpeculationPlan.table`."""
        return _table(self.candidates, [c.fails for c in self.candidates])


def _table(rows: Sequence[Candidate], notes: Sequence[str]) -> Table:
    return Table(
        {
            "placement": [c.placement for c in rows],
            "depth": [c.depth for c in rows],
            "rate": [c.rate for c in rows],
            "seconds": [1.0 / c.rate for c in rows],
            "tau": [c.tau for c in rows],
            "energy": [c.energy for c in rows],
            "best": [note == "best" for note in notes],
            "note": list(notes),
        },
        _UNITS,
    )


def _rate(rate: float) -> str:
    return f"{rate:.4g}" if rate < 1e4 else f"{rate:,.0f}"
