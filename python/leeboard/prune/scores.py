"""Importances of units: what every ranking offers to `plan`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from leeboard.prune.plan import Plan
from leeboard.prune.units import Units


class Scores(Protocol):
    """A ranking of units, possibly another one for each set of present modalities.

    Attributes:
        units: Of the model that it ranks.
        name: What ranked them, for plans and tables.
    """

    @property
    def units(self) -> Units: ...

    @property
    def name(self) -> str: ...

    def scores(self, present: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Importance of every unit, float32 [units] >= 0, by name of the sublayer.

        The sum over units that are shed is (proportional to) the loss that shedding costs, so
        sublayers compare with one another.
        """
        ...

    def means(self, present: Sequence[str] | None = None) -> dict[str, Tensor] | None:
        """Mean input of each reader, float32 [columns], for bias compensation; None if unknown."""
        ...

    def refine(self, plan: Plan) -> Plan:
        """The plan with what the ranking adds once units are chosen (rearrange, rescale)."""
        ...
