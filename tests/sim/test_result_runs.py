"""Results of real runs: what they say adds up, and agrees with what can be worked out by hand."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leeboard.sim import ArrivalTimes, Device, Platform, Program, Result, run
from leeboard.sim.records import Kind
from trace_format import query, read

NETWORKS = ("flow", "alpha-beta")


def star(ranks: int, **options: Any) -> Platform:
    """1 Gbit/s and 100 us: 1,000,000 bytes take 8.1 ms."""
    return Platform.star(ranks, bandwidth="1 Gbit/s", latency="100 us", **options)


def parts(result: Result) -> list[tuple[str, int, float]]:
    return [(s.what, s.rank, round(1e3 * s.duration, 6)) for s in result.critical_path]


@pytest.mark.parametrize("network", NETWORKS)
def test_the_critical_path_goes_from_rank_to_rank(network: Any) -> None:
    program = Program(3)
    program.compute(seconds="1 ms")
    program[0].compute(seconds="2 ms")
    program[0].send(1, bytes=1_000_000)
    program[1].recv(0)
    program[1].compute(seconds="5 ms")
    program[1].send(2, bytes=500_000)
    program[2].compute(seconds="4 ms")
    program[2].recv(1)
    result = run(program, star(3), network=network)
    expected = [
        ("compute", 0, 1.0),
        ("compute", 0, 2.0),
        ("message", 0, 8.1),
        ("compute", 1, 5.0),
        ("message", 1, 4.1),
    ]
    assert parts(result) == expected
    totals = result.critical_path.totals()
    assert totals["compute"] == pytest.approx(8e-3)
    assert totals["transfer"] == pytest.approx(12.2e-3)
    assert totals["contention"] == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("network", NETWORKS)
def test_two_senders_contend_for_one_receiver(network: Any) -> None:
    program = Program(3)
    for rank in (1, 2):
        program[rank].send(0, bytes=1_000_000)
        program[0].recv(rank)
    result = run(program, star(3), network=network)
    assert result.makespan == pytest.approx(16.1e-3)
    (segment,) = result.critical_path
    assert segment.ideal == pytest.approx(8.1e-3)
    assert segment.contention == pytest.approx(8e-3)


def test_a_late_receiver_is_waited_for() -> None:
    """gloo's messages leave when the receiver has said so: its compute, then the word of it."""
    program = Program(2)
    program[0].send(1, bytes=1_000_000)
    program[1].compute(seconds="3 ms")
    program[1].recv(0)
    result = run(program, star(2, protocol="gloo"))
    path = result.critical_path
    assert [(s.what, s.rank) for s in path[:2]] == [("compute", 1), ("handshake", 0)]
    assert path[1].duration == pytest.approx(100e-6)
    assert path[-1].end == result.makespan


