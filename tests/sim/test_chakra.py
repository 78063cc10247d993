"""Chakra execution traces: graphs become programs that keep dependencies and overlap."""

from __future__ import annotations

import gzip
import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("google.protobuf")

import chakra_files as chakra
from chakra_files import collective, compute, recv, send
from leeboard.sim import Platform, Result, run
from leeboard.sim.chakra import load_chakra
from leeboard.sim.trace import Trace, TraceError

MIB = 2**20


def simulate(trace: Trace) -> Result:
    star = Platform.star(trace.ranks, bandwidth="8 Gbit/s", latency="10 us")
    return run(trace, star, network="alpha-beta")


def lines(trace: Trace, rank: int) -> list[str]:
    return [line.strip() for line in trace.dump(rank).splitlines()[1:]]


def test_computing_costs_work_or_what_was_recorded(tmp_path: Path) -> None:
    nodes = [
        compute(1, micros=5),
        compute(2, micros=5, num_ops=10**9, tensor_size=4096),
        compute(3, micros=0),
        chakra.node(4, 2, tensor_size=MIB),
        chakra.node(5, 0),
    ]
    path = chakra.write(tmp_path, nodes)
    assert lines(load_chakra(path), 0) == [
        "compute 5 us",
        "compute 1 GFLOP, 4 KiB of memory traffic",
        "compute 0 FLOP, 1 MiB of memory traffic",
    ]
    assert lines(load_chakra(path, costs="recorded"), 0)[:2] == ["compute 5 us", "compute 5 us"]
    assert lines(load_chakra(path, costs="work"), 0)[0].startswith("compute 1 GFLOP")
    with pytest.raises(ValueError, match="costs: got 'x'"):
        load_chakra(path, costs="x")  # type: ignore[arg-type]


def test_communication_overlaps_computing(tmp_path: Path) -> None:
    """A backward pass: the reduction of each layer runs while the next one computes."""
    layers = 4
    nodes = []
    for layer in range(layers):
        deps = [10 * layer] if layer else []
        nodes.append(compute(10 * (layer + 1), deps, micros=3000))
        nodes.append(collective(10 * (layer + 1) + 1, chakra.ALL_REDUCE, MIB, [10 * (layer + 1)]))
    nodes.append(compute(99, [10 * (k + 1) + 1 for k in range(layers)], micros=1000))
    trace = load_chakra(chakra.write(tmp_path, nodes, nodes))
    reduction = 2 * (MIB / 2 / 1e9 + 10e-6)
    assert simulate(trace).makespan == pytest.approx(layers * 3e-3 + reduction + 1e-3, rel=1e-6)


def test_a_pipeline(tmp_path: Path) -> None:
    """Micro-batches through two stages: rank 0 goes on while what it sent travels."""
    first, second = [], []
    for k in range(3):
        first += [compute(2 * k, micros=2000), send(2 * k + 1, 1, MIB, [2 * k], tag=k)]
        second += [recv(2 * k, 0, MIB, tag=k), compute(2 * k + 1, [2 * k], micros=1000)]
    trace = load_chakra(chakra.write(tmp_path, first, second))
    travel = MIB / 1e9 + 10e-6
    assert simulate(trace).makespan == pytest.approx(3 * 2e-3 + travel + 1e-3, rel=1e-6)


def test_independent_chains_do_not_lock_each_other(tmp_path: Path) -> None:
    """In the order of their ids, both ranks would first wait for what the other sends later."""
    one = [recv(1, 1, 8), compute(2, [1], micros=10), compute(3, micros=10), send(4, 1, 8, [3])]
    other = [recv(1, 0, 8), compute(2, [1], micros=10), compute(3, micros=10), send(4, 0, 8, [3])]
    trace = load_chakra(chakra.write(tmp_path, one, other))
    assert simulate(trace).makespan == pytest.approx(10e-6 + 10e-6 + 8e-9 + 10e-6, rel=1e-3)


def test_communication_after_communication_waits_beside_the_rank(tmp_path: Path) -> None:
    """A relay: rank 1 passes on what it receives, and computes all the while."""
    nodes = (
        [send(1, 1, MIB)],
        [recv(1, 0, MIB), send(2, 2, MIB, [1]), compute(3, micros=100)],
        [recv(1, 1, MIB), compute(2, [1], micros=50)],
    )
    trace = load_chakra(chakra.write(tmp_path, *nodes))
    travel = MIB / 1e9 + 10e-6
    result = simulate(trace)
    assert result.makespan == pytest.approx(2 * travel + 50e-6, rel=1e-6)
    assert result.ranks["compute"][1] == pytest.approx(100e-6)


