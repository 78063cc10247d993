"""Meters: what is charged when, for measured and profiled time, and how devices are scaled."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from compute_core import FakeRank, metered
from leeboard.sim import Device, Platform, Program, run
from leeboard.sim.distributed.compute import (
    MODES,
    Host,
    MeasuredMeter,
    NoneMeter,
    Profile,
    ProfileError,
    RooflineMeter,
    calibrate,
    make,
    meter,
    meters,
    report_of,
)
from leeboard.sim.distributed.compute.calibrate import Timed
from leeboard.sim.ops import PRECISIONS

STAR = Platform.star(2, bandwidth=1e9)


def test_measured_time_is_between_resume_and_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rank's own time, scaled; what passes elsewhere is not its."""
    clock = iter([1_000, 4_500, 9_000, 9_001])
    monkeypatch.setattr(meters, "thread_time_ns", lambda: next(clock))
    rank, made = FakeRank(3), MeasuredMeter(2.0)
    made.flush(rank)
    made.resume(rank)
    made.flush(rank)
    made.flush(rank)
    made.resume(rank)
    made.flush(rank)
    assert rank.delays == [7_000_000, 2_000]
    assert (made.tally.stretches, made.tally.picoseconds) == (2, 7_002_000)


def test_measured_time_is_processor_time() -> None:
    """Real work takes some, sleeping takes next to none."""
    import time

    busy = metered(MeasuredMeter(), lambda: sum(range(200_000)))
    asleep = metered(MeasuredMeter(), lambda: time.sleep(0.05))
    assert busy.delays[0] > 0
    assert asleep.delays[0] < 50_000_000_000


def test_measured_time_by_cuda_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """With CUDA in use, the time between two events of its."""

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing
            self.at = -1.0

        def record(self) -> None:
            self.at = next(times)

        def synchronize(self) -> None:
            assert self.at >= 0

        def elapsed_time(self, end: Event) -> float:
            return end.at - self.at

    times = iter([1.0, 3.5])
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert metered(MeasuredMeter(0.5), lambda: None).delays == [1_250_000_000]


def test_one_thread_while_measured() -> None:
    """torch's threads are one each, until the last is out."""
    before = torch.get_num_threads()
    with ExitStack() as stack:
        for _ in range(2):
            for mode in MeasuredMeter().modes():
                stack.enter_context(mode)
            assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_calibration() -> None:
    """This host has some speed, and is itself at scale 1."""
    host = calibrate()
    assert [op.name for op in host.ops] == ["gemm", "gemv", "add"]
    assert all(op.seconds > 0 for op in host.ops)
    assert host is calibrate()
    assert host.flops > 0 < host.memory_bandwidth


def test_scale_by_the_reference_ops() -> None:
    """Each reference op counts alike: one bound by arithmetic, two by memory."""
    host = Host((Timed("gemm", 100, 1, 1.0), Timed("gemv", 1, 40, 1.0), Timed("add", 1, 10, 1.0)))
    assert (host.flops, host.memory_bandwidth) == (100.0, 40.0)
    device = Device("d", flops=1000, memory_bandwidth=100, flops_float32=200, overhead=5, speed=7)
    assert host.scale(device) == pytest.approx((100 / 200 + 40 / 100 + 10 / 100) / 3)


def test_scale_of_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """1 where the platform says nothing, else calibrated, unless it is given."""
    fast = Host((Timed("gemm", 10**12, 1, 1.0), Timed("gemv", 1, 10**11, 1.0)))
    monkeypatch.setattr(make, "calibrate", lambda: fast)
    assert make.scale_of(Device(overhead=1, memory="1 GB", jitter=0.1, speed=2))[0] == 1
    assert make.scale_of(Device("generic"))[0] == 1
    assert make.scale_of(Device(flops="2 TFLOP/s", memory_bandwidth="50 GB/s"))[0] == 1.25
    assert make.scale_of(Device(flops="2 TFLOP/s"), 3) == (3.0, "given")
    for wrong in (0, -1, "fast", True, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="scale: got"):
            make.scale_of(Device(), wrong)


