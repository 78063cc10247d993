"""A dispatch mode that sees every op of a rank with its cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from leeboard.sim.distributed.compute import propagation
from leeboard.sim.distributed.compute.costs import Cost, Rule, cost_of, rule_of, tensors

if TYPE_CHECKING:
    from typing_extensions import Self

# Costs are kept by op and shapes. Programs whose shapes never end start over at so many.
_MOST = 1 << 16


class Call:
    """A call of an op with certain shapes: all that its cost depends on.

    Attributes:
        rule: Of the op.
        cost: What each such call costs.
        key: Op, shapes, strides, dtypes and whole numbers of the arguments.
    """

    __slots__ = ("cost", "key", "rule")

    def __init__(self, rule: Rule, cost: Cost, key: tuple[Any, ...]) -> None:
        self.rule = rule
        self.cost = cost
        self.key = key


_calls: dict[tuple[Any, ...], Call] = {}


class OpMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tells `seen` of every op that computes something, after the op has run.

    Not seen: views and what is free, communication, what DTensor's sharding propagation runs to
    learn shapes, and ops on the meta device unless `meta`. Ops of tensor subclasses (DTensor,
    results of functional collectives) are seen as the ops on plain tensors that they come down to.
    It works under FakeTensorMode, entered before or after.

    Args:
        seen: Takes the call and the op's arguments (args, kwargs).
        meta: Whether ops on the meta device count.
        used: Takes the arguments and the results of every op that is no view, free ones too.
    """

    def __init__(
        self,
        seen: Callable[[Call, Any, Any], None],
        *,
        meta: bool = False,
        used: Callable[[Any], None] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = seen
        self.meta = meta
        self.used = used

    def __enter__(self) -> Self:
        """Begin to see the ops of this thread."""
        super().__enter__()  # type: ignore[no-untyped-call]
        propagation.watch()
        return self

    def __exit__(self, *error: object) -> None:
        """See no more."""
        propagation.unwatch()
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the op and tell."""
        for kind in types:
            if kind is not FakeTensor and _is_wrapper(kind):
                propagation.install()
                return NotImplemented
        kwargs = kwargs or {}
        rule = rule_of(func)
        if rule.free or propagation.hidden.depth:
            out = func(*args, **kwargs)
            if self.used is not None and not rule.view and not propagation.hidden.depth:
                self.used((args, out))
            return out
        if rule.composite:
            with self:
                return func.decompose(*args, **kwargs)
        out = func(*args, **kwargs)
        if not self.meta and _is_meta(args, out):
            return out
        if self.used is not None:
            self.used((args, out))
        self.seen(call_of(rule, args, kwargs, out), args, kwargs)
        return out


def call_of(rule: Rule, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Call:
    """The call, whose cost is found the first time only."""
    parts: list[Any] = [rule.func]
    _describe(args, parts)
    if kwargs:
        parts.extend(kwargs)
        _describe(kwargs.values(), parts)
    if rule.dynamic or not rule.names:
        _describe(tensors(out), parts)
    key = tuple(parts)
    call = _calls.get(key)
    if call is None:
        if len(_calls) >= _MOST:
            _calls.clear()
        call = _calls[key] = Call(rule, cost_of(rule, args, kwargs, out), key)
    return call


def _describe(values: Any, parts: list[Any]) -> None:
    for value in values:
        if isinstance(value, Tensor):
            strides = value.stride() if value.layout is torch.strided else None
            parts.append((value.shape, value.dtype, strides))
        elif isinstance(value, list | tuple):
            parts.append(len(value))
            _describe(value, parts)
        else:
            # What a float or a generator is does not change how long an op takes.
            plain = value is None or isinstance(value, int | str | torch.dtype)
            parts.append(value if plain else type(value))


def _is_wrapper(kind: type) -> bool:
    """Whether a subclass takes its ops apart itself."""
    dispatch = getattr(kind, "__torch_dispatch__", None)
    disabled = torch._C._disabled_torch_dispatch_impl
    return dispatch is not None and dispatch is not disabled and not issubclass(kind, FakeTensor)


def _is_meta(args: tuple[Any, ...], out: Any) -> bool:
    tensor = next(tensors(out), None)
    if tensor is None:
        tensor = next(tensors(args), None)
    # A fake tensor says what it stands for.
    return tensor is not None and tensor.device.type == "meta"
