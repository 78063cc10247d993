"""Catching the target's intermediate hidden states as it runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from leeboard.draft.config import DrafterConfig

# Where Hugging Face causal language models keep their decoder layers.
LAYER_PATHS = (
    "model.layers",
    "model.language_model.layers",
    "language_model.model.layers",
    "model.decoder.layers",
    "transformer.h",
    "transformer.blocks",
    "gpt_neox.layers",
    "backbone.layers",
)


def decoder_layers(target: nn.Module) -> nn.ModuleList:
    """The decoder layers of a Hugging Face causal LM: the first of `LAYER_PATHS` that it has.

    Raises:
        ValueError: None of the paths leads to an `nn.ModuleList`.
    """
    for path in LAYER_PATHS:
        module: Any = target
        for name in path.split("."):
            module = getattr(module, name, None)
        if isinstance(module, nn.ModuleList):
            return module
    raise ValueError(
        f"target: found no decoder layers in {type(target).__name__}, expected an nn.ModuleList at "
        f"one of {', '.join(LAYER_PATHS)}"
    )


class AuxStates:
    """What `capture` caught in the target's latest forward pass."""

    def __init__(self, ids: tuple[int, ...]) -> None:
        self._ids = ids
        self._states: dict[int, Tensor] = {}
        self._thread = threading.get_ident()

    def _catch(self, i: int, state: Tensor) -> None:
        # The hooks sit on the target itself: what other threads run there is not ours.
        if threading.get_ident() == self._thread:
            self._states[i] = state.detach()

    @property
    def hiddens(self) -> tuple[Tensor, ...]:
        """The states [B, T, Ht], detached, in the order of `aux_layer_ids`.

        Raises:
            RuntimeError: The target has not run in the thread of `capture` since it began or
                `clear` was called.
        """
        if missing := [i for i in self._ids if i not in self._states]:
            raise RuntimeError(f"no state of decoder layer(s) {missing}: run the target first")
        return tuple(self._states[i] for i in self._ids)

    def clear(self) -> None:
        """Let go of the states."""
        self._states.clear()


@contextmanager
def capture(target: nn.Module, config: DrafterConfig) -> Iterator[AuxStates]:
    """Catch the states that a drafter fuses, with forward hooks on the target's decoder layers.

    Only these layers' states are held (`output_hidden_states` would keep all of them), from
    before the target's final norm. Only passes of the thread that entered the block count, so
    that several threads may use one target. Outside the `with` block the target is as before.

    Args:
        target: A Hugging Face causal LM; its layers are found by `decoder_layers`.
        config: Says which layers (`aux_layer_ids`) and which end of them
            (`aux_layer_convention`).

    Yields:
        An object whose `hiddens` are the states of the latest forward pass.

    Raises:
        ValueError: The target has no such layers.

    Example:
        >>> with capture(target, drafter.config) as aux:
        ...     target(input_ids)
        ...     state = drafter.fuse(aux.hiddens)
    """
    layers = decoder_layers(target)
    config.check_layers(len(layers))
    caught = AuxStates(config.aux_layer_ids)
    handles = []
    try:
        for i in config.aux_layer_ids:
            if config.aux_layer_convention == "input":
                handles.append(
                    layers[i].register_forward_pre_hook(_input_hook(caught, i), with_kwargs=True)
                )
            else:
                handles.append(layers[i].register_forward_hook(_output_hook(caught, i)))
        yield caught
    finally:
        for handle in handles:
            handle.remove()


def _input_hook(caught: AuxStates, i: int) -> Any:
    def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        caught._catch(i, args[0] if args else kwargs["hidden_states"])

    return hook


def _output_hook(caught: AuxStates, i: int) -> Any:
    def hook(layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        # Some layers return a tuple whose first entry is the residual stream.
        caught._catch(i, output[0] if isinstance(output, tuple) else output)

    return hook
