"""What wildcards, requests, collectives, streams and faults do to one another."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pytest

from leeboard import sim
from leeboard.sim.result import Failure


def star(n: int, **parts: object) -> sim.Platform:
    return sim.Platform.star(n, **{"bandwidth": "1 MB/s", "latency": "1 ms", **parts})


@pytest.mark.parametrize("network", ["flow", "alpha-beta"])
def test_the_word_of_a_large_message_does_not_overtake_a_small_one(network: str) -> None:
    program = sim.Program(3)
    handles = [program[0].isend(1, bytes=n) for n in (2000, 50_000, 1000, 60_000)]
    program[0].wait(*handles)
    for most in (2000, 50_000, 1000, 60_000):
        program[1].recv(0, bytes=most)
    # A receive from anywhere: all of rank 1's are matched by arrival.
    program[2].send(1, bytes=0, tag=3)
    program[1].recv(None, tag=3)
    platform = star(3, protocol=sim.Protocol(eager_limit=2000))
    result = sim.run(program, platform, network=network)
    assert result.unmatched == 0
    assert result.ranks["received"][1] == 113_000
    receives = result.records[(result.records["kind"] == 3) & (result.records["rank"] == 1)]
    assert receives["end"][0] == 3_000_000_000


def test_messages_behind_one_on_its_way_are_matched_when_it_is_there() -> None:
    program = sim.Program(2)
    program[0].send(1, bytes=4000)
    program[0].send(1, bytes=10_000)
    program[1].recv()
    program[1].mark("first")
    program[1].recv()
    platform = star(2, protocol=sim.Protocol(eager_limit=4000))
    result = sim.run(program, platform)
    marks = result.records[result.records["kind"] == 7]
    # Its word has been there since 1 ms. Its bytes are asked for at 5 ms, when the first message
    # is there: a latency back, 10 ms of bytes, a latency.
    assert marks["end"].tolist() == [5_000_000_000]
    assert result.makespan == pytest.approx(17e-3, abs=2e-12)


def test_the_client_who_has_its_answer_first_asks_first() -> None:
    program = sim.Program(2)
    queue = program.arrivals(sim.ClosedLoop(clients=2, think=0, count=3), name="q")
    for rank, seconds in ((0, 10), (1, 1)):
        with program[rank].serve(queue):
            program[rank].compute(seconds=seconds)
            program[rank].done(queue)
    result = sim.run(program, star(2))
    assert result.queues[0].arrived.tolist() == [0, 0, 10**12]
    assert result.queues[0].latency.tolist() == [10, 1, 1]
    assert result.makespan == 10


def test_collectives_carry_no_requests() -> None:
    program = sim.Program(2)
    queue = program.arrivals(sim.Poisson(rate=1, count=40, seed=1), name="q")
    with program.loop(20):
        program.take(queue)
        program.all_reduce(bytes=8)
        program.done(queue)
    result = sim.run(program, star(2))
    assert result.requests["count"].tolist() == [40]
    assert result.requests["unanswered"].tolist() == [0]


@pytest.mark.parametrize("times", [2, 3, 4])
@pytest.mark.parametrize("slowed", [False, True])
def test_a_run_beyond_the_longest_time_says_so(times: int, slowed: bool) -> None:
    program = sim.Program(1)
    for _ in range(times):
        program.compute(seconds="100 d")
    platform = star(1)
    if slowed:
        platform = platform.with_faults(sim.Fault(device=0, at=1, factor=1e-9))
    with pytest.raises(sim.SimulationError, match="106 days"):
        sim.run(program, platform)


def test_a_wait_for_a_collective_says_which_and_who_is_missing() -> None:
    program = sim.Program(2)
    first = program.all_reduce(bytes=8, async_op=True)
    second = program[0].all_reduce(bytes=16, async_op=True)
    third = program[0].all_reduce(bytes=24, async_op=True)
    program.wait(first)
    program[0].wait(second)
    program[0].wait(third)
    with pytest.raises(sim.DeadlockError) as caught:
        sim.run(program, star(2))
    waits = [entry.waits_for for entry in caught.value.blocked if entry.stream == 0]
    assert len(waits) == 1
    assert waits[0].startswith("collective 1 of group 0 (all_reduce 16 B")
    assert waits[0].endswith("to which rank(s) 1 have not come")


def test_a_wait_for_a_collective_behind_another_says_which() -> None:
    program = sim.Program(2)
    program[0].all_reduce(bytes=16, async_op=True)
    last = program[0].all_reduce(bytes=24, async_op=True)
    program[0].wait(last)
    with pytest.raises(sim.DeadlockError, match=r"rank 0 waits for collective 1 of group 0"):
        sim.run(program, star(2))


def test_who_waits_for_a_stream_of_a_failed_device_has_failed() -> None:
    program = sim.Program(2)
    program[0].compute(seconds=2, stream=1)
    program[0].synchronize()
    program[1].compute(seconds=0.5)
    result = sim.run(program, star(2).with_faults(sim.Fault(device=0, at=1)))
    assert result.failures == (Failure(0, 1.0),)
    assert result.ranks["finish"].tolist() == [1.0, 0.5]
    assert result.makespan == 1.0


def test_what_streams_of_failed_devices_wait_for_is_no_deadlock() -> None:
    program = sim.Program(2)
    program.compute(seconds=2)
    handle = program[0].all_reduce(bytes=8, stream=1, async_op=True)
    program[0].wait(handle)
    faults = [sim.Fault(device=0, at=3), sim.Fault(device=1, at=1)]
    with pytest.raises(sim.DeadlockError) as caught:
        sim.run(program, star(2).with_faults(*faults))
    assert [(entry.rank, entry.stream) for entry in caught.value.blocked] == [(0, 0), (0, 1)]
    assert caught.value.failed == ((1, 1.0),)

    beside = sim.Program(2)
    beside[0].recv(1, stream=1)
    beside[0].compute(seconds=2)
    result = sim.run(beside, star(2).with_faults(sim.Fault(device=0, at=1)))
    assert result.failures == (Failure(0, 1.0),)


@pytest.mark.parametrize("latency", [0, "1 ms"])
def test_what_the_last_messages_carried_is_counted(latency: object) -> None:
    program = sim.Program(3)
    for rank in (0, 1):
        program[rank].send(2, bytes=1000)
        program[2].recv(rank)
    links = sim.run(program, star(3, latency=latency)).links
    assert links["bytes"].tolist() == pytest.approx([1000, 0, 1000, 0, 0, 2000])
    assert links["busy"].tolist() == pytest.approx([2e-3, 0, 2e-3, 0, 0, 2e-3])


def test_folding_changes_nothing_where_other_collectives_come_between() -> None:
    for seed in (65, 97, 154, *range(10)):
        draw = random.Random(seed)
        ranks = draw.choice([3, 4, 5, 8])
        program = sim.Program(ranks)
        for _ in range(draw.randint(2, 6)):
            for rank in range(ranks):
                length = draw.choice([0, 1e-3, 3e-3, 2e-2]) * draw.random()
                program[rank].compute(seconds=length)
            kind = draw.choice(["ring", "broadcast", "barrier"])
            if kind == "ring":
                size = draw.choice([10, 1000, 8000, 64_000])
                program.all_reduce(bytes=size, algorithm="ring")
            elif kind == "broadcast":
                size = draw.choice([1000, 64_000])
                program.broadcast(bytes=size, root=draw.randrange(ranks))
            else:
                program.barrier()
        protocol = sim.Protocol(
            eager_limit=draw.choice(["unlimited", 1000, 0]),
            handshake=draw.choice(["notify", "request"]),
            send_overhead=draw.choice([0, 1e-5]),
            recv_overhead=draw.choice([0, 1e-5]),
        )
        platform = star(ranks, protocol=protocol)
        plain = sim.run(program, platform, network="alpha-beta")
        bare = sim.run(program, platform, network="alpha-beta", timeline=False, links=False)
        np.testing.assert_array_equal(bare.ranks["finish"], plain.ranks["finish"])


def test_a_rank_fails_with_its_stream_though_its_thread_goes_on() -> None:
    program = sim.Program(2)
    program[0].compute(seconds=3, stream=1)
    program[1].compute(seconds=5)
    platform = star(2).with_faults(sim.Fault(device=0, at=2))
    result = sim.run(program, platform)
    assert result.failures == (Failure(0, 2.0),)
    assert result.ranks["finish"].tolist() == [2, 5]

    program[0].recv(1)
    program[1].send(0, bytes=0)
    result = sim.run(program, platform)
    assert result.failures == (Failure(0, 2.0),)
    assert result.ranks["compute"].tolist() == [2, 5]
    # What the stream did until then hides as much of the waiting.
    assert result.ranks["communication"].tolist() == [3.001, 0]
    assert result.ranks["idle"].tolist() == pytest.approx([0, 1e-3])


def test_streams_carry_the_requests_that_they_were_given() -> None:
    # Each stage hands its work to a stream and goes on with the next request at once.
    program = sim.Program(3)
    queue = program.arrivals(sim.ArrivalTimes([0, 0.1, 0.2, 0.3]), name="q")
    with program[0].serve(queue):
        program[0].compute(seconds=1, stream=1)
        program[0].send(1, bytes=0, stream=1)
    with program[1].loop(4):
        program[1].recv(0, stream=1)
        program[1].compute(seconds=1, stream=1)
        program[1].send(2, bytes=0, stream=1)
    with program[2].loop(4):
        arrived = program[2].irecv(1)
        program[2].wait(arrived)
        program[2].done(queue)
    result = sim.run(program, star(3))
    assert result.queues[0].latency == pytest.approx([2.002, 2.902, 3.802, 4.702])


def test_a_stream_takes_over_the_request_of_what_it_waits_for() -> None:
    program = sim.Program(3)
    queue = program.arrivals(sim.ArrivalTimes([0, 0.1]), name="q")
    for _ in range(2):
        program[0].take(queue)
        program[0].send(1, bytes=0)
    first, second = program[1].irecv(0), program[1].irecv(0)
    for handle, length in ((first, 5), (second, 1)):
        program[1].wait(handle, stream=1)
        program[1].compute(seconds=length, stream=1)
        program[1].send(2, bytes=0, stream=1)
    for _ in range(2):
        program[2].recv(1)
        program[2].done(queue)
    result = sim.run(program, star(3))
    assert result.queues[0].latency == pytest.approx([5.002, 5.902])


def test_a_deadlock_says_what_streams_wait_for() -> None:
    program = sim.Program(2)
    arrived = program[0].irecv(1, tag=7)
    program[0].wait(arrived, stream=2)
    program[0].synchronize(2)
    program[1].all_reduce(bytes=8, async_op=True)
    gathered = program[1].all_reduce(bytes=16, async_op=True)
    program[1].wait(gathered, stream=3)
    program[1].synchronize()
    with pytest.raises(sim.DeadlockError) as caught:
        sim.run(program, star(2))
    waits = {(entry.rank, entry.stream): entry.waits_for for entry in caught.value.blocked}
    assert waits[0, 0] == "its stream 2"
    assert waits[0, 2] == "a message of rank 1 (tag 7)"
    assert waits[1, 0] == "its streams"
    assert waits[1, 3].startswith("collective 1 of group 0 (all_reduce 16 B")


@pytest.mark.parametrize("network", ["flow", "alpha-beta"])
def test_a_deadlock_names_the_links_that_are_down(network: str) -> None:
    program = sim.Program(2)
    program[0].compute(seconds=1)
    program[0].send(1, bytes=1000)
    program[1].recv(0)
    faults = [
        sim.Fault(link=0, at=0.5),
        sim.Fault(link=1, at=0.1, duration=0.2),
        sim.Fault(link=1, at=5),
    ]
    with pytest.raises(sim.DeadlockError, match=r"link\.0 is down since 0\.5 s") as caught:
        sim.run(program, star(2).with_faults(*faults), network=network)
    assert caught.value.down[0] == ("link.0", 0.5)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.down) == (str(caught.value), caught.value.down)
