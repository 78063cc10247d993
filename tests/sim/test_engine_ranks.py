"""What ranks do by themselves: compute, streams, loops, memory, faults; and how runs end."""

from __future__ import annotations

import _thread
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from leeboard import sim


def star(n: int, **parts: object) -> sim.Platform:
    return sim.Platform.star(n, bandwidth="1 MB/s", latency="1 ms", **parts)


def test_compute_follows_the_roofline_and_its_efficiency() -> None:
    device = sim.Device(
        flops=1e9,
        memory_bandwidth=1e8,
        overhead=1e-3,
        speed=2.0,
        flops_curve=((1e3, 0.25), (1e5, 0.75)),
    )
    for flops, bytes_, seconds in [
        (0, 0, 0.0),
        (10**9, 1, 1 / 0.75),
        (10**4, 1, 1e-5 / 0.5),  # halfway in the logarithm
        (10**4, 10**7, 0.1),
    ]:
        program = sim.Program(1)
        program[0].compute(flops=flops, bytes=bytes_)
        result = sim.run(program, star(1, device=device))
        assert result.makespan == pytest.approx(seconds / 2 + 1e-3, abs=1e-11)


def test_streams_of_a_device_share_it_and_overlap_with_messages() -> None:
    program = sim.Program(2)
    for rank in range(2):
        me = program[rank]
        me.compute(seconds=3e-3, stream=1)
        me.send(1 - rank, bytes=2000, stream=2)
        me.recv(1 - rank, stream=3)
        me.compute(seconds=4e-3)
        me.synchronize()
    result = sim.run(program, star(2))
    # The device does both pieces of work, one after the other; the messages take 3 ms beside them.
    assert result.makespan == pytest.approx(7e-3, abs=2e-12)
    assert result.ranks["compute"] == pytest.approx([7e-3, 7e-3])


def test_a_stream_waits_for_an_event_of_another() -> None:
    program = sim.Program(2)
    program[0].send(1, bytes=4000)
    arrived = program[1].irecv(0)
    program[1].wait(arrived, stream=1)
    program[1].compute(seconds=1e-3, stream=1)
    program[1].compute(seconds=2e-3)
    program[1].mark("host")
    program[1].synchronize(1)
    result = sim.run(program, star(2))
    assert result.makespan == pytest.approx(6e-3, abs=2e-12)
    marks = result.records[result.records["kind"] == 7]
    assert marks["end"].tolist() == [2_000_000_000]


def test_collectives_beside_compute() -> None:
    program = sim.Program(4)
    handle = program.all_reduce(bytes=4000, algorithm="ring", async_op=True)
    program.compute(seconds=5e-3)
    program.wait(handle)
    program.all_reduce(bytes=4000, algorithm="ring")
    result = sim.run(program, star(4))
    # Six rounds of a latency and a kilobyte: 12 ms, of which the first 5 ms hide compute.
    assert result.makespan == pytest.approx(24e-3, rel=1e-9)
    assert result.ranks["communication"] == pytest.approx([19e-3] * 4, rel=1e-9)


def test_collectives_on_several_streams_meet_in_the_order_of_the_program() -> None:
    program = sim.Program(2)
    # Rank 0's first stream is busy when rank 1's is not.
    program[0].compute(seconds=1.0, stream=1)
    program.broadcast(bytes=1000, root=0, stream=1)
    program.broadcast(bytes=3000, root=1, stream=2)
    program.barrier()
    program.synchronize()
    result = sim.run(program, star(2))
    assert result.makespan == pytest.approx(1.0 + 1e-3 + 1e-3, abs=1e-9)


def test_loops_nest_and_count() -> None:
    program = sim.Program(3)
    with program.loop(5):
        program.compute(seconds=1e-3)
        with program[1].loop(7):
            program[1].compute(seconds=1e-4)
            with program[1].loop(2):
                program[1].compute(seconds=1e-5)
        with program.loop(0):
            program.compute(seconds=1.0)
    result = sim.run(program, star(3))
    assert result.ranks["compute"] == pytest.approx([5e-3, 5e-3 + 35e-4 + 70e-5, 5e-3])


def test_memory_beyond_the_device_is_reported_with_time_and_rank() -> None:
    program = sim.Program(2)
    program.alloc(600)
    program[1].compute(seconds=0.25)
    program[1].alloc("500 B")
    program[1].free(500)
    program.free(100)
    result = sim.run(program, star(2, device=sim.Device(memory=1000)))
    assert [(o.rank, o.at, o.in_use, o.limit) for o in result.out_of_memory] == [
        (1, 0.25, 1100, 1000)
    ]
    assert result.ranks["peak_memory"].tolist() == [600, 1100]


