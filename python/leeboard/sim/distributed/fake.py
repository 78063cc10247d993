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
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
import torch.distributed.tensor
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.multiprocessing import reductions
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from leeboard.sim.errors import SimulationError

_ops = torch.ops._c10d_functional
_StorageWeakRef: Any = reductions.StorageWeakRef
_c10d: Any = torch._C._distributed_c10d
# Names of torch 2.13, and those before.
_gather_single = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_scatter_single = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)
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
        handler = _HANDLERS.get(func)
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


def _group(name: Any) -> Any:
    if not isinstance(name, str):
        return name
    return _c10d._resolve_process_group(name)


def _reduction(name: str) -> Any:
    return getattr(dist.ReduceOp, {"avg": "AVG"}.get(name.lower(), name.upper()))


def _grown(tensor: Tensor, size: int) -> Tensor:
    return tensor.new_empty([tensor.shape[0] * size, *tensor.shape[1:]])


def _shrunk(tensor: Tensor, size: int) -> Tensor:
    return tensor.new_empty([tensor.shape[0] // size, *tensor.shape[1:]])


def _all_reduce_(mode: FakeMode, tensor: Tensor, reduce_op: str, group: Any) -> Tensor:
    work = dist.all_reduce(tensor, _reduction(reduce_op), _group(group), async_op=True)
    return mode.start(tensor, work)


def _all_reduce(mode: FakeMode, tensor: Tensor, reduce_op: str, group: Any) -> Tensor:
    return _all_reduce_(mode, torch.empty_like(tensor), reduce_op, group)


def _broadcast_(mode: FakeMode, tensor: Tensor, src: int, group: Any) -> Tensor:
    pg = _group(group)
    work = dist.broadcast(tensor, dist.get_global_rank(pg, src), pg, async_op=True)
    return mode.start(tensor, work)


def _broadcast(mode: FakeMode, tensor: Tensor, src: int, group: Any) -> Tensor:
    return _broadcast_(mode, torch.empty_like(tensor), src, group)


def _all_gather_out(
    mode: FakeMode, tensor: Tensor, size: int, group: Any, *, out: Tensor
) -> Tensor:
    work = _gather_single(out, tensor.contiguous(), _group(group), async_op=True)
    return mode.start(out, work)


def _all_gather(mode: FakeMode, tensor: Tensor, size: int, group: Any) -> Tensor:
    return _all_gather_out(mode, tensor, size, group, out=_grown(tensor, size))


def _reduce_scatter_out(
    mode: FakeMode, tensor: Tensor, reduce_op: str, size: int, group: Any, *, out: Tensor
) -> Tensor:
    work = _scatter_single(
        out, tensor.contiguous(), _reduction(reduce_op), _group(group), async_op=True
    )
    return mode.start(out, work)


def _reduce_scatter(
    mode: FakeMode, tensor: Tensor, reduce_op: str, size: int, group: Any
) -> Tensor:
    return _reduce_scatter_out(mode, tensor, reduce_op, size, group, out=_shrunk(tensor, size))


def _all_to_all(
    mode: FakeMode, tensor: Tensor, output_sizes: list[int], input_sizes: list[int], group: Any
) -> Tensor:
    out = tensor.new_empty([sum(output_sizes), *tensor.shape[1:]])
    work = dist.all_to_all_single(
        out, tensor.contiguous(), output_sizes, input_sizes, _group(group), async_op=True
    )
    return mode.start(out, work)


def _shard_dim_alltoall(
    mode: FakeMode, tensor: Tensor, gather_dim: int, shard_dim: int, group: Any
) -> Tensor:
    pg = _group(group)
    shape = list(tensor.shape)
    shape[gather_dim] *= pg.size()
    shape[shard_dim] //= pg.size()
    out = tensor.new_empty(shape)
    dist.all_to_all_single(out.view(-1), tensor.contiguous().view(-1), group=pg)
    return out


def _isend(mode: FakeMode, tensor: Tensor, dst: int, tag: int, group: Any) -> Tensor:
    pg = _group(group)
    work = dist.isend(tensor, group=pg, tag=tag, group_dst=dst)
    return mode.start(torch.empty_like(tensor), work)


def _irecv(mode: FakeMode, tensor: Tensor, src: int, tag: int, group: Any) -> Tensor:
    pg = _group(group)
    work = dist.irecv(tensor, group=pg, tag=tag, group_src=src)
    return mode.start(tensor, work)


def _batch_p2p(
    mode: FakeMode,
    names: list[str],
    peers: list[int],
    tags: list[int],
    tensors: list[Tensor],
    group: Any,
) -> list[Tensor]:
    calls = {"isend": _isend, "irecv": _irecv}
    return [
        calls[name](mode, tensor, peer, tag, group)
        for name, peer, tag, tensor in zip(names, peers, tags, tensors, strict=True)
    ]


def _wait(mode: FakeMode, tensor: Tensor) -> Tensor:
    return mode.wait(tensor)


def _together(mode: FakeMode, outs: list[Tensor], work: Any) -> list[Tensor]:
    for out in outs:
        mode.start(out, work)
    return outs


def _all_reduce_coalesced_(
    mode: FakeMode, tensors: list[Tensor], reduce_op: str, group: Any
) -> list[Tensor]:
    given = _c10d.AllreduceCoalescedOptions()
    given.reduceOp = _reduction(reduce_op)
    given.asyncOp = True
    return _together(mode, tensors, _group(group).allreduce_coalesced(tensors, given))


def _all_reduce_coalesced(
    mode: FakeMode, tensors: list[Tensor], reduce_op: str, group: Any
) -> list[Tensor]:
    return _all_reduce_coalesced_(mode, list(map(torch.empty_like, tensors)), reduce_op, group)


def _all_gather_coalesced(
    mode: FakeMode, tensors: list[Tensor], size: int, group: Any
) -> list[Tensor]:
    outs = [_grown(tensor, size) for tensor in tensors]
    given = _c10d.AllgatherOptions()
    given.asyncOp = True
    inputs = [tensor.contiguous() for tensor in tensors]
    return _together(mode, outs, _group(group).allgather_into_tensor_coalesced(outs, inputs, given))


def _reduce_scatter_coalesced(
    mode: FakeMode, tensors: list[Tensor], reduce_op: str, size: int, group: Any
) -> list[Tensor]:
    outs = [_shrunk(tensor, size) for tensor in tensors]
    given = _c10d.ReduceScatterOptions()
    given.reduceOp = _reduction(reduce_op)
    given.asyncOp = True
    inputs = [tensor.contiguous() for tensor in tensors]
    work = _group(group).reduce_scatter_tensor_coalesced(outs, inputs, given)
    return _together(mode, outs, work)


def _wrapped(mode: FakeMode, tensor: Tensor) -> Tensor:
    """Waits when it is used."""
    return functional.AsyncCollectiveTensor(tensor)


def _handlers() -> dict[Any, Callable[..., Any]]:
    named: dict[str, Callable[..., Any]] = {
        "all_reduce": _all_reduce,
        "all_reduce_": _all_reduce_,
        "all_reduce_coalesced": _all_reduce_coalesced,
        "all_reduce_coalesced_": _all_reduce_coalesced_,
        "broadcast": _broadcast,
        "broadcast_": _broadcast_,
        "all_gather_into_tensor": _all_gather,
        "all_gather_into_tensor_out": _all_gather_out,
        "all_gather_into_tensor_coalesced": _all_gather_coalesced,
        "reduce_scatter_tensor": _reduce_scatter,
        "reduce_scatter_tensor_out": _reduce_scatter_out,
        "reduce_scatter_tensor_coalesced": _reduce_scatter_coalesced,
        "all_to_all_single": _all_to_all,
        "isend": _isend,
        "irecv": _irecv,
        "batch_p2p_ops": _batch_p2p,
        "wait_tensor": _wait,
    }
    # Not every torch has all of them.
    found = {
        getattr(_ops, name).default: handler
        for name, handler in named.items()
        if hasattr(_ops, name)
    }
    wrap = getattr(functional, "_wrap_tensor_autograd", None)
    if wrap is not None:
        found[wrap._opoverload] = _wrapped
    if hasattr(torch.ops._dtensor, "shard_dim_alltoall"):
        found[torch.ops._dtensor.shard_dim_alltoall.default] = _shard_dim_alltoall
    return found


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
_HANDLERS = _handlers()
