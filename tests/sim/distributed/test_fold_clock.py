"""Ranks of a folded run read the clock that they have when all ranks run."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from leeboard import _C
from leeboard.sim import Device, Fault, Platform, Program, replay
from leeboard.sim.distributed.launch import Launched, launch
from leeboard.sim.distributed.readings import PASSES, Held, Readings
from leeboard.sim.run import options
from leeboard.sim.strategies import tensor_parallel


def _platform(ranks: int) -> Platform:
    device = Device(flops="10 TFLOP/s", memory_bandwidth="1 TB/s", overhead="1 us")
    return Platform.star(ranks, bandwidth="100 Gbit/s", latency="2 us", device=device)


def _run(program: Callable[[], Any], fold: str | None, ranks: int, **options: Any) -> Launched:
    return launch(program, _platform(ranks), fold=fold, compute="roofline", fake=True, **options)


def stages() -> list[float]:
    """Messages along one axis, collectives along both, clocks in between and while these run."""
    dist.init_process_group("gloo")
    me = dist.get_rank()
    stage, replica = me % 4, me // 4
    lines = [dist.new_group([4 * d + p for p in range(4)]) for d in range(4)]
    replicas = [dist.new_group([4 * d + p for d in range(4)]) for p in range(4)]
    read = [time.perf_counter()]
    for _ in range(2):
        x = torch.ones(100, 100)
        x @ x
        read.append(time.perf_counter())
        dist.all_reduce(torch.ones(10_000), group=replicas[stage])
        read.append(time.time_ns())
        if stage:
            dist.recv(torch.empty(1000), me - 1)
        if stage < 3:
            sent = dist.isend(torch.ones(1000), me + 1)
            read.append(time.monotonic())
            sent.wait()
        summed = dist.all_reduce(torch.ones(5000), group=lines[replica], async_op=True)
        read.append(time.perf_counter())
        summed.wait()
        # A library's own reading: when the rank last communicated.
        read.append(logging.LogRecord("", 0, "", 0, "", None, None).created)
        read += [time.perf_counter(), time.perf_counter()]
    if me in (0, 13):
        # One of a class alone.
        read.append(time.perf_counter())
    return read


@pytest.mark.parametrize(("fold", "live"), [("dp=4 pp=4*", 8), ("dp=2 dp2=2 pp=4*", 8)])
def test_times_are_those_of_all_ranks(fold: str, live: int) -> None:
    whole = _run(stages, None, 16)
    folded = _run(stages, fold, 16)
    read = {rank: times for rank, times in enumerate(folded.values) if times is not None}
    assert len(read) == live
    assert read == {rank: whole.values[rank] for rank in read}
    assert folded.result.event_hash == whole.result.event_hash
    # Readings leave nothing in the trace.
    again = replay(folded.trace, _platform(16))
    assert (again.makespan, again.event_hash) == (whole.result.makespan, whole.result.event_hash)
    assert folded.notes == ()


def test_figures_of_a_strategy() -> None:
    words = ["--model", "tiny", "--prompt", "8", "--tokens", "2", "--no-sampling"]

    def program() -> dict[str, Any]:
        return tensor_parallel.main(words)

    whole, folded = _run(program, None, 4), _run(program, "tp=4", 4)
    assert folded.values[0]["total"] > 0
    assert folded.values[0] == whole.values[0]


def test_what_is_printed_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    runs: list[int] = []

    def program() -> None:
        dist.init_process_group("gloo")
        runs.append(dist.get_rank())
        dist.all_reduce(torch.ones(100_000))
        print("at", time.perf_counter_ns())
        print("well", file=sys.stderr)

    whole = _run(program, None, 8)
    expected = f"at {round(whole.result.makespan * 1e9)}\n"
    assert capsys.readouterr() == (expected * 8, "well\n" * 8)
    runs.clear()
    _run(program, "tp=8", 8)
    assert sorted(runs) == [0, 0, 7, 7]
    assert capsys.readouterr() == (expected * 2, "well\n" * 2)


def test_a_program_that_does_not_ask_runs_once(capsys: pytest.CaptureFixture[str]) -> None:
    runs: list[int] = []

    def program() -> None:
        time.time()  # Nothing has happened yet.
        dist.init_process_group("gloo")
        runs.append(dist.get_rank())
        dist.all_reduce(torch.ones(100))
        print("done")

    _run(program, "tp=8", 8)
    assert sorted(runs) == [0, 7]
    assert capsys.readouterr().out == "done\n" * 2


def test_what_a_rank_printed_before_it_failed(capsys: pytest.CaptureFixture[str]) -> None:
    def program() -> None:
        dist.init_process_group("gloo")
        print("before")
        raise KeyError("this")

    with pytest.raises(Exception, match="KeyError"):
        _run(program, "tp=8", 8)
    assert capsys.readouterr().out == "before\n"


def until() -> tuple[int, float]:
    """Rounds as long as there is time."""
    dist.init_process_group("gloo")
    rounds = 0
    while (now := time.perf_counter()) < 1e-3:
        torch.ones(1000, 1000)
        dist.all_reduce(torch.ones(1000))
        rounds += 1
    return rounds, now


@pytest.mark.parametrize("network", ["flow", "alpha-beta"])
def test_a_loop_that_ends_by_the_clock(network: str) -> None:
    whole, folded = _run(until, None, 8, network=network), _run(until, "tp=8", 8, network=network)
    assert folded.values[0] == whole.values[0]
    assert folded.result.event_hash == whole.result.event_hash
    assert folded.notes == ()


def test_a_program_that_decides_by_its_clock_is_told_of(
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs: list[int] = []

    def program() -> None:
        # Each decision depends on those before it.
        dist.init_process_group("gloo")
        runs.append(dist.get_rank())
        for step in range(8):
            dist.all_reduce(torch.ones(1000 + step))
            if time.perf_counter_ns() // 1000 % 3 == 1:
                dist.all_reduce(torch.ones(500 * (step + 1)))

    notes = _run(program, "tp=8", 8).notes
    assert runs.count(0) == PASSES == 3
    assert [note[:49] for note in notes] == ["fold: what the ranks do depends on the times they"]
    assert notes[0] in capsys.readouterr().err


def test_measured_times_differ_and_are_no_decision() -> None:
    def program() -> float:
        dist.init_process_group("gloo")
        torch.ones(200, 200) @ torch.ones(200, 200)
        dist.all_reduce(torch.ones(1000))
        return time.perf_counter()

    folded = launch(program, _platform(8), fold="tp=8", compute="measured")
    assert folded.notes == ()
    # What was read is of the run that is the result.
    assert 0 < folded.values[0] <= folded.result.makespan * (1 + 1e-12)
    assert folded.values[0] > 1e-5


def test_readings_beyond_the_known_ones_go_on() -> None:
    readings = Readings({3: [100, 500]})
    assert [readings.read(3, k, clock) for k, clock in enumerate((10, 20, 50, 60))] == [
        100,
        500,
        530,
        540,
    ]
    assert readings.read(1, 0, 7) == 7
    assert readings.told == {3: [100, 500, 530, 540], 1: [7]}
    assert readings.places == {3: [0, 1, 2, 3], 1: [0]}


def test_held_streams(capsys: pytest.CaptureFixture[str]) -> None:
    with Held() as held:
        print("lost", file=held.out)
        held.drop()
        print("über", file=held.out)
        held.out.buffer.write(b"bytes\n")
        held.err.write("second\n")
        assert capsys.readouterr() == ("", "")
    assert capsys.readouterr() == ("über\nbytes\n", "second\n")
    print("later", file=held.out)
    assert capsys.readouterr().out == "later\n"


@pytest.mark.parametrize("fault", [None, Fault(device=1, at="15 us", duration="1 ms")])
@pytest.mark.parametrize("network", ["flow", "alpha-beta"])
def test_marks_alone(network: str, fault: Fault | None) -> None:
    """They take no timeline, and change nothing."""

    def program(marks: bool) -> Any:
        made = Program(4)
        for rank in (made[number] for number in range(4)):
            for step in range(3):
                rank.compute(seconds=1e-5 * (step + 1))
                if marks:
                    rank.mark("computed")
                rank.all_reduce(4000)
                if marks:
                    rank.mark("summed")
        return made.trace()

    platform = _platform(4) if fault is None else _platform(4).with_faults(fault)
    core = platform.core()
    bare = options(core, network, 0, False, False)
    kept = _C.sim_run(program(True).compiled(), core, {**bare, "marked": [1, 3]})
    without = _C.sim_run(program(False).compiled(), core, bare)
    assert len(kept["records"]) == 0
    for name in ("hash", "events", "makespan"):
        assert kept[name] == without[name]
    full = _C.sim_run(program(True).compiled(), core, options(core, network, 0, True, False))
    records = full["records"][full["records"]["kind"] == 7]
    for rank in (1, 3):
        mine = kept["marks"]["rank"] == rank
        assert kept["marks"]["name"][mine].tolist() == [0, 1] * 3
        expected = records["end"][records["rank"] == rank]
        assert np.array_equal(kept["marks"]["at"][mine], expected)
    assert set(kept["marks"]["rank"].tolist()) == {1, 3}
    assert len(full["marks"]["at"]) == 0
