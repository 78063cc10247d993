"""Running means of vectors, one for each mask of present modalities that was seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from leeboard.prune._masks import distinct


class MaskTable:
    """For each name and each mask: a weighted sum of rows, and the sum of their weights.

    A row weighs 1, and half as much after `half_life` later samples with the same mask; None for
    the plain mean. Sums are float64 and stay on the device of the first rows.

    Args:
        sizes: Length of the rows of each name.
        modalities: How many.
        half_life: In samples, or None.
    """

    def __init__(
        self, sizes: Mapping[str, int], modalities: int, half_life: float | None = None
    ) -> None:
        self.sizes, self.modalities, self.half_life = dict(sizes), modalities, half_life
        self.masks = torch.zeros(0, modalities, dtype=torch.bool, device="cpu")
        self.sums: dict[str, Tensor] = {}
        self.weights: dict[str, Tensor] = {}
        for name, size in self.sizes.items():
            self.sums[name] = torch.zeros(0, size, dtype=torch.float64, device="cpu")
            self.weights[name] = torch.zeros(0, dtype=torch.float64, device="cpu")

    def __len__(self) -> int:
        return len(self.masks)

    def update(self, values: Mapping[str, Tensor], mask: Tensor) -> None:
        """Add rows [B, size] for masks bool [B, M]; those with a number not finite do not count."""
        rows, which = distinct(mask)
        places = self._places(rows)
        for name, value in values.items():
            wide = value.detach().to(torch.float64)
            counted = wide.isfinite().all(1)
            wide = torch.where(counted[:, None], wide, 0.0)
            where = which.to(wide.device)
            new = wide.new_zeros(len(rows), wide.shape[1]).index_add_(0, where, wide)
            count = wide.new_zeros(len(rows)).index_add_(0, where, counted.to(wide.dtype))
            sums, weights = self.sums[name].to(wide.device), self.weights[name].to(wide.device)
            keep = 1.0 if self.half_life is None else torch.exp2(-count / self.half_life)
            at = places.to(wide.device)
            weights[at] = weights[at] * keep + count
            sums[at] = sums[at] * (keep if isinstance(keep, float) else keep[:, None]) + new
            self.sums[name], self.weights[name] = sums, weights

    def near(self, name: str, mask: Tensor, limit: int) -> Tensor | None:
        """The mean over all rows whose mask differs from bool [M] in at most `limit` modalities.

        float64 [size]; None if there are none.
        """
        weights, sums = self.weights[name], self.sums[name]
        chosen = ((self.masks != mask).sum(1) <= limit).to(weights.device, weights.dtype)
        total = chosen @ weights
        return (chosen @ sums) / total if float(total) > 0 else None

    def state(self) -> dict[str, Tensor]:
        """Everything that was gathered, as tensors of their own on the CPU."""
        state = {"masks": self.masks.clone()}
        for name in self.sizes:
            state[f"sums.{name}"] = self.sums[name].cpu().clone()
            state[f"weights.{name}"] = self.weights[name].cpu().clone()
        return state

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take what `state` gave.

        Raises:
            ValueError: Tensors are missing, or have other shapes or types; nothing changes then.
        """
        rows = len(state["masks"]) if "masks" in state else 0
        expected: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "masks": ((rows, self.modalities), torch.bool)
        }
        for name, size in self.sizes.items():
            expected[f"sums.{name}"] = ((rows, size), torch.float64)
            expected[f"weights.{name}"] = ((rows,), torch.float64)
        check_tensors(state, expected)
        self.masks = state["masks"].cpu().clone()
        for name in self.sizes:
            self.sums[name] = state[f"sums.{name}"].clone()
            self.weights[name] = state[f"weights.{name}"].clone()

    def _places(self, rows: Tensor) -> Tensor:
        """int64 [R]: where the rows of masks are in the table; new ones are added."""
        known = {tuple(row): place for place, row in enumerate(self.masks.tolist())}
        fresh = [row for row in rows if tuple(row.tolist()) not in known]
        if fresh:
            for row in fresh:
                known[tuple(row.tolist())] = len(known)
            self.masks = torch.cat((self.masks, torch.stack(fresh)))
            for name in self.sizes:
                s, w = self.sums[name], self.weights[name]
                self.sums[name] = torch.cat((s, s.new_zeros(len(fresh), s.shape[1])))
                self.weights[name] = torch.cat((w, w.new_zeros(len(fresh))))
        return torch.tensor([known[tuple(row.tolist())] for row in rows], device="cpu")


def check_tensors(
    state: Mapping[str, Tensor],
    expected: Mapping[str, tuple[Sequence[int], torch.dtype]],
) -> None:
    """Raise ValueError unless exactly these tensors are there, finite, with these shapes."""
    if wrong := sorted(state.keys() ^ expected.keys()):
        kind = "missing" if wrong[0] in expected else "unknown"
        raise ValueError(f"{wrong[0]}: {kind} tensor")
    for name, (shape, dtype) in expected.items():
        tensor = state[name]
        if tuple(tensor.shape) != tuple(shape) or tensor.dtype != dtype:
            raise ValueError(
                f"{name}: got {tensor.dtype} {list(tensor.shape)}, expected {dtype} {list(shape)}"
            )
        if dtype.is_floating_point and not bool(tensor.isfinite().all()):
            raise ValueError(f"{name}: got a value that is not finite")
