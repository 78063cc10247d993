"""Collectives of a program, and what every operation's arguments are checked with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from leeboard.sim.collectives import supported
from leeboard.sim.handles import Handle, Scope
from leeboard.sim.ops import ALGORITHMS, COLLECTIVES, NO_SLOT, OpKind, ProgramError, integer
from leeboard.sim.units import SIZE, Value, parse

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from leeboard.sim.members import Group
    from leeboard.sim.program import Program

_MOST_STREAMS = 254
# The stream of collectives that run beside the rank's own thread, one for each group.
_BESIDE = -1
# kMostBytes in csrc/bindings/sim_convert.cpp.
_MOST_BYTES = 2**62


class Options(TypedDict, total=False):
    """What every collective takes; see `CollectiveBuilder`."""

    group: Group | Sequence[int] | None
    algorithm: str | None
    async_op: bool
    stream: int


class CollectiveBuilder:
    """Collectives. All ranks of a group call the same ones in the same order.

    Every method takes `group` (None: all ranks; what `program.group` returned, or ranks),
    `algorithm` (None: the platform's table chooses; "ring", "recursive_doubling", "binomial_tree",
    "direct", "pairwise", "hierarchical", "gloo_ring", "gloo_tree"), `async_op` (go on at once and return a
    handle) and `stream`. `bytes` is the size of the tensor that each rank passes in; for broadcast
    and scatter, that the root passes in. `root` is a rank of the program; None: the group's first.
    """

    _program: Program
    # Who does what is added; None: all ranks.
    _ranks: Scope
    _label: str

    def all_reduce(self, bytes: Value, **options: Unpack[Options]) -> Handle | None:  # noqa: A002
        """Every rank gets the sum of all ranks' tensors."""
        return self._collective("all_reduce", bytes, **options)

    def all_gather(self, bytes: Value, **options: Unpack[Options]) -> Handle | None:  # noqa: A002
        """Every rank gets all ranks' tensors of `bytes` each."""
        return self._collective("all_gather", bytes, **options)

    def reduce_scatter(self, bytes: Value, **options: Unpack[Options]) -> Handle | None:  # noqa: A002
        """Every rank gets its part of the sum of all ranks' tensors of `bytes` each."""
        return self._collective("reduce_scatter", bytes, **options)

    def broadcast(
        self,
        bytes: Value,  # noqa: A002
        root: int | None = None,
        **options: Unpack[Options],
    ) -> Handle | None:
        """Every rank gets the root's tensor."""
        return self._collective("broadcast", bytes, root, **options)

    def reduce(
        self,
        bytes: Value,  # noqa: A002
        root: int | None = None,
        **options: Unpack[Options],
    ) -> Handle | None:
        """The root gets the sum of all ranks' tensors."""
        return self._collective("reduce", bytes, root, **options)

    def gather(
        self,
        bytes: Value,  # noqa: A002
        root: int | None = None,
        **options: Unpack[Options],
    ) -> Handle | None:
        """The root gets all ranks' tensors of `bytes` each."""
        return self._collective("gather", bytes, root, **options)

    def scatter(
        self,
        bytes: Value,  # noqa: A002
        root: int | None = None,
        **options: Unpack[Options],
    ) -> Handle | None:
        """Every rank gets its part of the root's tensor of `bytes`."""
        return self._collective("scatter", bytes, root, **options)

    def all_to_all(
        self,
        bytes: Value | Sequence[Sequence[int]] | NDArray[Any],  # noqa: A002
        **options: Unpack[Options],
    ) -> Handle | None:
        """Every rank gives every rank a part of its tensor.

        Args:
            bytes: Of each rank's tensor; or a matrix [P, P] of what rank i of the group gives rank
                j, whole bytes (the same on all ranks that call).
            options: See the class.
        """
        return self._collective("all_to_all", bytes, **options)

    def barrier(self, **options: Unpack[Options]) -> Handle | None:
        """Nobody goes on before all have come."""
        return self._collective("barrier", 0, **options)

    def _collective(
        self,
        name: str,
        bytes: Any,  # noqa: A002
        root: int | None = None,
        *,
        group: Group | Sequence[int] | None = None,
        algorithm: str | None = None,
        async_op: bool = False,
        stream: int = 0,
    ) -> Handle | None:
        program = self._program
        among = self._among(name, group)
        target: CollectiveBuilder = self
        if self is program and among is not None:
            target = among
        elif among is not None:
            outside = [r for r in target._members() if r not in among.positions]
            if outside:
                raise ProgramError(
                    f"{self._at(name, 'group')}: rank {outside[0]} is no member of {among!r}"
                )
        lane = self._stream(name, stream)
        size, table = self._sizes(name, bytes, program.ranks if among is None else len(among))
        op: dict[str, int] = {
            "flags": COLLECTIVES.index(name),
            "peer": self._root(name, root, among),
            "tag": 0 if among is None else among.number,
            "a": size,
            "b": self._algorithm(name, algorithm) | table << 32,
        }

        def add(slot: int) -> None:
            target._add(OpKind.COLLECTIVE, lane, slot=slot, **op)

        if async_op:
            return target._under_way(name, lane or _BESIDE, add)
        add(NO_SLOT)
        return None

    def _among(self, name: str, group: Group | Sequence[int] | None) -> Group | None:
        """The group of a collective; None: all ranks."""
        if group is None:
            return None
        found = self._program._find_group(self._at(name, "group"), group)
        return found if found.number > 0 else None

    def _root(self, name: str, root: int | None, among: Group | None) -> int:
        if root is None:
            return 0
        rank = self._rank(name, "root", root)
        if among is None:
            return rank
        if rank not in among.positions:
            raise ProgramError(
                f"{self._at(name, 'root')}: got {rank}, expected a member of {among!r}"
            )
        return among.positions[rank]

    def _sizes(self, name: str, bytes: Any, ranks: int) -> tuple[int, int]:  # noqa: A002
        """Bytes of a collective, and the number of its table of sizes (0: none)."""
        if name != "all_to_all" or np.ndim(bytes) == 0:
            return self._size(name, bytes), 0
        matrix = np.asarray(bytes)
        place = self._at(name, "bytes")
        if matrix.shape != (ranks, ranks) or matrix.dtype.kind not in "iu":
            raise ProgramError(
                f"{place}: got {matrix.dtype} {list(matrix.shape)}, expected a size, or whole "
                f"numbers [{ranks}, {ranks}]"
            )
        if (matrix < 0).any():
            raise ProgramError(f"{place}: got {matrix.min()}, expected no negative size")
        if int(matrix.max()) * ranks**2 >= _MOST_BYTES:
            raise ProgramError(f"{place}: got {matrix.max()}, expected less in all than 2^62")
        most = int(matrix.sum(axis=1, dtype=np.uint64).max())
        return most, self._program._size_table(matrix.astype("<u8"))

    def _algorithm(self, name: str, algorithm: str | None) -> int:
        if algorithm is None or algorithm == "auto":
            return 0
        known = ("auto", *supported(name))
        if algorithm not in known:
            raise ProgramError(
                f"{self._at(name, 'algorithm')}: got {algorithm!r}, expected one of "
                f"{', '.join(known)}"
            )
        return ALGORITHMS.index(algorithm)

    def _members(self) -> Sequence[int]:
        return range(self._program.ranks) if self._ranks is None else self._ranks

    def _add(
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
        for ops in self._program._lists(self._ranks):
            ops.add(kind, stream, flags, peer, tag, slot, a, b)

    def _under_way(self, call: str, stream: int, add: Callable[[int], None]) -> Handle:
        """Add an op with a slot of its own, and return its handle."""
        program = self._program
        slot = program._free_slot(self._ranks)
        add(slot)
        return program._new_handle(self._ranks, slot, self._at(call), stream)

    def _at(self, call: str, argument: str = "") -> str:
        """Where an argument was given, for errors."""
        return f"{self._label}.{call}" + (f": {argument}" if argument else "")

    def _integer(self, call: str, name: str, value: object, least: int, most: int) -> int:
        if type(value) is int and least <= value <= most:
            return value
        return integer(self._at(call, name), value, least, most)

    def _rank(self, call: str, name: str, value: object) -> int:
        return self._integer(call, name, value, 0, self._program.ranks - 1)

    def _stream(self, call: str, stream: object) -> int:
        return self._integer(call, "stream", stream, 0, _MOST_STREAMS)

    def _size(self, call: str, bytes: Value) -> int:  # noqa: A002
        if type(bytes) is int and 0 <= bytes <= _MOST_BYTES:
            return bytes
        size = int(parse(self._at(call, "bytes"), bytes, SIZE))
        if size > _MOST_BYTES:
            raise ProgramError(f"{self._at(call, 'bytes')}: got {bytes!r}, expected at most 2^62")
        return size
