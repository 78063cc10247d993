"""Functional collectives on tensors without values: passed on to their process groups.

Each handler takes what the op takes, after the mode that keeps what is under way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
import torch.distributed.tensor
from torch import Tensor

_ops = torch.ops._c10d_functional
_c10d: Any = torch._C._distributed_c10d
# Names of torch 2.13, and those before.
_gather_single = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_scatter_single = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)


class Mode(Protocol):
    """What keeps collectives under way."""

    def start(self, filled: Tensor, work: Any) -> Tensor:
        """Note that `work` fills a tensor."""

    def wait(self, tensor: Tensor) -> Tensor:
        """Wait for what fills a tensor, if anything does."""


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


def _all_reduce_(mode: Mode, tensor: Tensor, reduce_op: str, group: Any) -> Tensor:
    work = dist.all_reduce(tensor, _reduction(reduce_op), _group(group), async_op=True)
    return mode.start(tensor, work)


def _all_reduce(mode: Mode, tensor: Tensor, reduce_op: str, group: Any) -> Tensor:
    return _all_reduce_(mode, torch.empty_like(tensor), reduce_op, group)


def _broadcast_(mode: Mode, tensor: Tensor, src: int, group: Any) -> Tensor:
    pg = _group(group)
    work = dist.broadcast(tensor, dist.get_global_rank(pg, src), pg, async_op=True)
    return mode.start(tensor, work)


def _broadcast(mode: Mode, tensor: Tensor, src: int, group: Any) -> Tensor:
    return _broadcast_(mode, torch.empty_like(tensor), src, group)


def _all_gather_out(mode: Mode, tensor: Tensor, size: int, group: Any, *, out: Tensor) -> Tensor:
    work = _gather_single(out, tensor.contiguous(), _group(group), async_op=True)
    return mode.start(out, work)


def _all_gather(mode: Mode, tensor: Tensor, size: int, group: Any) -> Tensor:
    return _all_gather_out(mode, tensor, size, group, out=_grown(tensor, size))


def _reduce_scatter_out(
    mode: Mode, tensor: Tensor, reduce_op: str, size: int, group: Any, *, out: Tensor
) -> Tensor:
    work = _scatter_single(
        out, tensor.contiguous(), _reduction(reduce_op), _group(group), async_op=True
    )
    return mode.start(out, work)


def _reduce_scatter(mode: Mode, tensor: Tensor, reduce_op: str, size: int, group: Any) -> Tensor:
    return _reduce_scatter_out(mode, tensor, reduce_op, size, group, out=_shrunk(tensor, size))


def _all_to_all(
    mode: Mode, tensor: Tensor, output_sizes: list[int], input_sizes: list[int], group: Any
) -> Tensor:
    out = tensor.new_empty([sum(output_sizes), *tensor.shape[1:]])
    work = dist.all_to_all_single(
        out, tensor.contiguous(), output_sizes, input_sizes, _group(group), async_op=True
    )
    return mode.start(out, work)


def _shard_dim_alltoall(
    mode: Mode, tensor: Tensor, gather_dim: int, shard_dim: int, group: Any
) -> Tensor:
    pg = _group(group)
    shape = list(tensor.shape)
    shape[gather_dim] *= pg.size()
    shape[shard_dim] //= pg.size()
    out = tensor.new_empty(shape)
    dist.all_to_all_single(out.view(-1), tensor.contiguous().view(-1), group=pg)
    return out


def _isend(mode: Mode, tensor: Tensor, dst: int, tag: int, group: Any) -> Tensor:
    pg = _group(group)
    work = dist.isend(tensor, group=pg, tag=tag, group_dst=dst)
    return mode.start(torch.empty_like(tensor), work)


def _irecv(mode: Mode, tensor: Tensor, src: int, tag: int, group: Any) -> Tensor:
    pg = _group(group)
    work = dist.irecv(tensor, group=pg, tag=tag, group_src=src)
    return mode.start(tensor, work)


def _batch_p2p(
    mode: Mode,
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


def _wait(mode: Mode, tensor: Tensor) -> Tensor:
    return mode.wait(tensor)


def _together(mode: Mode, outs: list[Tensor], work: Any) -> list[Tensor]:
    for out in outs:
        mode.start(out, work)
    return outs


def _all_reduce_coalesced_(
    mode: Mode, tensors: list[Tensor], reduce_op: str, group: Any
) -> list[Tensor]:
    given = _c10d.AllreduceCoalescedOptions()
    given.reduceOp = _reduction(reduce_op)
    given.asyncOp = True
    return _together(mode, tensors, _group(group).allreduce_coalesced(tensors, given))


def _all_reduce_coalesced(
    mode: Mode, tensors: list[Tensor], reduce_op: str, group: Any
) -> list[Tensor]:
    return _all_reduce_coalesced_(mode, list(map(torch.empty_like, tensors)), reduce_op, group)


def _all_gather_coalesced(mode: Mode, tensors: list[Tensor], size: int, group: Any) -> list[Tensor]:
    outs = [_grown(tensor, size) for tensor in tensors]
    given = _c10d.AllgatherOptions()
    given.asyncOp = True
    inputs = [tensor.contiguous() for tensor in tensors]
    return _together(mode, outs, _group(group).allgather_into_tensor_coalesced(outs, inputs, given))


def _reduce_scatter_coalesced(
    mode: Mode, tensors: list[Tensor], reduce_op: str, size: int, group: Any
) -> list[Tensor]:
    outs = [_shrunk(tensor, size) for tensor in tensors]
    given = _c10d.ReduceScatterOptions()
    given.reduceOp = _reduction(reduce_op)
    given.asyncOp = True
    inputs = [tensor.contiguous() for tensor in tensors]
    work = _group(group).reduce_scatter_tensor_coalesced(outs, inputs, given)
    return _together(mode, outs, work)


def _wrapped(mode: Mode, tensor: Tensor) -> Tensor:
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


HANDLERS = _handlers()
