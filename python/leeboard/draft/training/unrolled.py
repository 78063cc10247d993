"""The loss of a batch as a module, in float32 or bfloat16."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from leeboard.draft.batch import Batch
from leeboard.draft.loss import ChainLoss, chain_loss
from leeboard.draft.training.prepare import Prepared
from leeboard.draft.training.settings import TrainSettings


class Unrolled(nn.Module):
    """The loss of a batch as a module, which `DistributedDataParallel` can wrap."""

    def __init__(self, prepared: Prepared, settings: TrainSettings) -> None:
        super().__init__()
        self.drafter = prepared.drafter
        self._settings = settings
        self._teacher = prepared.teacher_rows
        self._softcap = prepared.softcap

    def forward(self, batch: Batch, counts: Tensor) -> ChainLoss:
        settings = self._settings
        return chain_loss(
            self.drafter,
            batch,
            self._teacher,
            step_weights=settings.weights,
            loss=settings.loss,
            eta=settings.eta,
            softcap=self._softcap,
            counts=counts,
        )


class InBfloat16(nn.Module):
    """A module that computes in bfloat16, on rounded copies of its float32 weights.

    As torch.autocast does it, but for every operation of the drafter and none of the teacher:
    autocast rounds in linear layers alone, so that what is fed back from step to step would be more
    exact than in decoding, fused ops would meet two dtypes at once, and the teacher's logits would
    be rounded too.
    """

    def __init__(self, module: Unrolled) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: Batch, counts: Tensor) -> ChainLoss:
        result: ChainLoss = functional_call(
            self.module, self._rounded(), (batch, counts), tie_weights=False
        )
        return result

    def _rounded(self) -> dict[str, Tensor]:
        """Copies of all weights but those that the drafter has in float32 whatever its dtype (an
        expert router's); what is shared has one copy.

        A module with several names has one of them here: torch would set it back once a name, the
        last time to the copy.
        """
        exact = {f"drafter.{name}" for name in getattr(self.module.drafter, "float32_names", ())}
        copies: dict[Tensor, Tensor] = {}
        rounded = {}
        for place, module in self.module.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                full = f"{place}.{name}".lstrip(".")
                if full in exact:
                    continue
                if parameter not in copies:
                    copies[parameter] = parameter.to(torch.bfloat16)
                rounded[full] = copies[parameter]
        return rounded
