"""Programs at random that cannot deadlock: every action is added to all ranks that it needs.

Taken in the order in which they were added, every action can be completed when those before it
are; ranks follow that order, so all of them can.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from leeboard.sim import Exponential, Lognormal, Poisson, Program, Uniform
from leeboard.sim.handles import Handle
from leeboard.sim.members import Group
from leeboard.sim.ops import COLLECTIVES

# Sizes on both sides of the platforms' eager limits.
SIZES = (0, 1, 100, 5_000, 100_000, 3_000_000)


class RandomProgram:
    """Builds a program of `actions` actions on 2 to 9 ranks from a seed."""

    def __init__(self, seed: int, actions: int = 60) -> None:
        self.draw = random.Random(seed)
        self.program = Program(self.draw.randint(2, 9))
        # What has been begun: the rank (None: all), its handle, and how deep in loops.
        self.pending: list[tuple[int | None, Handle, int]] = []
        self.depth = 0
        self.tag = 0
        # Ranks that receive whatever comes: every receive of theirs is a wildcard.
        ranks = range(self.program.ranks)
        self.open = {rank for rank in ranks if self.draw.random() < 0.2}
        groups = [self.draw.sample(ranks, self.draw.randint(1, len(ranks))) for _ in range(3)]
        self.groups = [self.program.group(members) for members in groups]
        self.build(actions)
        self.serve()
        self.program.wait_all()
        self.program.synchronize()

    def build(self, actions: int) -> None:
        while actions > 0:
            if self.depth < 2 and self.draw.random() < 0.08:
                body = self.draw.randint(1, 8)
                with self.loop(self.draw.randint(0, 3)):
                    self.build(body)
                actions -= body
            else:
                self.action()
                actions -= 1

    @contextmanager
    def loop(self, times: int) -> Iterator[None]:
        """The same loop on all ranks, said once or for each of them."""
        with ExitStack() as stack:
            if self.draw.random() < 0.5:
                stack.enter_context(self.program.loop(times))
            else:
                for rank in self.program:
                    stack.enter_context(rank.loop(times))
            self.depth += 1
            yield
            self.settle(self.depth)
            self.depth -= 1

    def settle(self, depth: int) -> None:
        """Wait for what was begun at this depth."""
        for entry in [entry for entry in self.pending if entry[2] == depth]:
            self.wait(entry)

    def wait(self, entry: tuple[int | None, Handle, int]) -> None:
        self.pending.remove(entry)
        target = self.program if entry[0] is None else self.program[entry[0]]
        target.wait(entry[1])

    def action(self) -> None:
        actions = (
            self.compute,
            self.message,
            self.message,
            self.collective,
            self.finish,
            self.note,
            self.rest,
        )
        self.draw.choice(actions)()

    def compute(self) -> None:
        target = self.draw.choice([self.program, *self.program])
        seconds = self.draw.choice(
            (1e-6, "20 us", Exponential(1e-5), Lognormal(1e-5, 0.5), Uniform(0, "30 us"))
        )
        stream = self.draw.choice((0, 0, 0, 1))
        if self.draw.random() < 0.3:
            target.compute(flops=10**6, bytes=10**4, stream=stream)
        else:
            target.compute(seconds=seconds, stream=stream)

    def message(self) -> None:
        draw = self.draw
        source, to = (self.program[draw.randrange(self.program.ranks)] for _ in range(2))
        a, b = source._members()[0], to._members()[0]
        self.tag += 1
        size = draw.choice(SIZES)
        if b in self.open:
            # Its receive may take a later message first: only the end of the program waits.
            if self.depth == 0:
                source.isend(b, size, self.tag)
                to.recv(None, tag=None)
            return
        if a == b or draw.random() < 0.5:
            self.pending.append((a, source.isend(b, size, self.tag), self.depth))
        else:
            source.send(b, size, self.tag, stream=draw.choice((0, 0, 0, 2)))
        if draw.random() < 0.4:
            self.pending.append((b, to.irecv(a, self.tag, size), self.depth))
        else:
            to.recv(a, tag=self.tag)

    def collective(self) -> None:
        draw = self.draw
        group: Group = draw.choice(self.groups)
        name = draw.choice(COLLECTIVES)
        arguments: dict[str, object] = {} if name == "barrier" else {"bytes": draw.choice(SIZES)}
        if name in ("broadcast", "reduce", "gather", "scatter"):
            arguments["root"] = draw.choice(group.ranks)
        call = getattr(group, name)
        if draw.random() < 0.5:
            handle = call(**arguments, async_op=True)
            for rank in group.ranks:
                self.pending.append((rank, handle, self.depth))
        else:
            call(**arguments)

    def finish(self) -> None:
        here = [entry for entry in self.pending if entry[2] == self.depth]
        if here:
            self.wait(self.draw.choice(here))

    def rest(self) -> None:
        ranks = [*self.program]
        a, b = self.draw.choice(ranks), self.draw.choice(ranks)
        self.draw.choice([self.program, a]).sleep(self.draw.choice((0, 3e-6)))
        a.signal(b._members()[0], self.draw.choice((0, 1e-6)))
        b.await_signal()

    def note(self) -> None:
        self.draw.choice([self.program, *self.program]).mark("here")

    def serve(self) -> None:
        """Requests that go round all ranks."""
        count = self.draw.randint(1, 20)
        queue = self.program.arrivals(Poisson(rate=1e5, count=count, seed=self.draw.randrange(99)))
        self.settle(0)
        # No earlier message may be taken for one that carries a request.
        self.program.barrier()
        last = self.program.ranks - 1
        for rank in self.program:
            number = rank._members()[0]
            with rank.serve(queue) if number == 0 else rank.loop(count):
                if number > 0:
                    rank.recv(*((None, None) if number in self.open else (number - 1, 0)))
                rank.compute(seconds=Exponential(1e-6))
                if number < last:
                    rank.send(number + 1, 64)
                else:
                    rank.done(queue)
