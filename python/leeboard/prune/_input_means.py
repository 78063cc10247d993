"""Mean inputs of the readers for each mask of present modalities, for bias compensation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from leeboard.prune._mask_table import MaskTable, check_tensors
from leeboard.prune._masks import row_of
from leeboard.prune.units import Units

# So many modalities, and a row for each of their masks is affordable.
TABLE_MODALITIES = 8


class InputMeans:
    """Means of what flows into the readers, given which modalities are there.

    Up to 8 modalities: the mean for each mask that was seen. For other masks, and for more
    modalities, an additive model mu(m) = mu_0 + sum_i m_i delta_i, fitted by least squares over all
    samples; of several best fits the one with the smallest coefficients.

    Args:
        units: Of the model.
        half_life: Samples after which one weighs half, or None.
    """

    def __init__(self, units: Units, half_life: float | None = None) -> None:
        self.units, self.half_life = units, half_life
        sizes = {s.name: s.columns for s in units}
        count = len(units.modalities)
        self._table: MaskTable | None = None
        self._gram: dict[str, Tensor] = {}
        self._moment: dict[str, Tensor] = {}
        if count <= TABLE_MODALITIES:
            self._table = MaskTable(sizes, count, half_life)
        else:
            for name, size in sizes.items():
                empty = torch.zeros(count + 1, count + 1 + size, dtype=torch.float64, device="cpu")
                self._gram[name] = empty[:, : count + 1].clone()
                self._moment[name] = empty[:, count + 1 :].clone()

    def update(self, means: Mapping[str, Tensor], mask: Tensor) -> None:
        """Add [B, columns] of each sublayer that ran; rows that are not finite do not count."""
        if self._table is not None:
            self._table.update(means, mask)
            return
        for name, value in means.items():
            wide = value.detach().to(torch.float64)
            counted = wide.isfinite().all(1).to(torch.float64)
            wide = torch.where(counted[:, None] > 0, wide, 0.0)
            x = _features(mask).to(wide.device) * counted[:, None]
            keep = 1.0 if self.half_life is None else 0.5 ** (float(counted.sum()) / self.half_life)
            self._gram[name] = self._gram[name].to(wide.device) * keep + x.T @ x
            self._moment[name] = self._moment[name].to(wide.device) * keep + x.T @ wide

    def means(self, present: Sequence[str] | None) -> dict[str, Tensor] | None:
        """float32 [columns] on the CPU for each sublayer that ever ran; None before any update."""
        row = row_of(self.units.check_present(present), self.units.modalities)
        result = {}
        for sublayer in self.units:
            gram, moment = self._normal_equations(sublayer.name)
            if float(gram[0, 0]) <= 0:
                continue
            exact = None if self._table is None else self._table.near(sublayer.name, row, 0)
            if exact is None:
                fit = torch.linalg.pinv(gram, hermitian=True) @ moment
                exact = _features(row[None]).to(fit.device)[0] @ fit
            result[sublayer.name] = exact.float().cpu()
        return result or None

    def state(self) -> dict[str, Tensor]:
        """Everything that was gathered, as tensors on the CPU."""
        if self._table is not None:
            return self._table.state()
        state = {}
        for name in self._gram:
            state[f"gram.{name}"] = self._gram[name].cpu().clone()
            state[f"moment.{name}"] = self._moment[name].cpu().clone()
        return state

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take what `state` gave; ValueError, and nothing changes, if it does not fit."""
        if self._table is not None:
            self._table.load(state)
            return
        expected = {f"gram.{name}": (g.shape, g.dtype) for name, g in self._gram.items()}
        expected |= {f"moment.{name}": (m.shape, m.dtype) for name, m in self._moment.items()}
        check_tensors(state, expected)
        for name in self._gram:
            self._gram[name] = state[f"gram.{name}"].clone()
            self._moment[name] = state[f"moment.{name}"].clone()

    def _normal_equations(self, name: str) -> tuple[Tensor, Tensor]:
        if self._table is None:
            return self._gram[name], self._moment[name]
        weights, sums = self._table.weights[name], self._table.sums[name]
        x = _features(self._table.masks).to(sums.device)
        return x.T @ (weights[:, None] * x), x.T @ sums


def _features(mask: Tensor) -> Tensor:
    """(1, m) for each mask: float64 [B, M + 1]."""
    wide = mask.to(torch.float64)
    return torch.cat((torch.ones_like(wide[:, :1]), wide), 1)
