"""The same drafter run in another way: other windows, a norm that it was not trained with, noise."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from leeboard.draft.protocol import Drafter, Feed

# Switches that no weight depends on, so that they can be forced on a checkpoint.
FORCIBLE = ("norm_output", "norm_before_residual", "recycle")


def with_config(drafter: Drafter, **changes: Any) -> Drafter:
    """The same weights under a changed config; the given drafter stays as it is.

    Raises:
        ValueError: The config has no such field, or refuses the value.
    """
    config: Any = drafter.config
    fields = {field.name for field in dataclasses.fields(config)}
    if missing := [name for name in changes if name not in fields]:
        raise ValueError(f"drafter: its config ({type(config).__name__}) has no {missing[0]}")
    other = copy.copy(drafter)
    other.config = dataclasses.replace(config, **changes)
    return other


def forced(drafter: Drafter, changes: Mapping[str, Any]) -> Drafter:
    """`with_config` for switches of `FORCIBLE`: a test of what a mismatch costs.

    Raises:
        ValueError: A name is none of them, or the config has or allows no such value.
    """
    check_forcible(changes)
    return with_config(drafter, **changes)


def check_forcible(names: Iterable[str]) -> None:
    """Raise ValueError unless all are of `FORCIBLE`."""
    if wrong := [name for name in names if name not in FORCIBLE]:
        raise ValueError(f"force: got {wrong[0]!r}, expected one of {', '.join(FORCIBLE)}")


def noise(alpha: float, seed: int) -> Feed:
    """Gaussian noise of alpha times each state's RMS on what steps from the second on are fed."""
    generators: dict[torch.device, torch.Generator] = {}

    def feed(step: int, state: Tensor) -> Tensor:
        if state.device not in generators:
            generators[state.device] = torch.Generator(state.device).manual_seed(seed)
        drawn = torch.randn(state.shape, generator=generators[state.device], device=state.device)
        rms = state.float().square().mean(-1, keepdim=True).sqrt()
        return state + (alpha * rms * drawn).to(state.dtype)

    return feed
