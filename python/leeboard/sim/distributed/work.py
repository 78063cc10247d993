"""Handles of communication under way, which wait in virtual time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from leeboard.sim.distributed.futures import SimFuture, promise

if TYPE_CHECKING:
    from leeboard.sim.distributed.exchange import Meeting, Move
    from leeboard.sim.distributed.group import SimGroup
    from leeboard.sim.distributed.rank import Rank


# Picoseconds that asking twice at one moment takes.
_POLL = 10**6


class Finished(dist.Work):
    """What a call returns that has waited itself."""

    def wait(self, timeout: Any = None) -> bool:
        """Nothing to wait for."""
        return True

    def is_completed(self) -> bool:
        """It is."""
        return True

    def is_success(self) -> bool:
        """It is."""
        return True

    def exception(self) -> None:
        """None."""

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def result(self) -> list[Tensor]:
        """Nothing: the tensors are in the call's arguments."""
        return []

    def get_future(self) -> torch.futures.Future[list[Tensor]]:
        """A future that is done."""
        future: torch.futures.Future[list[Tensor]] = torch.futures.Future()
        future.set_result([])
        return future


FINISHED = Finished()


class _Work(dist.Work):
    """What all works answer alike."""

    def is_success(self) -> bool:
        """As `is_completed`: what fails ends the run."""
        return self.is_completed()

    def exception(self) -> None:
        """None: what fails ends the run."""

    def synchronize(self) -> None:
        """As `wait`."""
        self.wait()


class SimWork(_Work):
    """One operation under way. Timeouts are not looked at: virtual time is not the program's.

    Its tensors are filled when the program first learns that it is over: in `wait`, or when
    `is_completed` says so.
    """

    def __init__(self, rank: Rank, slot: int, outs: Sequence[Tensor]) -> None:
        super().__init__()
        self._rank = rank
        self._slot = slot
        self._outs = outs
        self._over = False
        self._future: SimFuture | None = None
        # When it was last found under way.
        self._polled = -1

    def wait(self, timeout: Any = None) -> bool:
        """Wait until the operation is over."""
        if not self._over:
            rank = self._rank
            rank.check_thread()
            rank.meter.flush(rank)
            core, number = rank.core, rank.number
            core.wait(number, self._slot)
            rank.hand(core.run(number))
            self._finish()
            rank.meter.resume(rank)
            self._tell()
        return True

    def is_completed(self) -> bool:
        """Whether the operation is over by now, on the rank's virtual clock."""
        if not self._over:
            rank = self._rank
            rank.check_thread()
            rank.meter.flush(rank)
            core, number = rank.core, rank.number
            if self._polled == core.clock(number):
                # A program that does nothing but ask would stay at one moment for ever.
                core.sleep(number, _POLL)
            rank.hand(core.look(number))
            over = core.done(number, self._slot)
            if over:
                core.wait(number, self._slot)
                rank.hand(core.run(number))
                self._finish()
            else:
                self._polled = core.clock(number)
            rank.meter.resume(rank)
            if over:
                self._tell()
        return self._over

    def result(self) -> list[Tensor]:
        """The tensors that it fills, which are full once it is over."""
        return list(self._outs)

    def get_future(self) -> SimFuture:
        """A future of the tensors. C++ may wait for it at the end of a backward pass."""
        future = self._future
        if future is None:
            future = self._future = SimFuture(self)
            if self._over:
                future.set_result(list(self._outs))
            else:
                promise(self._rank, future)
        return future

    def _finish(self) -> None:
        """The engine says that it is over: take what is ours."""
        self._over = True

    def _tell(self) -> None:
        future = self._future
        if future is not None and not future.complete:
            self._rank.futures.pop(future, None)
            future.set_result(list(self._outs))


class CollectiveWork(SimWork):
    """A collective under way."""

    def __init__(
        self,
        rank: Rank,
        slot: int,
        outs: Sequence[Tensor],
        meeting: Meeting,
        me: int,
        move: Move,
    ) -> None:
        super().__init__(rank, slot, outs)
        rank.works.add(self)
        self._meeting: Meeting | None = meeting
        self._me = me
        self._move = move

    def _finish(self) -> None:
        self._over = True
        self._rank.works.discard(self)
        meeting, self._meeting = self._meeting, None
        assert meeting is not None
        self._rank.exchange.collect(meeting, self._me, self._move, self._outs)


class SendWork(SimWork):
    """A message under way, at its sender."""

    def __init__(self, rank: Rank, slot: int, key: tuple[int, int], tensor: Tensor) -> None:
        super().__init__(rank, slot, (tensor,))
        self._key = key

    def _finish(self) -> None:
        self._over = True
        self._rank.exchange.keep(self._key)


class ReceiveWork(SimWork):
    """A message under way, at its receiver."""

    def __init__(self, group: SimGroup, slot: int, out: Tensor, tag: int) -> None:
        super().__init__(group.owner, slot, (out,))
        self._group = group
        self._tag = tag
        self._source = -1

    def _finish(self) -> None:
        self._over = True
        rank = self._rank
        source, serial = rank.core.met(rank.number, self._slot)
        self._source = self._group.place(source)
        rank.exchange.take((source, serial), rank.number, self._tag, self._outs[0])

    def _source_rank(self) -> int:
        """The sender's place in the group, once the message is here."""
        return self._source

    source_rank = _source_rank


class Together(_Work):
    """Several operations as one."""

    def __init__(self, works: Sequence[dist.Work]) -> None:
        super().__init__()
        self._works = works

    def wait(self, timeout: Any = None) -> bool:
        """Wait for all."""
        for work in self._works:
            work.wait()
        return True

    def is_completed(self) -> bool:
        """Whether all are over."""
        return all(work.is_completed() for work in self._works)

    def result(self) -> list[Tensor]:
        """The tensors of all."""
        return [tensor for work in self._works for tensor in work.result()]

    def get_future(self) -> SimFuture:
        """A future of the tensors of all."""
        future = SimFuture(self)
        for work in self._works:
            work.get_future().add_done_callback(lambda _: _tell_of_all(self._works, future))
        if not self._works:
            future.set_result([])
        return future


def _tell_of_all(works: Sequence[dist.Work], future: SimFuture) -> None:
    if not future.complete and all(work.get_future().done() for work in works):
        future.set_result([tensor for work in works for tensor in work.result()])
