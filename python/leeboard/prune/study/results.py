"""The records of a study as arrays: accuracies, differences, chosen rivals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leeboard.prune.study.settings import HELD_OUT, STATIC, Case
from leeboard.prune.study.statistics import Array, Bootstrap, Interval

UNPRUNED = "unpruned"
# Whichever way of planning is better on validation rows, for each side on its own.
CHOSEN = "chosen"


@dataclass(frozen=True)
class Side:
    """One side of a comparison: a training arm and a ranker, and how plans are made.

    `ranker` may be one name, or a name for each number of missing modalities.
    """

    arm: str
    ranker: str | Mapping[int, str]
    planning: str = "global"

    def at(self, k: int) -> str:
        return self.ranker if isinstance(self.ranker, str) else self.ranker[k]

    @property
    def title(self) -> str:
        ranker = self.ranker if isinstance(self.ranker, str) else "best static per k"
        return f"{self.arm}: {ranker}" + (
            "" if self.planning == "global" else f" ({self.planning})"
        )


class CaseResults:
    """What was measured for one case.

    Args:
        case: The case.
        records: Of its units, in any order.
        bootstrap: For intervals.
    """

    def __init__(
        self, case: Case, records: Iterable[Mapping[str, Any]], bootstrap: Bootstrap
    ) -> None:
        self.case = case
        self.records = {(r["unit"]["arm"], int(r["unit"]["seed"])): r for r in records}
        self._bootstrap = bootstrap
        self._test: dict[tuple[Any, ...], float] = {}
        self._validation: dict[tuple[Any, ...], float] = {}
        for (arm, seed), record in self.records.items():
            for cell in record["cells"]:
                key = (arm, seed, cell["ranker"], cell["planning"], cell["level"], cell["mask"])
                self._test[key] = cell["test"]
                self._validation[key] = cell["validation"]

    @property
    def arms(self) -> list[str]:
        """Arms with at least one finished unit, in the case's order."""
        return [arm for arm in self.case.arms if any(a == arm for a, _ in self.records)]

    @property
    def missing(self) -> list[int]:
        """Numbers of missing modalities, ascending."""
        return sorted({m["k"] for r in self.records.values() for m in r["masks"]})

    def levels(self, side: Side) -> tuple[float, ...]:
        """Shares of multiply-adds that were pruned."""
        return self.case.levels if side.planning == "global" else self.case.per_layer_levels

    def seeds(self, *arms: str) -> list[int]:
        """Seeds that all of these arms have finished."""
        found = sorted({seed for _, seed in self.records})
        return [s for s in found if all((arm, s) in self.records for arm in arms)]

    def has(self, side: Side) -> bool:
        """Whether a side was measured at all."""
        rankers = [side.at(k) for k in self._ks(side, None)]
        return bool(self.seeds(side.arm)) and all(
            any(
                key[0] == side.arm and key[2] == r and key[3] == side.planning for key in self._test
            )
            for r in rankers
        )

    def accuracy(
        self,
        side: Side,
        *,
        ks: Sequence[int] | None = None,
        levels: Sequence[float] | None = None,
        held_out: bool = False,
    ) -> Interval:
        """Share of right answers on test rows."""
        return self._bootstrap.interval(
            [
                self._strata(side, seed, self._ks(side, ks), levels, held_out)
                for seed in self.seeds(side.arm)
            ]
        )

    def difference(
        self,
        left: Side,
        right: Side,
        *,
        ks: Sequence[int] | None = None,
        levels: Sequence[float] | None = None,
        held_out: bool = False,
    ) -> Interval:
        """Accuracy of the left side less that of the right one, paired; at the levels of both."""
        if levels is None:
            levels = [level for level in self.levels(left) if level in self.levels(right)]
        values = []
        for seed in self.seeds(left.arm, right.arm):
            chosen = self._ks(left, ks)
            both = [self._strata(side, seed, chosen, levels, held_out) for side in (left, right)]
            values.append([a - b for a, b in zip(*both, strict=True)])
        return self._bootstrap.interval(values)

    def validation(
        self, side: Side, *, ks: Sequence[int] | None = None, levels: Sequence[float] | None = None
    ) -> float:
        """Share of right answers on validation rows; the mean over masks, k and seeds."""
        total = []
        for seed in self.seeds(side.arm):
            for k in self._ks(side, ks):
                masks = self._masks(side.arm, seed, k, held_out=False)
                total.append(
                    np.mean(
                        [
                            self._validation[self._key(side, seed, k, level, mask)]
                            for level in levels or self.levels(side)
                            for mask in masks
                        ]
                    )
                )
        return float(np.mean(total))

    def unpruned(self, arm: str, *, ks: Sequence[int] | None = None) -> Interval:
        """Accuracy on test rows with all units."""
        values = []
        for seed in self.seeds(arm):
            by_mask = {u["mask"]: u["test"] for u in self.records[arm, seed]["unpruned"]}
            values.append(
                [
                    np.asarray([by_mask[m] for m in self._masks(arm, seed, k, held_out=False)])
                    for k in (self.missing if ks is None else ks)
                ]
            )
        return self._bootstrap.interval(values)

    def statics(self, arm: str, planning: str = "global") -> list[Side]:
        """The static rankings that were measured on an arm."""
        sides = [Side(arm, ranker, planning) for ranker in STATIC]
        return [side for side in sides if self.has(side)]

    def best_static(
        self, arm: str, ks: Sequence[int] | None = None, planning: str = "global"
    ) -> str:
        """The static ranker with the best accuracy on validation rows; ties go to the first."""
        found = self.statics(arm, planning)
        if not found:
            raise ValueError(f"arm: got {arm!r}, which no static ranker was measured on")
        best = max(found, key=lambda side: self.validation(side, ks=ks))
        return best.at(0)

    def measured(self, arm: str, ranker: str, planning: str) -> bool:
        """Whether a ranker was measured on an arm by this way of planning, or by any if `CHOSEN`."""
        ways = self.ways if planning == CHOSEN else [planning]
        return any(self.has(Side(arm, ranker, way)) for way in ways)

    def ranked(self, arm: str, planning: str) -> bool:
        """Whether static rankings were measured so on an arm."""
        ways = self.ways if planning == CHOSEN else [planning]
        return any(self.statics(arm, way) for way in ways)

    def side(self, arm: str, ranker: str, planning: str = "global") -> Side:
        """A ranker on an arm, by the better way of planning on validation rows if `CHOSEN`."""
        if planning != CHOSEN:
            return Side(arm, ranker, planning)
        return self._best([s for p in self.ways if self.has(s := Side(arm, ranker, p))])

    def best_static_side(self, arm: str, planning: str = "global") -> Side:
        """The static ranker, and way of planning if `CHOSEN`, that is best on validation rows."""
        ways = self.ways if planning == CHOSEN else [planning]
        return self._best([side for way in ways for side in self.statics(arm, way)])

    def _best(self, sides: Sequence[Side]) -> Side:
        common = set.intersection(*(set(self.levels(side)) for side in sides))
        return max(sides, key=lambda side: self.validation(side, levels=sorted(common)))

    def best_static_per_k(self, arm: str, planning: str = "global") -> dict[int, str]:
        """The same, chosen anew for each number of missing modalities."""
        return {k: self.best_static(arm, [k], planning) for k in self.missing}

    @property
    def ways(self) -> list[str]:
        """How plans were made."""
        return ["global", "per layer"] if self.case.per_layer else ["global"]

    @property
    def plannings(self) -> list[str]:
        """How sides are compared: by each way of planning, and by the one that is better."""
        return [*self.ways, CHOSEN] if self.case.per_layer else self.ways

    def _ks(self, side: Side, ks: Sequence[int] | None) -> list[int]:
        if ks is not None:
            return list(ks)
        held_out = isinstance(side.ranker, str) and side.ranker in HELD_OUT
        return [k for k in self.missing if k > 0] if held_out else self.missing

    def _masks(self, arm: str, seed: int, k: int, *, held_out: bool) -> list[int]:
        masks = self.records[arm, seed]["masks"]
        return [i for i, m in enumerate(masks) if m["k"] == k and (m["held_out"] or not held_out)]

    def _strata(
        self,
        side: Side,
        seed: int,
        ks: Sequence[int],
        levels: Sequence[float] | None,
        held_out: bool,
    ) -> list[Array]:
        """For each k with masks, right answers averaged over levels, float64 [masks]."""
        strata = []
        for k in ks:
            masks = self._masks(side.arm, seed, k, held_out=held_out)
            if masks:
                chosen = levels or self.levels(side)
                cells = [
                    [self._test[self._key(side, seed, k, level, mask)] for level in chosen]
                    for mask in masks
                ]
                strata.append(np.asarray(cells, dtype=np.float64).mean(axis=1))
        return strata

    def _key(self, side: Side, seed: int, k: int, level: float, mask: int) -> tuple[Any, ...]:
        return (side.arm, seed, side.at(k), side.planning, level, mask)