def test_freeing_what_is_not_held_is_an_error() -> None:
    program = sim.Program(1)
    program[0].alloc(10)
    program[0].free(11)
    with pytest.raises(sim.SimulationError, match="rank 0 frees 11 bytes and holds 10"):
        sim.run(program, star(1))


def test_slow_downs_and_outages_stretch_compute() -> None:
    platform = star(2).with_faults(
        sim.Fault(device=0, at=1.0, duration=2.0, factor=0.5),
        sim.Fault(device=1, at=1.0, duration=2.0, factor=0.0),
    )
    program = sim.Program(2)
    program.compute(seconds=3.0)
    result = sim.run(program, platform)
    # One second, two at half speed, one more; one second, two lost, two more.
    assert result.ranks["finish"] == pytest.approx([4.0, 5.0])


def test_a_device_that_stops_stops_its_rank_and_is_named() -> None:
    platform = star(2).with_faults(sim.Fault(device=1, at=1.0, factor=0.0))
    program = sim.Program(2)
    program[1].compute(seconds=3.0)
    alone = sim.run(program, platform)
    assert [(f.rank, f.at) for f in alone.failures] == [(1, 1.0)]
    program[1].send(0, bytes=1)
    program[0].recv(1)
    with pytest.raises(sim.DeadlockError, match=r"rank 1's device stopped at 1 s") as caught:
        sim.run(program, platform)
    assert caught.value.failed == ((1, 1.0),)


def test_drawn_compute_times_have_their_means() -> None:
    for draw, deviation in [
        (sim.Exponential(mean=1e-3), 1e-3),
        (sim.Lognormal(mean=1e-3, sigma=0.5), 1e-3 * np.sqrt(np.exp(0.25) - 1)),
        (sim.Uniform(low=0.5e-3, high=1.5e-3), 1e-3 / np.sqrt(12)),
    ]:
        program = sim.Program(2)
        with program.loop(10_000):
            program.compute(seconds=draw)
        result = sim.run(program, star(2), seed=3, timeline=False)
        # Five standard errors.
        assert result.ranks["compute"] == pytest.approx([10.0, 10.0], abs=5 * deviation * 100)
        assert result.ranks["compute"][0] != result.ranks["compute"][1]


def test_jitter_of_a_device_has_mean_one() -> None:
    program = sim.Program(1)
    with program.loop(10_000):
        program.compute(seconds=1e-3)
    result = sim.run(program, star(1, device=sim.Device(jitter=0.3)), timeline=False)
    deviation = np.sqrt(np.exp(0.09) - 1)
    assert result.makespan == pytest.approx(10.0, abs=5 * deviation * 1e-3 * 100)
    assert result.makespan != 10.0


def test_a_deadlock_says_who_waits_for_what_since_when() -> None:
    program = sim.Program(4)
    program[0].compute(seconds=0.5)
    program[0].recv(1, tag=3)
    program[1].recv(0, tag=4)
    program[2].send(3, bytes=77)
    handle = program[3].irecv(0, tag=9)
    program[3].wait(handle)
    platform = star(4, protocol=sim.Protocol(eager_limit=0))
    with pytest.raises(sim.DeadlockError) as caught:
        sim.run(program, platform)
    error = caught.value
    assert [(b.rank, b.since) for b in error.blocked] == [(0, 0.5), (1, 0), (2, 0), (3, 0)]
    text = str(error)
    assert "rank 0 waits for a message of rank 1 (tag 3) since 0.5 s" in text
    assert "rank 2 waits for rank 3 to receive 77 bytes" in text
    assert "rank 3 waits for a message of rank 0 (tag 9)" in text


def test_a_collective_without_all_its_ranks_says_who_is_missing() -> None:
    program = sim.Program(4)
    for rank in (0, 1, 3):
        program[rank].all_reduce(bytes=8)
    with pytest.raises(sim.DeadlockError, match=r"to which rank\(s\) 2 have not come"):
        sim.run(program, star(4))


@pytest.mark.parametrize("disagreement", ["size", "kind", "root"])
def test_collectives_that_do_not_match_are_told_apart(disagreement: str) -> None:
    program = sim.Program(3)
    program.barrier()
    program[0].broadcast(bytes=8)
    program[1].broadcast(bytes=8)
    if disagreement == "size":
        program[2].broadcast(bytes=9)
    elif disagreement == "kind":
        program[2].all_reduce(bytes=8)
    else:
        program[2].broadcast(bytes=8, root=1)
    with pytest.raises(sim.CollectiveMismatchError) as caught:
        sim.run(program, star(3))
    assert "collective number 1 of group 0: rank 2 calls" in str(caught.value)
    assert "rank(s) 0, 1" in str(caught.value)


