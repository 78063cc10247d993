"""Scores for units in a training with Lightning, as a callback."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Any

from leeboard.prune.aware import rows_of
from leeboard.prune.scorer import Scorer

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def scoring_callback(
    scorer: Scorer,
    *,
    batch_size: Callable[[Any], int] = rows_of,
    package: str | None = None,
) -> Any:
    """A Lightning callback that opens a block of `scorer` around every training batch.

    Before `training_step` it sets `pl_module.present` to the batch's mask, bool [B, M], for the
    model to be called with; a step may add `scorer.aware_loss(...)` to its loss. Factors that
    Lightning puts on the loss (a GradScaler, `accumulate_grad_batches`) are taken out. The scorer's
    state is in the trainer's checkpoints and comes back from them. One backward pass a batch is
    expected, as automatic optimisation does it.

    Args:
        scorer: Its model is the LightningModule or a part of it.
        batch_size: B of a batch; by default the rows of its first tensor.
        package: "lightning.pytorch" or "pytorch_lightning", the one whose Trainer is used; by
            default the one that is imported already, else the one that is installed.

    Raises:
        ImportError: Lightning is not installed.
    """
    base: Any = _module(package).Callback

    class ScoringCallback(base):  # type: ignore[misc]
        """See `scoring_callback`."""

        def __init__(self) -> None:
            self._block: AbstractContextManager[Any] | None = None

        @property
        def state_key(self) -> str:
            return "leeboard.prune.scoring"

        def on_train_batch_start(
            self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
        ) -> None:
            self._abandon()
            scale = _loss_scale(trainer)
            block = scorer(batch_size(batch), scale=scale)
            pl_module.present = block.__enter__()
            self._block = block

        def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
            block, self._block = self._block, None
            if block is not None:
                block.__exit__(None, None, None)

        def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
            # A skipped step (training_step gave None) has no backward pass.
            self._abandon()

        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            self._abandon()

        def state_dict(self) -> dict[str, Any]:
            return scorer.state_dict()

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            scorer.load_state_dict(state_dict)

        def _abandon(self) -> None:
            """Close a block that saw no backward pass; nothing is learned from it."""
            block, self._block = self._block, None
            if block is not None:
                with suppress(_Abandoned):
                    block.__exit__(_Abandoned, _Abandoned(), None)

    return ScoringCallback()


class _Abandoned(Exception):  # noqa: N818 (no error: it ends a block)
    """A batch ended without a backward pass."""


def _loss_scale(trainer: Any) -> float:
    """The factor that Lightning multiplies the loss by."""
    scaler = getattr(getattr(trainer, "precision_plugin", None), "scaler", None)
    scale = 1.0 if scaler is None else float(scaler.get_scale())
    return scale / float(getattr(trainer, "accumulate_grad_batches", 1) or 1)


def _module(package: str | None) -> Any:
    if package is not None:
        return importlib.import_module(package)
    imported = [name for name in _PACKAGES if name in sys.modules]
    for name in (*imported, *_PACKAGES):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:  # noqa: PERF203 (two at most)
            continue
    raise ImportError("scoring_callback needs Lightning: pip install lightning")
