"""The attention part of `leeboard.nn.replace`: what is taken, what is left, and the way back."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from leeboard.nn.hugging_face import PATTERN, is_registered, register_attention
from leeboard.nn.multihead import SparseMultiheadAttention
from leeboard.nn.sparse_gqa import why_not_plain_mha
from leeboard.ops.patterns import Pattern

_NAME = "leeboard"
_HOOKS = tuple(sorted(name for name in vars(nn.Module()) if name.endswith("_hooks")))

# Where a module hangs: (parent, attribute, dotted name). A change: what checks that it is still in place (a reason, or nothing), and what takes it back.
Place = tuple[nn.Module, str, str]
Step = tuple[Callable[[], str], Callable[[], None]]


def is_attention(module: nn.Module) -> bool:
    """Whether the module computes attention itself, as torch or transformers spell it."""
    return isinstance(module, nn.MultiheadAttention) or (
        _config(module) is not None and not _is_model(module) and _asks_interface(module)
    )


def is_replaced(module: nn.Module) -> bool:
    """Whether an earlier call has put a pattern there."""
    return isinstance(module, SparseMultiheadAttention) or PATTERN in vars(module)


def why_left(
    model: nn.Module, module: nn.Module, places: list[Place], sharded: set[nn.Module]
) -> str:
    """The reason to leave an attention module alone, or an empty string."""
    if is_parametrized(module):
        return "has parametrizations"
    if module in sharded:
        return "inside FullyShardedDataParallel, which holds on to its modules"
    if "forward" in vars(module):
        return "has a forward of its own"
    if not isinstance(module, nn.MultiheadAttention):
        return _why_left_hugging_face(model, module)
    if type(module) is not nn.MultiheadAttention:
        return "subclass of MultiheadAttention; only the exact class is known"
    hooks = [name.strip("_") for name in _HOOKS if vars(module).get(name)]
    if hooks:
        return f"has hooks ({', '.join(hooks)})"
    for parent, _, _ in places:
        if isinstance(parent, nn.TransformerDecoderLayer) and parent.multihead_attn is module:
            return "cross-attention"
    return why_not_plain_mha(module)


def put(model: nn.Module, chosen: list[tuple[nn.Module, Pattern, list[Place]]]) -> list[Step]:
    """Puts the patterns into the modules."""
    steps: list[Step] = []
    # A module's own pattern is heard whatever pattern the name stands for. Before anything changes.
    ours = (isinstance(module, nn.MultiheadAttention) for module, *_ in chosen)
    if not all(ours) and not is_registered(_NAME):
        register_attention(_NAME)
    before = {
        module: getattr(_config(module), "_attn_implementation", None) for module, *_ in chosen
    }
    for module, pattern, places in chosen:
        if isinstance(module, nn.MultiheadAttention):
            steps += _swap_mha(module, pattern, places)
        else:
            steps += _set_pattern(module, pattern, places[0][2])
    turned = [_config(m) for m, name in before.items() if name not in (None, _NAME)]
    if turned:
        steps.append(_last_to_go(model, before.keys(), turned))
    return steps + _keep_padded(model)


def _last_to_go(model: nn.Module, own: Collection[nn.Module], configs: list[Any]) -> Step:
    """A config that no longer names our attention would silence the patterns of later calls."""

    def changed() -> str:
        for name, module in model.named_modules():
            if PATTERN not in vars(module) or module in own:
                continue
            if any(_config(module) is config for config in configs):
                return f"{name}: has a pattern of its own; undo the later call first"
        return ""

    return changed, lambda: None


def _swap_mha(module: nn.MultiheadAttention, pattern: Pattern, places: list[Place]) -> list[Step]:
    """Puts a module with the same parameters at all places."""
    new = SparseMultiheadAttention.sharing(module, pattern)

    def changed() -> str:
        names = [name for parent, at, name in places if parent._modules.get(at) is not new]
        return f"{names[0]}: holds another module now" if names else ""

    def undo() -> None:
        module.training = new.training
        for parent, at, _ in places:
            parent._modules[at] = module

    for parent, at, _ in places:
        parent._modules[at] = new
    return [(changed, undo)]


def _keep_padded(model: nn.Module) -> list[Step]:
    """Stops torch's encoders over replaced layers from making nested tensors of padded ones."""
    steps: list[Step] = []
    for encoder in model.modules():
        if not isinstance(encoder, nn.TransformerEncoder) or not encoder.use_nested_tensor:
            continue
        if any(isinstance(m, SparseMultiheadAttention) for m in encoder.modules()):
            steps.append(_set_attribute(encoder, "use_nested_tensor", False))
    return steps


def _set_pattern(module: nn.Module, pattern: Pattern, name: str) -> list[Step]:
    """Puts a pattern on a module of transformers, whose config then names our attention."""
    config: Any = _config(module)
    before = config._attn_implementation
    setattr(module, PATTERN, pattern)

    def changed() -> str:
        return "" if vars(module).get(PATTERN) == pattern else f"{name}: has another pattern now"

    def undo() -> None:
        delattr(module, PATTERN)

    steps: list[Step] = [(changed, undo)]
    if before != _NAME:
        steps.append(_set_attribute(config, "_attn_implementation_internal", _NAME))
    return steps


def _set_attribute(owner: Any, name: str, value: object) -> Step:
    before = getattr(owner, name)
    setattr(owner, name, value)

    def changed() -> str:
        now = getattr(owner, name)
        return "" if now == value else f"{type(owner).__name__}.{name} is {now!r} now"

    return changed, lambda: setattr(owner, name, before)


def _config(module: nn.Module) -> Any:
    config = vars(module).get("config")
    return config if hasattr(config, "_attn_implementation_internal") else None


def _is_model(module: nn.Module) -> bool:
    return hasattr(module, "_can_set_attn_implementation")


def _asks_interface(module: nn.Module) -> bool:
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names


def _why_left_hugging_face(model: nn.Module, module: nn.Module) -> str:
    config: Any = _config(module)
    if getattr(config, "is_encoder_decoder", False):
        return "part of an encoder-decoder, whose cross-attention asks for the same config"
    if "cross" in type(module).__name__.lower():
        return "cross-attention"
    owners = [m for m in model.modules() if _is_model(m) and _config(m) is config]
    if not owners:
        return "its PreTrainedModel, which makes the masks, is not part of the model"
    if not all(owner._can_set_attn_implementation() for owner in owners):  # type: ignore[operator]
        return "its model does not let attention be chosen"
    return ""
