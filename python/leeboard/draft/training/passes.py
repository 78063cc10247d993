"""One pass of a Hugging Face target whose head computes no more than it must."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from leeboard.draft.target import takes


@contextmanager
def evaluating(target: nn.Module) -> Iterator[None]:
    """Without dropout, gradients or autocast; afterwards every module is in the mode it was in."""
    training = [module for module in target.modules() if module.training]
    kind = target_device(target).type
    try:
        for module in training:
            module.training = False
        with torch.no_grad(), torch.autocast(kind, enabled=False):
            yield
    finally:
        for module in training:
            module.training = True


def target_device(target: Any) -> torch.device:
    """Where the target takes its tokens."""
    device: torch.device = target.get_input_embeddings().weight.device
    return device


def run_target(
    target: Any, ids: Tensor, positions: Tensor | None = None, *, last_only: bool = True
) -> tuple[Tensor, Tensor]:
    """Run the target, see what its head is given.

    Args:
        target: A Hugging Face causal LM, in the mode of `evaluating`.
        ids: int64 [B, T].
        positions: int64 [B, T] as `position_ids`, or None.
        last_only: The head scores the last position alone; where nobody reads its logits, they
            would cost B T V numbers.

    Returns:
        (logits [B, 1, V] or [B, T, V], input of the head [B, T, Ht]).

    Raises:
        ValueError: The target does not call its head on [B, T, Ht] once in a pass.
    """
    caught: list[Tensor] = []

    def hook(head: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        states = args[0] if args else next(iter(kwargs.values()))
        caught.append(states.detach())
        if not last_only:
            return None
        if args:
            return (states[..., -1:, :], *args[1:]), kwargs
        return args, {**kwargs, next(iter(kwargs)): states[..., -1:, :]}

    more: dict[str, Any] = {"use_cache": False} if takes(target, "use_cache") else {}
    if positions is not None:
        more["position_ids"] = positions
    handle = target.get_output_embeddings().register_forward_pre_hook(hook, with_kwargs=True)
    try:
        logits: Tensor = target(input_ids=ids, **more).logits
    finally:
        handle.remove()
    if len(caught) != 1 or caught[0].shape[:-1] != ids.shape:
        raise ValueError(
            f"target: {type(target).__name__} called its output head on "
            f"{[tuple(states.shape) for states in caught]} for tokens {tuple(ids.shape)}, expected "
            "one call on [B, T, Ht]"
        )
    return logits, caught[0]
