"""Finding out which calls a program makes, and what it takes to make each of them again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from leeboard.sim.distributed.compute.meters import OpMeter, Place
from leeboard.sim.distributed.compute.mode import Call

# Whole numbers may be indices: so many bytes of them are kept as they were.
_MOST_KEPT = 1 << 22


class Like:
    """A tensor argument, without its numbers: how to make another like it.

    Whole numbers and truth values are kept if they are there, because they may be indices, lengths
    or masks; otherwise they are zeros, which are valid indices. Floats are 0.75: a valid
    probability, and far from what is slow to compute with.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.shape = tuple(tensor.shape)
        self.strides = tuple(tensor.stride()) if tensor.layout is torch.strided else None
        self.dtype = tensor.dtype
        self.device = tensor.device
        self.values: Tensor | None = None
        exact = not (tensor.is_floating_point() or tensor.is_complex())
        real = not isinstance(tensor, FakeTensor) and not tensor.is_meta
        small = tensor.numel() * tensor.element_size() <= _MOST_KEPT
        if (exact and real and small) or (real and self.strides is None):
            self.values = tensor.detach().clone()

    @property
    def bytes(self) -> int:
        """Of a tensor like it."""
        count = self.values.numel() if self.values is not None else _span(self.shape, self.strides)
        return count * torch.empty((), dtype=self.dtype).element_size()

    def make(self) -> Tensor:
        """Another one."""
        if self.values is not None:
            return self.values.clone()
        device = "cpu" if self.device.type == "meta" else self.device
        flat = torch.zeros(_span(self.shape, self.strides), dtype=self.dtype, device=device)
        if self.dtype.is_floating_point or self.dtype.is_complex:
            flat.fill_(0.75)
        return flat.as_strided(self.shape, self.strides or ())


def _span(shape: tuple[int, ...], strides: tuple[int, ...] | None) -> int:
    """Elements from the first to the last."""
    if 0 in shape or strides is None:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


class Example:
    """A call that can be made again.

    Attributes:
        call: Which.
        count: How often the program made it.
    """

    def __init__(self, call: Call, args: Any, kwargs: Any) -> None:
        self.call = call
        self.count = 0
        self._args = _mapped(args, Like, Tensor)
        self._kwargs = _mapped(kwargs, Like, Tensor)

    @property
    def bytes(self) -> int:
        """Of one set of arguments."""
        found: list[int] = []
        _mapped((self._args, self._kwargs), lambda like: found.append(like.bytes), Like)
        return sum(found)

    def make(self) -> tuple[Any, dict[str, Any]]:
        """Arguments of their own for one call."""
        return (
            _mapped(self._args, lambda like: like.make(), Like),
            _mapped(self._kwargs, lambda like: like.make(), Like),
        )


def _mapped(value: Any, function: Callable[[Any], Any], kind: type) -> Any:
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, list | tuple):
        made = [_mapped(item, function, kind) for item in value]
        return made if isinstance(value, list) else tuple(made)
    if isinstance(value, dict):
        return {key: _mapped(item, function, kind) for key, item in value.items()}
    return value


class CollectMeter(OpMeter):
    """Computing costs nothing, and its calls are kept.

    Args:
        examples: Where to; ranks may share it.
        meta: Whether ops on the meta device count.
    """

    def __init__(self, examples: dict[Call, Example], *, meta: bool = False) -> None:
        super().__init__(meta=meta)
        self.examples = examples

    def _see(self, call: Call, args: Any, kwargs: Any) -> None:
        if not self._running:
            return
        example = self.examples.get(call)
        if example is None:
            # After the call: what it wrote to is as good as what it was given.
            example = self.examples[call] = Example(call, args, kwargs)
        example.count += 1

    def charge(self, rank: Place, calls: list[Call]) -> None:
        """Nothing to charge."""
