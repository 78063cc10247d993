"""The target's last state: what of it enters an MTP head."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from leeboard.draft.capture import LAYER_PATHS, AuxStates, decoder_layers
from leeboard.draft.mtp.config import MTPConfig

_NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f", "norm_f")


def final_norm(target: nn.Module) -> nn.Module:
    """The norm between a Hugging Face causal LM's last decoder layer and its head.

    Raises:
        ValueError: It stands under none of the known names beside the decoder layers.
    """
    layers = decoder_layers(target)
    for path in LAYER_PATHS:
        owner: Any = target
        *parents, last = path.split(".")
        for name in parents:
            owner = getattr(owner, name, None)
        if getattr(owner, last, None) is layers:
            for name in _NORMS:
                found = getattr(owner, name, None)
                if isinstance(found, nn.Module):
                    return found
    raise ValueError(
        f"target: found no final norm in {type(target).__name__}, expected one of "
        f"{', '.join(_NORMS)} beside its decoder layers"
    )


@contextmanager
def capture_last(target: nn.Module, config: MTPConfig) -> Iterator[AuxStates]:
    """Catch the target's state behind its final norm ("normed") or before it ("raw").

    Yields:
        An object whose `hiddens` is the one state [B, T, H] of the latest forward pass.

    Raises:
        ValueError: The target has no final norm.
    """
    norm = final_norm(target)
    last = len(decoder_layers(target)) - 1
    caught = AuxStates((last,))

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        caught._catch(last, output if config.target_state == "normed" else args[0])

    handle = norm.register_forward_hook(hook)
    try:
        yield caught
    finally:
        handle.remove()
