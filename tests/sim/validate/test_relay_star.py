"""The relay's links, on a clock of our own."""

from __future__ import annotations

import random

import pytest

from leeboard import _C

RATE, DELAY = 100e6, 500_000
QUEUE = 1 << 20


def star(ports: int, *, rate: float = RATE, delay: int = DELAY, queue: int = QUEUE) -> _C.Star:
    return _C.Star([(rate, rate, delay, delay, queue)] * ports, framing=14)


def length(size: int, rate: float = RATE) -> int:
    return round((size + 14) * 8e9 / rate)


def all_of(made: _C.Star) -> list[tuple[int, int, int]]:
    due, lost = made.advance(1 << 60)
    assert not lost
    return due


def test_a_lone_packet_pays_its_link_once_and_both_delays() -> None:
    made = star(2)
    assert made.offer(1000, 0, 1, 1500, 7)
    assert all_of(made) == [(1000 + length(1500) + 2 * DELAY, 1, 7)]


def test_it_pays_the_slower_of_two_links() -> None:
    for up, down in ((RATE, 10e6), (10e6, RATE)):
        made = _C.Star([(up, up, DELAY, 0, QUEUE), (down, down, 0, DELAY, QUEUE)], framing=14)
        made.offer(0, 0, 1, 1500, 7)
        assert all_of(made) == [(length(1500, 10e6) + 2 * DELAY, 1, 7)]


def test_packets_leave_one_after_the_other_at_the_links_rate() -> None:
    made = star(2)
    for i in range(100):
        assert made.offer(0, 0, 1, 1500, i)
    due = all_of(made)
    assert [packet for _, _, packet in due] == list(range(100))
    for i, (at, _, _) in enumerate(due):
        assert abs(at - (2 * DELAY + (i + 1) * length(1500))) <= 100


def test_what_two_send_to_one_shares_the_way_down() -> None:
    made = star(3)
    for i in range(100):
        made.offer(0, 1, 0, 1500, i)
        made.offer(0, 2, 0, 1500, 100 + i)
    due = all_of(made)
    assert max(at for at, _, _ in due) == pytest.approx(2 * DELAY + 200 * length(1500), abs=500)
    # Nobody is ahead of the other by more than a packet.
    seen = [0, 0]
    for _, _, packet in due:
        seen[packet // 100] += 1
        assert abs(seen[0] - seen[1]) <= 1


def test_both_ways_do_not_disturb_each_other() -> None:
    made = star(2)
    for i in range(50):
        made.offer(0, 0, 1, 1500, i)
        made.offer(0, 1, 0, 1500, 50 + i)
    last = {target: at for at, target, _ in all_of(made)}
    assert last[0] == last[1] == pytest.approx(2 * DELAY + 50 * length(1500), abs=100)


def test_flows_of_a_host_take_turns_and_a_new_one_goes_first() -> None:
    made = star(3)
    for i in range(100):
        made.offer(0, 0, 1, 1500, i, flow=1)
    made.advance(10 * length(1500))
    # An acknowledgement, long after the bulk was queued.
    made.offer(10 * length(1500), 0, 2, 52, 1000, flow=2)
    order = [packet for _, _, packet in all_of(made)]
    assert order.index(1000) <= 13
    assert [packet for packet in order if packet != 1000] == sorted(set(order) - {1000})


def test_two_busy_flows_of_a_host_get_half_each() -> None:
    made = star(3)
    for i in range(300):
        made.offer(0, 0, 1, 1500, i, flow=1)
    for i in range(300):
        made.offer(0, 0, 2, 500, 1000 + i, flow=2)
    sent = {1: 0, 2: 0}
    due, _ = made.advance(2 * DELAY + 150 * length(1500))
    for _, target, packet in due:
        sent[target] += 1514 if packet < 1000 else 514
    assert sent[1] / sent[2] == pytest.approx(1, rel=0.05)


def test_a_full_queue_drops_and_counts() -> None:
    made = star(2, queue=10 * 1514)
    taken = [made.offer(0, 0, 1, 1500, i) for i in range(20)]
    # One is on the link already.
    assert taken == [True] * 11 + [False] * 9
    assert len(all_of(made)) == 11
    counters = made.counters(0)
    assert counters["dropped_up"] == 9
    assert counters["packets_up"] == 11
    assert counters["bytes_up"] == 11 * 1514


def test_the_way_down_drops_what_it_cannot_keep() -> None:
    made = star(4, queue=10 * 1514)
    for i in range(10):
        for source in (1, 2, 3):
            made.offer(i * length(1500), source, 0, 1500, 10 * source + i)
    due, lost = made.advance(1 << 60)
    assert lost
    assert len(due) + len(lost) == 30
    assert made.counters(0)["dropped_down"] == len(lost)


def test_nothing_comes_early_or_out_of_order_within_a_flow() -> None:
    draw = random.Random(3)
    made = star(4, rate=20e6)
    now, sent, got = 0, {}, {}
    for packet in range(2000):
        now += draw.randrange(300_000)
        source, target = draw.sample(range(4), 2)
        size, flow = draw.randrange(20, 1501), draw.randrange(3)
        due, lost = made.advance(now)
        assert not lost
        got.update({name: at for at, _, name in due})
        assert made.offer(now, source, target, size, packet, flow=100 * target + flow)
        sent[packet] = (now, source, target, flow, size)
    got.update({name: at for at, _, name in all_of(made)})
    assert got.keys() == sent.keys()
    last: dict[tuple[int, int, int], int] = {}
    for packet, (at, source, target, flow, size) in sent.items():
        assert got[packet] >= at + length(size, 20e6) + 2 * DELAY
        assert got[packet] >= last.get((source, target, flow), 0)
        last[source, target, flow] = got[packet]


def test_no_rate_is_no_wait() -> None:
    made = star(2, rate=0.0)
    for i in range(10):
        made.offer(5, 0, 1, 1500, i)
    assert {at for at, _, _ in all_of(made)} == {5 + 2 * DELAY}


def test_what_is_wrong_is_refused() -> None:
    with pytest.raises(ValueError, match="ports: got none"):
        _C.Star([])
    with pytest.raises(ValueError, match="rate: expected"):
        _C.Star([(-1.0, 1.0, 0, 0, 1)])
    with pytest.raises(ValueError, match="delay: expected"):
        _C.Star([(1.0, 1.0, -1, 0, 1)])
    with pytest.raises(IndexError, match="port: got 5 of 2"):
        star(2).offer(0, 0, 5, 100, 1)
