"""Collectives that reduce: all_reduce, reduce, reduce_scatter."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from leeboard.sim.distributed import arguments, moves
from leeboard.sim.distributed.arguments import single, tensors
from leeboard.sim.distributed.calls import (
    REDUCIBLE,
    Calls,
    is_async,
    lengths,
    reduction,
    root_of,
    total_bytes,
)
from leeboard.sim.ops import COLLECTIVES

_ALL_REDUCE = COLLECTIVES.index("all_reduce")
_REDUCE_SCATTER = COLLECTIVES.index("reduce_scatter")
_REDUCE = COLLECTIVES.index("reduce")
_AllReduceOptions = dist.AllreduceOptions


class Reductions(Calls):
    """Part of `Collectives`."""

    def allreduce(self, given: Any, opts: Any = None, timeout: Any = None) -> dist.Work:
        """Every rank gets the reduction of all ranks' tensors."""
        # Nearly all calls, and the shortest way for them.
        if type(opts) is _AllReduceOptions and len(given) == 1:
            out = given[0].data
            op: Any = opts.reduceOp
            kind = op.op.value
            dtype = out.dtype
            if (kind, dtype) in REDUCIBLE:
                outs = [out]
                return self._start(
                    _ALL_REDUCE,
                    ("all_reduce", kind, -1, dtype, out.numel()),
                    outs,
                    outs,
                    moves.all_reduce,
                    out.nbytes,
                    opts.asyncOp,
                )
        return self._all_reduce("all_reduce", given, opts)

    def allreduce_coalesced(self, given: Any, opts: Any = None) -> dist.Work:
        """As `allreduce` of several tensors, which travel as one."""
        return self._all_reduce("all_reduce_coalesced", given, opts)

    def _all_reduce(self, call: str, given: Any, opts: Any) -> dist.Work:
        outs = [tensor.data for tensor in tensors(call, "tensors", given)]
        kind, inputs = reduction(call, opts, outs)
        return self._start(
            _ALL_REDUCE,
            (call, kind, -1, *lengths(outs)),
            inputs,
            outs,
            moves.all_reduce,
            outs[0].nbytes if len(outs) == 1 else total_bytes(outs),
            is_async(opts),
        )

    def reduce(
        self, given: Any, opts: Any = None, op: Any = None, timeout: Any = None
    ) -> dist.Work:
        """The root gets the reduction of all ranks' tensors."""
        root = opts if isinstance(opts, int) else getattr(opts, "rootRank", 0)
        out = single("reduce", "tensors", given).data
        loose = isinstance(opts, int)
        kind, inputs = reduction("reduce", op if loose else opts, [out])
        return self._start(
            _REDUCE,
            ("reduce", kind, root_of("reduce", root, self._size), out.dtype, out.numel()),
            inputs,
            [out],
            moves.reduce,
            out.nbytes,
            is_async(opts),
        )

    def reduce_scatter(
        self, outputs: Any, inputs: Any, opts: Any = None, timeout: Any = None
    ) -> dist.Work:
        """Every rank gets its tensor of the reduction of all ranks' lists."""
        call = "reduce_scatter"
        out = single(call, "output", outputs).data
        parts = arguments.one_list(call, "inputs", inputs)
        arguments.one_each(call, "input list", parts, self._size)
        arguments.alike(call, "input", parts, out, "the output")
        whole = torch.cat([part.reshape(-1) for part in parts])
        return self._reduce_scatter(call, [out], [whole], opts)

    def reduce_scatter_single(
        self, output: Tensor, given: Tensor, opts: Any = None, timeout: Any = None
    ) -> dist.Work:
        """Every rank gets its part of the reduction of all ranks' tensors."""
        return self._reduce_scatter_single("reduce_scatter_tensor", [output], [given], opts)

    _reduce_scatter_base = reduce_scatter_single

    def reduce_scatter_single_coalesced(
        self, outputs: Any, inputs: Any, opts: Any = None
    ) -> dist.Work:
        """As `reduce_scatter_single` of several tensors, which travel as one."""
        return self._reduce_scatter_single("reduce_scatter_tensor", outputs, inputs, opts)

    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced

    def _reduce_scatter_single(self, call: str, outputs: Any, inputs: Any, opts: Any) -> dist.Work:
        outs = [tensor.data for tensor in outputs]
        mine = [tensor.data for tensor in inputs]
        self._same_count(call, outs, mine)
        for out, value in zip(outs, mine, strict=True):
            arguments.times(call, value, out, self._size, ("input", "output"))
        return self._reduce_scatter(call, outs, mine, opts)

    def _reduce_scatter(
        self, call: str, outs: list[Tensor], mine: list[Tensor], opts: Any
    ) -> dist.Work:
        kind, inputs = reduction(call, opts, mine)
        return self._start(
            _REDUCE_SCATTER,
            (call, kind, -1, *lengths(mine)),
            inputs,
            outs,
            moves.reduce_scatter,
            total_bytes(mine),
            is_async(opts),
        )
