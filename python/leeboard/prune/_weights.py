"""The linear layers of a sublayer: found by name, and what they must be to be pruned."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils.parametrize import is_parametrized

from leeboard.prune._patches import Ours, is_foreign
from leeboard.prune.units import Sublayer

_LINEAR = (nn.Linear, NonDynamicallyQuantizableLinear)


def linear(model: nn.Module, name: str) -> nn.Linear:
    """The linear layer of that name."""
    found = model.get_submodule(name)
    assert isinstance(found, nn.Linear), name
    return found


def reader(model: nn.Module, sublayer: Sublayer) -> nn.Linear:
    """The linear layer whose input columns the units are."""
    return linear(model, sublayer.reader)


def writers(model: nn.Module, sublayer: Sublayer) -> tuple[tuple[Tensor, Tensor | None], ...]:
    """(weight [rows, in_features], bias [rows] or None) of every writer: (q, k, v) or (up, gate).

    They are the parameters, or views of one that holds all three.
    """
    if sublayer.writers[0].endswith(".in_proj_weight") or sublayer.writers[0] == "in_proj_weight":
        block = model.get_submodule(sublayer.name)
        assert isinstance(block, nn.MultiheadAttention)
        weights = block.in_proj_weight.chunk(3)
        bias = block._parameters["in_proj_bias"]
        biases = (None,) * 3 if bias is None else bias.chunk(3)
        return tuple(zip(weights, biases, strict=True))
    layers = [linear(model, name) for name in sublayer.writers]
    return tuple((layer.weight, layer._parameters["bias"]) for layer in layers)


class Census:
    """Which modules and parameters of a model have several names."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = Counter(id(m) for _, m in model.named_modules(remove_duplicate=False))
        seen: Counter[int] = Counter()
        for module in model.modules():
            seen.update(id(p) for p in module._parameters.values() if p is not None)
        self._parameters = seen

    def why_not(self, module: nn.Module) -> str:
        """Why no plan can run the module, or an empty string."""
        if self._modules[id(module)] > 1:
            return "the module has several places in the model"
        own = vars(module).get("forward")
        if own is not None and not isinstance(own, Ours) and is_foreign(module, own):
            return "has a forward of its own"
        if is_parametrized(module):
            return "has parametrizations"
        if any(self._parameters[id(p)] > 1 for p in module._parameters.values() if p is not None):
            return "its parameters are tied to another module's"
        return ""

    def why_not_linear(self, module: object) -> str:
        """The same for a linear layer."""
        if isinstance(module, nn.Module) and is_parametrized(module):
            return "has parametrizations"
        if type(module) not in _LINEAR:
            return f"is a {type(module).__name__}, not a plain torch.nn.Linear"
        assert isinstance(module, nn.Linear)
        weight = module._parameters.get("weight")
        if type(weight) is not nn.Parameter:
            return "its weight is not a plain parameter"
        if weight.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            return f"its weight is {weight.dtype}"
        return self.why_not(module)


def is_linear_like(module: nn.Module) -> bool:
    """Whether it is a linear layer of any make: torch's, quantised, adapted."""
    if isinstance(module, nn.Linear):
        return True
    kinds = {base.__name__ for base in type(module).__mro__}
    named = any("Linear" in kind or kind == "Conv1D" for kind in kinds)
    return named and getattr(module, "weight", None) is not None
