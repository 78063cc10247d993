"""Programs on tensors that have shapes and no values: what a rank's thread stays within.

Under `FakeTensorMode` torch's functional collectives end in kernels that know shapes alone: no
process group hears of them. `FakeMode` stands above it and passes them on, so that they take time.
It also leaves tensors that have values alone: meshes, sizes and pickled objects stay real.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.multiprocessing import reductions
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from leeboard.sim.distributed.fake_comm import HANDLERS
from leeboard.sim.errors import SimulationError

_StorageWeakRef: Any = reductions.StorageWeakRef
# So many collectives may be forgotten without a wait before the list is looked through.
_MANY = 256


class NoValueError(SimulationError):
    """The program asks a tensor without values for one: which call, and what to do instead."""


def modes() -> Sequence[AbstractContextManager[Any]]:
    """What a rank's thread enters, in this order, before the meter's modes."""
    return FakeTensorMode(allow_non_fake_inputs=True), FakeMode()


class _Here(threading.local):
    mode: FakeMode | None = None


_here = _Here()
_FAKE = torch._C._TorchDispatchModeKey.FAKE


def active() -> FakeMode | None:
    """The calling thread's mode, if its tensors are fake."""
    return None if torch._C._get_dispatch_mode(_FAKE) is None else _here.mode


def is_fake(tensor: object) -> bool:
    """Whether a tensor has no values."""
    return isinstance(tensor, FakeTensor)


def really(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, on real tensors even on a thread whose tensors are fake."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if active() is None:
            return function(*args, **kwargs)
        with _disable_current_modes():
            return function(*args, **kwargs)

    return call


class FakeMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Passes functional collectives on to their groups, and lets real tensors be."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # Collectives under way by the storage that they fill.
        self.works: dict[int, tuple[Any, Any]] = {}
        self._real_integers = False

    def __enter__(self) -> FakeMode:  # noqa: PYI034
        """Of the calling thread."""
        _here.mode = self
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        """No more."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        _here.mode = None

    @contextmanager
    def real_integers(self) -> Iterator[None]:
        """New tensors of integers are real: C++ looks into those it makes for itself."""
        self._real_integers = True
        try:
            yield
        finally:
            self._real_integers = False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        handler = HANDLERS.get(func)
        if handler is not None and not any(_subclass(kind) for kind in types):
            return handler(self, *args, **(kwargs or {}))
        if FakeTensor not in types:
            if any(_subclass(kind) for kind in types):
                return NotImplemented
            if _has_tensor(args) or _has_tensor((kwargs or {}).values()):
                with _disable_current_modes():
                    return func(*args, **(kwargs or {}))
            if self._real_integers and func is _EMPTY and kwargs and kwargs["dtype"] in _INTEGERS:
                with _disable_current_modes():
                    return func(*args, **kwargs)
        elif func is _SCALAR:
            return _scalar(*args)
        try:
            return func(*args, **(kwargs or {}))
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise NoValueError(
                f"the program makes a tensor whose shape depends on values ({error.func}; nonzero, "
                "unique, indexing by a mask), but tensors have no values in this run (fake tensors):"
                " use torch.where or fixed shapes, or run with fake=False"
            ) from None

    def forget(self) -> None:
        """Drop the notes on tensors that FakeTensorMode has converted."""
        mode: Any = torch._C._get_dispatch_mode(_FAKE)
        mode.fake_tensor_converter.meta_converter.tensor_memo.clear()

    def start(self, filled: Tensor, work: Any) -> Tensor:
        """Note that `work` fills a tensor."""
        if work is not None:
            if len(self.works) > _MANY:
                self.works = {k: v for k, v in self.works.items() if not v[0].expired()}
            reference = _StorageWeakRef(filled.untyped_storage())
            self.works[reference.cdata] = reference, work
        return filled

    def wait(self, tensor: Tensor) -> Tensor:
        """Wait for what fills a tensor, if anything does."""
        entry = self.works.pop(tensor.untyped_storage()._cdata, None)
        if entry is not None:
            entry[1].wait()
        return tensor


def _subclass(kind: type) -> bool:
    return kind is not FakeTensor and kind is not Tensor and kind is not torch.nn.Parameter


def _has_tensor(values: Any) -> bool:
    return any(
        isinstance(value, Tensor)
        or (isinstance(value, (list, tuple)) and any(isinstance(v, Tensor) for v in value))
        for value in values
    )


def _scalar(tensor: Tensor) -> float:
    """What a program prints as its loss; nothing else may depend on it."""
    if tensor.dtype.is_floating_point:
        return float("nan")
    raise NoValueError(
        f"the program asks for the value of an {str(tensor.dtype).removeprefix('torch.')} tensor, "
        "but tensors have no values in this run (fake tensors): make what it decides on without "
        "tensors, or run with fake=False"
    )


_SCALAR = torch.ops.aten._local_scalar_dense.default
_EMPTY = torch.ops.aten.empty.memory_format
_INTEGERS = (torch.int32, torch.int64)
