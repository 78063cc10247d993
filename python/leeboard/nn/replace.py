"""Puts leeboard's norms and attention into a model, in place and undoably."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from leeboard.nn import _attention_swap
from leeboard.nn._attention_swap import Step
from leeboard.nn.rms_norm import RMSNorm
from leeboard.ops.patterns import Pattern
from leeboard.ops.rms_norm import Rounding


@dataclass(frozen=True)
class _Recipe:
    """How one known class spells its norm."""

    eps: str
    weight_offset: float
    rounding: Rounding
    why: str


_LLAMA = _Recipe("variance_epsilon", 0.0, "before_weight", "rounds before the weight")
_GEMMA = _Recipe("eps", 1.0, "after_weight", "weight is offset by one, rounds at the end")
_TORCH = _Recipe("eps", 0.0, "after_weight", "rounds at the end")

# Full class names, so that no model library is imported to recognise its modules.
_KNOWN = {
    "torch.nn.modules.normalization.RMSNorm": _TORCH,
    "transformers.models.llama.modeling_llama.LlamaRMSNorm": _LLAMA,
    "transformers.models.mistral.modeling_mistral.MistralRMSNorm": _LLAMA,
    "transformers.models.qwen2.modeling_qwen2.Qwen2RMSNorm": _LLAMA,
    "transformers.models.qwen3.modeling_qwen3.Qwen3RMSNorm": _LLAMA,
    "transformers.models.gemma.modeling_gemma.GemmaRMSNorm": _GEMMA,
    "transformers.models.gemma2.modeling_gemma2.Gemma2RMSNorm": _GEMMA,
    "transformers.models.gemma3.modeling_gemma3.Gemma3RMSNorm": _GEMMA,
}

_FSDP = "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel"

# What every module owns; anything else in its __dict__ is its class's or its user's.
_FRAMEWORK = frozenset(vars(nn.Module())) | {"normalized_shape", "elementwise_affine"}
_HOOKS = tuple(sorted(name for name in vars(nn.Module()) if name.endswith("_hooks")))


@dataclass(frozen=True)
class Entry:
    """One line of a report.

    Attributes:
        name: Dotted name of the module in the model; the first one if it has several.
        class_name: Full name of the module's class before the call.
        reason: Why it was replaced, and how; or why it was left alone.
    """

    name: str
    class_name: str
    reason: str


@dataclass(frozen=True)
class _Swap:
    old: nn.Module
    new: RMSNorm
    # (parent, attribute name, dotted name) of every place that holds the module.
    places: tuple[tuple[nn.Module, str, str], ...]


@dataclass(frozen=True)
class ReplaceReport:
    """What `replace` changed, what it left alone, and the way back.

    Attributes:
        replaced: The modules that were swapped.
        left: The modules that look like norms (the name of their class or of one of its bases
            says so) or compute attention, and were not.
    """

    replaced: tuple[Entry, ...]
    left: tuple[Entry, ...]
    _swaps: list[_Swap] = field(default_factory=list, repr=False, compare=False)
    _steps: list[Step] = field(default_factory=list, repr=False, compare=False)

    def __str__(self) -> str:
        lines = [f"replaced {len(self.replaced)}, left alone {len(self.left)}"]
        for title, entries in (("replaced", self.replaced), ("left", self.left)):
            if not entries:
                continue
            rows = [(e.name, e.class_name.rpartition(".")[2], e.reason) for e in entries]
            widths = [max(len(row[i]) for row in rows) for i in range(2)]
            lines += [
                f"  {title:8}  {name:{widths[0]}}  {kind:{widths[1]}}  {reason}"
                for name, kind, reason in rows
            ]
        return "\n".join(lines)

    def undo(self) -> None:
        """Puts the original module objects back where they were.

        Weights and the training mode are taken over from the modules that leave, so nothing
        that was learned or converted in between is lost. A second call does nothing.

        Raises:
            RuntimeError: If a place no longer holds the module that `replace` put there, or that
                module has gained hooks or parametrizations. Then nothing is changed.
        """
        changed = [
            f"{name}: {_why_changed(parent, attribute, swap.new)}"
            for swap in self._swaps
            for parent, attribute, name in swap.places
            if _why_changed(parent, attribute, swap.new)
        ]
        changed += [why for check, _ in self._steps if (why := check())]
        if changed:
            raise RuntimeError(
                "cannot undo, the model was changed after replace(): " + "; ".join(changed)
            )
        for swap in self._swaps:
            swap.old._parameters["weight"] = swap.new._parameters["weight"]
            swap.old.training = swap.new.training
            for parent, attribute, _ in swap.places:
                parent._modules[attribute] = swap.old
        for _, undo in reversed(self._steps):
            undo()
        self._swaps.clear()
        self._steps.clear()


def replace(
    model: nn.Module,
    *,
    only: str | Iterable[str] | Callable[[str, nn.Module], bool] | None = None,
    norms: bool = True,
    attention: Pattern | Callable[[str, nn.Module], Pattern | None] | None = None,
) -> ReplaceReport:
    """Swaps every RMSNorm of a known class inside `model` for `leeboard.nn.RMSNorm`, in place.

    With `attention`, self-attention gets that pattern, too: `torch.nn.MultiheadAttention` (alone
    or in torch's Transformer layers) is swapped for a module with the same call, parameters and
    state_dict; attention modules of Hugging Face transformers that ask its attention interface
    keep their place and ask for leeboard's. What their model hides stays hidden: see
    `register_attention`.

    Known are `torch.nn.RMSNorm` and the RMSNorm classes of Llama, Mistral, Qwen2, Qwen3, Gemma,
    Gemma 2 and Gemma 3 in Hugging Face transformers, each with its own order of rounding and
    offset. A class is recognised by its full name and nothing else: a subclass, a patched class
    or a class that only looks similar is left alone, and the report says so. Also left alone:
    modules with hooks, parametrizations, extra state or a forward of their own, norms over more
    than one dimension, weights that are not plain parameters, and everything under FSDP.

    The new module holds the same `Parameter` object: optimizers, tied weights, `requires_grad`,
    device and dtype stay as they are, and so do the state_dict and the training mode. A module
    that is found at several places is replaced by one module at all of them.

    Args:
        model: The model to change.
        only: Restricts the change to some modules: shell-style patterns for their dotted names
            (`"model.layers.*.input_layernorm"`), or a function of (name, module). None takes all.
        norms: Whether norms are swapped.
        attention: The pattern of self-attention, of `leeboard.ops.patterns`, or a function of
            (name, module) that gives it, or None to leave the module. None leaves attention alone.

    Returns:
        The report; `report.undo()` restores the original modules. A module that an earlier call
        has put in place is not reported again.

    Raises:
        TypeError: If `model` is not a module, or `only` or `attention` is of none of the types
            above.
        ValueError: If `model` itself is a module to replace (it has no parent that could hold
            the new one), or a pattern of `only` matches no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module")
    wanted = _selection(model, only)
    if attention is not None and not isinstance(attention, Pattern) and not callable(attention):
        raise TypeError(
            f"attention: got {type(attention).__name__}, expected a Pattern or a function of "
            "(name, module)"
        )
    if _class_name(model) in _KNOWN:
        raise ValueError(
            f"model: got a {_class_name(model)}, which has no parent to put a new module into; "
            "pass the model that contains it, or build a leeboard.nn.RMSNorm"
        )
    replaced: list[Entry] = []
    left: list[Entry] = []
    swaps: list[_Swap] = []
    sharded = _under_fsdp(model)
    places_of = _places(model)
    for module, places in places_of.items():
        if not norms or type(module) is RMSNorm or not _looks_like_norm(module):
            continue
        name, kind = places[0][2], _class_name(module)
        if not wanted(name, module):
            left.append(Entry(name, kind, "not selected by `only`"))
            continue
        reason = _why_left(module, sharded)
        if reason:
            left.append(Entry(name, kind, reason))
            continue
        recipe = _KNOWN[kind]
        swaps.append(_Swap(module, _converted(module, recipe), tuple(places)))
        others = [place[2] for place in places[1:]]
        shared = f"; also at {', '.join(others)}" if others else ""
        replaced.append(Entry(name, kind, recipe.why + shared))
    steps: list[Step] = []
    if attention is not None:
        steps = _replace_attention(model, attention, wanted, places_of, sharded, replaced, left)
    for swap in swaps:
        for parent, attribute, _ in swap.places:
            parent._modules[attribute] = swap.new
    return ReplaceReport(tuple(replaced), tuple(left), swaps, steps)


def _replace_attention(
    model: nn.Module,
    attention: Pattern | Callable[[str, nn.Module], Pattern | None],
    wanted: Callable[[str, nn.Module], bool],
    places_of: dict[nn.Module, list[tuple[nn.Module, str, str]]],
    sharded: set[nn.Module],
    replaced: list[Entry],
    left: list[Entry],
) -> list[Step]:
    if isinstance(model, nn.MultiheadAttention):
        raise ValueError(  # noqa: TRY004 (the type is right, the place is not)
            "model: got a MultiheadAttention, which has no parent to put a new module into; pass "
            "the model that contains it, or use leeboard.nn.SparseGQA.from_mha"
        )
    # All decisions before the first change: a pattern of the user's function may be none.
    chosen: list[tuple[nn.Module, Pattern]] = []
    for module, places in places_of.items():
        if not _attention_swap.is_attention(module) or _attention_swap.is_replaced(module):
            continue
        name, kind = places[0][2], _class_name(module)
        reason = "" if wanted(name, module) else "not selected by `only`"
        reason = reason or _attention_swap.why_left(model, module, places, sharded)
        pattern = None if reason else attention
        if not reason and not isinstance(attention, Pattern):
            pattern = attention(name, module)
            reason = "" if pattern is not None else "no pattern given by `attention`"
        if reason:
            left.append(Entry(name, kind, reason))
        elif isinstance(pattern, Pattern):
            chosen.append((module, pattern))
            replaced.append(Entry(name, kind, f"attends by {pattern}"))
        else:
            raise TypeError(f"attention: got {pattern!r} for {name}, expected a Pattern or None")
    return _attention_swap.put(model, [(m, pattern, places_of[m]) for m, pattern in chosen])


def _looks_like_norm(module: nn.Module) -> bool:
    return any("norm" in base.__name__.lower() for base in type(module).__mro__)


def _class_name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _selection(
    model: nn.Module, only: str | Iterable[str] | Callable[[str, nn.Module], bool] | None
) -> Callable[[str, nn.Module], bool]:
    if only is None:
        return lambda name, module: True
    if callable(only):
        return only
    if not isinstance(only, Iterable):
        raise TypeError(f"only: got {only!r}, expected patterns or a function of (name, module)")
    patterns = [only] if isinstance(only, str) else list(only)
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"only: got {pattern!r} among the patterns, expected strings")
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"only: got {pattern!r}, which matches no module of the model")
    return lambda name, module: any(fnmatchcase(name, pattern) for pattern in patterns)


