"""Training under pruning: each step a pass with the units that a ranking would shed left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from leeboard.prune._masks import checked_present, distinct, names_of
from leeboard.prune.planner import block_units
from leeboard.prune.scores import Scores
from leeboard.prune.taps import Taps
from leeboard.prune.units import Units

Call = Callable[[nn.Module, Any, Tensor | None], Any]


class PruneAware:
    """The prune-aware pass: the loss of the model with part of its units left out.

    After a share of the training, each step draws a ratio r ~ U(0, r_max). In every sublayer each
    sample keeps the best 1 - r of the blocks of heads, and of the panels of channels, as the
    ranking has them for the sample's own modalities; at least one. The loss of that pass is added
    to the task's. It costs another forward and backward pass of the whole model.

    Args:
        model: Called as `model(inputs, present)`, or `model(inputs)` without `present`.
        units: Of the model.
        ranking: Any `Scores`, also one that the same training teaches; "random" draws new scores
            for each step and mask, as a control.
        loss_fn: `loss_fn(outputs, target)`, a mean over the batch.
        total_steps: Of the whole training.
        r_max: The largest ratio, 0 < r_max < 1.
        start: Share of `total_steps` before the first pass.
        conditioned: Whether the ranking is asked for each sample's modalities. If not, it is
            asked for all of them, whatever is there: a static ranking, as a control.
        kl: Weight of KL(full || pruned) of the class probabilities, in nats, beside the loss.
        panel: Channels that are kept or left out together; by default those of a plan, 16, or 32
            for weights of two bytes.
        seed: Of a generator of its own.
        call: In place of the call above: `call(model, inputs, present)`.

    Raises:
        ValueError: For a number out of its range.
    """

    def __init__(
        self,
        model: nn.Module,
        units: Units,
        ranking: Scores | Literal["random"],
        loss_fn: Callable[[Any, Any], Tensor],
        *,
        total_steps: int,
        r_max: float = 0.6,
        start: float = 0.25,
        conditioned: bool = True,
        kl: float = 0.0,
        panel: int | None = None,
        seed: int = 0,
        call: Call | None = None,
    ) -> None:
        if isinstance(ranking, str) and ranking != "random":
            raise ValueError(f"ranking: got {ranking!r}, expected Scores or 'random'")
        if not 0 < r_max < 1:
            raise ValueError(f"r_max: got {r_max}, expected 0 < r_max < 1")
        if not 0 <= start <= 1:
            raise ValueError(f"start: got {start}, expected 0 <= start <= 1")
        if total_steps < 1 or (panel is not None and panel < 1):
            raise ValueError(
                f"total_steps, panel: got {total_steps}, {panel}, expected positive numbers"
            )
        if kl < 0:
            raise ValueError(f"kl: got {kl}, expected at least 0")
        self.model, self.units, self.ranking, self.loss_fn = model, units, ranking, loss_fn
        self.total_steps, self.r_max, self.start = total_steps, r_max, start
        self.conditioned, self.kl, self.panel = conditioned, kl, panel
        self.steps = 0
        self._call: Call = call or default_call
        self._generator = torch.Generator(device="cpu").manual_seed(seed)

    @property
    def active(self) -> bool:
        """Whether the current step has a pass."""
        return self.steps >= self.start * self.total_steps

    def step(self) -> None:
        """Move on by one step of the training."""
        self.steps += 1

    def loss(
        self,
        inputs: Any,
        target: Any,
        present: Tensor | None = None,
        *,
        outputs: Any = None,
        taps: Taps | None = None,
    ) -> Tensor:
        """The loss of one pruned pass, to be added to the task's; zero before the start.

        Args:
            inputs: Of the model.
            target: Of the loss.
            present: bool [B, M]; None if all are there.
            outputs: Logits [B, classes] of the full model, for `kl`.
            taps: Of this model, if some are in place; the pass leaves what they recorded alone.

        Raises:
            ValueError: `kl` is wanted and no outputs are given.
        """
        if self.kl and not isinstance(outputs, Tensor):
            raise ValueError("outputs: got None, expected the full model's logits, as kl > 0")
        if not self.active:
            weight = next(self.model.parameters(), None)
            return torch.zeros((), device=None if weight is None else weight.device)
        ratio = self.r_max * float(torch.rand((), generator=self._generator, device="cpu"))
        rows = rows_of(inputs)
        gates = self.gates(checked_present(present, rows, self.units.modalities), ratio)
        if taps is None:
            with Taps(self.model, self.units, gates=gates):
                pruned = self._call(self.model, inputs, present)
        else:
            with taps.gated(gates):
                pruned = self._call(self.model, inputs, present)
        loss = self.loss_fn(pruned, target)
        if self.kl:
            full = log_softmax(outputs.detach().float(), -1)
            part = log_softmax(pruned.float(), -1)
            loss = loss + self.kl * kl_div(part, full, reduction="batchmean", log_target=True)
        return loss

    @torch.no_grad()
    def gates(self, present: Tensor, ratio: float) -> dict[str, Tensor]:
        """Which units a pass keeps: float32 [B, units] of zeros and ones for each sublayer.

        The scores of a block or panel are the sums of its units'; of equal ones the first is kept.

        Args:
            present: bool [B, M].
            ratio: Share of the blocks and panels that is left out.
        """
        present = checked_present(present, len(present), self.units.modalities)
        masks, which = distinct(present)
        if not self.conditioned:
            masks, which = torch.ones_like(masks[:1]), torch.zeros_like(which)
        scores = self._score_rows(masks)
        gates = {}
        for sublayer in self.units:
            values = scores[sublayer.name]
            kept = top_groups(values, block_units(sublayer, self.panel), 1 - ratio)
            gates[sublayer.name] = kept[which.to(kept.device)]
        return gates

    def state_dict(self) -> dict[str, Any]:
        """The step and the generator's state."""
        return {"steps": self.steps, "generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the `state_dict` was taken."""
        self._generator.set_state(state["generator"].cpu())
        self.steps = int(state["steps"])

    def _score_rows(self, masks: Tensor) -> dict[str, Tensor]:
        """[R, units] for each sublayer."""
        if isinstance(self.ranking, str):
            return {
                s.name: torch.rand(len(masks), s.units, generator=self._generator, device="cpu")
                for s in self.units
            }
        return score_rows(self.ranking, masks)


def score_rows(ranking: Scores, masks: Tensor) -> dict[str, Tensor]:
    """The scores of a ranking for masks bool [R, M]: [R, units] for each sublayer."""
    together: Any = getattr(ranking, "score_rows", None)
    if together is not None:
        result: dict[str, Tensor] = together(masks)
        return result
    names: list[Sequence[str]] = [names_of(mask, ranking.units.modalities) for mask in masks]
    rows = [ranking.scores(present) for present in names]
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def top_groups(values: Tensor, size: int, share: float) -> Tensor:
    """Ones for the best `share` of the groups of `size` neighbouring columns, at least one group.

    [R, units] to float32 [R, units]; the last group may be smaller.
    """
    rows, columns = values.shape
    groups = math.ceil(columns / size)
    padded = nn.functional.pad(values.float(), (0, groups * size - columns))
    totals = padded.reshape(rows, groups, size).sum(2)
    count = min(groups, max(1, round(share * groups)))
    order = totals.argsort(dim=1, descending=True, stable=True)[:, :count]
    kept = torch.zeros_like(totals).scatter_(1, order, 1.0)
    return kept.repeat_interleave(size, 1)[:, :columns]


def default_call(model: nn.Module, inputs: Any, present: Tensor | None) -> Any:
    """`model(inputs, present)`, or `model(inputs)` without `present`."""
    return model(inputs) if present is None else model(inputs, present)


def rows_of(inputs: Any) -> int:
    """Samples in a tensor, or in the first tensor of a nest of mappings and sequences."""
    while not isinstance(inputs, Tensor):
        if isinstance(inputs, Mapping) and inputs:
            inputs = next(iter(inputs.values()))
        elif isinstance(inputs, Sequence) and inputs and not isinstance(inputs, str):
            inputs = inputs[0]
        else:
            raise TypeError(f"inputs: got {type(inputs).__name__}, expected tensors [B, ...]")
    return inputs.shape[0]
