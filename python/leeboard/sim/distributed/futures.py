"""Futures that wait in virtual time, and those that C++ waits for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from leeboard.sim.distributed.rank import Rank, find

if TYPE_CHECKING:
    from leeboard.sim.distributed.patches import Patches


class SimFuture(torch.futures.Future[Any]):
    """A future that waits in virtual time, and so do the futures that `then` makes of it."""

    def __init__(self, work: Any = None, parent: SimFuture | None = None) -> None:
        super().__init__()
        self._work = work
        self._parent = parent

    @property
    def complete(self) -> bool:
        """Whether it has its value, as far as the program has been told."""
        return super().done()

    def done(self) -> bool:
        """Whether the value is there by now, on the rank's virtual clock."""
        if not super().done():
            if self._work is not None:
                self._work.is_completed()
            elif self._parent is not None:
                self._parent.done()
        return super().done()

    def wait(self) -> Any:
        """Wait for the value."""
        self._bring()
        return super().wait()

    def value(self) -> Any:
        """The value, waited for where it is not there yet."""
        self._bring()
        return super().value()

    def then(self, callback: Callable[[Any], Any]) -> SimFuture:
        """A future of what `callback` returns, which is called with this one once it is done."""
        child = SimFuture(parent=self)

        def run(_: Any) -> None:
            try:
                value = callback(self)
            except Exception as error:  # noqa: BLE001 (whatever it is, it is the future's)
                child.set_exception(error)
            else:
                child.set_result(value)

        self.add_done_callback(run)
        return child

    def _bring(self) -> None:
        if super().done():
            return
        if self._work is not None:
            self._work.wait()
        elif self._parent is not None:
            self._parent._bring()


def install(patches: Patches) -> None:
    """Let futures that torch makes of ours wait in virtual time: those of C++, and `collect_all`."""
    wait = torch._C.Future.wait

    def wait_virtually(self: torch._C.Future[Any]) -> Any:
        rank = None if self.done() else find()
        while rank is not None and rank.futures and not self.done():
            next(iter(rank.futures)).wait()
        return wait(self)

    patches.set(torch._C.Future, "wait", wait_virtually)
    done = torch._C.Future.done

    def done_virtually(self: torch._C.Future[Any]) -> bool:
        # A program that polls such a future must let those come that it is made of.
        if not isinstance(self, SimFuture) and not done(self):
            rank = find()
            for future in () if rank is None else tuple(rank.futures):
                future.done()
        return done(self)

    patches.set(torch._C.Future, "done", done_virtually)


def promise(rank: Rank, future: SimFuture) -> None:
    """Keep a future until it has its value; of a backward pass: until the end of that.

    DDP's reducer waits for its futures in C++, where no other rank could go on. What it queues for
    the end of the backward pass comes after what is queued here.
    """
    task = torch._C._current_graph_task_id()
    rank.futures[future] = task >= 0
    if task < 0:
        return
    if torch._C._current_autograd_node() is None:
        # The end has come: whoever asks here, in a callback, may wait before the next one is called
        # (the first step of a static graph).
        future.wait()
    elif rank.promised != task:
        rank.promised = task
        torch.autograd.Variable._execution_engine.queue_callback(lambda: _settle(rank))


def _settle(rank: Rank) -> None:
    """Wait for everything that C++ may be about to wait for."""
    rank.promised = -1
    for future, backward in list(rank.futures.items()):
        if backward:
            future.wait()