def test_what_depends_on_a_late_receive_waits_for_both(tmp_path: Path) -> None:
    """A receive may be posted early; who uses it still waits for what the receive waits for."""
    nodes = (
        [compute(1, micros=9000), send(2, 1, 8, [1], tag=1), send(3, 1, 8, tag=2)],
        [recv(1, 0, 8, tag=1), recv(2, 0, 8, [1], tag=2), compute(3, [2], micros=1000)],
    )
    trace = load_chakra(chakra.write(tmp_path, *nodes))
    assert simulate(trace).makespan == pytest.approx(10e-3, rel=1e-2)


def test_collectives_and_groups(tmp_path: Path) -> None:
    pairs = '[{"pg_name": "7", "ranks": [0, 2]}, {"pg_name": "8", "ranks": [1, 3]}]'
    kinds = [
        chakra.ALL_REDUCE,
        chakra.ALL_GATHER,
        chakra.REDUCE_SCATTER,
        chakra.ALL_TO_ALL,
        chakra.BROADCAST,
    ]
    ranks = []
    for rank in range(4):
        nodes = [chakra.groups(1, f"['{pairs}']")]
        nodes += [
            collective(2 + k, kind, 4096, involved_dim=[True]) for k, kind in enumerate(kinds)
        ]
        nodes.append(
            collective(20, chakra.REDUCE, 64, pg_name=str(7 + rank % 2), root_rank=2 + rank % 2)
        )
        nodes.append(collective(21, chakra.GATHER, 64, pg_name="mine"))
        nodes.append(collective(22, chakra.BARRIER, 0, pg_name="0"))
        ranks.append(nodes)
    path = chakra.write(tmp_path, *ranks)
    trace = load_chakra(path, groups={"mine": [3, 2, 1, 0]})
    stats = trace.stats()
    assert stats.collectives == {
        **dict.fromkeys(("all_reduce", "all_gather", "reduce_scatter", "broadcast"), 4),
        **dict.fromkeys(("reduce", "gather", "all_to_all", "barrier"), 4),
    }
    offsets = trace.group_offsets.tolist()
    members = [trace.group_members[a:b].tolist() for a, b in itertools.pairwise(offsets[1:])]
    assert sorted(members) == [[0, 2], [1, 3], [3, 2, 1, 0]]
    text = " ".join(lines(trace, 0))
    assert "reduce 64 B, root 2 (group" in text
    assert "gather 64 B, root 3 (group" in text
    simulate(trace)


def test_files_are_found_by_prefix_by_one_of_them_or_by_name(tmp_path: Path) -> None:
    path = chakra.write(tmp_path, *[[compute(1, micros=rank + 1)] for rank in range(11)])
    trace = load_chakra(path)
    assert lines(trace, 10) == ["compute 11 us"]
    assert load_chakra(f"{path}.3.et") == trace
    assert load_chakra([f"{path}.{rank}.et" for rank in range(11)]) == trace
    packed = gzip.compress((tmp_path / "trace.0.et").read_bytes())
    (tmp_path / "zipped.0.et.gz").write_bytes(packed)
    assert lines(load_chakra(tmp_path / "zipped"), 0) == ["compute 1 us"]
    (tmp_path / "trace.4.et").unlink()
    with pytest.raises(TraceError, match=r"trace\.4\.et: missing, and there are 10 files"):
        load_chakra(path)
    with pytest.raises(FileNotFoundError, match=r"there is no nothing\.0\.et"):
        load_chakra(tmp_path / "nothing")


def with_ctrl(node: Any, *deps: int) -> Any:
    node.ctrl_deps.extend(deps)
    return node


