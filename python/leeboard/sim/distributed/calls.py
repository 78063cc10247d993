"""What the collectives of a process group have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from leeboard.sim.distributed.arguments import fault
from leeboard.sim.distributed.exchange import Move, Signature
from leeboard.sim.distributed.reduce import PREMUL_SUM, SUM, refused

_Kind = dist.ReduceOp.RedOpType
# Kind and dtype of what `refused` has nothing against, as far as it has been asked.
REDUCIBLE: set[tuple[int, torch.dtype]] = set()


def is_async(opts: Any) -> bool:
    """Whether the caller goes on at once; loose arguments and older torch: yes."""
    return getattr(opts, "asyncOp", True)


def reduction(call: str, opts: Any, given: list[Tensor]) -> tuple[int, list[Tensor]]:
    """Number of the reduction, and the tensors to take part in it."""
    op = getattr(opts, "reduceOp", opts)
    kind = SUM if op is None else int(op.value if isinstance(op, _Kind) else op.op.value)
    if kind == PREMUL_SUM:
        factor = op.__getstate__()[1]
        return SUM, [tensor * factor for tensor in given]
    for tensor in given:
        reason = refused(kind, tensor.dtype)
        if reason:
            raise fault(call, reason)
        REDUCIBLE.add((kind, tensor.dtype))
    return kind, given


def lengths(given: Sequence[Tensor]) -> Signature:
    if len(given) == 1:
        tensor = given[0]
        return tensor.dtype, tensor.numel()
    return tuple(part for tensor in given for part in (tensor.dtype, tensor.numel()))


def total_bytes(given: Sequence[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in given)


def root_of(call: str, root: int, size: int) -> int:
    if not 0 <= root < size:
        raise fault(call, f"root: got rank {root} of the group, expected 0 to {size - 1}")
    return root


class Calls:
    """What a part of the collectives needs of the group; `SimGroup` has it."""

    _size: int
    _me: int

    def _start(
        self,
        which: int,
        signature: Signature,
        inputs: Sequence[Tensor],
        outs: Sequence[Tensor],
        move: Move,
        nbytes: int,
        asynchronous: bool,
        sizes: tuple[list[int], list[int]] | None = None,
    ) -> dist.Work:
        raise NotImplementedError

    @staticmethod
    def _same_count(call: str, outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
        if len(outputs) != len(inputs):
            raise fault(call, f"got {len(outputs)} outputs and {len(inputs)} inputs")
