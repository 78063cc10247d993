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
from leeboard.sim.distributed.exchange import Move, Signature
from leeboard.sim.distributed.reduce import PREMUL_SUM, SUM, refused
from leeboard.sim.ops import COLLECTIVES

_ALL_REDUCE = COLLECTIVES.index("all_reduce")
_ALL_GATHER = COLLECTIVES.index("all_gather")
_REDUCE_SCATTER = COLLECTIVES.index("reduce_scatter")
_BROADCAST = COLLECTIVES.index("broadcast")
_REDUCE = COLLECTIVES.index("reduce")
_GATHER = COLLECTIVES.index("gather")
_SCATTER = COLLECTIVES.index("scatter")
_ALL_TO_ALL = COLLECTIVES.index("all_to_all")
_BARRIER = COLLECTIVES.index("barrier")

_Kind = dist.ReduceOp.RedOpType
_AllReduceOptions = dist.AllreduceOptions
# Kind and dtype of what `refused` has nothing against, as far as it has been asked.
_REDUCIBLE: set[tuple[int, torch.dtype]] = set()


def _is_async(opts: Any) -> bool:
    """Whether the caller goes on at once; loose arguments and older torch: yes."""
    return getattr(opts, "asyncOp", True)


def _reduction(call: str, opts: Any, given: list[Tensor]) -> tuple[int, list[Tensor]]:
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
        _REDUCIBLE.add((kind, tensor.dtype))
    return kind, given


def _lengths(given: Sequence[Tensor]) -> Signature:
    if len(given) == 1:
        tensor = given[0]
        return tensor.dtype, tensor.numel()
    return tuple(part for tensor in given for part in (tensor.dtype, tensor.numel()))


