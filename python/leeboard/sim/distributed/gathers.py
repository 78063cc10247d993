"""Collectives that gather: all_gather, gather."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor

from leeboard.sim.distributed import arguments, moves
from leeboard.sim.distributed.arguments import fault, single, tensors
from leeboard.sim.distributed.calls import (
    Calls,
    is_async,
    lengths,
    root_of,
    total_bytes,
)
from leeboard.sim.ops import COLLECTIVES

_ALL_GATHER = COLLECTIVES.index("all_gather")
_GATHER = COLLECTIVES.index("gather")


class Gathers(Calls):
    """Part of `Collectives`."""

    def allgather(
        self, outputs: Any, inputs: Any, opts: Any = None, timeout: Any = None
    ) -> dist.Work:
        """Every rank gets a list of all ranks' tensors."""
        call = "all_gather"
        mine = single(call, "input", inputs).data
        outs = arguments.one_list(call, "outputs", outputs)
        arguments.one_each(call, "output list", outs, self._size)
        arguments.alike(call, "output", outs, mine, "the input")
        return self._start(
            _ALL_GATHER,
            (call, -1, -1, mine.dtype, mine.numel()),
            [mine],
            outs,
            moves.all_gather,
            mine.nbytes,
            is_async(opts),
        )

    def allgather_coalesced(self, outputs: Any, inputs: Any, opts: Any = None) -> dist.Work:
        """As `allgather` of several tensors, `outputs[rank][number]`, which travel as one."""
        call = "all_gather_coalesced"
        mine = [tensor.data for tensor in tensors(call, "inputs", inputs)]
        arguments.one_each(call, "output lists", outputs, self._size)
        for rank, row in enumerate(outputs):
            if len(row) != len(mine):
                raise fault(
                    call,
                    f"output_lists[{rank}]: got {len(row)} tensors, expected {len(mine)}, one for "
                    "each input",
                )
            for tensor, like in zip(row, mine, strict=True):
                arguments.alike(call, f"output_lists[{rank}]", [tensor], like, "the input")
        outs = [tensor.data for row in outputs for tensor in row]
        return self._start(
            _ALL_GATHER,
            (call, -1, -1, *lengths(mine)),
            mine,
            outs,
            moves.all_gather_lists,
            total_bytes(mine),
            is_async(opts),
        )

    def all_gather_single(
        self, output: Tensor, given: Tensor, opts: Any = None, timeout: Any = None
    ) -> dist.Work:
        """Every rank gets all ranks' tensors end to end."""
        return self._all_gather_single("all_gather_into_tensor", [output], [given], opts)

    _allgather_base = all_gather_single

    def all_gather_single_coalesced(self, outputs: Any, inputs: Any, opts: Any = None) -> dist.Work:
        """As `all_gather_single` of several tensors, which travel as one."""
        return self._all_gather_single("all_gather_into_tensor", outputs, inputs, opts)

    allgather_into_tensor_coalesced = all_gather_single_coalesced

    def _all_gather_single(self, call: str, outputs: Any, inputs: Any, opts: Any) -> dist.Work:
        outs = [tensor.data for tensor in outputs]
        mine = [tensor.data for tensor in inputs]
        self._same_count(call, outs, mine)
        for out, value in zip(outs, mine, strict=True):
            arguments.times(call, out, value, self._size, ("output", "input"))
        return self._start(
            _ALL_GATHER,
            (call, -1, -1, *lengths(mine)),
            mine,
            outs,
            moves.all_gather_single,
            total_bytes(mine),
            is_async(opts),
        )

    def gather(self, outputs: Any, inputs: Any, opts: Any = None, timeout: Any = None) -> dist.Work:
        """The root gets a list of all ranks' tensors."""
        call = "gather"
        root = opts if isinstance(opts, int) else getattr(opts, "rootRank", 0)
        mine = single(call, "input", inputs).data
        outs: list[Tensor] = []
        if self._me == root_of(call, root, self._size):
            outs = arguments.one_list(call, "gather_list", outputs)
            arguments.one_each(call, "gather_list", outs, self._size)
            arguments.alike(call, "gather_list", outs, mine, "the tensor")
        return self._start(
            _GATHER,
            (call, -1, root, mine.dtype, mine.numel()),
            [mine],
            outs,
            moves.gather,
            mine.nbytes,
            is_async(opts),
        )
