"""Point-to-point messages: when they leave, when they arrive, and what meets what."""

from __future__ import annotations

import pytest

from leeboard import sim

ALPHA = 1e-3
BANDWIDTH = 1e6  # bytes a second


def star(n: int, **protocol: object) -> sim.Platform:
    return sim.Platform.star(
        n, bandwidth=BANDWIDTH, latency=ALPHA, protocol=sim.Protocol(**protocol)
    )


@pytest.fixture(params=["flow", "alpha-beta"])
def network(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def one_way(bytes_: int) -> sim.Program:
    program = sim.Program(2)
    program[0].send(1, bytes=bytes_)
    program[1].recv(0)
    return program


@pytest.mark.parametrize("size", [0, 1, 1000, 10**9])
def test_an_eager_message_takes_latency_and_bytes_over_bandwidth(size: int, network: str) -> None:
    result = sim.run(one_way(size), star(2), network=network)
    assert result.makespan == pytest.approx(ALPHA + size / BANDWIDTH, abs=2e-12)
    assert result.messages == 1


@pytest.mark.parametrize(
    ("handshake", "early", "expected"),
    [
        ("notify", 0.0, 2 * ALPHA),  # both at once: the word of the receiver, then the data
        ("notify", 0.4e-3, 2 * ALPHA - 0.4e-3),
        ("notify", 5e-3, ALPHA),  # posted long before
        ("request", 0.0, 3 * ALPHA),
        ("request", 5e-3, 3 * ALPHA),
    ],
)
def test_a_large_message_waits_for_its_handshake(
    handshake: str, early: float, expected: float, network: str
) -> None:
    program = sim.Program(2)
    program[0].compute(seconds=early)
    program[0].send(1, bytes=1000)
    program[1].recv(0)
    platform = star(2, eager_limit=0, handshake=handshake)
    result = sim.run(program, platform, network=network)
    assert result.makespan == pytest.approx(early + expected + 1000 / BANDWIDTH, abs=2e-12)


def test_a_sender_is_free_when_its_last_byte_has_left(network: str) -> None:
    program = sim.Program(2)
    program[0].send(1, bytes=1000)
    program[0].mark("sent")
    program[1].recv(0)
    eager = sim.run(program, star(2), network=network)
    large = sim.run(program, star(2, eager_limit=0), network=network)
    assert eager.ranks["finish"][0] == 0
    assert large.ranks["finish"][0] == pytest.approx(ALPHA + 1000 / BANDWIDTH, abs=2e-12)


def test_messages_of_a_pair_travel_in_order(network: str) -> None:
    program = sim.Program(2)
    first, second = program[0].isend(1, bytes=1000), program[0].isend(1, bytes=1000)
    program[0].wait(first, second)
    program[1].recv(0)
    program[1].mark("first")
    program[1].recv(0)
    result = sim.run(program, star(2), network=network)
    marks = [r["end"] * 1e-12 for r in result.records if r["kind"] == 7]
    assert marks == pytest.approx([ALPHA + 1e-3], abs=2e-12)
    assert result.makespan == pytest.approx(ALPHA + 2e-3, abs=2e-12)


def test_receivers_take_messages_as_they_begin_not_as_they_were_given(network: str) -> None:
    """Each rank's i-th message is for the i-th rank after it: no receiver has two at a time."""
    program = sim.Program(4)
    for rank in range(4):
        others = [(rank + i) % 4 for i in (1, 2, 3)]
        handles = [program[rank].isend(peer, bytes=1000) for peer in others]
        handles += [program[rank].irecv(peer) for peer in others]
        program[rank].wait(*handles)
    result = sim.run(program, star(4), network=network)
    assert result.makespan == pytest.approx(ALPHA + 3 * 1000 / BANDWIDTH, abs=2e-12)


def test_tags_match_across_the_order_of_sending(network: str) -> None:
    program = sim.Program(2)
    program[0].send(1, bytes=10, tag=1)
    program[0].send(1, bytes=5000, tag=2)
    program[1].recv(0, tag=2)
    program[1].recv(0, tag=1)
    result = sim.run(program, star(2), network=network)
    assert result.makespan == pytest.approx(ALPHA + 5010 / BANDWIDTH, abs=2e-12)


@pytest.mark.parametrize("eager_limit", [0, "unlimited"])
def test_a_wildcard_takes_what_comes_first(eager_limit: object, network: str) -> None:
    program = sim.Program(3)
    program[0].compute(seconds=2e-3)
    program[0].send(2, bytes=1000)
    program[1].send(2, bytes=1000)
    program[2].recv()
    program[2].mark("one")
    program[2].recv()
    result = sim.run(program, star(3, eager_limit=eager_limit), network=network)
    messages = result.records[result.records["kind"] == 6]
    assert messages["rank"].tolist() == [1, 0]
    # Eager: what rank 0 sends at 2 ms. Else the first message asked at 0 and was there at 4 ms, when
    # the second receive is posted: its word goes back, the data comes.
    expected = 2e-3 + ALPHA + 1e-3 if eager_limit == "unlimited" else 4e-3 + 2 * ALPHA + 1e-3
    assert result.makespan == pytest.approx(expected, abs=2e-12)


def test_a_wildcard_for_tags_keeps_to_its_source(network: str) -> None:
    program = sim.Program(3)
    program[0].send(2, bytes=1, tag=7)
    program[1].compute(seconds=1.0)
    program[1].send(2, bytes=1, tag=9)
    program[2].recv(1, tag=None)
    program[2].recv(0, tag=7)
    result = sim.run(program, star(3), network=network)
    assert result.makespan == pytest.approx(1.0 + ALPHA + 1e-6, abs=2e-12)


def test_communication_overlaps_compute(network: str) -> None:
    program = sim.Program(2)
    for rank, peer in ((0, 1), (1, 0)):
        handles = [program[rank].irecv(peer), program[rank].isend(peer, bytes=5000)]
        program[rank].compute(seconds=4e-3)
        program[rank].wait(*handles)
    result = sim.run(program, star(2), network=network)
    assert result.makespan == pytest.approx(6e-3, abs=2e-12)
    assert result.ranks["compute"] == pytest.approx([4e-3, 4e-3])
    # What compute hides is not counted as communication.
    assert result.ranks["communication"] == pytest.approx([2e-3, 2e-3], abs=2e-12)
    assert result.ranks["idle"] == pytest.approx([0, 0], abs=2e-12)


def test_send_and_receive_overheads(network: str) -> None:
    program = sim.Program(2)
    program[0].send(1, bytes=1000)
    program[0].send(1, bytes=1000)
    program[1].recv(0)
    program[1].recv(0)
    platform = star(2, send_overhead=3e-3, recv_overhead=5e-4)
    result = sim.run(program, platform, network=network)
    assert result.ranks["finish"][0] == pytest.approx(6e-3, abs=2e-12)
    assert result.makespan == pytest.approx(6e-3 + 1e-3 + ALPHA + 5e-4, abs=2e-12)


def test_incast_shares_the_receivers_link(network: str) -> None:
    program = sim.Program(4)
    for rank in range(3):
        program[rank].send(3, bytes=10_000)
        program[3].recv(rank)
    result = sim.run(program, star(4), network=network)
    assert result.makespan == pytest.approx(ALPHA + 3e-2, rel=1e-9)


def test_a_rank_may_send_to_itself(network: str) -> None:
    program = sim.Program(1)
    handle = program[0].isend(0, bytes=1 << 20)
    program[0].recv(0)
    program[0].wait(handle)
    free = sim.run(program, star(1), network=network)
    platform = star(1, loopback_bandwidth="1 GiB/s", loopback_latency=1e-6)
    slow = sim.run(program, platform, network=network)
    assert free.makespan == 0
    assert slow.makespan == pytest.approx(1 / 1024 + 1e-6, abs=2e-12)


def test_a_message_too_large_for_its_receive_is_an_error(network: str) -> None:
    program = sim.Program(2)
    program[0].send(1, bytes=10)
    program[1].recv(0, bytes=9)
    with pytest.raises(sim.SimulationError, match="rank 1 expects 9 bytes of rank 0"):
        sim.run(program, star(2), network=network)


def test_jitter_and_loss_cost_time_and_follow_the_seed(network: str) -> None:
    program = sim.Program(2)
    with program.loop(200):
        program[0].send(1, bytes=100_000)
        program[1].recv(0)
        program[1].send(0, bytes=1)
        program[0].recv(1)
    plain = sim.run(program, star(2), network=network)
    lossy = [
        sim.run(program, star(2, loss=0.01, jitter=0.5), network=network, seed=seed)
        for seed in (1, 1, 2)
    ]
    assert lossy[0].event_hash == lossy[1].event_hash != lossy[2].event_hash
    # 67 packets: a message loses 0.67 on average, and costs a round trip if it loses any; jitter
    # has mean 1.
    lost = 1 - 0.99**67
    expected = plain.makespan + 200 * (0.677 * 1500 / BANDWIDTH + lost * 1.01 * 2 * ALPHA)
    assert lossy[0].makespan == pytest.approx(expected, rel=0.01)
    assert lossy[0].makespan > plain.makespan


def test_half_duplex_carries_one_way_at_a_time(network: str) -> None:
    program = sim.Program(2)
    for rank in range(2):
        handle = program[rank].isend(1 - rank, bytes=100_000)
        program[rank].recv(1 - rank)
        program[rank].wait(handle)
    both = sim.Platform.star(2, bandwidth=BANDWIDTH, latency=ALPHA, duplex="half")
    result = sim.run(program, both, network=network)
    assert result.makespan == pytest.approx(0.2 + ALPHA, rel=0.02)


@pytest.mark.parametrize("eager_limit", [0, "unlimited"])
def test_what_lets_each_thing_end_is_recorded(eager_limit: object, network: str) -> None:
    program = sim.Program(3)
    program[0].compute(seconds=1e-3)
    program[0].send(1, bytes=1000)
    program[1].recv(0)
    program[1].compute(seconds=2e-3)
    program[1].send(2, bytes=2000)
    program[2].compute(seconds=1e-4)
    program[2].recv(1)
    result = sim.run(program, star(3, eager_limit=eager_limit), network=network)
    records, chain = result.records, []
    at = int(records["end"].argmax())
    last = records["end"][at]
    # A record that waited ends with what it waited for: begin at the one that names another.
    at = next(i for i, r in enumerate(records) if r["end"] == last and r["kind"] == 3)
    while at != 2**32 - 1:
        chain.append((int(records["kind"][at]), int(records["rank"][at])))
        at = int(records["prev"][at])
    recv, message, compute = 3, 6, 1
    assert chain == [
        (recv, 2),
        (message, 1),
        (compute, 1),
        (recv, 1),
        (message, 0),
        (compute, 0),
    ]


def test_what_never_met_is_counted(network: str) -> None:
    program = sim.Program(2)
    for tag in (1, 1, 2):
        program[0].send(1, bytes=10, tag=tag)
    program[1].irecv(0, tag=3)
    result = sim.run(program, star(2), network=network)
    assert result.unmatched == 4
    assert "4 messages and receives that never met" in str(result)
    assert sim.run(one_way(1), star(2), network=network).unmatched == 0