def _places(model: nn.Module) -> dict[nn.Module, list[tuple[nn.Module, str, str]]]:
    """Where every module below `model` hangs: (parent, attribute, dotted name), in model order."""
    places: dict[nn.Module, list[tuple[nn.Module, str, str]]] = {}

    def visit(parent: nn.Module, prefix: str) -> None:
        for attribute, child in parent._modules.items():
            if child is None:
                continue
            name = prefix + attribute
            if child in places:
                places[child].append((parent, attribute, name))
            else:
                places[child] = [(parent, attribute, name)]
                visit(child, f"{name}.")

    visit(model, "")
    return places


def _under_fsdp(model: nn.Module) -> set[nn.Module]:
    # FSDP keeps references to the modules whose parameters it flattened and writes into them.
    return {
        inner
        for outer in model.modules()
        if any(f"{c.__module__}.{c.__qualname__}" == _FSDP for c in type(outer).__mro__)
        for inner in outer.modules()
    }


def _why_left(module: nn.Module, sharded: set[nn.Module]) -> str:
    """The reason to leave a norm alone, or an empty string."""
    kind = _class_name(module)
    if is_parametrized(module):
        return "has parametrizations"
    if kind not in _KNOWN:
        for base in type(module).__mro__[1:]:
            if f"{base.__module__}.{base.__qualname__}" in _KNOWN:
                return f"subclass of {base.__name__}; only the exact class is known"
        return "not a class that leeboard knows"
    if type(module).forward.__module__ != type(module).__module__:
        return "the forward of its class was patched"
    if module in sharded:
        return "inside FullyShardedDataParallel, which holds on to its modules"
    if "forward" in vars(module):
        return "has a forward of its own"
    reason = _why_not_plain(module)
    if reason:
        return reason
    weight = module._parameters["weight"]
    if weight is None and getattr(module, "elementwise_affine", True):
        return "has no weight"
    if weight is not None and type(weight) is not nn.Parameter:
        return f"weight is a {type(weight).__name__}, not a plain Parameter"
    shape = _normalized_shape(module)
    if len(shape) != 1 or shape[0] < 1:
        return f"normalises over {shape}; one dimension is supported"
    eps = getattr(module, _KNOWN[kind].eps)
    if not (isinstance(eps, (int, float)) or (eps is None and _KNOWN[kind] is _TORCH)):
        return f"{_KNOWN[kind].eps} is {eps!r}, not a number"
    return ""