def _bytes(given: Sequence[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in given)


def _root(call: str, root: int, size: int) -> int:
    if not 0 <= root < size:
        raise fault(call, f"root: got rank {root} of the group, expected 0 to {size - 1}")
    return root


class Collectives:
    """The collectives of a process group; `SimGroup` has the rest.

    Every method returns a work: a finished one where the options say that the caller waits.
    """

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

    def allreduce(self, given: Any, opts: Any = None, timeout: Any = None) -> dist.Work:
        """Every rank gets the reduction of all ranks' tensors."""
        # Nearly all calls, and the shortest way for them.
        if type(opts) is _AllReduceOptions and len(given) == 1:
            out = given[0].data
            kind = opts.reduceOp.op.value
            dtype = out.dtype
            if (kind, dtype) in _REDUCIBLE:
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
        kind, inputs = _reduction(call, opts, outs)
        return self._start(
            _ALL_REDUCE,
            (call, kind, -1, *_lengths(outs)),
            inputs,
            outs,
            moves.all_reduce,
            outs[0].nbytes if len(outs) == 1 else _bytes(outs),
            _is_async(opts),
        )

    def reduce(
        self, given: Any, opts: Any = None, op: Any = None, timeout: Any = None
    ) -> dist.Work:
        """The root gets the reduction of all ranks' tensors."""
        root = opts if isinstance(opts, int) else getattr(opts, "rootRank", 0)
        out = single("reduce", "tensors", given).data
        loose = isinstance(opts, int)
        kind, inputs = _reduction("reduce", op if loose else opts, [out])
        return self._start(
            _REDUCE,
            ("reduce", kind, _root("reduce", root, self._size), out.dtype, out.numel()),
            inputs,
            [out],
            moves.reduce,
            out.nbytes,
            _is_async(opts),
        )

    def broadcast(self, given: Any, opts: Any = None, timeout: Any = None) -> dist.Work:
        """Every rank gets the root's tensors."""
        root = opts if isinstance(opts, int) else getattr(opts, "rootRank", 0)
        outs = [tensor.data for tensor in tensors("broadcast", "tensors", given)]
        return self._start(
            _BROADCAST,
            ("broadcast", -1, _root("broadcast", root, self._size), *_lengths(outs)),
            outs,
            outs,
            moves.broadcast,
            _bytes(outs),
            _is_async(opts),
        )

    def allgather(
        self, outputs: Any, inputs: Any, opts: Any = None, timeout: Any = None
    ) -> dist.Work:
        """Every rank gets a list of all ranks' tensors."""
        call = "all_gather"
        mine = single(call, "input", inputs).data
        lists = outputs if outputs and not isinstance(outputs[0], Tensor) else [outputs]
        if len(lists) != 1:
            raise fault(call, f"outputs: got {len(lists)} lists of tensors, expected 1")
        outs = [tensor.data for tensor in lists[0]]
        arguments.one_each(call, "output list", outs, self._size)
        arguments.alike(call, "output", outs, mine, "the input")
        return self._start(
            _ALL_GATHER,
            (call, -1, -1, mine.dtype, mine.numel()),
            [mine],
            outs,
            moves.all_gather,
            mine.nbytes,
            _is_async(opts),
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
            (call, -1, -1, *_lengths(mine)),
            mine,
            outs,
            moves.all_gather_lists,
            _bytes(mine),
            _is_async(opts),
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
            (call, -1, -1, *_lengths(mine)),
            mine,
            outs,
            moves.all_gather_single,
            _bytes(mine),
            _is_async(opts),
        )

    def reduce_scatter(
        self, outputs: Any, inputs: Any, opts: Any = None, timeout: Any = None
    ) -> dist.Work:
        """Every rank gets its tensor of the reduction of all ranks' lists."""
        call = "reduce_scatter"
        out = single(call, "output", outputs).data
        lists = inputs if inputs and not isinstance(inputs[0], Tensor) else [inputs]
        if len(lists) != 1:
            raise fault(call, f"inputs: got {len(lists)} lists of tensors, expected 1")
        parts = [tensor.data for tensor in lists[0]]
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
        kind, inputs = _reduction(call, opts, mine)
        return self._start(
            _REDUCE_SCATTER,
            (call, kind, -1, *_lengths(mine)),
            inputs,
            outs,
            moves.reduce_scatter,
            _bytes(mine),
            _is_async(opts),
        )

    def gather(self, outputs: Any, inputs: Any, opts: Any = None, timeout: Any = None) -> dist.Work:
        """The root gets a list of all ranks' tensors."""
        call = "gather"
        root = opts if isinstance(opts, int) else getattr(opts, "rootRank", 0)
        mine = single(call, "input", inputs).data
        outs: list[Tensor] = []
        if self._me == _root(call, root, self._size):
            lists = outputs if outputs and not isinstance(outputs[0], Tensor) else [outputs]
            outs = [tensor.data for tensor in lists[0]]
            arguments.one_each(call, "gather_list", outs, self._size)
            arguments.alike(call, "gather_list", outs, mine, "the tensor")
        return self._start(
            _GATHER,
            (call, -1, root, mine.dtype, mine.numel()),
            [mine],
            outs,
            moves.gather,
            mine.nbytes,
            _is_async(opts),
        )

    def scatter(
        self, outputs: Any, inputs: Any, opts: Any = None, timeout: Any = None
    ) -> dist.Work:
        """Every rank gets its tensor of the root's list."""
        call = "scatter"
        root = opts if isinstance(opts, int) else getattr(opts, "rootRank", 0)
        out = single(call, "output", outputs).data
        parts: list[Tensor] = []
        if self._me == _root(call, root, self._size):
            lists = inputs if inputs and not isinstance(inputs[0], Tensor) else [inputs]
            parts = [tensor.data for tensor in lists[0]]
            arguments.one_each(call, "scatter_list", parts, self._size)
            arguments.alike(call, "scatter_list", parts, out, "the output")
        return self._start(
            _SCATTER,
            (call, -1, root, out.dtype, out.numel()),
            parts,
            [out],
            moves.scatter,
            out.nbytes * self._size,
            _is_async(opts),
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
                _is_async(opts),
            )
        return self._all_to_all(call, out.split(out_rows), mine.split(in_rows), opts)

    alltoall_base = all_to_all_single

    def _all_to_all(
        self, call: str, outs: Sequence[Tensor], mine: Sequence[Tensor], opts: Any
    ) -> dist.Work:
        sizes = [tensor.nbytes for tensor in mine], [tensor.nbytes for tensor in outs]
        signature = (f"{call} of given sizes", -1, -1)
        return self._start(
            _ALL_TO_ALL, signature, mine, outs, moves.all_to_all, 0, _is_async(opts), sizes
        )

    def barrier(self, opts: Any = None, timeout: Any = None) -> dist.Work:
        """Nobody goes on before all have come."""
        signature = ("barrier", -1, -1)
        return self._start(_BARRIER, signature, (), (), moves.nothing, 0, _is_async(opts))

    def monitored_barrier(self, timeout: Any = None, wait_all_ranks: bool = False) -> None:
        """As `barrier`; ranks that never come end the run with an explanation anyway."""
        signature = ("monitored_barrier", -1, -1)
        self._start(_BARRIER, signature, (), (), moves.nothing, 0, False)

    @staticmethod
    def _same_count(call: str, outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
        if len(outputs) != len(inputs):
            raise fault(call, f"got {len(outputs)} outputs and {len(inputs)} inputs")
