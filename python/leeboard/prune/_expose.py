"""Makes every reader be called as a module, for hooks on its input."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from leeboard.prune._mha import as_call, attend, project_all
from leeboard.prune._patches import Dense, Ours, Patches, quiet_torch, under_a_plan
from leeboard.prune.units import Units


@contextmanager
def exposed(model: nn.Module, units: Units) -> Iterator[None]:
    """Within, the reader of every sublayer is called as a module: its hooks see the units.

    `nn.MultiheadAttention` is computed step by step in plain torch and `FeedForward` by its linear
    layers; torch's Transformer layers leave their fused path. Results are equal within rounding.
    On exit the model is exactly as it was. Contexts may be nested.

    Raises:
        RuntimeError: If a plan is applied to the model.
    """
    for name, module in model.named_modules():
        if under_a_plan(module):
            raise RuntimeError(f"model: a plan is applied to {name or 'it'!r}; revert(model) first")
    patches = Patches()
    try:
        for sublayer in units:
            block: Any = _block(model, sublayer.name)
            own = vars(block).get("forward")
            if own is not None and not isinstance(own, (_Exposed, Dense)):
                raise RuntimeError(f"model: {sublayer.name!r} has a forward of its own")
            if isinstance(own, _Exposed):
                continue
            if sublayer.family == "torch_mha":
                patches.set(block, "forward", _ExposedAttention(block), sublayer.name)
            elif sublayer.family == "feed_forward":
                patches.set(block, "forward", _ExposedFeedForward(block), sublayer.name)
        quiet_torch(model, patches)
        yield
    finally:
        patches.undo()


def _block(model: nn.Module, name: str) -> nn.Module:
    """The module of a sublayer, or that which holds it where it is a part without a module."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        return model.get_submodule(name.rpartition(".")[0])


class _Exposed(Ours):
    """The forward of a module for the time of a context."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __deepcopy__(self, memo: dict[int, Any]) -> _Exposed:
        raise RuntimeError("model: it cannot be copied while its readers are exposed")


class _ExposedAttention(_Exposed):
    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        module = self.module
        return attend(module, as_call(args, kwargs), project_all(module), plain=True)


class _ExposedFeedForward(_Exposed):
    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = self.module.by_layers(*args, **kwargs)
        return y
