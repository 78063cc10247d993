"""One ranking for every moment: importances that do not depend on the present modalities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from leeboard.prune.plan import Plan
from leeboard.prune.units import Units


@dataclass(frozen=True, eq=False)
class StaticScores:
    """Importances of units that are the same whatever is present; implements `Scores`.

    Attributes:
        units: Of the model that it ranks.
        name: What ranked them.
        values: By name of the sublayer float32 [units], finite and >= 0; every sublayer has some.
        means: By name of the sublayer float32 [columns], the mean input of the reader; or None.

    Raises:
        ValueError: For a sublayer that is missing or unknown, a wrong shape, or a value that is
            negative or not finite.
    """

    units: Units
    name: str
    values: Mapping[str, Tensor]
    means_of_inputs: Mapping[str, Tensor] | None = None
    version: ClassVar[int] = 0
    """Plans are cached: these scores never change."""

    def __init__(
        self,
        units: Units,
        name: str,
        values: Mapping[str, Tensor],
        means: Mapping[str, Tensor] | None = None,
    ) -> None:
        sizes = {s.name: s.units for s in units}
        checked = _checked("values", values, sizes)
        for sublayer, tensor in checked.items():
            if bool((tensor < 0).any()):
                raise ValueError(
                    f"values[{sublayer!r}]: got {float(tensor.min()):.4g}, expected numbers >= 0"
                )
        object.__setattr__(self, "units", units)
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "values", checked)
        columns = {s.name: s.columns for s in units}
        found = None if means is None else _checked("means", means, columns)
        object.__setattr__(self, "means_of_inputs", found)

    def scores(self, present: Sequence[str] | None = None) -> dict[str, Tensor]:
        """The same importances for any set of present modalities, which is only checked."""
        self.units.check_present(present)
        return dict(self.values)

    def means(self, present: Sequence[str] | None = None) -> dict[str, Tensor] | None:
        """The same mean inputs for any set of present modalities; None if they are not known."""
        self.units.check_present(present)
        return None if self.means_of_inputs is None else dict(self.means_of_inputs)

    def refine(self, plan: Plan) -> Plan:
        """The plan as it is."""
        return plan


def _checked(what: str, given: Mapping[str, Tensor], sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """Copies in float32 on the CPU, in the order of `sizes`."""
    unknown = sorted(set(given) - set(sizes))
    if unknown:
        raise ValueError(
            f"{what}: got the sublayer {unknown[0]!r}, expected {', '.join(sizes) or 'none'}"
        )
    checked = {}
    for name, size in sizes.items():
        if name not in given:
            raise ValueError(f"{what}: got nothing for {name!r}, expected [{size}] numbers")
        tensor = given[name].detach()
        if tuple(tensor.shape) != (size,):
            raise ValueError(
                f"{what}[{name!r}]: got the shape {list(tensor.shape)}, expected [{size}]"
            )
        copy = tensor.to("cpu", torch.float32, copy=True)
        if not bool(torch.isfinite(copy).all()):
            raise ValueError(f"{what}[{name!r}]: got NaN or infinity, expected finite numbers")
        checked[name] = copy
    return checked
