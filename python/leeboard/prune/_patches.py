"""Attributes that are set on modules for a while, and put back exactly."""

from __future__ import annotations

from typing import Any

from torch import nn

_MISSING: Any = object()


class Ours:
    """A forward of leeboard's on a module: no foreign one."""


class Applied(Ours):
    """One that looks at a plan."""


class Dense(Ours):
    """A method of a copied module, whose original had a forward of ours: its class's."""

    def __init__(self, module: nn.Module, attribute: str = "forward") -> None:
        self.module, self.attribute = module, attribute

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(type(self.module), self.attribute)(self.module, *args, **kwargs)


def is_foreign(module: nn.Module, forward: object) -> bool:
    """Whether a forward in vars(module) is someone's who would be left out, or leave us out."""
    own = getattr(forward, "__self__", None) is module
    if own and getattr(forward, "__func__", None) is type(module).forward:
        return False
    return not isinstance(forward, Dense)


class Patches:
    """Changes of instance attributes, undone in reverse order."""

    def __init__(self) -> None:
        self._done: list[tuple[nn.Module, str, Any, Any, str]] = []

    def set(self, module: nn.Module, attribute: str, value: object, name: str) -> None:
        """Puts the value into vars(module); `name` is the module's, for messages."""
        before = vars(module).get(attribute, _MISSING)
        self._done.append((module, attribute, before, value, name))
        vars(module)[attribute] = value

    def changed(self) -> str:
        """What is no longer as it was set, or an empty string."""
        last = {}
        for module, attribute, _, value, name in self._done:
            last[id(module), attribute] = (module, attribute, value, name)
        for module, attribute, value, name in last.values():
            if vars(module).get(attribute, _MISSING) is not value:
                return f"{name or 'the model'}: its {attribute} was changed since"
        return ""

    def undo(self) -> None:
        """Every attribute as it was; a second call does nothing."""
        while self._done:
            module, attribute, before, _, _ = self._done.pop()
            if before is _MISSING:
                vars(module).pop(attribute, None)
            else:
                vars(module)[attribute] = before


def under_a_plan(module: nn.Module) -> bool:
    """Whether a plan is applied to a module, or to a part or a whole of it."""
    own = vars(module)
    return isinstance(own.get("forward"), Applied) or isinstance(own.get("_ff_block"), Applied)


def quiet_torch(model: nn.Module, patches: Patches) -> None:
    """Keeps torch's Transformer layers from fused paths that read weights and call no module.

    A layer then takes its plain path, and an encoder makes no nested tensors of padded sequences.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.TransformerEncoderLayer) and module.activation_relu_or_gelu:
            patches.set(module, "activation_relu_or_gelu", 0, name)
        elif isinstance(module, nn.TransformerEncoder) and module.use_nested_tensor:
            patches.set(module, "use_nested_tensor", False, name)
