"""Traces: compiled programs, as flat arrays that the core runs without Python."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leeboard import _C
from leeboard.sim import op_text
from leeboard.sim.op_ranges import TraceStats, stats
from leeboard.sim.ops import OP, OpKind

__all__ = ["OpKind", "Trace", "TraceError", "TraceStats"]

COLUMNS = {
    "ops": OP,
    "begin": np.dtype("<u8"),
    "end": np.dtype("<u8"),
    "group_offsets": np.dtype("<u8"),
    "group_members": np.dtype("<i4"),
    "size_offsets": np.dtype("<u8"),
    "sizes": np.dtype("<u8"),
}


class TraceError(ValueError):
    """A trace that cannot be read: which file, and what is wrong with it."""


@dataclass(frozen=True, eq=False, repr=False)
class Trace:
    """What every rank does: the form in which programs are kept, sent around and run.

    Made by `Program.trace()`, `Trace.load(path)` or an importer. Nothing in it changes; the arrays
    are read-only. docs/sim/trace.md gives the meaning of every field.

    Attributes:
        ops: [ops] of dtype `OP`, 32 bytes each.
        begin: uint64 [ranks]: rank r's ops are `ops[begin[r]:end[r]]`; ranks may share a range.
        end: uint64 [ranks].
        group_offsets: uint64 [groups + 1], into `group_members`. Group 0 is every rank in order.
        group_members: int32.
        size_offsets: uint64 [tables], into `sizes`.
        sizes: uint64: tables of uneven all-to-alls, row = source.
        queues: What requests arrive: name, kind, count, mean, clients, seed, times (ps).
        names: Of the marks.
        metadata: Text of the user's, kept in the file.
    """

    ops: NDArray[np.void]
    begin: NDArray[np.uint64]
    end: NDArray[np.uint64]
    group_offsets: NDArray[np.uint64]
    group_members: NDArray[np.int32]
    size_offsets: NDArray[np.uint64]
    sizes: NDArray[np.uint64]
    queues: tuple[Mapping[str, Any], ...] = ()
    names: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, dtype in COLUMNS.items():
            given = getattr(self, name)
            # What nobody can write to need not be copied.
            frozen = isinstance(given, np.ndarray) and not given.flags.writeable
            column = np.asarray(given, dtype) if frozen else np.array(given, dtype)
            column.setflags(write=False)
            object.__setattr__(self, name, column)
        queues = tuple(MappingProxyType(dict(queue)) for queue in self.queues)
        object.__setattr__(self, "queues", queues)
        object.__setattr__(self, "metadata", MappingProxyType(dict(self.metadata)))

    @property
    def ranks(self) -> int:
        """How many ranks there are."""
        return len(self.begin)

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same, metadata apart."""
        if not isinstance(other, Trace):
            return NotImplemented
        return (
            all(np.array_equal(getattr(self, name), getattr(other, name)) for name in COLUMNS)
            and self.queues == other.queues
            and self.names == other.names
        )

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        fields = [getattr(self, f.name) for f in dataclasses.fields(self)]
        fields[-3] = tuple(dict(queue) for queue in self.queues)
        fields[-1] = dict(self.metadata)
        return Trace, tuple(fields)

    def __repr__(self) -> str:
        return f"<Trace of {self.ranks} ranks: {len(self.ops)} ops>"

    def stats(self) -> TraceStats:
        """Ops by kind, messages, bytes and flops of all ranks together, loops multiplied out."""
        return stats(self)

    def save(self, path: str | Path) -> None:
        """Write the trace to a file, whole or not at all (docs/sim/trace.md)."""
        from leeboard.sim import trace_file

        trace_file.save(self, path)

    @classmethod
    def load(cls, path: str | Path, *, max_bytes: int | None = None) -> Trace:
        """Read a file of `save`.

        Args:
            path: Of the file.
            max_bytes: A file that holds more, unpacked, is refused; None: 8 GiB.

        Raises:
            TraceError: It is no trace, cut off, damaged, of a newer version, or too large.
            OSError: It cannot be opened.
        """
        from leeboard.sim import trace_file

        return trace_file.load(
            path, max_bytes=trace_file.MAX_BYTES if max_bytes is None else max_bytes
        )

    def core(self) -> dict[str, Any]:
        """What `leeboard._C.SimProgram` takes."""
        core: dict[str, Any] = {name: getattr(self, name) for name in COLUMNS}
        core["queues"] = [
            {
                **{key: value for key, value in queue.items() if key != "name"},
                "times": np.array(queue["times"], dtype=np.uint64),
            }
            for queue in self.queues
        ]
        core["names"] = list(self.names)
        return core

    def compiled(self) -> _C.SimProgram:
        """The core's own copy, made once."""
        return self._compiled

    @cached_property
    def _compiled(self) -> _C.SimProgram:
        return _C.SimProgram(self.core())

    def describe_op(self, index: int) -> str:
        """One op for people: "send 4096 B to rank 1 (tag 0)"."""
        return op_text.describe_op(self, index)

    def describe(self) -> str:
        """A summary for people: ranks, ops, messages, bytes, groups, requests."""
        return op_text.describe(self)

    def dump(self, rank: int, most: int = 1000) -> str:
        """What a rank does, an op a line, loops indented.

        Args:
            rank: Which.
            most: Lines to print.
        """
        return op_text.dump(self, rank, most)
