"""Lists of ops under construction: one that all ranks share, and one of each rank's own."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from leeboard.sim.ops import ENDLESS, NO_SLOT, OP, PACKED, UNKNOWN, OpKind

_SIZE = PACKED.size
# Fields of an unpacked op.
_KIND, _TAG, _A = 0, 4, 6
_LOOP, _LOOP_END, _CALL, _TAKE = OpKind.LOOP, OpKind.LOOP_END, OpKind.CALL, OpKind.TAKE


class OpList:
    """Packed ops, with loops that know their ends by index into this list."""

    def __init__(self) -> None:
        self.data = bytearray()
        # Positions of loops' first ops that are still open, innermost last.
        self.open: list[int] = []

    def __len__(self) -> int:
        return len(self.data) // _SIZE

    def add(
        self,
        kind: int,
        stream: int = 0,
        flags: int = 0,
        peer: int = 0,
        tag: int = 0,
        slot: int = NO_SLOT,
        a: int = 0,
        b: int = 0,
    ) -> None:
        """Append an op."""
        self.data += PACKED.pack(kind, stream, flags, peer, tag, slot, a, b)

    def begin(self, times: int, queue: int | None) -> None:
        """Open a loop; one that serves a queue takes a request in every round, until none is left.

        Args:
            times: Rounds, ENDLESS where there is a queue.
            queue: Number of the queue, or None.
        """
        self.open.append(len(self))
        OpList.add(self, _LOOP, a=times)
        if queue is not None:
            OpList.add(self, _TAKE, tag=queue)

    def end(self) -> int:
        """Close the innermost loop and return where it began."""
        begin, end = self.open.pop(), len(self)
        OpList.add(self, _LOOP_END, b=begin)
        self._set_b(begin, end)
        if PACKED.unpack_from(self.data, begin * _SIZE)[_A] == ENDLESS:
            self._set_b(begin + 1, end)
        return begin

    def _set_b(self, position: int, value: int) -> None:
        self.data[position * _SIZE + 24 : position * _SIZE + 32] = value.to_bytes(8, "little")


class Shared(OpList):
    """Ops that every rank executes, stored once."""

    def __init__(self) -> None:
        super().__init__()
        # Where loops begin and end, ascending, and the other end of each (None: still open).
        self.ends: list[int] = []
        self.other: dict[int, int | None] = {}

    def begin(self, times: int, queue: int | None) -> None:
        self.ends.append(len(self))
        self.other[len(self)] = None
        super().begin(times, queue)

    def end(self) -> int:
        position = len(self)
        begin = super().end()
        self.ends.append(position)
        self.other[begin], self.other[position] = position, begin
        return begin


class Own(OpList):
    """Ops of one rank, which refer to ranges of the shared ones."""

    def __init__(self, shared: Shared) -> None:
        super().__init__()
        self.shared = shared
        # Shared ops before this one are in the list.
        self.seen = 0

    def catch_up(self) -> None:
        """Append the shared ops that came since the last time.

        Whole loops stay where they are; an end of a loop whose other end lies beyond the range is
        copied, with the take that belongs to it.
        """
        shared, start = self.shared, self.seen
        if start == len(shared):
            return
        position, end = start, len(shared)
        for mark in shared.ends[bisect_left(shared.ends, start) :]:
            other = shared.other[mark]
            if other is not None and other >= start:
                continue
            self._call(position, mark)
            fields = PACKED.unpack_from(shared.data, mark * _SIZE)
            position = mark + 1
            if fields[_KIND] == _LOOP_END:
                super().end()
            elif fields[_A] == ENDLESS:
                queue = PACKED.unpack_from(shared.data, position * _SIZE)[_TAG]
                super().begin(ENDLESS, queue)
                position += 1
            else:
                super().begin(fields[_A], None)
        self._call(position, end)
        self.seen = end

    def _call(self, begin: int, end: int) -> None:
        if begin < end:
            super().add(_CALL, a=begin, b=end)

    def add(
        self,
        kind: int,
        stream: int = 0,
        flags: int = 0,
        peer: int = 0,
        tag: int = 0,
        slot: int = NO_SLOT,
        a: int = 0,
        b: int = 0,
    ) -> None:
        if self.seen * _SIZE != len(self.shared.data):
            self.catch_up()
        super().add(kind, stream, flags, peer, tag, slot, a, b)

    def begin(self, times: int, queue: int | None) -> None:
        self.catch_up()
        super().begin(times, queue)

    def end(self) -> int:
        self.catch_up()
        return super().end()


def assemble(
    ranks: int, shared: Shared, own: Iterable[tuple[int, Own]]
) -> tuple[NDArray[np.void], NDArray[np.uint64], NDArray[np.uint64]]:
    """Lay out all lists in one array; equal lists are stored once.

    Returns:
        ops (OP), begin and end (uint64 [ranks]).
    """
    data = bytearray(shared.data)
    length = len(shared)
    begin = np.zeros(ranks, dtype=np.uint64)
    end = np.full(ranks, length, dtype=np.uint64)
    # Where each list that is stored begins, and how long it is.
    starts, lengths = [0], [length]
    known: dict[bytes, tuple[int, int]] = {}
    for rank, own_ops in own:
        own_ops.catch_up()
        key = hashlib.blake2b(own_ops.data, digest_size=16).digest()
        span = known.get(key)
        if span is None:
            starts.append(length)
            lengths.append(len(own_ops))
            data += own_ops.data
            span = known[key] = length, length + len(own_ops)
            length = span[1]
        begin[rank], end[rank] = span
    ops = np.frombuffer(data, dtype=OP)
    kind = ops["kind"]
    moved = (kind == _LOOP) | (kind == _LOOP_END) | ((kind == _TAKE) & (ops["b"] != UNKNOWN))
    ops["b"][moved] += np.repeat(np.array(starts, np.uint64), lengths)[moved]
    return ops, begin, end
