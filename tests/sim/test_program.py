"""Programs: what is compiled, what is stored once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leeboard.sim.ops import ENDLESS, UNKNOWN, OpKind, ProgramError
from leeboard.sim.program import Program
from leeboard.sim.trace import Trace
from leeboard.sim.workload import ClosedLoop, Poisson


def execute(trace: Trace, rank: int, requests: int = 0) -> Iterator[Any]:
    """Ops that a rank executes, in order, as the core would: calls, loops, takes."""
    ops = trace.ops
    pc, end = int(trace.begin[rank]), int(trace.end[rank])
    back: tuple[int, int] | None = None
    loops: list[list[int]] = []
    while True:
        if pc == end:
            if back is None:
                assert not loops
                return
            (pc, end), back = back, None
            continue
        op, pc = ops[pc], pc + 1
        if op["kind"] == OpKind.CALL:
            assert back is None, "a call inside a call"
            back, pc, end = (pc, end), int(op["a"]), int(op["b"])
        elif op["kind"] == OpKind.LOOP:
            if op["a"] == 0:
                pc = int(op["b"]) + 1
            else:
                loops.append([pc, int(op["a"]) - 1])
        elif op["kind"] == OpKind.LOOP_END:
            if loops[-1][1] == 0:
                loops.pop()
            else:
                loops[-1][1] -= 1
                pc = loops[-1][0]
        elif op["kind"] == OpKind.TAKE and op["b"] != UNKNOWN and requests == 0:
            loops.pop()
            pc = int(op["b"]) + 1
        else:
            requests -= int(op["kind"] == OpKind.TAKE)
            yield op


def marks(trace: Trace, rank: int, requests: int = 0) -> list[str]:
    return [
        trace.names[int(op["a"])]
        for op in execute(trace, rank, requests)
        if op["kind"] == OpKind.MARK
    ]


class Model:
    """What every rank should do, written down without sharing anything."""

    def __init__(self, ranks: int) -> None:
        self.lists: list[list[Any]] = [[[]] for _ in range(ranks)]

    def mark(self, ranks: tuple[int, ...], name: str) -> None:
        for rank in ranks:
            self.lists[rank][-1].append(name)

    def begin(self, ranks: tuple[int, ...]) -> None:
        for rank in ranks:
            self.lists[rank].append([])

    def end(self, ranks: tuple[int, ...], times: int) -> None:
        for rank in ranks:
            body = self.lists[rank].pop()
            self.lists[rank][-1].extend(body * times)


RANKS = 3
SCOPES: tuple[tuple[int, ...], ...] = ((0, 1, 2), (0,), (1,), (2,), (0, 2))


def scoped(program: Program, scope: tuple[int, ...]) -> Any:
    if len(scope) == RANKS:
        return program
    return program[scope[0]] if len(scope) == 1 else program.group(scope)


tree = st.recursive(
    st.tuples(st.sampled_from(SCOPES)),
    lambda children: st.tuples(
        st.sampled_from(SCOPES), st.integers(-1, 3), st.lists(children, max_size=4)
    ),
    max_leaves=14,
)


@settings(max_examples=200)
@given(st.lists(tree, max_size=6))
def test_every_rank_does_what_it_was_told(trees: list[Any]) -> None:
    program, model, count = Program(RANKS), Model(RANKS), 0
    queue = program.arrivals(Poisson(rate=1, count=9))

    def build(node: Any) -> None:
        nonlocal count
        scope, builder = node[0], scoped(program, node[0])
        if len(node) == 1:
            name = f"m{count}"
            count += 1
            builder.mark(name)
            model.mark(scope, name)
            return
        times = node[1]
        model.begin(scope)
        # -1: a loop that serves; its requests are counted over the whole run, so only at the top.
        serves = times == -1 and not program._loops
        with builder.serve(queue) if serves else builder.loop(abs(times)):
            for child in node[2]:
                build(child)
        model.end(scope, 0 if serves else abs(times))

    for node in trees:
        build(node)
    program.done(queue)
    trace = program.trace()
    for rank in range(RANKS):
        assert marks(trace, rank) == model.lists[rank][0], trace.dump(rank)


def test_a_shared_serving_loop_is_copied_with_its_take() -> None:
    program = Program(2)
    queue = program.arrivals(ClosedLoop(clients=2, count=5))
    with program.serve(queue):
        program.mark("all")
        program[1].mark("one")
        program.done(queue)
    trace = program.trace()
    assert marks(trace, 0, requests=3) == ["all"] * 3
    assert marks(trace, 1, requests=2) == ["all", "one"] * 2


def test_what_all_ranks_do_is_stored_once() -> None:
    program = Program(65_536)
    with program.loop(1000):
        program.compute(flops="1 GFLOP")
        program.all_reduce(bytes="1 MiB")
    trace = program.trace()
    assert len(trace.ops) == 4
    assert trace.begin.tolist() == [0] * 65_536
    assert trace.end.tolist() == [4] * 65_536
    assert not program._states


def test_equal_ranks_share_a_range() -> None:
    program = Program(100)
    for rank in range(100):
        with program[rank].loop(3):
            program[rank].compute(seconds=1.0 + rank % 2)
    trace = program.trace()
    assert len(trace.ops) == 6
    assert len(set(zip(trace.begin.tolist(), trace.end.tolist(), strict=True))) == 2
    assert np.diff(trace.end - trace.begin).tolist() == [0] * 99


def test_a_rank_alone_flushes_a_call() -> None:
    program = Program(2)
    program.compute(seconds=1)
    program.compute(seconds=2)
    program[1].compute(seconds=3)
    program.compute(seconds=4)
    trace = program.trace()
    kinds = trace.ops["kind"][int(trace.begin[1]) : int(trace.end[1])].tolist()
    assert kinds == [OpKind.CALL, OpKind.DELAY, OpKind.CALL]
    assert [int(op["a"]) for op in execute(trace, 1)] == [
        10**12,
        2 * 10**12,
        3 * 10**12,
        4 * 10**12,
    ]
    assert [int(op["a"]) for op in execute(trace, 0)] == [10**12, 2 * 10**12, 4 * 10**12]


def test_compiling_does_not_end_a_program() -> None:
    program = Program(2)
    program[0].mark("a")
    assert marks(program.trace(), 0) == ["a"]
    program.mark("b")
    program[0].mark("c")
    assert marks(program.trace(), 0) == ["a", "b", "c"]
    assert marks(program.trace(), 1) == ["b"]
    assert program.trace() == program.trace()


def test_groups_and_size_tables_are_kept_once() -> None:
    program = Program(4)
    group = program.group([2, 1])
    assert program.group((2, 1)) is group
    assert program.group(range(4)).number == 0
    program.all_to_all([[1, 2], [3, 4]], group=group)
    program.all_to_all(np.array([[1, 2], [3, 4]]), group=[2, 1])
    program.all_to_all(np.eye(4, dtype=np.int32))
    trace = program.trace()
    assert trace.group_offsets.tolist() == [0, 4, 6]
    assert trace.group_members.tolist() == [0, 1, 2, 3, 2, 1]
    assert trace.size_offsets.tolist() == [0, 4]
    assert trace.sizes.tolist() == [1, 2, 3, 4, *np.eye(4, dtype=int).ravel().tolist()]
    assert trace.begin[0] != trace.begin[1]
    assert (trace.begin[1], trace.end[1]) == (trace.begin[2], trace.end[2])


def test_a_slot_is_used_again_once_it_was_waited_for() -> None:
    program = Program(2)
    rank = program[0]
    a, b = rank.isend(1, 1), rank.isend(1, 1)
    rank.wait(b)
    c = rank.isend(1, 1)
    everyone = program.all_reduce(8, async_op=True)
    rank.wait(everyone, a, c)
    assert (a.slot, b.slot, c.slot, everyone.slot) == (0, 2, 2, 1)
    assert program.all_reduce(8, async_op=True).slot == 3, "rank 1 still waits for slot 1"
    program[1].wait(everyone)
    assert program.all_reduce(8, async_op=True).slot == 1


def test_handles_of_a_group_fit_every_member() -> None:
    program = Program(3)
    mine = program[1].irecv(0)
    ours = program.group([1, 2]).all_reduce(8, async_op=True)
    assert (mine.slot, ours.slot) == (0, 2)
    program[1].wait(ours)
    program[2].wait(ours)
    assert program[2].irecv(0).slot == 0


def test_a_stream_may_wait_for_a_handle_that_the_rank_waits_for_too() -> None:
    program = Program(2)
    handle = program[0].irecv(1)
    program[0].wait(handle, stream=1)
    program[0].wait(handle, stream=2)
    program[0].wait(handle)
    streams = program.trace().ops["stream"].tolist()
    assert streams == [0, 1, 2, 0]


def test_a_stream_need_not_wait_for_what_the_rank_waited_for() -> None:
    program = Program(2)
    handle = program[0].irecv(1)
    program[0].wait(handle)
    other = program[0].irecv(1)
    assert other.slot == handle.slot
    program[0].wait(handle, stream=1)
    assert program.trace().ops["stream"].tolist() == [0, 0, 0]
    everyone = program.all_reduce(8, async_op=True)
    program[1].wait(everyone)
    with pytest.raises(ProgramError, match="has been waited for already"):
        program.wait(everyone, stream=1)


def test_the_group_of_all_ranks_is_the_program() -> None:
    program = Program(1000)
    program.group(range(1000)).compute(seconds=1)
    program.group(range(1000)).barrier()
    assert len(program.trace().ops) == 2
    assert program.group(range(1000)).ranks == tuple(range(1000))


def test_handles_may_cross_a_loop_that_does_not_wait_for_them() -> None:
    program = Program(2)
    early = program[0].irecv(1)
    with program[0].loop(3):
        inside = program[0].isend(1, 4)
        program[0].wait(early, stream=1)
        program[0].wait(inside)
        program[0].isend(1, 4, stream=1)
        program[0].synchronize(1)
        program[0].all_reduce(4, async_op=True)
        program[0].synchronize()
        program[0].irecv(1)
        program[0].wait_all()
    with program[0].loop(1):
        program[0].isend(1, 2)


def test_programs_print_for_people() -> None:
    program = Program(2)
    queue = program.arrivals(Poisson(rate=1, count=5), name="chat")
    with program.loop(3):
        program.compute(flops="2 GFLOP")
        program[0].send(1, "4 KiB", tag=2)
    with program[0].serve(queue):
        program[0].compute(seconds="3 ms")
        program[0].done(queue)
    assert repr(program) == "<Program of 2 ranks: 3 ops of all, 1 ranks with ops of their own>"
    assert program.dump(0) == (
        "rank 0:\n"
        "  3 times:\n"
        "    compute 2 GFLOP, 0 B of memory traffic\n"
        "    send 4 KiB to rank 1 (tag 2)\n"
        "  until the queue is empty:\n"
        "    take a request of 'chat'\n"
        "    compute 3 ms\n"
        "    answer the request of 'chat'"
    )
    assert program.dump(1) == ("rank 1:\n  3 times:\n    compute 2 GFLOP, 0 B of memory traffic")
    assert "queue 'chat': 5 requests" in program.describe()
    trace = program.trace()
    assert [trace.describe_op(i) for i in range(len(trace.ops))].count(
        "send 4 KiB to rank 1 (tag 2)"
    ) == 1
    assert ENDLESS in trace.ops["a"]
