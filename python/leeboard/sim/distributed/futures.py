"""Futures that wait in virtual time, and those that C++ waits for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from leeboard.sim.distributed.patches import Patches
from leeboard.sim.distributed.rank import find

if TYPE_CHECKING:
    from leeboard.sim.distributed.rank import Rank


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
    """Let a rank that waits for a future that C++ made of others wait in virtual time.

    `torch.futures.collect_all` makes such ones, and DDP's reducer does: they know nothing of what
    they wait for, so the rank waits for its works, in order, until the future has its value.
    """
    base: Any = torch._C.Future
    done, wait, value = base.done, base.wait, base.value

    def bring(future: Any) -> None:
        rank = None if done(future) else find()
        while rank is not None and rank.loose and not done(future):
            first = rank.loose[0]
            first.wait()
            if first in rank.loose:
                rank.loose.remove(first)

    def brought(original: Any) -> Any:
        def get(future: Any) -> Any:
            bring(future)
            return original(future)

        return get

    def is_done(future: Any) -> bool:
        rank = None if isinstance(future, SimFuture) or done(future) else find()
        if rank is not None:
            for promised in list(rank.loose):
                promised.done()
        return bool(done(future))

    patches.set(base, "wait", brought(wait))
    patches.set(base, "value", brought(value))
    patches.set(base, "done", is_done)


def settle(rank: Rank) -> None:
    """Wait for everything that C++ may be about to wait for."""
    while rank.futures:
        rank.futures[0].wait()


def promise(rank: Rank, future: SimFuture) -> None:
    """In a backward pass: before what is queued from now on for its end, the future gets its value.

    DDP's reducer waits for its futures in C++, where no other rank could go on.
    """
    task = torch._C._current_graph_task_id()
    if task < 0:
        rank.loose.append(future)
        return
    if torch._C._current_autograd_node() is None:
        # The end has come: whoever asks here, in a callback, may wait before the next one is called
        # (the first step of a static graph).
        future.wait()
        return
    rank.futures.append(future)
    if rank.promised == task:
        return
    rank.promised = task

    def keep() -> None:
        rank.promised = -1
        settle(rank)

    torch.autograd.Variable._execution_engine.queue_callback(keep)