def test_computing_beside_communication_is_not_communication() -> None:
    program = Program(2)
    program[0].send(1, bytes=1_000_000, stream=1)
    program[0].compute(seconds="5 ms")
    program[0].synchronize(1)
    program[1].recv(0)
    result = run(program, star(2, protocol="gloo"))
    row = result.ranks.row(0)
    assert row["compute"] == pytest.approx(5e-3)
    assert row["communication"] == pytest.approx(row["finish"] - 5e-3)
    # What is on the path is the transfer, not the compute beside it.
    assert result.critical_path.totals()["compute"] == 0


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_run_adds_up(data: st.DataObject) -> None:
    ranks = data.draw(st.integers(2, 5), label="ranks")
    protocol = data.draw(st.sampled_from(["ideal", "gloo", "mpi"]), label="protocol")
    network = data.draw(st.sampled_from(NETWORKS), label="network")
    program = Program(ranks)
    for _ in range(data.draw(st.integers(1, 8), label="steps")):
        rank = data.draw(st.integers(0, ranks - 1), label="rank")
        step = data.draw(st.sampled_from(["compute", "message", "collective", "stream"]))
        size = data.draw(st.integers(1, 300_000), label="bytes")
        if step == "compute":
            program[rank].compute(seconds=size * 1e-8)
        elif step == "message":
            program[rank].send((rank + 1) % ranks, bytes=size)
            program[(rank + 1) % ranks].recv(rank)
        elif step == "collective":
            program.all_reduce(bytes=size)
        else:
            program.all_gather(bytes=size, stream=1)
            program.compute(seconds=1e-4)
            program.synchronize(1)
    device = Device(idle_power=3.0, active_power=7.0)
    result = run(program, star(ranks, protocol=protocol, device=device), network=network)
    table = result.ranks
    assert result.makespan == table["finish"].max()
    total = table["compute"] + table["communication"] + table["idle"]
    np.testing.assert_allclose(total, result.makespan, rtol=1e-9)
    assert table["sent"].sum() == table["received"].sum()
    expected = 3.0 * result.makespan * ranks + 4.0 * table["compute"].sum()
    assert result.energy == pytest.approx(expected)
    path = result.critical_path
    if not len(path):
        assert result.makespan == 0
        return
    assert path[0].start == 0
    assert path[-1].end == result.makespan
    assert all(a.end == b.start for a, b in itertools.pairwise(path))
    assert sum(path.totals().values()) == pytest.approx(result.makespan)
    # Something is always going on: nothing on the path is left unexplained.
    assert all(segment.what != "nothing recorded" for segment in path)
    # Every message went over two links.
    if network == "flow" and protocol == "ideal":
        assert result.links["bytes"].sum() == pytest.approx(2 * table["sent"].sum())


def test_requests_and_memory_of_a_run(tmp_path: Path) -> None:
    program = Program(1)
    queue = program.arrivals(ArrivalTimes([0.0, 0.001, 0.010]), name="asked")
    with program[0].serve(queue):
        program[0].compute(seconds="2 ms")
        program[0].done(queue)
    program[0].alloc("3 MiB")
    result = run(program, star(1, device=Device(memory="2 MiB")))
    row = result.requests.row(0)
    assert (row["queue"], row["count"], row["unanswered"]) == ("asked", 3, 0)
    np.testing.assert_allclose(result.queues[0].latency, [2e-3, 3e-3, 2e-3])
    np.testing.assert_allclose(result.queues[0].waiting, [0, 1e-3, 0])
    (event,) = result.out_of_memory
    assert (event.rank, event.requested, event.limit) == (0, 3 << 20, 2 << 20)
    result.to_json(tmp_path / "result.json")
    assert str(Result.load(tmp_path / "result.json")) == str(result)
    assert [s.what for s in result.critical_path].count("waiting for a request") == 1


def test_perfetto_reads_a_run_whole(tmp_path: Path) -> None:
    """Streams, collectives, loops, eager and rendezvous: no slice or arrow is lost."""
    program = Program(4)
    program.mark("step")
    with program.loop(20):
        program.compute(seconds="300 us")
        program.all_reduce(bytes="1 MiB", stream=1)
        for rank in range(4):
            program[rank].isend((rank + 1) % 4, bytes=100)
            program[rank].irecv((rank - 1) % 4)
        program.wait_all()
    program.synchronize(1)
    result = run(program, star(4, protocol="mpi"), timeline=True)
    file = tmp_path / "run.json"
    result.to_perfetto(file)
    read(file)
    lost, flows, slices = query(
        file,
        "select name from stats where value > 0 and severity != 'info'",
        "select count(*) from flow",
        "select count(*) from slice where category in "
        "('compute', 'communication', 'collective', 'requests')",
    )
    assert lost == []
    kinds = result.records["kind"]
    assert flows == [[int((kinds == Kind.MESSAGE).sum())]]
    assert flows == [[result.messages]]
    assert slices == [[int((kinds <= Kind.COLLECTIVE).sum() + (kinds == Kind.SYNC).sum())]]