BROKEN: list[tuple[Callable[[], list[list[Any]]], str]] = [
    (lambda: [[compute(1, [9])]], r"rank 0, node 1 \('n1'\) depends on node 9, which is missing"),
    (lambda: [[with_ctrl(compute(1), 9)]], "depends on node 9, which is missing"),
    (lambda: [[compute(1), compute(1)]], "this id is there twice"),
    (
        lambda: [[compute(1, [3]), compute(2, [1]), with_ctrl(compute(3), 2)]],
        r"node 1 \('n1'\) depends on itself: 1 <- 3 <- 2 <- 1",
    ),
    (lambda: [[compute(1, [1])]], "depends on itself: 1 <- 1"),
    (lambda: [[chakra.node(1, 8)]], "STORAGE_NODE is not supported"),
    (lambda: [[chakra.node(1, 77)]], "unknown type 77"),
    (lambda: [[chakra.node(1, -1)]], "unknown type -1"),
    (lambda: [[chakra.node(1, 7, comm_type=10)]], "unknown collective 10"),
    (lambda: [[chakra.node(1, 7)]], "it has no attribute comm_type"),
    (lambda: [[chakra.node(1, 7, comm_type=0)]], "it has no attribute comm_size"),
    (lambda: [[chakra.node(1, 5, comm_size=3)]], "it has no attribute comm_dst"),
    (lambda: [[chakra.node(1, 5, comm_size="x", comm_dst=0)]], "comm_size is 'x', expected a"),
    (lambda: [[chakra.node(1, 5, comm_size=-1.5, comm_dst=0)]], "comm_size is -1.5"),
    (lambda: [[chakra.node(1, 2)]], "it has no attribute tensor_size"),
    (lambda: [[send(1, 3, 8)]], "peer 3, of 1 ranks"),
    (lambda: [[send(1, 1, 8)], []], "rank 0 sends 1 messages of tag 0 to rank 1, which receives 0"),
    (lambda: [[collective(1, 0, 8)], []], "not all ranks of its group call as many"),
    (
        lambda: [[collective(1, 0, 8)], [collective(1, 0, 9)]],
        "is all_reduce of 9 bytes, and rank 0",
    ),
    (lambda: [[collective(1, 0, 8, pg_name="5")]], "unknown group '5'; known: none"),
    (lambda: [[collective(1, 0, 8, involved_dim=[True, False])]], "involved_dim leaves"),
    (lambda: [[collective(1, 5, 8, root_rank=4)]], "root 4 is not in its group"),
    (lambda: [[chakra.groups(1, '["[{"pg_name": 3}]"]')]], "unreadable process groups"),
    (
        lambda: [
            [
                chakra.groups(1, '[{"pg_name": "1", "ranks": [1]}]'),
                collective(2, 0, 8, pg_name="1"),
            ],
            [],
        ],
        r"group '1' of ranks \[1\]",
    ),
    (
        lambda: [
            [recv(1, 1, 8), send(2, 1, 8, [1])],
            [recv(1, 0, 8), send(2, 0, 8, [1])],
        ],
        "ranks wait for each other in a circle",
    ),
]


@pytest.mark.parametrize(("build", "message"), BROKEN, ids=[m for _, m in BROKEN])
def test_mistakes_are_named(
    tmp_path: Path, build: Callable[[], list[list[Any]]], message: str
) -> None:
    with pytest.raises(TraceError, match=message):
        load_chakra(chakra.write(tmp_path, *build()))


def test_random_graphs_run(tmp_path: Path) -> None:
    """Graphs cut from a random history of four ranks: they load, and run to the end."""
    for seed in range(20):
        draw = random.Random(seed)
        ranks: list[list[Any]] = [[] for _ in range(4)]
        numbers = [0] * 4

        def deps(rank: int, draw: random.Random = draw, numbers: list[int] = numbers) -> list[int]:
            count = min(numbers[rank], draw.randint(0, 3))
            return draw.sample(range(1, numbers[rank] + 1), count)

        def new(rank: int, numbers: list[int] = numbers) -> int:
            numbers[rank] += 1
            return numbers[rank]

        for _ in range(60):
            kind = draw.randrange(3)
            rank, other = draw.sample(range(4), 2)
            if kind == 0:
                d = deps(rank)
                ranks[rank].append(compute(new(rank), d, micros=draw.randint(0, 90)))
            elif kind == 1:
                size, tag = draw.choice((8, 10**6)), draw.randrange(2)
                d, e = deps(rank), deps(other)
                ranks[rank].append(send(new(rank), other, size, d, tag))
                ranks[other].append(recv(new(other), rank, size, e, tag))
            else:
                for member in range(4):
                    d = deps(member)
                    ranks[member].append(collective(new(member), chakra.ALL_REDUCE, 1000, d))
        trace = load_chakra(chakra.write(tmp_path, *ranks, name=f"t{seed}"))
        for protocol in ("ideal", "gloo"):
            star = Platform.star(4, bandwidth="1 Gbit/s", latency="5 us", protocol=protocol)
            assert run(trace, star).makespan > 0
