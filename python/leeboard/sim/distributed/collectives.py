"""Collectives as torch calls them on a process group: arguments checked, then one of the engine's.

Method names and signatures are c10d's. Each has the options object of its kind or, in the older
form, loose arguments; C++ and the functional collectives call the same methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from leeboard.sim.distributed import arguments, moves
from leeboard.sim.distributed.arguments import fault, single, tensors
from leeboard.sim.distributed.calls import (
    is_async,
    lengths,
    root_of,
    total_bytes,
)
from leeboard.sim.distributed.gathers import Gathers
from leeboard.sim.distributed.reductions import Reductions
from leeboard.sim.ops import COLLECTIVES

_BROADCAST = COLLECTIVES.index("broadcast")
_SCATTER = COLLECTIVES.index("scatter")
_ALL_TO_ALL = COLLECTIVES.index("all_to_all")
_BARRIER = COLLECTIVES.index("barrier")


class Collectives(Reductions, Gathers):
    """The collectives of a process group; `SimGroup` has the rest.

    Every method returns a work: a finished one where the options say that the caller waits.
    """

    def broadcast(self, given: Any, opts: Any = None, timeout: Any = None) -> dist.Work:
        """Every rank gets the root's tensors."""
        root = opts if isinstance(opts, int) else getattr(opts, "rootRank", 0)
        outs = [tensor.data for tensor in tensors("broadcast", "tensors", given)]
        return self._start(
            _BROADCAST,
            ("broadcast", -1, root_of("broadcast", root, self._size), *lengths(outs)),
            outs,
            outs,
            moves.broadcast,
            total_bytes(outs),
            is_async(opts),
        )

    def scatter(
        self, outputs: Any, inputs: Any, opts: Any = None, timeout: Any = None
    ) -> dist.Work:
        """Every rank gets its tensor of the root's list."""
        call = "scatter"
        root = opts if isinstance(opts, int) else getattr(opts, "rootRank", 0)
        out = single(call, "output", outputs).data
        parts: list[Tensor] = []
        if self._me == root_of(call, root, self._size):
            parts = arguments.one_list(call, "scatter_list", inputs)
            arguments.one_each(call, "scatter_list", parts, self._size)
            arguments.alike(call, "scatter_list", parts, out, "the output")
        return self._start(
            _SCATTER,
            (call, -1, root, out.dtype, out.numel()),
            parts,
            [out],
            moves.scatter,
            out.nbytes * self._size,
            is_async(opts),
        )

    def alltoall(self, outputs: Any, inputs: Any, opts: Any = None) -> dist.Work:
        """Every rank gets a tensor from each and gives a tensor to each."""
        call = "all_to_all"
        outs = [tensor.data for tensor in tensors(call, "output list", outputs)]
        mine = [tensor.data for tensor in tensors(call, "input list", inputs)]
        arguments.one_each(call, "output list", outs, self._size)
        arguments.one_each(call, "input list", mine, self._size)
        return self._all_to_all(call, outs, mine, opts)

    def all_to_all_single(
        self,
        output: Tensor,
        given: Tensor,
        output_splits: Sequence[int] = (),
        input_splits: Sequence[int] = (),
        opts: Any = None,
        timeout: Any = None,
    ) -> dist.Work:
        """Every rank gets a piece of each rank's tensor."""
        call, size = "all_to_all_single", self._size
        out, mine = output.data, given.data
        if out.dtype != mine.dtype:
            raise fault(call, f"output is {out.dtype}, input is {mine.dtype}")
        out_rows = arguments.splits(call, "output", output_splits, out, size)
        in_rows = arguments.splits(call, "input", input_splits, mine, size)
        if not output_splits and not input_splits:
            arguments.alike(call, "output", [out], mine, "the input")
            return self._start(
                _ALL_TO_ALL,
                (call, -1, -1, mine.dtype, mine.numel()),
                [mine],
                [out],
                moves.all_to_all_single,
                mine.nbytes,
                is_async(opts),
            )
        return self._all_to_all(call, torch.split(out, out_rows), torch.split(mine, in_rows), opts)

    alltoall_base = all_to_all_single

    def _all_to_all(
        self, call: str, outs: Sequence[Tensor], mine: Sequence[Tensor], opts: Any
    ) -> dist.Work:
        sizes = [tensor.nbytes for tensor in mine], [tensor.nbytes for tensor in outs]
        gives, gets = sizes[0][self._me], sizes[1][self._me]
        if gives != gets:
            raise fault(call, f"the rank gives itself {gives} bytes and expects {gets} of itself")
        signature = (f"{call} of given sizes", -1, -1)
        return self._start(
            _ALL_TO_ALL, signature, mine, outs, moves.all_to_all, 0, is_async(opts), sizes
        )

    def barrier(self, opts: Any = None, timeout: Any = None) -> dist.Work:
        """Nobody goes on before all have come."""
        signature = ("barrier", -1, -1)
        return self._start(_BARRIER, signature, (), (), moves.nothing, 0, is_async(opts))

    def monitored_barrier(self, timeout: Any = None, wait_all_ranks: bool = False) -> None:
        """As `barrier`; ranks that never come end the run with an explanation anyway."""
        signature = ("monitored_barrier", -1, -1)
        self._start(_BARRIER, signature, (), (), moves.nothing, 0, False)
