"""Programs of live runs at random, and a way to run them without threads.

A program is a list of actions for each rank, made in one global order that cannot deadlock; what a
rank does may depend on the clock and on what has come, so it is a generator: it appends to a
`SimLive` and yields whose turn is next.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from typing import Any

from leeboard import _C, sim
from leeboard.sim.ops import COLLECTIVES, ROOTED

Turns = Generator[int, None, None]
ANY = -1
NO_LIMIT = 2**64 - 1
# Sizes on both sides of the platforms' eager limits.
SIZES = (0, 1, 100, 5_000, 100_000, 3_000_000)


def options(network: str = "alpha-beta", records: int = 100_000, seed: int = 3) -> dict[str, Any]:
    return {"network": network, "seed": seed, "records": records, "bins": 8}


def drive(core: _C.SimLive, bodies: list[Turns], first: int = 0) -> None:
    """Run ranks as their turns come, until nothing can go on."""
    turn = first
    while turn >= 0:
        after = next(bodies[turn], None)
        turn = core.finish(turn) if after is None else after


def trace_of(core: _C.SimLive, names: tuple[str, ...] = ()) -> sim.Trace:
    columns = core.program()
    del columns["queues"]
    return sim.Trace(**columns, names=names)


class RandomLive:
    """`actions` actions on 2 to 7 ranks, from a seed."""

    def __init__(self, seed: int, actions: int = 60) -> None:
        self.draw = random.Random(seed)
        draw = self.draw
        self.ranks = draw.randint(2, 7)
        self.groups = [list(range(self.ranks))]
        self.groups += [
            draw.sample(range(self.ranks), draw.randint(1, self.ranks)) for _ in range(2)
        ]
        self.numbers: list[int] = []
        self.lists: list[list[tuple[Any, ...]]] = [[] for _ in range(self.ranks)]
        # From half way on, these receive whatever comes.
        self.open = {rank for rank in range(self.ranks) if draw.random() < 0.3}
        # Keys of a store: when they were set, and who waits.
        self.set_at: dict[int, int] = {}
        self.waiting: dict[int, int] = {}
        self.actions = actions
        for number in range(actions):
            choices = (self.local, self.message, self.message, self.collective, self.poll)
            draw.choice((*choices, self.uneven, self.store))(number)

    def local(self, number: int) -> None:
        draw = self.draw
        rank = draw.randrange(self.ranks)
        action = draw.choice(
            [
                ("delay", draw.choice((0, 10**6, 2 * 10**7))),
                ("sleep", draw.choice((0, 10**6, 3 * 10**7))),
                ("compute", 10**6, 10**4, draw.randrange(4)),
                ("mark", 0),
                ("alloc", 10**6),
            ]
        )
        self.lists[rank].append(("call", *action))

    def message(self, number: int) -> None:
        draw = self.draw
        source, target = draw.sample(range(self.ranks), 2)
        size = draw.choice(SIZES)
        late = number > self.actions // 2
        if late and target in self.open:
            # Which message a receive gets, only the run knows: its sender does not wait.
            self.lists[source].append(("call", "isend", target, number, size))
            self.lists[target] += [("begin", number, "irecv", ANY, ANY, NO_LIMIT), ("wait", number)]
            return
        self.lists[source].append(("begin", number, "isend", target, number, size))
        if draw.random() < 0.5:
            self.lists[source].append(("wait", number))
        limit = draw.choice((size, NO_LIMIT))
        self.lists[target].append(("begin", number, "irecv", source, number, limit))
        if late or draw.random() < 0.5:
            self.lists[target].append(("wait", number))

    def collective(self, number: int) -> None:
        draw = self.draw
        group = draw.randrange(3)
        which = draw.randrange(len(COLLECTIVES))
        members = self.groups[group]
        root = draw.randrange(len(members)) if COLLECTIVES[which] in ROOTED else -1
        size = 0 if COLLECTIVES[which] == "barrier" else draw.choice(SIZES)
        blocking = draw.random() < 0.5
        for rank in members:
            self.lists[rank].append(("all", number, group, which, size, root, blocking))

    def uneven(self, number: int) -> None:
        draw = self.draw
        group = draw.randrange(3)
        members = self.groups[group]
        sizes = [[draw.choice(SIZES) for _ in members] for _ in members]
        blocking = draw.random() < 0.5
        for me, rank in enumerate(members):
            column = [row[me] for row in sizes]
            self.lists[rank].append(("uneven", number, group, sizes[me], column, blocking))

    def poll(self, number: int) -> None:
        self.lists[self.draw.randrange(self.ranks)].append(("poll",))

    def store(self, number: int) -> None:
        source, target = (self.draw.randrange(self.ranks) for _ in range(2))
        self.lists[source].append(("set", number))
        self.lists[target].append(("get", number))

    def bodies(self, core: _C.SimLive) -> list[Turns]:
        self.numbers = [core.group(f"g{i}", members) for i, members in enumerate(self.groups)]
        return [self.body(core, rank) for rank in range(self.ranks)]

    def body(self, core: _C.SimLive, rank: int) -> Turns:
        begun: dict[int, int] = {}
        for kind, *rest in self.lists[rank]:
            if kind == "call":
                getattr(core, rest[0])(rank, *rest[1:])
            elif kind == "begin":
                begun[rest[0]] = getattr(core, rest[1])(rank, *rest[2:])
            elif kind == "wait":
                yield from self.wait(core, rank, begun, rest[0])
            elif kind == "poll":
                yield from self.look(core, rank, begun)
            elif kind in ("set", "get"):
                yield from getattr(self, kind)(core, rank, rest[0])
            else:
                number, group, *arguments, blocking = rest
                call = core.all_to_all if kind == "uneven" else core.collective
                slot = call(rank, self.numbers[group], *arguments, blocking=blocking)
                if blocking:
                    assert slot == -1
                    yield core.run(rank)
                else:
                    begun[number] = slot
        for number in list(begun):
            yield from self.wait(core, rank, begun, number)

    def wait(self, core: _C.SimLive, rank: int, begun: dict[int, int], number: int) -> Turns:
        if number in begun:
            core.wait(rank, begun.pop(number))
            yield core.run(rank)

    def look(self, core: _C.SimLive, rank: int, begun: dict[int, int]) -> Turns:
        """Waits for what is over already, which takes no time."""
        yield core.look(rank)
        clock = core.clock(rank)
        for number in [n for n, slot in begun.items() if core.done(rank, slot)]:
            core.wait(rank, begun.pop(number))
        yield core.run(rank)
        # Later only where a device is down meanwhile.
        assert core.clock(rank) >= clock

    def set(self, core: _C.SimLive, rank: int, key: int) -> Turns:
        yield core.run(rank)
        self.set_at[key] = core.clock(rank)
        if key in self.waiting:
            core.unpark(self.waiting.pop(key), self.set_at[key] + 10**6)

    def get(self, core: _C.SimLive, rank: int, key: int) -> Turns:
        yield core.run(rank)
        if key not in self.set_at:
            self.waiting[key] = rank
            yield core.park(rank)
        core.sleep(rank, max(0, self.set_at[key] - core.clock(rank)))


def on_ranks(core: _C.SimLive, ranks: int, body: Callable[[int], Turns]) -> None:
    """The same body on every rank."""
    drive(core, [body(rank) for rank in range(ranks)])
