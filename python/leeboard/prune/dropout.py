"""Modalities that go missing in training, sample by sample, more and more of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from leeboard.prune._masks import checked_present, distinct, names_of


class ModalityDropout:
    """A curriculum of missing modalities: p = 0 at first, then a ramp to `p_max`, then flat.

    Each sample loses each of its modalities with probability p, independently. A sample that would
    lose all keeps exactly one of them, each with the same probability. With M modalities a mask of
    k >= 2 present ones has probability (1 - p)^k p^(M - k), and a single one
    (1 - p) p^(M - 1) + p^M / M.

    Args:
        modalities: Names, in the order of the model.
        p_max: The last probability, 0 <= p_max < 1.
        warmup: Share of `total_steps` before anything is dropped.
        ramp_end: Share of `total_steps` at which p reaches `p_max`.
        total_steps: Steps of the whole training, > 0.
        seed: Of a generator of its own; torch's global one is left alone.

    Raises:
        ValueError: For a number out of its range.
    """

    def __init__(
        self,
        modalities: Sequence[str],
        *,
        p_max: float = 0.4,
        warmup: float = 0.15,
        ramp_end: float = 0.7,
        total_steps: int,
        seed: int = 0,
    ) -> None:
        if isinstance(modalities, str) or not modalities or len({*modalities}) < len(modalities):
            raise ValueError(f"modalities: got {modalities!r}, expected a list of distinct names")
        if not 0 <= p_max < 1:
            raise ValueError(f"p_max: got {p_max}, expected 0 <= p_max < 1")
        if not 0 <= warmup <= ramp_end <= 1:
            raise ValueError(
                f"warmup, ramp_end: got {warmup}, {ramp_end}, expected 0 <= warmup <= ramp_end <= 1"
            )
        if total_steps < 1:
            raise ValueError(f"total_steps: got {total_steps}, expected a positive number")
        self.modalities = tuple(modalities)
        self.p_max, self.warmup, self.ramp_end = float(p_max), float(warmup), float(ramp_end)
        self.total_steps = int(total_steps)
        self.steps = 0
        self._generator = torch.Generator(device="cpu").manual_seed(seed)

    @property
    def p(self) -> float:
        """The probability of dropping at the current step."""
        return self.p_at(self.steps)

    def p_at(self, step: int) -> float:
        """The probability at a step: linear between the ends of warmup and ramp."""
        start, end = self.warmup * self.total_steps, self.ramp_end * self.total_steps
        if step < start:
            return 0.0
        if step >= end:
            return self.p_max
        return self.p_max * (step - start) / (end - start)

    def step(self) -> None:
        """Move on by one step of the training."""
        self.steps += 1

    def sample(self, batch: int, *, available: Tensor | None = None) -> Tensor:
        """Masks for a batch: bool [batch, M] on the CPU, at least one true in each row.

        Args:
            batch: Samples.
            available: bool [batch, M], the modalities that each sample has at all; all by default.
        """
        there = checked_present(available, batch, self.modalities)
        # The same count of random numbers at any p: masks of two runs differ by p alone.
        drawn = torch.rand(2, batch, len(self.modalities), generator=self._generator, device="cpu")
        kept = there & (drawn[0] >= self.p)
        # The largest of independent uniform numbers is each of them equally often.
        order = torch.where(there, drawn[1], -math.inf)
        one = torch.zeros_like(there).scatter_(1, order.argmax(1, keepdim=True), True)
        return torch.where(kept.any(1, keepdim=True), kept, one)

    def state_dict(self) -> dict[str, Any]:
        """The step and the generator's state; tensors and numbers only."""
        return {"steps": self.steps, "generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the `state_dict` was taken."""
        self._generator.set_state(state["generator"].cpu())
        self.steps = int(state["steps"])


def grouped(
    inputs: Mapping[str, Tensor],
    present: Tensor | None,
    modalities: Sequence[str] | None = None,
) -> Iterator[tuple[dict[str, Tensor], tuple[str, ...], Tensor]]:
    """A batch in groups of samples with the same modalities present, the missing ones left out.

    Args:
        inputs: [B, ...] for each modality; one that is not there is missing for the whole batch.
        present: bool [B, M]; None means all that `inputs` has.
        modalities: Names of the columns of `present`; the keys of `inputs` by default.

    Yields:
        Inputs [b, ...] of the present modalities, their names in order, and the indices int64 [b]
        of the samples, ascending, on the device of the inputs. The order of the groups depends on
        the masks alone.

    Raises:
        TypeError, ValueError: `present` does not fit, or a sample has no modality.
    """
    names = tuple(inputs) if modalities is None else tuple(modalities)
    if not inputs:
        raise ValueError("inputs: got no modality, expected at least one")
    some = next(iter(inputs.values()))
    for name, value in inputs.items():
        if name not in names:
            raise ValueError(f"inputs: got {name!r}, expected modalities of {', '.join(names)}")
        if value.shape[0] != some.shape[0]:
            raise ValueError(
                f"inputs: got {value.shape[0]} samples of {name!r}, expected {some.shape[0]}"
            )
    there = torch.tensor([name in inputs for name in names], device="cpu")
    mask = checked_present(present, some.shape[0], names) & there
    rows, which = distinct(checked_present(mask, some.shape[0], names))
    for index, row in enumerate(rows):
        indices = (which == index).nonzero()[:, 0].to(some.device)
        chosen = names_of(row, names)
        whole = len(rows) == 1
        yield {n: inputs[n] if whole else inputs[n][indices] for n in chosen}, chosen, indices
