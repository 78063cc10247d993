"""Figures from messages: what the simulator was given is found again."""

from __future__ import annotations

import json

import pytest

from leeboard import sim
from leeboard.sim.validate.calibrate import (
    HEADERS,
    Calibration,
    calibrate,
    calibrated,
    sizes_and_times,
)
from leeboard.sim.validate.predict import simulated
from leeboard.sim.validate.rig import Links
from static_cases import PAIRS, program

LINKS = Links(100e6, 2e-3)
SIZES = (4, 4096, 65536, 1 << 18, 1 << 20)


def times(given: Calibration, what: str, sizes: tuple[int, ...] = SIZES) -> dict[int, float]:
    platform = given.platform(2, LINKS)
    return {size: sim.run(program(what, size, 2), platform).makespan for size in sizes}


@pytest.mark.parametrize(
    "given",
    [
        Calibration(2.15e-3, HEADERS, 0.03, 0.0, 1 << 22, 0.0),
        Calibration(2.6e-3, HEADERS, 0.0, 5e6, 1 << 22, 0.0),
    ],
    ids=["link", "window"],
)
def test_a_calibration_finds_what_was_given(given: Calibration) -> None:
    found = calibrate(LINKS, times(given, "message"), times(given, "crossing"), buffer=1 << 22)
    assert found.latency == pytest.approx(given.latency, rel=1e-3)
    assert found.goodput == pytest.approx(given.goodput, rel=1e-3)
    assert found.cross_traffic == pytest.approx(given.cross_traffic, abs=1e-3)
    assert found.rate_limit == pytest.approx(given.rate_limit, rel=1e-3)
    assert found.worst < 1e-3


def test_a_size_that_was_disturbed_moves_nothing() -> None:
    given = Calibration(2.15e-3, HEADERS, 0.03, 0.0, 1 << 22, 0.0)
    messages = times(given, "message")
    messages[65536] *= 1.3
    found = calibrate(LINKS, messages, times(given, "crossing"), buffer=1 << 22)
    assert found.latency == pytest.approx(given.latency, rel=1e-6)
    assert found.goodput == pytest.approx(given.goodput, rel=1e-6)
    assert found.worst == pytest.approx(1 - 1 / 1.3, rel=1e-3)


@pytest.mark.parametrize(
    ("messages", "message"),
    [({4: 1.0}, "got 1 sizes"), ({4: 1.0, 8: 0.5}, "larger ones took no longer")],
)
def test_times_that_say_nothing_are_refused(messages: dict[int, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibrate(LINKS, messages, {})


def test_a_window_holds_one_message_and_not_three() -> None:
    given = Calibration(2e-3, HEADERS, 0.0, 5e6, 1 << 22, 0.0)
    platform = given.platform(4, LINKS)
    one = sim.run(program("message", 1 << 20, 4), platform).makespan
    three = sim.run(program("incast", 1 << 20, 4), platform).makespan
    assert one == pytest.approx(4e-3 + (1 << 20) / 5e6, rel=1e-6)
    assert three == pytest.approx(4e-3 + 3 * (1 << 20) / (12.5e6 * HEADERS), rel=1e-6)


def test_a_send_is_over_when_its_socket_has_taken_it() -> None:
    for buffer, expected in ((1 << 22, 2e-3), (0, 2e-3 + (1 << 20) / 12.5e6)):
        given = Calibration(2e-3, 1.0, 0.0, 0.0, buffer, 0.0)
        result = sim.run(program("message", 1 << 20, 2), given.platform(2, LINKS))
        assert result.ranks["finish"][0] == pytest.approx(expected, rel=1e-6)


def test_a_word_waits_behind_what_its_socket_has_taken() -> None:
    """Rank 1 says that it is ready while its own megabyte to rank 0 is on the same connection."""
    size, latency = 1 << 20, 2e-3
    for buffer, expected in ((1 << 22, 3 * latency + size / 12.5e6), (0, 5 * latency)):
        given = Calibration(latency, 1.0, 0.0, 0.0, buffer, 0.0)
        made = sim.Program(2)
        first, second = made[0].irecv(1), made[0].isend(1, bytes=4)
        third = made[1].isend(0, bytes=size)
        made[1].compute(seconds=3 * latency)
        made[1].wait(made[1].irecv(0))
        made[1].mark("here")
        made[0].wait(first, second)
        made[1].wait(third)
        result = sim.run(made, given.platform(2, LINKS), timeline=True)
        marks = result.records[result.records["kind"] == 7]
        assert int(marks["end"][0]) / 1e12 == pytest.approx(expected, abs=1e-6)


def test_medians_are_read_from_lines() -> None:
    lines = [
        {"scenario": "message 4", "seconds": 0.5},
        {"scenario": "messages 4", "seconds": 0.7},
        {"scenario": "message 64", "seconds": 0.6},
        {"other": 1},
    ]
    assert sizes_and_times(lines, "message") == {4: 0.5, 64: 0.6}


@pytest.mark.parametrize("what", [*PAIRS, "ping_pong", "all_reduce", "barrier", "gather"])
def test_static_programs_run(what: str) -> None:
    given = Calibration(2e-3, 0.95, 0.0, 0.0, 0, 0.0)
    assert sim.run(program(what, 1000, 3), given.platform(3, LINKS)).makespan > 3e-3


def test_the_call_of_a_collective_is_measured_alone_and_charged_at_each() -> None:
    lines = [
        {"scenario": "message 4", "seconds": 4e-3},
        {"scenario": "message 1250000", "seconds": 0.11},
        {"scenario": "call 64", "seconds": 5e-4},
        {"scenario": "post 64", "seconds": 2e-4},
    ]
    found = calibrated(LINKS, lines)
    assert found.collective_call == pytest.approx(3e-4)
    order = {"cases": [["barrier", 0], ["ping_pong", 4]], "repeats": 1, "warm": 0, "notice": 0.1}
    words = ["-m leeboard.sim.validate.programs.network", [json.dumps({**order, "open": 64})]]
    platform = found.platform(2, LINKS)
    free, _ = simulated(*words, platform, compute="none")
    charged, _ = simulated(*words, platform, compute="none", call=found.collective_call)
    more = [b["seconds"] - a["seconds"] for a, b in zip(free, charged, strict=True)]
    assert more == pytest.approx([3e-4, 0.0], abs=1e-9)


def test_links_say_what_is_wrong() -> None:
    for bandwidth, delay, message in ((0, 0, "bandwidth"), (1, -1, "delay"), (1, 11, "delay")):
        with pytest.raises(ValueError, match=message):
            Links(bandwidth, delay)
    with pytest.raises(ValueError, match="bandwidth"):
        Links.of("100 Mbit", "1 ms")
    assert Links.of("100 Mbit/s", "1 ms").bandwidth == 100e6