def busy_program() -> sim.Program:
    program = sim.Program(16)
    rng = np.random.default_rng(5)
    with program.loop(20):
        for rank in range(16):
            program[rank].compute(seconds=float(rng.uniform(0, 1e-3)))
        program.all_reduce(bytes=12_345)
        for rank in range(16):
            handle = program[rank].isend((rank + 3) % 16, bytes=int(rng.integers(1, 9999)))
            program[rank].recv()
            program[rank].wait(handle)
        program.all_to_all(bytes=16 * 100)
    return program


@pytest.mark.parametrize("network", ["flow", "alpha-beta"])
def test_equal_runs_have_equal_events_whatever_the_threads(network: str) -> None:
    trace = busy_program().trace()
    platform = star(16, device=sim.Device(jitter=0.1), protocol=sim.Protocol(jitter=0.1))
    alone = sim.replay(trace, platform, network=network, seed=9)
    with ThreadPoolExecutor(4) as pool:
        beside = list(
            pool.map(lambda _: sim.replay(trace, platform, network=network, seed=9), range(8))
        )
    assert {result.event_hash for result in beside} == {alone.event_hash}
    assert {result.makespan for result in beside} == {alone.makespan}
    assert sim.replay(trace, platform, network=network, seed=8).event_hash != alone.event_hash
    # Looking on changes nothing.
    unwatched = sim.replay(trace, platform, network=network, seed=9, timeline=False, links=False)
    assert unwatched.event_hash == alone.event_hash


@pytest.mark.parametrize("collective", ["all_reduce", "all_gather", "reduce_scatter"])
@pytest.mark.parametrize("eager_limit", [0, "unlimited"])
@pytest.mark.parametrize("size", [13 * 4096, 100_003, 7])
@pytest.mark.parametrize("spread", [0.0, 3e-3])
def test_folded_rings_take_what_their_messages_take(
    collective: str, eager_limit: object, size: int, spread: float
) -> None:
    program = sim.Program(13)
    rng = np.random.default_rng(1)
    for _ in range(3):
        for rank in range(13):
            program[rank].compute(seconds=float(rng.uniform(0, spread)))
        getattr(program, collective)(bytes=size, algorithm="ring")
    protocol = sim.Protocol(eager_limit=eager_limit, send_overhead=1e-5, recv_overhead=2e-5)
    platform = star(13, device=sim.Device(reduce_bandwidth="1 GB/s"), protocol=protocol)
    plain = sim.run(program, platform, network="alpha-beta")
    folded = sim.run(program, platform, network="alpha-beta", timeline=False, links=False)
    assert folded.events < plain.events / 10
    assert folded.messages == plain.messages
    assert folded.makespan == plain.makespan
    np.testing.assert_array_equal(folded.ranks["finish"], plain.ranks["finish"])
    np.testing.assert_array_equal(folded.ranks["sent"], plain.ranks["sent"])
    np.testing.assert_array_equal(folded.ranks["received"], plain.ranks["received"])


def test_a_run_can_be_interrupted() -> None:
    program = sim.Program(1)
    # Some ten seconds, were it not interrupted.
    with program.loop(10**9):
        program.compute(seconds=1e-12)
    trace = program.trace()
    timer = threading.Timer(0.2, _thread.interrupt_main)

    def interrupted() -> None:
        timer.start()
        sim.run(trace, star(1), timeline=False)

    # Processes that were started in the background may ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted()
    finally:
        signal.signal(signal.SIGINT, before)
        timer.join()


@pytest.mark.parametrize(
    ("argument", "match"),
    [
        ({"network": "tcp"}, "network: got 'tcp'"),
        ({"seed": -1}, "seed: got -1"),
        ({"seed": 2**64}, "seed: got 18446744073709551616, expected an integer from 0"),
        ({"seed": 1.5}, "seed: got 1.5"),
        ({"seed": "1"}, "seed: got '1'"),
    ],
)
def test_bad_arguments_are_named(argument: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        sim.run(sim.Program(1), star(1), **argument)


def test_more_ranks_than_devices_is_an_error() -> None:
    with pytest.raises(ValueError, match="3 ranks"):
        sim.run(sim.Program(3), star(2))


def test_ranks_may_share_a_device() -> None:
    program = sim.Program(3)
    program.compute(seconds=1.0)
    result = sim.run(program, star(2).with_placement([0, 1, 0]))
    assert sorted(result.ranks["finish"].tolist()) == [1.0, 1.0, 2.0]
