"""What each call of a program writes into the trace."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from leeboard.sim.ops import UNKNOWN
from leeboard.sim.program import Program
from leeboard.sim.workload import Exponential, Lognormal, Uniform


def one(build: Callable[[Program], object], ranks: int = 4) -> dict[str, int]:
    """Fields of the last op of a program of one op."""
    program = Program(ranks)
    build(program)
    op = program.trace().ops[-1]
    return {name: op[name].item() for name in op.dtype.names}


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (
            lambda p: p.compute(flops="2 GFLOP", bytes="1 KiB"),
            {"kind": 1, "a": 2 * 10**9, "b": 1024},
        ),
        (lambda p: p.compute(bytes=7, stream=3), {"kind": 1, "a": 0, "b": 7, "stream": 3}),
        (
            lambda p: p[1].compute(bytes=7, stream=3, async_op=True),
            {"kind": 1, "b": 7, "stream": 3, "slot": 0},
        ),
        (lambda p: p.compute(seconds="3 us"), {"kind": 2, "a": 3 * 10**6}),
        (lambda p: p.compute(seconds=Exponential("1 ms")), {"kind": 3, "flags": 0, "a": 10**9}),
        (
            lambda p: p.compute(seconds=Lognormal(1, 0.25)),
            {"kind": 3, "flags": 1, "a": 10**12, "b": 250_000},
        ),
        (
            lambda p: p.compute(seconds=Uniform(1, 3)),
            {"kind": 3, "flags": 2, "a": 2 * 10**12, "b": 10**12},
        ),
        (
            lambda p: p[0].send(1, bytes="1 kB", tag=7),
            {"kind": 4, "peer": 1, "tag": 7, "slot": -1, "a": 1000},
        ),
        (lambda p: p[0].isend(0, 5), {"kind": 4, "peer": 0, "tag": 0, "slot": 0, "a": 5}),
        (lambda p: p[1].recv(), {"kind": 5, "peer": -1, "tag": 0, "slot": -1, "a": UNKNOWN}),
        (
            lambda p: p[1].irecv(0, tag=3, bytes=9, stream=2),
            {"kind": 5, "peer": 0, "tag": 3, "slot": 0, "a": 9, "stream": 2},
        ),
        (lambda p: p.wait_all(), {"kind": 6, "slot": -1}),
        (lambda p: p[2].synchronize(), {"kind": 7, "peer": -1}),
        (lambda p: p[2].synchronize(4), {"kind": 7, "peer": 4}),
        (
            lambda p: p.all_reduce(bytes=8, algorithm="ring"),
            {"kind": 8, "flags": 0, "peer": 0, "tag": 0, "a": 8, "b": 1, "slot": -1},
        ),
        (lambda p: p.all_gather(8, async_op=True), {"kind": 8, "flags": 1, "slot": 1}),
        (lambda p: p.reduce_scatter(8), {"kind": 8, "flags": 2}),
        (lambda p: p.broadcast(8, root=2), {"kind": 8, "flags": 3, "peer": 2}),
        (
            lambda p: p.reduce(8, root=3, group=[1, 3]),
            {"kind": 8, "flags": 4, "peer": 1, "tag": 1},
        ),
        (lambda p: p.gather(8, group=[3, 0]), {"kind": 8, "flags": 5, "peer": 0, "tag": 1}),
        (lambda p: p.group([1, 2]).scatter(8), {"kind": 8, "flags": 6, "peer": 0, "tag": 1}),
        (lambda p: p.all_to_all(8, group=range(4)), {"kind": 8, "flags": 7, "tag": 0, "b": 0}),
        (
            lambda p: p.all_to_all([[0, 1], [2, 3]], group=[0, 1]),
            {"kind": 8, "flags": 7, "tag": 1, "a": 5, "b": 1 << 32},
        ),
        (lambda p: p.barrier(), {"kind": 8, "flags": 8, "a": 0}),
        (lambda p: p.alloc("1 GiB"), {"kind": 13, "a": 2**30}),
        (lambda p: p.free(3), {"kind": 14, "a": 3}),
        (lambda p: p[1].sleep("2 us"), {"kind": 17, "a": 2 * 10**6}),
        (lambda p: p[1].signal(2, "1 us"), {"kind": 18, "peer": 2, "a": 10**6}),
        (lambda p: p.await_signal(), {"kind": 19}),
    ],
)
def test_ops_hold_what_was_asked_for(
    build: Callable[[Program], object], expected: dict[str, int]
) -> None:
    op = one(build)
    assert {name: op[name] for name in expected} == expected
