"""The training loop of the target and of the drafters, resumable at any checkpoint."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leeboard._files import replacing
from leeboard._progress import progress_bar

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
    """Train models side by side with AdamW; a warm-up of 5% of the steps, then a linear decay to 0.

    The models share the data but no parameter: each has its own loss and its own gradient clip, so
    each trains as it would alone.

    Args:
        models: The models; parameters that need no gradient are left alone.
        losses: Maps a step's number to the scalar loss of every model. Follows from the number
            alone, or a resumed run would differ from an uninterrupted one.
        steps: Optimizer steps.
        lr: Highest learning rate.
        clip: Largest norm of a model's gradient.
        checkpoint: File to save to now and then, and to resume from if it exists. Removed at the
            end.
        title: Shown in front of the progress bar.
        checkpoint_seconds: Time between checkpoints.

    Returns:
        The loss of every step, per model.
    """
    trained = {
        f"{owner}.{name}": parameter
        for owner, model in models.items()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    optimizer = torch.optim.AdamW(
        trained.values(), lr=lr, betas=(0.9, 0.95), weight_decay=0.05, fused=True
    )
    history: History = {owner: [] for owner in models}
    first = 0
    if checkpoint.exists():
        first, history = _load(checkpoint, trained, optimizer)
    warmup = max(1, steps // 20)
    saved = time.monotonic()
    with progress_bar(title, steps) as bar:
        bar.update(first)
        for step in range(first, steps):
            rate = lr * min((step + 1) / warmup, (steps - step) / max(steps - warmup, 1))
            for group in optimizer.param_groups:
                group["lr"] = rate
            for owner, loss in losses(step).items():
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(models[owner].parameters(), clip)
                history[owner].append(float(loss.detach()))
            optimizer.step()
            optimizer.zero_grad()
            bar.set_postfix_str(
                "loss " + ", ".join(f"{owner} {past[-1]:.2f}" for owner, past in history.items()),
                refresh=False,
            )
            bar.update()
            if time.monotonic() - saved > checkpoint_seconds and step + 1 < steps:
                _save(checkpoint, trained, optimizer, step + 1, history)
                saved = time.monotonic()
    checkpoint.unlink(missing_ok=True)
    return history


def _save(
    path: Path,
    trained: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    step: int,
    history: History,
) -> None:
    from safetensors.torch import save_file

    tensors = {}
    for name, parameter in trained.items():
        state = optimizer.state[parameter]
        tensors[f"{name}/value"] = parameter.detach()
        tensors[f"{name}/exp_avg"] = state["exp_avg"]
        tensors[f"{name}/exp_avg_sq"] = state["exp_avg_sq"]
    with replacing(path) as temporary:
        save_file(tensors, temporary, {"step": str(step), "history": json.dumps(history)})


def _load(
    path: Path, trained: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> tuple[int, History]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as tensors:
        metadata: dict[str, Any] = tensors.metadata()
        step = int(metadata["step"])
        for name, parameter in trained.items():
            with torch.no_grad():
                parameter.copy_(tensors.get_tensor(f"{name}/value"))
            optimizer.state[parameter] = {
                "step": torch.tensor(float(step)),
                "exp_avg": tensors.get_tensor(f"{name}/exp_avg"),
                "exp_avg_sq": tensors.get_tensor(f"{name}/exp_avg_sq"),
            }
    return step, json.loads(metadata["history"])