def _why_not_plain(module: nn.Module) -> str:
    """What a module carries besides its weight, or an empty string."""
    hooks = [name.strip("_") for name in _HOOKS if vars(module).get(name)]
    if hooks:
        return f"has hooks ({', '.join(hooks)})"
    extra = [*module._modules, *module._buffers, *(n for n in module._parameters if n != "weight")]
    if extra:
        return f"has extra state ({', '.join(extra)})"
    if "weight" not in module._parameters:
        return "weight is not a registered parameter"
    return ""


def _why_changed(parent: nn.Module, attribute: str, new: RMSNorm) -> str:
    found = parent._modules.get(attribute)
    if found is not new:
        return "holds another module now" if found is not None else "is gone"
    if type(new) is not RMSNorm:
        return f"has become a {type(new).__name__}"
    return _why_not_plain(new)


def _normalized_shape(module: nn.Module) -> tuple[int, ...]:
    weight = module._parameters["weight"]
    return tuple(vars(module)["normalized_shape"] if weight is None else weight.shape)


def _converted(module: nn.Module, recipe: _Recipe) -> RMSNorm:
    weight = module._parameters["weight"]
    new = RMSNorm(
        _normalized_shape(module),
        getattr(module, recipe.eps),
        weight is not None,
        device="meta",
        weight_offset=recipe.weight_offset,
        rounding=recipe.rounding,
    )
    new._parameters["weight"] = weight
    new.training = module.training
    # Marks that users and libraries leave on a module (say, "already initialised") stay valid.
    marks = vars(module).keys() - _FRAMEWORK - {recipe.eps}
    new.__dict__.update({name: vars(module)[name] for name in marks})
    return new
