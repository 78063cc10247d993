"""Importances as a table: the mean saliency for each set of present modalities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from leeboard.prune._input_means import InputMeans
from leeboard.prune._mask_table import MaskTable
from leeboard.prune._masks import checked_present, distinct, names_of, row_of
from leeboard.prune.plan import Plan
from leeboard.prune.units import Units


class ScoreTable:
    """The mean saliency of every unit for each mask of present modalities: E[s | m], by counting.

    It implements `Scores`. A row is kept for each mask that was seen, so it suits few modalities
    (up to 8, say); for more, `SentryGate` learns the dependence.

    A mask that was not seen, or not often enough, gets the mean over the samples of the nearest
    masks: those that differ in the fewest modalities, and then further ones until they are
    `min_samples`. Sublayers that do not run for it have zeros all the same.

    Args:
        units: Of the model.
        half_life: Samples with the same mask after which one weighs half; None for the plain mean
            over all samples.
        means_half_life: The same of the mean inputs. They follow the weights, so that means of
            an earlier model fade by default.
        min_samples: See above; with 1 every mask that was seen stands for itself.
        name: For plans and tables.

    Raises:
        ValueError: For a number out of its range.
    """

    def __init__(
        self,
        units: Units,
        *,
        half_life: float | None = None,
        means_half_life: float | None = 1024.0,
        min_samples: int = 1,
        name: str = "table",
    ) -> None:
        lives = {"half_life": half_life, "means_half_life": means_half_life}
        for what, life in lives.items():
            if life is not None and not life > 0:
                raise ValueError(f"{what}: got {life}, expected a positive number or None")
        if min_samples < 1:
            raise ValueError(f"min_samples: got {min_samples}, expected at least 1")
        self._units, self._name = units, name
        self.half_life, self.means_half_life = half_life, means_half_life
        self.min_samples = min_samples
        self._table = MaskTable({s.name: s.units for s in units}, len(units.modalities), half_life)
        self._means = InputMeans(units, means_half_life)
        self._samples: dict[tuple[str, ...], int] = {}
        self._version = 0

    @property
    def units(self) -> Units:
        """Of the model."""
        return self._units

    @property
    def name(self) -> str:
        """What ranks the units, as text."""
        return self._name

    @property
    def version(self) -> int:
        """Another number after each change: plans are cached."""
        return self._version

    @property
    def counts(self) -> dict[tuple[str, ...], int]:
        """How many samples of each mask were seen."""
        return dict(self._samples)

    def update(
        self,
        saliency: Mapping[str, Tensor],
        present: Tensor | None = None,
        means: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Add the samples of a batch.

        Args:
            saliency: [B, units] >= 0 for every sublayer, as `Taps.saliency`; rows with a number
                that is not finite do not count.
            present: bool [B, M]; None if all modalities are there.
            means: [B, columns] of the readers' inputs, as `Taps.means`.

        Raises:
            TypeError, ValueError: For an argument that does not fit; nothing changes then.
        """
        rows = checked_saliency(self.units, saliency)
        mask = checked_present(present, rows, self.units.modalities)
        check_means(self.units, means, rows)
        self._version += 1
        self._table.update(saliency, mask)
        if means:
            self._means.update(means, mask)
        masks, which = distinct(mask)
        counts = which.bincount(minlength=len(masks)).tolist()
        for row, count in zip(masks, counts, strict=True):
            names = names_of(row, self.units.modalities)
            self._samples[names] = self._samples.get(names, 0) + count

    def scores(self, present: Sequence[str] | None = None) -> dict[str, Tensor]:
        """The mean saliency with these modalities, float32 [units] on the CPU for each sublayer.

        Raises:
            RuntimeError: Before the first `update`.
        """
        chosen = self.units.check_present(present)
        if not len(self._table):
            raise RuntimeError("scores: the table is empty, expected an update first")
        row, running = row_of(chosen, self.units.modalities), self.units.tokens(chosen)
        reach = self._reach(row)
        result = {}
        for sublayer in self.units:
            found = self._table.near(sublayer.name, row, reach)
            if found is None or sublayer.name not in running:
                found = torch.zeros(sublayer.units, dtype=torch.float64, device="cpu")
            result[sublayer.name] = found.float().cpu()
        return result

    def means(self, present: Sequence[str] | None = None) -> dict[str, Tensor] | None:
        """Mean inputs of the readers, see `InputMeans`; None if none were given."""
        return self._means.means(present)

    def refine(self, plan: Plan) -> Plan:
        """The plan as it is."""
        return plan

    def state_dict(self) -> dict[str, Any]:
        """Everything that was gathered; tensors and numbers only."""
        return {
            "table": self._table.state(),
            "means": self._means.state(),
            "samples": [[list(names), count] for names, count in self._samples.items()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the `state_dict` was taken.

        Raises:
            ValueError: It is of other units.
        """
        table = MaskTable(self._table.sizes, len(self.units.modalities), self.half_life)
        means = InputMeans(self.units, self.means_half_life)
        table.load(state["table"])
        means.load(state["means"])
        self._table, self._means = table, means
        self._version += 1
        self._samples = {
            self.units.check_present(names): int(count) for names, count in state["samples"]
        }

    def _reach(self, row: Tensor) -> int:
        """The number of differing modalities within which there are `min_samples`."""
        distances = {
            names: int((row_of(names, self.units.modalities) != row).sum())
            for names in self._samples
        }
        for limit in range(len(self.units.modalities) + 1):
            near = sum(n for names, n in self._samples.items() if distances[names] <= limit)
            if near >= self.min_samples:
                return limit
        return len(self.units.modalities)


def checked_saliency(units: Units, saliency: Mapping[str, Tensor]) -> int:
    """The rows of saliencies [B, units] of all sublayers.

    Raises:
        ValueError: A sublayer is missing or unknown, or has another shape.
    """
    names = [s.name for s in units]
    if wrong := sorted(saliency.keys() ^ set(names)):
        what = "missing" if wrong[0] in names else "unknown"
        raise ValueError(f"saliency: {wrong[0]!r} is {what}, expected {', '.join(names)}")
    rows = len(next(iter(saliency.values()))) if names else 0
    for sublayer in units:
        shape = tuple(saliency[sublayer.name].shape)
        if shape != (rows, sublayer.units):
            raise ValueError(
                f"saliency: got shape {list(shape)} for {sublayer.name!r}, expected "
                f"[{rows}, {sublayer.units}]"
            )
    return rows


def check_means(units: Units, means: Mapping[str, Tensor] | None, rows: int) -> None:
    """Nothing for means [B, columns] of some sublayers.

    Raises:
        ValueError: A sublayer is unknown, or has another shape.
    """
    columns = {s.name: s.columns for s in units}
    for name, value in (means or {}).items():
        if name not in columns:
            raise ValueError(f"means: {name!r} is unknown, expected some of {', '.join(columns)}")
        if tuple(value.shape) != (rows, columns[name]):
            raise ValueError(
                f"means: got shape {list(value.shape)} for {name!r}, expected "
                f"[{rows}, {columns[name]}]"
            )
