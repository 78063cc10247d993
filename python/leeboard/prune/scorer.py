"""Scores for units as a by-product of a training loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor, nn

from leeboard.prune._masks import checked_present
from leeboard.prune.aware import PruneAware
from leeboard.prune.dropout import ModalityDropout
from leeboard.prune.taps import Taps
from leeboard.prune.units import Units


class Ranking(Protocol):
    """What learns from saliencies: `ScoreTable`, `SentryGate`."""

    def update(
        self,
        saliency: Mapping[str, Tensor],
        present: Tensor | None = None,
        means: Mapping[str, Tensor] | None = None,
    ) -> Any:
        """Learn from a batch."""
        ...

    def state_dict(self) -> Any:
        """What it learned."""
        ...

    def load_state_dict(self, state: Any) -> Any:
        """Go on from there."""
        ...


class Scorer:
    """Teaches a ranking inside a training loop, from the backward pass that is there anyway.

    ```python
    scorer = Scorer(model, units, ScoreTable(units), dropout=dropout)
    for inputs, target in batches:
        with scorer(len(target)) as present:
            loss = criterion(model(inputs, present), target)
            loss.backward()
        optimizer.step(), optimizer.zero_grad()
    ```

    The task's gradients are those of the same loop without scorer. One block holds one forward
    and one backward pass. With gradient accumulation each micro-batch has a block of its own;
    curricula count blocks. If the loss is scaled (a GradScaler, a division by the number of
    micro-batches), say so with `scale`, so that saliencies of all steps compare.

    Args:
        model: Runs eagerly: hooks on readers are not seen inside a compiled model.
        units: Of the model.
        ranking: Or several, which then learn from the same saliencies.
        dropout: Draws the masks.
        aware: For `aware_loss`.
        means: Whether the ranking also learns the mean inputs of the readers, for bias
            compensation.
        every: The ranking learns in every `every`-th block only.

    Attributes:
        blocks: How many were finished.
        skipped: How many of them gave saliencies that were not finite, and so were not learned
            from; a GradScaler skips such steps too.
    """

    def __init__(
        self,
        model: nn.Module,
        units: Units,
        ranking: Ranking | list[Ranking],
        *,
        dropout: ModalityDropout | None = None,
        aware: PruneAware | None = None,
        means: bool = True,
        every: int = 1,
    ) -> None:
        if every < 1:
            raise ValueError(f"every: got {every}, expected at least 1")
        if dropout is not None and dropout.modalities != units.modalities:
            raise ValueError(
                f"dropout: got the modalities {', '.join(dropout.modalities)}, expected the "
                f"model's: {', '.join(units.modalities)}"
            )
        self.model, self.units = model, units
        self.rankings = list(ranking) if isinstance(ranking, list) else [ranking]
        self.dropout, self.aware = dropout, aware
        self.every, self.blocks, self.skipped = every, 0, 0
        self._wants_means = means
        self._taps: Taps | None = None
        self._present: Tensor | None = None

    @contextmanager
    def __call__(
        self, present: int | Tensor | None = None, *, scale: float = 1.0
    ) -> Iterator[Tensor | None]:
        """A block around the forward and backward pass of one batch.

        Args:
            present: bool [B, M]; or B, and `dropout` draws the masks (all present without
                one); or None, and all are there.
            scale: The factor that the loss was multiplied by.

        Yields:
            bool [B, M], for the model, on the device of the model's first parameter; None if
            `present` was None.

        Raises:
            RuntimeError: There was no backward pass in the block.
        """
        mask = self._mask(present)
        learns = self.blocks % self.every == 0
        taps = Taps(self.model, self.units, saliency=learns, means=learns and self._wants_means)
        with taps:
            self._taps, self._present = taps, mask
            try:
                yield mask
            finally:
                self._taps = self._present = None
        if learns:
            self._learn(taps, mask, scale)
        self.blocks += 1
        for curriculum in (self.dropout, self.aware):
            if curriculum is not None:
                curriculum.step()

    def aware_loss(self, inputs: Any, target: Any, *, outputs: Any = None) -> Tensor:
        """The loss of the prune-aware pass for the block's masks, zero before its start.

        Add it to the task's loss, between the task's forward pass and the backward pass.

        Raises:
            RuntimeError: Outside of a block, or without `aware`.
        """
        if self._taps is None or self.aware is None:
            what = "an aware pass" if self.aware is None else "an open block"
            raise RuntimeError(f"aware_loss: the scorer has no such thing, expected {what}")
        return self.aware.loss(inputs, target, self._present, outputs=outputs, taps=self._taps)

    def state_dict(self) -> dict[str, Any]:
        """Rankings, curricula and counts; tensors, numbers and text only."""
        parts = {"dropout": self.dropout, "aware": self.aware}
        return {
            "blocks": self.blocks,
            "skipped": self.skipped,
            "rankings": [ranking.state_dict() for ranking in self.rankings],
            **{name: part.state_dict() for name, part in parts.items() if part is not None},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the `state_dict` was taken, with a scorer of the same parts.

        Raises:
            ValueError: It has other parts.
        """
        parts = {"dropout": self.dropout, "aware": self.aware}
        for name, part in parts.items():
            if (part is None) == (name in state):
                raise ValueError(f"state: {name} is in one of state and scorer, expected in both")
        if len(state["rankings"]) != len(self.rankings):
            raise ValueError(
                f"state: got {len(state['rankings'])} rankings, expected {len(self.rankings)}"
            )
        for ranking, kept in zip(self.rankings, state["rankings"], strict=True):
            ranking.load_state_dict(kept)
        for name, part in parts.items():
            if part is not None:
                part.load_state_dict(state[name])
        self.blocks, self.skipped = int(state["blocks"]), int(state["skipped"])

    def _mask(self, present: int | Tensor | None) -> Tensor | None:
        if present is None:
            return None
        if isinstance(present, int):
            if self.dropout is not None:
                mask = self.dropout.sample(present)
            else:
                mask = checked_present(None, present, self.units.modalities)
        else:
            mask = checked_present(present, len(present), self.units.modalities)
        weight = next(self.model.parameters(), None)
        return mask if weight is None else mask.to(weight.device)

    def _learn(self, taps: Taps, mask: Tensor | None, scale: float) -> None:
        saliency = taps.saliency
        if scale != 1.0:
            saliency = {name: values / scale for name, values in saliency.items()}
        if not all(bool(values.isfinite().all()) for values in saliency.values()):
            self.skipped += 1
            return
        means = taps.means if self._wants_means else None
        for ranking in self.rankings:
            ranking.update(saliency, mask, means)
