"""A batch of training rows with what the target computed on them."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows for a drafter to learn from. B rows of T tokens, target's width Ht.

    Attributes:
        ids: int64 [B, T].
        loss_mask: bool [B, T], true where x_p is a token to learn to predict.
        positions: int64 [B, T], each token's place in its document; a 0 begins the next one.
        hiddens: The target's states that the drafter fuses, each [B, T, Ht].
        final: [B, T, Ht], what the target's head multiplies (a scale of the logits folded in);
            position p scores x_{p+1}.
        best: int64 [B, T], the target's most likely token there, of its whole vocabulary.
        logsumexp: float32 [B, T], of the target's logits there, over its whole vocabulary.
    """

    ids: Tensor
    loss_mask: Tensor
    positions: Tensor
    hiddens: tuple[Tensor, ...]
    final: Tensor
    best: Tensor
    logsumexp: Tensor

    def __post_init__(self) -> None:
        shape = self.ids.shape
        for name in ("loss_mask", "positions", "best", "logsumexp"):
            got = getattr(self, name).shape
            if got != shape:
                raise ValueError(f"{name}: got shape {tuple(got)}, expected {tuple(shape)}")
        for name, state in (("final", self.final), *(("hiddens", h) for h in self.hiddens)):
            if state.shape[:-1] != shape:
                raise ValueError(
                    f"{name}: got shape {tuple(state.shape)}, expected {(*shape, 'Ht')}"
                )

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        moved = {
            field.name: getattr(self, field.name).to(device, non_blocking=True)
            for field in dataclasses.fields(self)
            if field.name != "hiddens"
        }
        hiddens = tuple(state.to(device, non_blocking=True) for state in self.hiddens)
        return Batch(hiddens=hiddens, **moved)
