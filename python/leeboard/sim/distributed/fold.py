"""Folding: one rank of each class runs, and stands for all others of the class.

`FoldCore` takes the place of `SimLive`, `FoldExchange` that of `Exchange`: the program sees its own
number, every rank and all groups. Underneath, the engine knows only the ranks that run. What they
did is then laid out for all ranks (`expand`) and simulated as a whole; that is the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from leeboard import _C
from leeboard.sim.distributed.fold_exchange import FakeExchange, FoldExchange
from leeboard.sim.distributed.fold_groups import Group, make
from leeboard.sim.distributed.heard import Heard, Moved
from leeboard.sim.distributed.mesh import FoldError, Folding
from leeboard.sim.distributed.readings import Readings
from leeboard.sim.ops import ANY, COLLECTIVES
from leeboard.sim.trace import COLUMNS, Trace

__all__ = ["FakeExchange", "FoldCore", "FoldError", "FoldExchange", "Folding", "replay_raw"]


_ALL_TO_ALL = COLLECTIVES.index("all_to_all")


class FoldCore:
    """`SimLive` for a folded program: takes numbers of all ranks, runs those that are there.

    Args:
        core: Makes the engine for so many ranks: `core(ranks, devices)`, where devices are the
            ranks whose devices they run on.
        folding: Who runs.
        replay: Runs the trace of all ranks: what `_C.sim_run` returns. With ranks: nothing is kept
            but the marks of these.
        readings: What ranks are told of the time.
    """

    def __init__(
        self,
        core: Callable[[int, tuple[int, ...]], Any],
        folding: Folding,
        replay: Callable[..., dict[str, Any]],
        readings: Readings | None = None,
    ) -> None:
        self.folding, self.mesh = folding, folding.mesh
        self.live = folding.live
        self.index = {rank: i for i, rank in enumerate(self.live)}
        self.core = core(len(self.live), self.live)
        self.replay = replay
        self.readings = Readings() if readings is None else readings
        self._groups: list[Group] = [
            make(self.mesh, self.index, "world", tuple(range(self.mesh.ranks)), 0)
        ]
        self._by_name: dict[str, int] = {}
        self._moved = [Moved() for _ in self.live]
        # By its serial, the rank that a message was meant for, if a copy of the one it goes to.
        self._meant: dict[int, int] = {}
        self._standing: dict[tuple[int, int], int] = {}
        self._trace: Trace | None = None
        self._raw: dict[str, Any] = {}
        self.names: Sequence[str] = ()

    # What a rank appends.

    def delay(self, rank: int, ps: int) -> None:
        """See `SimLive`."""
        self.core.delay(self.index[rank], ps)

    def compute(self, rank: int, flops: int, bytes: int, dtype: int = 0) -> None:  # noqa: A002
        """See `SimLive`."""
        self.core.compute(self.index[rank], flops, bytes, dtype)

    def sleep(self, rank: int, ps: int) -> None:
        """See `SimLive`."""
        self.core.sleep(self.index[rank], ps)

    def mark(self, rank: int, name: int) -> None:
        """See `SimLive`."""
        self.core.mark(self.index[rank], name)

    def alloc(self, rank: int, bytes: int) -> None:  # noqa: A002
        """See `SimLive`."""
        self.core.alloc(self.index[rank], bytes)

    def free(self, rank: int, bytes: int) -> None:  # noqa: A002
        """See `SimLive`."""
        self.core.free(self.index[rank], bytes)

    def isend(self, rank: int, to: int, tag: int, bytes: int) -> int:  # noqa: A002
        """A send: to the rank that stands for `to` beside this one."""
        me = self.index[rank]
        self._moved[me].peers.append(to)
        there = self._beside(me, to)
        slot = int(self.core.isend(me, there, tag, bytes))
        if self.live[there] != to:
            self._meant[self.core.serial(me, slot)] = to
        return slot

    def irecv(self, rank: int, source: int, tag: int, bytes: int) -> int:  # noqa: A002
        """A receive: from the rank that stands for `source` beside this one."""
        me = self.index[rank]
        if source < 0:
            return int(self.core.irecv(me, ANY, tag, bytes))
        self._moved[me].peers.append(source)
        return int(self.core.irecv(me, self._beside(me, source), tag, bytes))

    def wait(self, rank: int, slot: int) -> None:
        """See `SimLive`."""
        self.core.wait(self.index[rank], slot)

    def group(self, name: str, members: list[int]) -> int:
        """The number of a group, which its copies must agree on; the first of all ranks is 0.

        Raises:
            FoldError: They do not.
            ValueError: Ranks name other members.
        """
        given = tuple(members)
        number = self._by_name.get(name)
        if number is None:
            self.mesh.check_group(name, given)
            live = [self.index[member] for member in given if member in self.index]
            found = int(self.core.group(name, live))
            if given == self._groups[0].members and 0 not in self._by_name.values():
                self._groups[0].live = found
                number = 0
            else:
                number = len(self._groups)
                self._groups.append(make(self.mesh, self.index, name, given, found))
            self._by_name[name] = number
        elif self._groups[number].members != given:
            raise ValueError(
                f"group {name!r}: some ranks say its members are "
                f"{list(self._groups[number].members)}, others say {list(given)}"
            )
        return number

    def collective(
        self,
        rank: int,
        group: int,
        which: int,
        bytes: int,  # noqa: A002
        root: int = -1,
        algorithm: int = 0,
        blocking: bool = False,
    ) -> int:
        """A collective, among the members that run."""
        me, there = self.index[rank], self._groups[group]
        moved = self._moved[me]
        moved.groups.append(group)
        moved.roots.append(max(root, 0))
        standing = there.stand_in[root] if root >= 0 else root
        return int(
            self.core.collective(me, there.live, which, bytes, standing, algorithm, blocking)
        )

    def all_to_all(
        self,
        rank: int,
        group: int,
        sends: list[int],
        recvs: list[int],
        algorithm: int = 0,
        blocking: bool = False,
    ) -> int:
        """An uneven all-to-all, whose members must all run unless it is even after all.

        Raises:
            FoldError: It is uneven, and members are copies.
        """
        me, there = self.index[rank], self._groups[group]
        if not there.whole:
            if len({*sends, *recvs}) > 1:
                raise FoldError(
                    f"fold: {self.mesh.describe(rank)} calls an all_to_all of uneven sizes "
                    f"{sends[:8]} in group {there.name!r}, whose members are copies of each other: "
                    "mark the axes along which they lie as distinct (*)"
                )
            # Even: what a rank passes in.
            return self.collective(rank, group, _ALL_TO_ALL, sum(sends), -1, algorithm, blocking)
        self._moved[me].groups.append(group)
        self._moved[me].roots.append(0)
        return int(self.core.all_to_all(me, there.live, sends, recvs, algorithm, blocking))

    # The engine and the baton.

    def run(self, rank: int) -> int:
        """See `SimLive`."""
        return self._global(self.core.run(self.index[rank]))

    def look(self, rank: int) -> int:
        """See `SimLive`."""
        return self._global(self.core.look(self.index[rank]))

    def park(self, rank: int) -> int:
        """See `SimLive`."""
        return self._global(self.core.park(self.index[rank]))

    def unpark(self, rank: int, at: int) -> None:
        """See `SimLive`."""
        self.core.unpark(self.index[rank], at)

    def finish(self, rank: int) -> int:
        """See `SimLive`."""
        return self._global(self.core.finish(self.index[rank]))

    def enter(self, rank: int) -> None:
        """See `SimLive`."""
        self.core.enter(self.index[rank])

    def switch(self, rank: int, to: int) -> None:
        """See `SimLive`."""
        self.core.switch(self.index[rank], self.index[to])

    def leave(self, to: int) -> None:
        """See `SimLive`."""
        self.core.leave(self.index[to])

    def abort(self, *arguments: Any) -> None:
        """See `SimLive`."""
        self.core.abort(*arguments)

    def clock(self, rank: int) -> int:
        """The clock among the ranks that run: what copies cost is not in it."""
        return int(self.core.clock(self.index[rank]))

    def told(self, rank: int) -> int:
        """The clock as the program reads it."""
        me = self.index[rank]
        return self.readings.read(rank, self.core.place(me), self.core.clock(me))

    def done(self, rank: int, slot: int) -> bool:
        """See `SimLive`."""
        return bool(self.core.done(self.index[rank], slot))

    def met(self, rank: int, slot: int) -> tuple[int, int]:
        """Who sent, as the receiver sees it: as far away as the sender thought it was."""
        source, serial = self.core.met(self.index[rank], slot)
        sender = self.live[source]
        meant = self._meant.pop(serial, None)
        if meant is not None:
            # It went to a copy of this rank: its sender is to this one as `sender` is to that.
            offsets = self.mesh.offsets
            home = self.mesh.unshift([sender], int(offsets[meant]))
            sender = int(self.mesh.shift(home, int(offsets[rank]))[0])
        return sender, int(serial)

    def serial(self, rank: int, slot: int) -> int:
        """See `SimLive`."""
        return int(self.core.serial(self.index[rank], slot))

    # Results.

    def outcome(self) -> dict[str, Any]:
        """What the run of all ranks gave; or, if those that ran did not come to an end, why.

        Raises:
            FoldError: A witness did something else than its representative.
        """
        if not self.ended():
            raw = self._raw
            for entry in raw["blocked"]:
                entry["rank"] = self.live[entry["rank"]]
                entry["missing"] = [self.live[rank] for rank in entry["missing"]]
            raw["failed"] = [(self.live[rank], at) for rank, at in raw["failed"]]
            return raw
        return self.replay(self.trace())

    def ended(self) -> bool:
        """Whether all that ran came to their end."""
        self._raw = self._raw or self.core.outcome()
        return bool(self._raw["status"] == "done")

    def program(self) -> dict[str, Any]:
        """Columns of the trace of all ranks."""
        trace = self.trace()
        return {name: getattr(trace, name) for name in COLUMNS}

    def trace(self) -> Trace:
        """The trace of all ranks, after the witnesses were heard."""
        if self._trace is None:
            self._trace = self.heard.expanded(self.heard.lists)
        return self._trace

    @cached_property
    def heard(self) -> Heard:
        """What those that ran did, after the witnesses were heard.

        Raises:
            FoldError: A witness did something else than its representative.
        """
        groups = [group.members for group in self._groups[1:]]
        return Heard(self.folding, self.core.program(), self._moved, groups, self.names)

    def _beside(self, me: int, peer: int) -> int:
        """The engine's number of the rank that stands for a peer of `me`."""
        there = self._standing.get((me, peer))
        if there is None:
            mesh = self.mesh
            offset = int(mesh.offsets[self.live[me]])
            beside = int(mesh.shift([mesh.representatives[peer]], offset)[0])
            there = self._standing[me, peer] = self.index[beside]
        return there

    def _global(self, live: int) -> int:
        return self.live[live] if live >= 0 else live

    def aliases(self, group: int) -> dict[int, list[int]]:
        """For each member of a group that runs, the copies that it stands for; places in it."""
        return self._groups[group].aliases(self.index)


def replay_raw(platform_core: dict[str, Any], options: dict[str, Any]) -> Any:
    """`FoldCore`'s `replay`, on a platform's columns with the options of `_C.sim_run`."""

    def run(trace: Trace, marked: Sequence[int] = ()) -> Any:
        only = {"records": 0, "bins": 0, "marked": list(marked)} if marked else {}
        return _C.sim_run(trace.compiled(), platform_core, {**options, **only})

    return run
