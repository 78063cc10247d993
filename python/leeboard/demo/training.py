"""How the demo trains its target and its drafters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor, nn

from leeboard.draft.training.checkpoint import Checkpoints
from leeboard.draft.training.loop import Terms
from leeboard.draft.training.loop import fit as fit_loop
from leeboard.draft.training.settings import LoopSettings

Losses = Mapping[str, Tensor]
History = dict[str, list[float]]


def fit(
    models: Mapping[str, nn.Module],
    losses: Callable[[int], Losses],
    *,
    steps: int,
    lr: float,
    clip: float,
    checkpoint: Path,
    title: str,
    checkpoint_seconds: float = 20.0,
) -> History:
    """Train models side by side; a warm-up of 5% of the steps, then a linear decay to 0.

    Args:
        models: The models; parameters that need no gradient are left alone.
        losses: Maps a step's number to the scalar loss of every model. Follows from the number
            alone, or a resumed run would differ from an uninterrupted one.
        steps: Optimizer steps.
        lr: Highest learning rate.
        clip: Largest norm of a model's gradient.
        checkpoint: Folder to save to now and then, and to resume from if it exists. Removed at the
            end.
        title: Shown in front of the progress bar.
        checkpoint_seconds: Time between checkpoints.

    Returns:
        The loss of every step, per model.
    """
    settings = LoopSettings(
        steps=steps,
        lr=lr,
        schedule="linear",
        warmup=max(1, steps // 20),
        clip=clip,
        weight_decay=0.05,
        checkpoint_seconds=checkpoint_seconds,
    )
    # What else decides the course, the stage's folder is named after.
    checkpoints = Checkpoints(checkpoint, {"steps": steps, "lr": lr, "clip": clip})
    history = fit_loop(
        models,
        lambda step: [{name: Terms(loss) for name, loss in losses(step).items()}],
        settings,
        checkpoints=checkpoints,
        title=title,
    )
    checkpoints.remove()
    names = {owner: "loss" if len(models) == 1 else f"{owner}.loss" for owner in models}
    return {owner: history.steps[name] for owner, name in names.items()}