def test_meter_by_name(tmp_path: Path) -> None:
    """Every mode has its meter, which knows its device; others are refused with a hint."""
    platform = STAR.with_devices("device.1", "rtx-4090").with_placement([1, 0])
    file = tmp_path / "profile.json"
    Profile("rtx-4090", 1e9, 1e9).save(file)
    for mode in MODES:
        made = meter(mode, platform, 0, profile=file if mode == "profiled" else None)
        assert made.tally.device.name == "rtx-4090"
        assert report_of(mode, [made]).mode == mode
    note = meter("roofline", platform, 0).tally.note
    assert note == (
        "rtx-4090: at most 165.2 TFLOP/s (float64 1.29, float32 82.6, float8 330.3, int8 660.6) "
        "and 1008 GB/s"
    )
    with pytest.raises(ValueError, match=r"compute: got 'rooflin' \(did you mean 'roofline'\?\)"):
        meter("rooflin", platform, 0)
    with pytest.raises(ValueError, match="profile: none given"):
        meter("profiled", platform, 0)
    with pytest.raises(ValueError, match="profile: given with compute 'measured'"):
        meter("measured", platform, 0, profile=file)
    assert meter(lambda p, r: (p, r), platform, 1) == (platform, 1)


def test_profiles_by_device(tmp_path: Path) -> None:
    """Each device takes the profile that bears its name; a single one serves all."""
    platform = STAR.with_devices("device.1", "rtx-4090")
    one, other = Profile("rtx-4090", 1e9, 1e9), Profile("generic", 1e9, 1e9)
    for rank, expected in enumerate((other, one)):
        assert meter("profiled", platform, rank, profile=[one, other]).table is expected
        assert meter("profiled", platform, rank, profile=one).table is one
    strange = [dataclasses.replace(one, device=name) for name in "ab"]
    with pytest.raises(ProfileError, match="'a', 'b' given, expected one of device 'generic'"):
        meter("profiled", platform, 0, profile=strange)


def test_none_costs_nothing() -> None:
    """Neither delays nor compute ops."""
    rank = metered(NoneMeter(), lambda: torch.ones(10) + 1)
    assert (rank.delays, rank.computed) == ([], [])


DEVICE = Device(
    "d",
    flops=1e9,
    memory_bandwidth=1e8,
    flops_float64=1e8,
    flops_float32=5e8,
    flops_float8=2e9,
    flops_int8=4e9,
    overhead=1e-6,
    speed=0.5,
    flops_curve=[(1e3, 0.25), (1e6, 0.5)],
    bytes_curve=[(10.0, 0.1), (1e4, 1.0)],
)


def test_seconds_are_the_engines() -> None:
    """Device.seconds, and the engine, in every precision, below, on and above the curves."""
    work = [(0, 0), (1, 0), (10**3, 5), (10**5, 1), (10**9, 0), (0, 7), (0, 500), (10**4, 10**6)]
    for precision, (flops, size) in ((p, w) for p in range(len(PRECISIONS)) for w in work):
        program = Program(1)
        program[0].compute(flops=flops, bytes=size, precision=PRECISIONS[precision])
        platform = Platform.star(1, bandwidth=1e9, device=DEVICE)
        expected = DEVICE.seconds(flops, size, precision)
        assert run(program, platform).makespan == pytest.approx(expected, rel=1e-9, abs=2e-12)
    with pytest.raises(ValueError, match=r"precision: got 'tf32', expected any, float64"):
        Program(1)[0].compute(flops=1, precision="tf32")
    assert DEVICE.peaks == (1e9, 1e8, 5e8, 1e9, 2e9, 4e9)


def test_report_adds_up() -> None:
    """Time by op as the engine will have it, shares, and metadata for the trace."""
    rank = metered(RooflineMeter(), lambda: [torch.ones(8, 8) @ torch.ones(8, 8) for _ in "abc"])
    rank.meter.tally.device = DEVICE
    rank.meter.tally.note = "d: slow"
    report = report_of("roofline", [rank.meter, SimpleNamespace()])
    expected = sum(DEVICE.seconds(*op) for op in rank.computed)
    assert report.seconds == pytest.approx(expected)
    by_name = {op.name: op for op in report.ops}
    product = by_name["aten.mm.default"]
    assert (product.calls, product.flops, product.bytes) == (3, 3 * 1024, 3 * 3 * 256)
    assert report.metadata() == {"compute": "roofline", "compute.devices": "d: slow"}
    assert "aten.ones.default" in str(report)
