"""The two drafters, trained side by side on the same states of the same target."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leeboard._files import read_json, write_json, write_tensors
from leeboard.demo.settings import DRAFTERS, Settings
from leeboard.demo.tokens import Documents, pack
from leeboard.demo.training import History, fit
from leeboard.draft import DrafterConfig, Eagle3Drafter, chain_loss
from leeboard.draft.training import OnlineStates, Rows


def new_drafters(settings: Settings, target: Any) -> dict[str, Eagle3Drafter]:
    """The drafters before training, with the target's embedding, head and final norm.

    Weights that both have start out equal.
    """
    drafters = {}
    for name, overrides in DRAFTERS.items():
        torch.manual_seed(settings.seed)
        drafter = Eagle3Drafter(DrafterConfig.for_target(target.config, **overrides))
        drafter.copy_from_target(target)
        drafters[name] = drafter
    return drafters


def train_drafters(
    settings: Settings, target: Any, documents: Documents, checkpoint: Path, title: str
) -> tuple[dict[str, Eagle3Drafter], History]:
    """Train both drafters to match the target's distribution on assistant tokens.

    The target runs once per batch: both drafters read the states that it leaves, so they are not
    stored (1 kB per token at width 128).

    Returns:
        The drafters, and per drafter the loss of every step (summed over the unrolled chain).
    """
    batch, length = settings.drafter_batch, settings.drafter_row
    steps = math.ceil(settings.drafter_tokens / (batch * length))
    # Another order than the target's.
    packed = pack(documents, steps * batch, length, settings.seed + 1)
    rows, marks = (torch.from_numpy(array) for array in packed)
    drafters = new_drafters(settings, target)
    # Both drafters capture the same layers.
    whole = torch.arange(length).expand_as(rows)
    states = OnlineStates(target, drafters["post"], Rows(rows, marks, whole))
    head = states.teacher.weight
    weights = [0.8**j for j in range(settings.ttt)]

    def losses(step: int) -> dict[str, Tensor]:
        seen = states.batch(range(step * batch, (step + 1) * batch))
        return {
            name: chain_loss(drafter, seen, head, step_weights=weights).loss
            for name, drafter in drafters.items()
        }

    history = fit(
        drafters,
        losses,
        steps=steps,
        lr=settings.drafter_lr,
        clip=0.5,
        checkpoint=checkpoint,
        title=title,
    )
    return {name: drafter.eval() for name, drafter in drafters.items()}, history


def save_drafters(folder: Path, drafters: Mapping[str, Eagle3Drafter]) -> None:
    """Write each drafter as `<name>.json` (its config) and `<name>.safetensors`."""
    for name, drafter in drafters.items():
        write_json(folder / f"{name}.json", drafter.config.to_dict())
        write_tensors(folder / f"{name}.safetensors", drafter.state_dict())


def load_drafters(folder: Path) -> dict[str, Eagle3Drafter]:
    """Read what `save_drafters` wrote."""
    from safetensors.torch import load_file

    drafters = {}
    for name in DRAFTERS:
        drafter = Eagle3Drafter(DrafterConfig.from_dict(read_json(folder / f"{name}.json")))
        drafter.load_state_dict(load_file(folder / f"{name}.safetensors"))
        drafters[name] = drafter.eval()
    return drafters
