"""Mistakes in programs: each is named, with its argument and its rank, before anything is done."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack

import numpy as np
import pytest

from leeboard.sim.ops import ProgramError
from leeboard.sim.program import Program
from leeboard.sim.workload import Poisson


def double_wait(p: Program) -> None:
    handle = p[0].isend(1, 1)
    p[0].wait(handle)
    p[0].wait(handle)


def waited_by_all_twice(p: Program) -> None:
    handle = p.all_reduce(1, async_op=True)
    p[2].wait(handle)
    p.wait(handle)


def wait_in_loop(p: Program) -> None:
    handle = p[0].isend(1, 1)
    with p.loop(2):
        p[0].wait(handle)


def left_in_loop(p: Program) -> None:
    with p[0].loop(2):
        p[0].isend(1, 1)


def left_by_one(p: Program) -> None:
    with p.loop(2):
        handle = p.all_gather(1, async_op=True)
        p.group([0, 1, 2]).wait(handle)


def open_loop(p: Program) -> None:
    p.loop(2).__enter__()
    p.trace()


def crossed_loops(p: Program) -> None:
    stack = ExitStack()
    stack.enter_context(p.loop(2))
    inner = p[0].loop(3)
    inner.__enter__()
    stack.close()


def unanswered(p: Program) -> None:
    queue = p.arrivals(Poisson(rate=1, count=1), name="chat")
    p[0].take(queue)
    p.trace()


REFUSED: list[tuple[Callable[[Program], object], str]] = [
    (lambda p: Program(0), r"^ranks: got 0, expected an integer from 1 to 16777216"),
    (lambda p: Program(True), r"^ranks: got True"),
    (lambda p: p[4], r"program\[rank\]: got 4, expected an integer from 0 to 3"),
    (lambda p: p[-1], r"program\[rank\]: got -1"),
    (lambda p: p[0].compute(), r"program\[0\]\.compute: got neither, expected either"),
    (lambda p: p[0].compute(flops=1, seconds=1), r"program\[0\]\.compute: got both"),
    (lambda p: p[0].compute(flops=-1), r"program\[0\]\.compute: flops: got -1"),
    (lambda p: p[0].compute(flops=1e24), r"program\[0\]\.compute: flops: got 1e\+24"),
    (lambda p: p.compute(seconds=1, async_op=True), r"compute: async_op: got True, expected a st"),
    (lambda p: p.compute(seconds=math.nan), r"program\.compute: seconds: got nan"),
    (lambda p: p.compute(seconds="3 kg"), r"program\.compute: seconds: got '3 kg': unknown unit"),
    (lambda p: p[1].send(4, 1), r"program\[1\]\.send: to: got 4, expected an integer from 0 to 3"),
    (lambda p: p[1].send(0, -1), r"program\[1\]\.send: bytes: got -1"),
    (lambda p: p[1].send(0, 1.5), r"program\[1\]\.send: bytes: got 1.5, expected a whole number"),
    (lambda p: p[1].send(0, math.nan), r"program\[1\]\.send: bytes: got nan"),
    (lambda p: p[1].send(0, 1, tag=-1), r"program\[1\]\.send: tag: got -1"),
    (lambda p: p[1].isend(0, 1, tag=2**31), r"program\[1\]\.isend: tag: got 2147483648"),
    (lambda p: p[1].recv(9), r"program\[1\]\.recv: source: got 9"),
    (lambda p: p[1].irecv(0, tag=-1), r"program\[1\]\.irecv: tag: got -1"),
    (lambda p: p[1].send(0, 1, stream=255), r"send: stream: got 255, expected .* 0 to 254"),
    (lambda p: p[1].synchronize(0), r"program\[1\]\.synchronize: stream: got 0"),
    (lambda p: p[1].wait(3), r"program\[1\]\.wait: got 3, expected a handle"),
    (lambda p: p[1].wait(p[0].isend(1, 1)), r"<handle of program\[0\]\.isend> belongs to another"),
    (lambda p: p.wait(p[0].isend(1, 1)), r"program\.wait: handle: .* belongs to another rank"),
    (lambda p: p[0].wait(p[1].isend(1, 1), stream=1), r"belongs to another rank"),
    (lambda p: p[0].wait(Program(4)[0].isend(1, 1)), r"belongs to another program"),
    (double_wait, r"program\[0\]\.wait: .* has been waited for already"),
    (waited_by_all_twice, r"program\.wait: .* has been waited for already"),
    (wait_in_loop, r"was made outside of program\.loop\(2\)"),
    (left_in_loop, r"program\[0\]\.loop\(2\): <handle of program\[0\]\.isend> is not waited for"),
    (left_by_one, r"program\.loop\(2\): <handle of program\.all_gather> is not waited for"),
    (open_loop, r"program\.trace: program\.loop\(2\) is still open"),
    (crossed_loops, r"program\.loop\(2\) closes before program\[0\]\.loop\(3\)"),
    (lambda p: p.loop(-1).__enter__(), r"program\.loop: times: got -1"),
    (lambda p: p.loop(1.5).__enter__(), r"program\.loop: times: got 1.5"),
    (lambda p: p.group([]), r"program\.group: ranks: got \[\], expected at least one rank"),
    (lambda p: p.group([1, 1]), r"got \[1, 1\], expected .* each of them once"),
    (lambda p: p.group([1, 7]), r"program\.group: ranks: got 7"),
    (lambda p: p.group(Program(4).group([1])), r"belongs to another program"),
    (lambda p: p[0].barrier(group=[1, 2]), r"program\[0\]\.barrier: group: rank 0 is no member"),
    (lambda p: p.group([0, 1]).barrier(group=[1, 2]), r"barrier: group: rank 0 is no member"),
    (lambda p: p.broadcast(1, root=4), r"program\.broadcast: root: got 4"),
    (lambda p: p.broadcast(1, root=0, group=[1, 2]), r"broadcast: root: got 0, expected a member"),
    (lambda p: p.all_reduce(1, algorithm="rng"), r"algorithm: got 'rng', expected one of auto"),
    (lambda p: p.broadcast(1, algorithm="pairwise"), r"algorithm: got 'pairwise', expected one of"),
    (lambda p: p.all_reduce(2**62 + 1), r"program\.all_reduce: bytes: got 4611686018427387905"),
    (lambda p: p.all_to_all([[1, 2]]), r"bytes: got int64 \[1, 2\], expected .* \[4, 4\]"),
    (lambda p: p.all_to_all(np.full((4, 4), -1)), r"program\.all_to_all: bytes: got -1"),
    (lambda p: p.all_to_all(np.ones((4, 4))), r"bytes: got float64 \[4, 4\]"),
    (lambda p: p.all_to_all([[2**60] * 4] * 4), r"bytes: got 1152921504606846976"),
    (lambda p: p.mark(""), r"program\.mark: name: got ''"),
    (lambda p: p.alloc(-3), r"program\.alloc: bytes: got -3"),
    (lambda p: p.arrivals(3), r"arrivals: got 3, expected Poisson"),
    (lambda p: p[0].take(Program(1).arrivals(Poisson(1, 1))), r"take: queue: got .* arrivals\(\)"),
    (unanswered, r"requests of 'chat' are taken, and no rank answers"),
]


@pytest.mark.parametrize(("build", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_mistakes_are_named(build: Callable[[Program], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(Program(4))


def test_a_refused_op_leaves_no_trace() -> None:
    program = Program(2)
    program[0].mark("a")
    before = program.trace()
    with pytest.raises(ValueError, match="to: got 5"):
        program[0].isend(5, 1)
    with pytest.raises(ProgramError, match="expected an integer"):
        program.group([0, 1]).isend(1, 1, stream=-1)
    assert program.trace() == before
    assert program[0].isend(1, 1).slot == 0
