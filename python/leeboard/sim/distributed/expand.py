"""The trace of all ranks, from what one rank of each class did.

What a class computes between two communications is stored once, and every rank calls it; its
communications are written out rank by rank, with partners and groups moved to where the rank is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leeboard.sim.distributed.mesh import FoldError, Mesh
from leeboard.sim.ops import OP, PACKED, OpKind
from leeboard.sim.trace import Trace

Ops = NDArray[np.void]
_SIZE = PACKED.size
_REFUSED = (OpKind.CALL, OpKind.LOOP, OpKind.LOOP_END, OpKind.TAKE, OpKind.DONE)


def expand(
    mesh: Mesh,
    lists: Mapping[int, Ops],
    groups: Sequence[Sequence[int]] = (),
    *,
    sizes: Sequence[NDArray[np.uint64]] = (),
    names: Sequence[str] = (),
    metadata: Mapping[str, str] | None = None,
) -> Trace:
    """Lay out what all ranks of a mesh do.

    Args:
        mesh: The ranks and their classes.
        lists: Of every representative, the ops it did, dtype `OP`, straight on: no loops and calls.
            Peers are ranks of the mesh; a collective's `tag` is 0 for all ranks in order, or 1 + an
            index into `groups`.
        groups: Members of each group that a representative is in, ranks of the mesh.
        sizes: Tables of uneven all-to-alls, as the high half of `b` numbers them from 1.
        names: Of the marks.
        metadata: Kept in the trace.

    Raises:
        FoldError: The list of a class is missing, or holds what cannot be moved.
    """
    missing = [rank for rank in mesh.classes if rank not in lists]
    if missing:
        raise FoldError(f"expand: no ops of {mesh.describe(missing[0])}, which stands for a class")
    layout = _Layout(mesh, groups)
    classes = [_Class(mesh, rank, lists[rank], layout) for rank in mesh.classes]
    begin, end = np.zeros(mesh.ranks, np.uint64), np.zeros(mesh.ranks, np.uint64)
    for one in classes:
        for offset in mesh.copies:
            rank = int(mesh.shift([one.rank], offset)[0])
            begin[rank], end[rank] = layout.store(one.moved(offset))
    ops = layout.ops()
    group_offsets, members = layout.group_columns()
    tables = [np.asarray(table, np.uint64).reshape(-1) for table in sizes]
    starts = np.cumsum([0, *map(len, tables)], dtype=np.uint64)
    for column in (ops, begin, end):
        column.setflags(write=False)
    return Trace(
        ops,
        begin,
        end,
        group_offsets,
        members,
        starts[:-1],
        np.concatenate(tables) if tables else np.zeros(0, np.uint64),
        names=tuple(names),
        metadata=metadata or {},
    )


def moves(ops: Ops) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Where a list names ranks: its sends and receives from a known rank; its collectives."""
    kind = ops["kind"]
    pairs = ((kind == OpKind.SEND) | (kind == OpKind.RECV)) & (ops["peer"] >= 0)
    return np.flatnonzero(pairs), np.flatnonzero(kind == OpKind.COLLECTIVE)


class _Layout:
    """The array of all ops under construction, and the groups."""

    def __init__(self, mesh: Mesh, groups: Sequence[Sequence[int]]) -> None:
        self.mesh = mesh
        self.given = [np.asarray(members, np.int64) for members in groups]
        # By the given group and the set of its moved members: a number of the trace.
        self.numbers: dict[tuple[int, bytes], int] = {}
        self.members: list[NDArray[np.int64]] = []
        self.chunks: list[Any] = []
        self.length = 0
        self.known: dict[bytes, tuple[int, int]] = {}

    def store(self, ops: Ops) -> tuple[int, int]:
        """Where these ops are, stored once however often they come."""
        data = ops.tobytes()
        key = hashlib.blake2b(data, digest_size=16).digest()
        span = self.known.get(key)
        if span is None:
            span = self.known[key] = self.length, self.length + len(ops)
            self.chunks.append(ops)
            self.length = span[1]
        return span

    def ops(self) -> Ops:
        return np.concatenate(self.chunks) if self.chunks else np.zeros(0, OP)

    def group(self, number: int, offset: int) -> int:
        """The trace's number of a group as the copy at an offset sees it."""
        if number == 0:
            return 0
        moved = self.mesh.shift(self.given[number - 1], offset)
        key = number, np.sort(moved).tobytes()
        if key not in self.numbers:
            # In order where the group was: the copies of one group agree on its order.
            ascending = bool(np.all(np.diff(self.given[number - 1]) > 0))
            self.members.append(np.sort(moved) if ascending else moved)
            self.numbers[key] = len(self.members)
        return self.numbers[key]

    def group_columns(self) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
        everyone = np.arange(self.mesh.ranks)
        members = [everyone, *self.members]
        offsets = np.cumsum([0, *map(len, members)], dtype=np.uint64)
        return offsets, np.concatenate(members).astype(np.int32)


class _Class:
    """The list of a class: calls of what needs no moving, and the ops that do."""

    def __init__(self, mesh: Mesh, rank: int, ops: Ops, layout: _Layout) -> None:
        self.mesh, self.rank, self.layout = mesh, rank, layout
        for kind in _REFUSED:
            if (ops["kind"] == kind).any():
                raise FoldError(
                    f"expand: the ops of {mesh.describe(rank)} hold a {kind.name.lower()}, "
                    "expected a list straight on"
                )
        pairs, collectives = moves(ops)
        if (ops["tag"][collectives] > len(layout.given)).any():
            raise FoldError(f"expand: {mesh.describe(rank)} calls a collective of no known group")
        parts: list[Ops] = []
        at = 0
        for stop in [*np.sort(np.concatenate([pairs, collectives])).tolist(), len(ops)]:
            if stop - at > 1:
                begin, end = layout.store(ops[at:stop])
                call = np.zeros(1, OP)
                call["kind"], call["a"], call["b"] = OpKind.CALL, begin, end
                call["slot"] = -1
                parts.append(call)
            else:
                parts.append(ops[at:stop])
            parts.append(ops[stop : stop + 1])
            at = stop + 1
        self.ops = np.concatenate(parts) if parts else np.zeros(0, OP)
        self.pairs, self.collectives = moves(self.ops)
        self.groups = np.unique(self.ops["tag"][self.collectives])

    def moved(self, offset: int) -> Ops:
        """What the copy at an offset does."""
        ops = self.ops.copy()
        ops["peer"][self.pairs] = self.mesh.shift(ops["peer"][self.pairs], offset)
        table = np.zeros(len(self.layout.given) + 1, np.int32)
        for number in self.groups.tolist():
            table[number] = self.layout.group(number, offset)
        ops["tag"][self.collectives] = table[ops["tag"][self.collectives]]
        return ops
