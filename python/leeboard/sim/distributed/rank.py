"""A simulated rank: its thread, its place in the run, its clock."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from leeboard.sim.distributed.exchange import Exchange
    from leeboard.sim.distributed.futures import SimFuture

_here = threading.local()

# Tags of the first group (all ranks) are the program's own below this; others get numbers above.
_OWN_TAGS = 1 << 24


class Stuck(BaseException):
    """Nothing can go on any more: the simulation has ended, or has failed; its outcome tells.

    No `Exception`: a program that catches whatever goes wrong must not catch the end of the run.
    """


class Meter(Protocol):
    """What the computation of one rank costs; called on the rank's thread, which has the baton."""

    def resume(self, rank: Rank) -> None:
        """The program's own code goes on now."""

    def flush(self, rank: Rank) -> None:
        """Append what ran since `resume` to the rank's ops."""

    def modes(self) -> Sequence[AbstractContextManager[object]]:
        """What the rank's thread stays within for the whole program."""


class NoMeter:
    """Computation costs no time."""

    def resume(self, rank: Rank) -> None:
        """Nothing to do."""

    def flush(self, rank: Rank) -> None:
        """Nothing to do."""

    def modes(self) -> Sequence[AbstractContextManager[object]]:
        """None."""
        return ()


class State(Protocol):
    """What torch and Python keep once a process and every rank must have for itself."""

    def leave(self) -> None:
        """Another rank goes on: keep this one's."""

    def enter(self) -> None:
        """This rank goes on: put its own back."""


class Run:
    """What all ranks of a simulation share.

    Attributes:
        core: The engine, `leeboard._C.SimLive` or what stands in for it.
        exchange: Moves tensors between ranks.
        ranks: All of them that have a thread, by number.
        names: Of the marks, each with its number.
        collective_call: Picoseconds that a rank waits at every call of a collective.
    """

    def __init__(self, core: Any, exchange: Exchange, size: int) -> None:
        self.core = core
        self.exchange = exchange
        self.size = size
        self.ranks: dict[int, Rank] = {}
        self.names: dict[str, int] = {}
        self.collective_call = 0
        self._tags: dict[tuple[int, int], int] = {}

    def tag(self, group: int, tag: int) -> int:
        """The engine's tag for a tag of a group: groups never see each other's messages."""
        if group == 0 and 0 <= tag < _OWN_TAGS:
            return tag
        return self._tags.setdefault((group, tag), _OWN_TAGS + len(self._tags))


class Rank:
    """One simulated rank. Its thread runs only while it has the baton.

    Attributes:
        number: Which one, from 0.
        size: How many there are.
        run: What all share; `core` and `exchange` are the run's.
        meter: What this rank's computation costs.
        state: What is swapped when another rank goes on; None: nothing.
        thread: Identifier of the rank's thread, the only one that may communicate.
        futures: Those without a value, in the order in which they were asked for; whether that was
            in a backward pass.
        promised: The backward pass at whose end the futures get their values, or -1.
        works: Collectives under way: C++ may keep one whose Python part nobody holds any more, and
            wait for it.
        world: What c10d keeps of its process groups.
        worlds: How many times it has called init_process_group.
        counters: How many collectives of each group this rank has called.
    """

    __slots__ = (
        "core",
        "counters",
        "exchange",
        "futures",
        "meter",
        "number",
        "promised",
        "run",
        "size",
        "state",
        "thread",
        "works",
        "world",
        "worlds",
    )

    def __init__(
        self, number: int, run: Run, meter: Meter | None = None, state: State | None = None
    ) -> None:
        self.number = number
        self.size = run.size
        self.run = run
        self.core = run.core
        self.exchange = run.exchange
        self.meter: Meter = NoMeter() if meter is None else meter
        self.state = state
        self.thread = 0
        self.futures: dict[SimFuture, bool] = {}
        self.promised = -1
        self.works: set[object] = set()
        self.world: dict[str, Any] = {}
        self.worlds = 0
        self.counters: dict[int, list[int]] = {}

    def enter(self) -> None:
        """Make the calling thread this rank's. `current` finds the rank from now on."""
        self.thread = threading.get_ident()
        self.run.ranks[self.number] = self
        _here.rank = self

    def check_thread(self) -> None:
        """Communication is for the rank's own thread.

        Raises:
            RuntimeError: Another thread calls.
        """
        if threading.get_ident() != self.thread:
            raise RuntimeError(
                f"rank {self.number}: a thread that the program started communicates; in a "
                "simulation only the thread that runs the program may"
            )

    def flush(self) -> None:
        """What was computed so far goes into the rank's ops."""
        self.meter.flush(self)

    def hand(self, following: int) -> None:
        """Let rank `following` go on, and come back when it is this rank's turn again.

        The meter is not resumed: what follows until `give` or `meter.resume` costs nothing.

        Raises:
            Stuck: `following` is -1.
        """
        number = self.number
        if following != number:
            if following < 0:
                raise Stuck
            state = self.state
            if state is None:
                self.core.switch(number, following)
            else:
                state.leave()
                self.core.switch(number, following)
                state.enter()

    def give(self, following: int) -> None:
        """`hand`, and then the program's own code goes on."""
        self.hand(following)
        self.meter.resume(self)

    def now(self) -> int:
        """The rank's virtual clock in picoseconds."""
        self.meter.flush(self)
        number = self.number
        self.give(self.core.run(number))
        return int(self.core.clock(number))


def find() -> Rank | None:
    """The rank whose thread calls; None: no rank's."""
    return getattr(_here, "rank", None)


def current() -> Rank:
    """The rank whose thread calls.

    Raises:
        RuntimeError: The thread is no simulated rank's.
    """
    rank = find()
    if rank is None:
        raise RuntimeError(
            "this thread is not a simulated rank's: only the program's main thread on each rank "
            "may use the simulation"
        )
    return rank
