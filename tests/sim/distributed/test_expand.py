"""Traces of all ranks, laid out from one rank a class."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from leeboard.sim import Device, Platform, Program, run
from leeboard.sim.distributed.expand import expand
from leeboard.sim.distributed.mesh import FoldError, Mesh
from leeboard.sim.distributed.witness import check
from leeboard.sim.ops import OpKind


def _platform(ranks: int) -> Platform:
    return Platform.star(
        ranks, bandwidth="10 Gbit/s", latency="5 us", device=Device(flops="1 TFLOP/s")
    )


def _own(program: Program, rank: int) -> Any:
    """What a rank does, straight on."""
    trace = program.trace()
    parts = []
    for op in trace.ops[int(trace.begin[rank]) : int(trace.end[rank])]:
        call = op["kind"] == OpKind.CALL
        parts.append(trace.ops[int(op["a"]) : int(op["b"])] if call else op.reshape(1))
    return np.concatenate(parts)


def _groups(program: Program) -> list[list[int]]:
    trace = program.trace()
    bounds = trace.group_offsets[1:].tolist()
    return [trace.group_members[a:b].tolist() for a, b in itertools.pairwise(bounds)]


def _pipeline(dp: int, pp: int, tp: int) -> Program:
    """Every rank, written out: a pipeline of tensor-parallel stages, and replicas of it."""
    program = Program(dp * pp * tp)
    at = lambda d, p, t: (d * pp + p) * tp + t
    for d in range(dp):
        for p in range(pp):
            team = program.group([at(d, p, t) for t in range(tp)])
            for t in range(tp):
                if p > 0:
                    program[at(d, p, t)].recv(at(d, p - 1, t), bytes=4096)
            for _ in range(3):
                for t in range(tp):
                    program[at(d, p, t)].compute(flops=1e6 * (p + 1))
                    program[at(d, p, t)].compute(flops=2e6)
                team.all_reduce(bytes=1 << 16)
            for t in range(tp):
                if p < pp - 1:
                    program[at(d, p, t)].send(at(d, p + 1, t), bytes=4096)
    for p in range(pp):
        for t in range(tp):
            replicas = program.group([at(d, p, t) for d in range(dp)])
            handle = replicas.all_reduce(bytes=1 << 20, async_op=True)
            replicas.compute(flops=5e6)
            replicas.wait(handle)
            replicas.broadcast(bytes=3000, root=at(1, p, t))
    program.barrier()
    return program


def _ring(size: int) -> Program:
    """A ring along one axis: partners around its end."""
    program = Program(size)
    for me in range(size):
        sent = program[me].isend((me + 1) % size, bytes=5000 + 0 * me)
        program[me].recv((me - 1) % size)
        program[me].wait(sent)
        program[me].compute(flops=1e6)
    return program


CASES: dict[str, tuple[str, Callable[[], Program]]] = {
    "pipeline": ("dp=2 pp=3* tp=4", lambda: _pipeline(2, 3, 4)),
    "replicas": ("dp=4 rest=6*", lambda: _pipeline(4, 3, 2)),
    "ring": ("ring=8", lambda: _ring(8)),
    "nothing": ("all=8*", lambda: _ring(8)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_trace_is_that_of_all_ranks_written_out(case: str) -> None:
    text, build = CASES[case]
    mesh, program = Mesh.parse(text), build()
    whole = program.trace()
    trace = expand(mesh, {r: _own(program, r) for r in mesh.classes}, _groups(program))
    assert trace.stats() == whole.stats()
    platform = _platform(mesh.ranks)
    folded, written = run(trace, platform, seed=3), run(whole, platform, seed=3)
    assert folded.makespan == written.makespan
    assert folded.event_hash == written.event_hash


def test_what_is_computed_between_communications_is_stored_once() -> None:
    program = Program(32)
    for me in range(32):
        for _ in range(20):
            for _ in range(25):
                program[me].compute(flops=1e6)
            sent = program[me].isend((me + 8) % 32, bytes=10)
            program[me].recv((me - 8) % 32)
            program[me].wait(sent)
    mesh = Mesh.parse("pp=4 tp=8")
    trace = expand(mesh, {0: _own(program, 0)})
    assert trace.stats() == program.trace().stats()
    # A stretch of 25, one of 26 with the wait before it; send, receive and a call a round and rank.
    assert len(trace.ops) < 32 * 20 * 3 + 32 * 2 + 100


def test_groups_that_are_made_twice_stay_apart() -> None:
    groups = [[0, 1, 2, 3], [0, 1, 2, 3], [0, 2]]
    program = Program(4)
    program.all_reduce(bytes=8)
    own = np.concatenate([_own(program, 0)] * 3)
    own["tag"] = [1, 2, 0]
    trace = expand(Mesh.parse("a=4"), {0: own}, groups)
    assert len(trace.group_offsets) - 1 == 3
    assert trace.group_members.tolist() == [0, 1, 2, 3] * 3


@pytest.mark.parametrize(
    ("kind", "fields"),
    [("loop", {"kind": OpKind.LOOP}), ("call", {"kind": OpKind.CALL})],
)
def test_lists_hold_no_loops_and_calls(kind: str, fields: dict[str, int]) -> None:
    program = Program(2)
    program.compute(seconds=1)
    own = _own(program, 0).copy()
    for name, value in fields.items():
        own[name] = value
    with pytest.raises(FoldError, match=rf"rank 0 \(a=0\) hold a {kind}"):
        expand(Mesh.parse("a=2"), {0: own})


def test_every_class_must_be_there() -> None:
    with pytest.raises(FoldError, match=r"no ops of rank 2 \(a=1 b=0\)"):
        expand(Mesh.parse("a=2* b=2"), {0: _own(_ring(2), 0)})


def test_a_mesh_is_read() -> None:
    mesh = Mesh.parse("dp=2 pp=3* tp=4")
    assert mesh.ranks == 24
    assert str(mesh) == "dp=2 pp=3* tp=4"
    assert mesh.classes == (0, 4, 8)
    assert mesh.copies == (0, 1, 2, 3, 12, 13, 14, 15)
    assert mesh.shift([0, 7, 23], 13).tolist() == [13, 16, 8]
    assert mesh.unshift(mesh.shift(range(24), 15), 15).tolist() == list(range(24))
    assert mesh.describe(17) == "rank 17 (dp=1 pp=1 tp=1)"
    assert mesh.witnesses("one") == (15,)
    assert Mesh.parse("all=8*").witnesses("all") == ()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("dp=8 tp", "got 'tp' in 'dp=8 tp'"),
        ("dp=8 dp=2", "axis 'dp' is given twice"),
        ("", "expected axes with 1 to"),
        ("dp=0 tp=2", "expected axes with 1 to"),
        ("dp=8**", r"got 'dp=8\*\*'"),
    ],
)
def test_a_mesh_that_does_not_read(text: str, match: str) -> None:
    with pytest.raises(FoldError, match=match):
        Mesh.parse(text)


def test_groups_that_copies_disagree_on_are_refused() -> None:
    mesh = Mesh.parse("dp=2 tp=4")
    mesh.check_group("all", range(8))
    mesh.check_group("tp", [4, 5, 6, 7])
    mesh.check_group("every other", [0, 2])
    with pytest.raises(FoldError, match=r"group 'pair' of ranks 0, 1 .* Split the axis in two"):
        mesh.check_group("pair", [0, 1])
    Mesh.parse("tp_far=2 tp=2").check_group("pair", [0, 1])


def _changed(field: str, at: int, value: int) -> dict[int, Any]:
    program = _pipeline(2, 3, 4)
    lists = {rank: _own(program, rank).copy() for rank in (0, 15)}
    lists[15][field][at] = value
    return lists


def test_a_witness_that_does_the_same_is_heard() -> None:
    program = _pipeline(2, 3, 4)
    mesh = Mesh.parse("dp=2 pp=3* tp=4")
    for rank in range(24):
        home = int(mesh.representatives[rank])
        check(mesh, rank, {r: _own(program, r) for r in (home, rank)}, _groups(program))


@pytest.mark.parametrize(
    ("field", "at", "value", "text"),
    [
        (
            "a",
            0,
            5,
            "Op 0 of rank 15: compute of 5 flops and 0 bytes; of rank 0: compute of 1000000",
        ),
        ("peer", 9, 3, "Op 9 of rank 15: send to rank 3, .* which there would be: send to rank 19"),
        (
            "tag",
            2,
            1,
            "among ranks 0, 1, 2, 3; .* which there would be: all_reduce .* ranks 12, 13",
        ),
    ],
)
def test_a_witness_that_does_not(field: str, at: int, value: int, text: str) -> None:
    mesh = Mesh.parse("dp=2 pp=3* tp=4")
    groups = _groups(_pipeline(2, 3, 4))
    with pytest.raises(FoldError, match=text) as raised:
        check(mesh, 15, _changed(field, at, value), groups)
    assert "(dp=1 pp=0 tp=3) does not do what rank 0 (dp=0 pp=0 tp=0)" in str(raised.value)
    assert str(raised.value).endswith("distinct (*): dp=2* tp=4*")


def test_a_witness_that_stops_early() -> None:
    lists = _changed("a", 0, 0)
    lists[15] = lists[15][:-1]
    mesh, groups = Mesh.parse("dp=2 pp=3* tp=4"), _groups(_pipeline(2, 3, 4))
    lists[15]["a"][0] = lists[0]["a"][0]
    with pytest.raises(FoldError, match="rank 15: the end; of rank 0: barrier of 0 bytes"):
        check(mesh, 15, lists, groups)
