"""The process group `sim`: torch.distributed over the simulator's engine."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from leeboard.sim.distributed import arguments
from leeboard.sim.distributed.collectives import Collectives
from leeboard.sim.distributed.exchange import Move, Signature
from leeboard.sim.distributed.rank import Rank, current
from leeboard.sim.distributed.work import (
    FINISHED,
    CollectiveWork,
    ReceiveWork,
    SendWork,
    Together,
)

_thread = threading.get_ident
_STRIDED = torch.strided


if TYPE_CHECKING:
    # torch's stubs have one version's signatures, and a constructor that no subclass may use.
    class _ProcessGroup:
        def __init__(self, rank: int, size: int) -> None: ...
else:
    _ProcessGroup = dist.ProcessGroup


class SimGroup(Collectives, _ProcessGroup):
    """One rank's end of a process group on simulated devices.

    Args:
        rank: The simulated rank that the group belongs to.
        name: The group's name, the same on all members.
        members: Ranks of the group, in order; None: all.

    Raises:
        ValueError: The rank is no member, or other members say otherwise.
    """

    # What torch asks of the backend of a device: nothing beyond the plain calls.
    supports_splitting = False
    supports_coalescing = False
    supports_time_estimate = False

    def __init__(self, rank: Rank, name: str, members: Sequence[int] | None = None) -> None:
        every = list(range(rank.size)) if not members else [int(member) for member in members]
        if rank.number not in every:
            raise ValueError(f"group {name!r}: rank {rank.number} is not one of its ranks {every}")
        self.owner = rank
        self._me = every.index(rank.number)
        self._size = len(every)
        super().__init__(self._me, self._size)
        self._places: dict[int, int] | None = None
        if every != list(range(rank.size)):
            self._places = {member: place for place, member in enumerate(every)}
        self._name = name
        self._desc = ""
        # c10d counts groups from 0 again after destroy_process_group().
        again = rank.worlds > 1 and self._places is not None
        known = f"{name} of world {rank.worlds}" if again else name
        self._number: int = rank.core.group(known, every)
        rank.exchange.open(self._number, every, rank.number, rank.thread)
        # One list for all ranks of the group.
        self._members: Sequence[int] = rank.exchange.members[self._number]
        # Groups of the same name and ranks, made again after they were destroyed, are the same.
        self._calls = rank.counters.setdefault(self._number, [0])
        self._batch: list[dist.Work] | None = None

    def place(self, rank: int) -> int:
        """A rank's place in the group."""
        return rank if self._places is None else self._places[rank]

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
        rank = self.owner
        if _thread() != rank.thread:
            rank.check_thread()
        core, exchange, number, me = rank.core, rank.exchange, rank.number, self._me
        if exchange.values:
            for tensor in inputs if inputs is outs else (*inputs[:1], *outs[:1]):
                if type(tensor) is not Tensor or tensor.is_meta or tensor.layout is not _STRIDED:
                    same = inputs is outs
                    inputs = arguments.movable(signature[0], inputs)
                    outs = inputs if same else arguments.movable(signature[0], outs)
                    break
        rank.meter.flush(rank)
        if rank.run.collective_call:
            core.sleep(number, rank.run.collective_call)
        calls = self._calls
        meeting = exchange.join(self._number, calls[0], me, self._size, signature, inputs)
        calls[0] += 1
        blocking = not asynchronous
        if sizes is None:
            slot = core.collective(number, self._number, which, nbytes, signature[2], 0, blocking)
        else:
            slot = core.all_to_all(number, self._number, *sizes, 0, blocking)
        if blocking:
            following = core.run(number)
            if following != number:
                rank.hand(following)
            exchange.collect(meeting, me, move, outs)
            rank.meter.resume(rank)
            return FINISHED
        work = CollectiveWork(rank, slot, outs, meeting, me, move)
        if self._batch is not None:
            self._batch.append(work)
        rank.meter.resume(rank)
        return work

    def send(self, given: Any, to: int, tag: int = 0) -> dist.Work:
        """Give a tensor to a rank of the group."""
        tensor = arguments.single("send", "tensors", given).data
        rank = self.owner
        if rank.exchange.values:
            (tensor,) = arguments.movable("send", [tensor])
        rank.check_thread()
        target = self._member("send", to)
        rank.meter.flush(rank)
        core, number = rank.core, rank.number
        slot = core.isend(number, target, rank.run.tag(self._number, tag), tensor.nbytes)
        key = (number, core.serial(number, slot))
        rank.exchange.post(key, tensor)
        return self._under_way(SendWork(rank, slot, key, tensor))

    def recv(self, given: Any, source: int, tag: int = 0) -> dist.Work:
        """Get a tensor from a rank of the group."""
        return self._receive("recv", given, self._member("recv", source), tag)

    def recv_anysource(self, given: Any, tag: int = 0) -> dist.Work:
        """Get a tensor from whichever rank of the group sends one first."""
        return self._receive("recv", given, -1, tag)

    def _receive(self, call: str, given: Any, source: int, tag: int) -> dist.Work:
        out = arguments.single(call, "tensors", given).data
        rank = self.owner
        if rank.exchange.values:
            (out,) = arguments.movable(call, [out])
        rank.check_thread()
        rank.meter.flush(rank)
        engine_tag = rank.run.tag(self._number, tag)
        slot = rank.core.irecv(rank.number, source, engine_tag, out.nbytes)
        return self._under_way(ReceiveWork(self, slot, out, tag))

    def _under_way(self, work: dist.Work) -> dist.Work:
        if self._batch is not None:
            self._batch.append(work)
        rank = self.owner
        rank.meter.resume(rank)
        return work

    def _member(self, call: str, place: int) -> int:
        if not 0 <= place < self._size:
            raise arguments.fault(
                call, f"got rank {place} of the group, expected 0 to {self._size - 1}"
            )
        return self._members[place]

    def _start_coalescing(self, device: Any = None) -> None:
        self._batch = []

    def _end_coalescing(self, device: Any = None) -> dist.Work:
        works, self._batch = self._batch or [], None
        return Together(works)

    # What a group says of itself.

    def size(self) -> int:
        """How many ranks."""
        return self._size

    def rank(self) -> int:
        """This rank's place in the group."""
        return self._me

    getSize = size  # noqa: N815
    getRank = rank  # noqa: N815

    def name(self) -> str:
        """What the backend is called."""
        return "sim"

    getBackendName = name  # noqa: N815
    _get_backend_name = name

    @property
    def group_name(self) -> str:
        """The group's name, by which functional collectives find it."""
        return self._name

    @property
    def group_desc(self) -> str:
        """What the program calls it."""
        return self._desc

    def getGroupName(self) -> str:  # noqa: N802
        """As `group_name`, for C++."""
        return self._name

    def setGroupName(self, name: str) -> None:  # noqa: N802
        """As torch names it."""
        self._name = name

    _set_group_name = setGroupName

    def getGroupDesc(self) -> str:  # noqa: N802
        """As `group_desc`, for C++."""
        return self._desc

    def setGroupDesc(self, text: str) -> None:  # noqa: N802
        """As the program describes it."""
        self._desc = text

    _set_group_desc = setGroupDesc

    @property
    def _device_types(self) -> list[torch.device]:
        return [torch.device("cpu")]

    def _get_backend(self, device: Any = None) -> SimGroup:
        return self

    def supports_tensor_alloc(self, device: Any = None) -> bool:
        """Memory of its own it has none."""
        return False

    def _get_sequence_number_for_group(self) -> int:
        return self._calls[0]

    def _set_sequence_number_for_group(self) -> None:
        """They count from 0."""

    def set_timeout(self, timeout: Any) -> None:
        """Nothing: a run that cannot go on ends at once."""

    _set_default_timeout = set_timeout

    def shutdown(self) -> None:
        """Nothing to close."""

    abort = shutdown
    _wait_for_pending_works = shutdown
    _enable_collectives_timing = shutdown


def create(options: Any, _: Any = None) -> SimGroup:
    """What c10d calls to make the backend `sim`, with its `_DistributedBackendOptions`."""
    return SimGroup(current(), options.group_id, options.global_ranks_in_group)
