"""Programs: what each rank of a deployment does, built call by call."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence, Sized
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from leeboard.sim.builder import Builder
from leeboard.sim.handles import Handle, Loop, Scope, touch
from leeboard.sim.members import Group, Queue, Rank, RankState, Slots
from leeboard.sim.op_list import OpList, Own, Shared, assemble
from leeboard.sim.ops import OpKind, ProgramError, integer
from leeboard.sim.trace import Trace
from leeboard.sim.workload import Arrivals, ArrivalTimes, ClosedLoop, Poisson, encode

if TYPE_CHECKING:
    from leeboard.sim.collective_builder import CollectiveBuilder

_MOST_RANKS = 2**24
# kMostSlots in csrc/bindings/sim_convert.cpp.
_MOST_SLOTS = 2**20


def _offsets(parts: Sequence[Sized]) -> NDArray[np.uint64]:
    """Where each part begins when they lie end to end, and where the last one ends."""
    return np.cumsum([0, *map(len, parts)], dtype=np.uint64)


class Program(Builder):
    """A program: `program[r]` is a rank, `program` itself addresses all ranks.

    What all ranks do is stored once, so a rank without ops of its own costs a few bytes.

    ```python
    program = Program(ranks=8)
    with program.loop(100):
        program.compute(flops="2 GFLOP", bytes="64 MiB")
        program.all_reduce(bytes="16 MiB")
    program[0].send(1, bytes=4096)
    program[1].recv(0)
    ```

    Args:
        ranks: How many, 1 to 2^24.
    """

    def __init__(self, ranks: int) -> None:
        self._label = "program"
        self._program = self
        self._ranks = None
        self._count = integer("ranks", ranks, 1, _MOST_RANKS)
        self._shared = Shared()
        self._shared_slots = Slots()
        self._shared_pending: dict[Handle, None] = {}
        self._states: dict[int, RankState] = {}
        self._loops: list[Loop] = []
        self._groups: dict[tuple[int, ...], Group] = {}
        self._everyone: Group | None = None
        self._names: dict[str, int] = {}
        self._tables: dict[bytes, tuple[int, NDArray[np.uint64]]] = {}
        self._queues: dict[Queue, None] = {}
        self._answered: set[int] = set()

    @property
    def ranks(self) -> int:
        """How many ranks there are."""
        return self._count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, rank: int) -> Rank:
        return Rank(self, integer("program[rank]", rank, 0, self._count - 1))

    def __iter__(self) -> Iterator[Rank]:
        return (Rank(self, rank) for rank in range(self._count))

    def __repr__(self) -> str:
        return (
            f"<Program of {self._count} ranks: {len(self._shared)} ops of all, "
            f"{len(self._states)} ranks with ops of their own>"
        )

    def group(self, ranks: Sequence[int]) -> Group:
        """A communicator of some ranks, in the order given; the same for the same ranks."""
        return self._find_group("program.group: ranks", ranks)

    def arrivals(self, arrivals: Arrivals, name: str | None = None) -> Queue:
        """Requests that arrive: `Poisson`, `ArrivalTimes` or `ClosedLoop`.

        Returns:
            The queue that they wait in, for `serve`, `take` and `done`.
        """
        given: object = arrivals
        if not isinstance(given, Poisson | ArrivalTimes | ClosedLoop):
            raise ProgramError(
                f"arrivals: got {arrivals!r}, expected Poisson, ArrivalTimes or ClosedLoop"
            )
        number = len(self._queues)
        queue = Queue(number, f"queue {number}" if name is None else str(name), arrivals)
        self._queues[queue] = None
        return queue

    def trace(self) -> Trace:
        """Compile the program as it stands.

        Raises:
            ProgramError: A loop is open, or requests are taken that nobody answers.
        """
        if self._loops:
            raise ProgramError(f"program.trace: {self._loops[-1].what} is still open")
        ops, begin, end = assemble(self._count, self._shared, self._own_lists())
        for column in (ops, begin, end):
            column.setflags(write=False)
        taken = np.unique(ops["tag"][ops["kind"] == OpKind.TAKE]).tolist()
        for queue in self._queues:
            if queue.number in taken and queue.number not in self._answered:
                raise ProgramError(
                    f"program.trace: requests of {queue.name!r} are taken, and no rank answers "
                    "them with done(queue)"
                )
        groups: list[Sequence[int]] = [range(self._count), *self._groups]
        tables = [table for _, table in self._tables.values()]
        return Trace(
            ops=ops,
            begin=begin,
            end=end,
            group_offsets=_offsets(groups),
            group_members=np.concatenate([np.asarray(g, dtype=np.int32) for g in groups]),
            size_offsets=_offsets(tables)[:-1],
            sizes=np.concatenate([np.zeros(0, np.uint64), *tables]),
            queues=tuple({"name": q.name, **encode(q.arrivals)} for q in self._queues),
            names=tuple(self._names),
        )

    def describe(self) -> str:
        """A summary for people; see `Trace.describe`."""
        return self.trace().describe()

    def dump(self, rank: int) -> str:
        """What a rank does, op by op; see `Trace.dump`."""
        return self.trace().dump(rank)

    def _own_lists(self) -> Iterator[tuple[int, Own]]:
        return ((rank, self._states[rank].ops) for rank in sorted(self._states))

    def _state(self, rank: int) -> RankState:
        state = self._states.get(rank)
        if state is None:
            state = self._states[rank] = RankState(self._shared)
        return state

    def _lists(self, ranks: Scope) -> Sequence[OpList]:
        if ranks is None:
            return (self._shared,)
        return [self._state(rank).ops for rank in ranks]

    def _find_group(self, place: str, ranks: Group | Sequence[int]) -> Group:
        if isinstance(ranks, Group):
            if ranks._program is not self:
                raise ProgramError(f"{place}: {ranks!r} belongs to another program")
            return ranks
        given = tuple(ranks)
        if given in self._groups:
            return self._groups[given]
        members = tuple(integer(place, rank, 0, self._count - 1) for rank in given)
        if not members or len(set(members)) != len(members):
            raise ProgramError(
                f"{place}: got {list(given)}, expected at least one rank, each of them once"
            )
        if len(members) == self._count and members == tuple(range(self._count)):
            self._everyone = self._everyone or Group(self, 0, members)
            return self._everyone
        return self._groups.setdefault(members, Group(self, len(self._groups) + 1, members))

    def _name(self, name: str) -> int:
        return self._names.setdefault(name, len(self._names))

    def _size_table(self, matrix: NDArray[np.uint64]) -> int:
        """The number of a table of sizes, from 1 on."""
        key = hashlib.blake2b(matrix.tobytes()).digest()
        entry = self._tables.setdefault(key, (len(self._tables) + 1, matrix.reshape(-1)))
        return entry[0]

    def _open_loop(
        self, builder: CollectiveBuilder, times: int, queue: int | None, what: str
    ) -> Loop:
        for ops in self._lists(builder._ranks):
            ops.begin(times, queue)
        loop = Loop(builder._ranks, times, what)
        self._loops.append(loop)
        return loop

    def _close_loop(self, builder: CollectiveBuilder, loop: Loop) -> None:
        if self._loops[-1] is not loop:
            raise ProgramError(f"{loop.what} closes before {self._loops[-1].what}, inside it")
        for handle in loop.made:
            handle.check_closed(loop, self._count)
        self._loops.pop()
        for ops in self._lists(builder._ranks):
            ops.end()

    def _free_slot(self, ranks: Scope) -> int:
        """A slot that is free on all these ranks: odd for those of all ranks, else even."""
        if ranks is None:
            books = [self._shared_slots]
        else:
            books = [self._states[rank].slots for rank in ranks if rank in self._states]
        odd = 1 if ranks is None else 0
        slot = max((slots.low for slots in books), default=0) | odd
        while any(slot in slots.used for slots in books):
            slot += 2
        if len(books) == 1:
            books[0].low = slot
        if slot >= _MOST_SLOTS:
            raise ProgramError(f"more than {_MOST_SLOTS // 2} operations are under way at once")
        return slot

    def _new_handle(self, ranks: Scope, slot: int, what: str, stream: int) -> Handle:
        loops = tuple(loop for loop in self._loops if touch(loop.ranks, ranks))
        handle = Handle(ranks, slot, what, stream, self, loops)
        for loop in loops:
            loop.made.append(handle)
        for slots, pending in self._books(ranks):
            slots.add(slot)
            pending[handle] = None
        return handle

    def _books(self, ranks: Scope) -> list[tuple[Slots, dict[Handle, None]]]:
        """Where slots and handles of these ranks are kept."""
        if ranks is None:
            return [(self._shared_slots, self._shared_pending)]
        states = [self._state(rank) for rank in ranks]
        return [(state.slots, state.pending) for state in states]

    def _wait(self, builder: CollectiveBuilder, handle: Handle, stream: int) -> None:
        where = builder._at("wait")
        if stream > 0:
            handle.check_owner(where, self, builder._ranks)
            if handle.waited.covers(builder._ranks, self._count):
                # It is over, and its slot may be another's.
                return
            handle.check_waited(where, builder._ranks)
            builder._add(OpKind.WAIT, stream, slot=handle.slot)
            return
        handle.check_wait(where, self, builder._ranks, self._loops)
        builder._add(OpKind.WAIT, slot=handle.slot)
        self._waited(handle, builder._ranks)

    def _waited(self, handle: Handle, ranks: Scope) -> None:
        handle.waited.add(ranks)
        if handle.waited.covers(handle.ranks, self._count):
            for slots, pending in self._books(handle.ranks):
                slots.discard(handle.slot)
                pending.pop(handle, None)

    def _settle(self, ranks: Scope, *, waited: bool, stream: int | None) -> None:
        """All operations under way (waited), or those of a stream or all streams, are over."""
        pending = dict(self._shared_pending)
        for rank in self._states if ranks is None else ranks:
            if rank in self._states:
                pending |= self._states[rank].pending
        for handle in pending:
            if waited:
                over = handle.ranks if ranks is None else ranks
                self._waited(handle, over)
            elif handle.stream != 0 and stream in (None, handle.stream):
                handle.settled.add(handle.ranks if ranks is None else ranks)
