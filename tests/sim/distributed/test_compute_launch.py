"""Compute time of launched programs: what is charged is what the engine makes of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from leeboard.sim import Platform, replay
from leeboard.sim.distributed.compute import Profile
from leeboard.sim.distributed.launch import launch
from leeboard.sim.ops import OpKind

WIDTH, HIDDEN, ROWS, STEPS = 48, 96, 6, 3
SLOW = Platform.star(
    2,
    bandwidth="1 Gbit/s",
    latency="10 us",
    device="generic",
).with_devices("*", flops="1 GFLOP/s", flops_float32="500 MFLOP/s", overhead="3 us")
FAST = SLOW.with_devices("*", flops="40 GFLOP/s", flops_float32="20 GFLOP/s", overhead="1 us")


def tensor_parallel() -> None:
    """Halves of a feed-forward block on two ranks, with DTensor."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    with torch.device("meta"):
        block = nn.Sequential(
            nn.Linear(WIDTH, HIDDEN, bias=False),
            nn.ReLU(),
            nn.Linear(HIDDEN, WIDTH, bias=False),
        )
    block.to_empty(device="cpu")
    for parameter in block.parameters():
        nn.init.ones_(parameter)
    parallelize_module(block, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    x = torch.ones(ROWS, WIDTH)
    with torch.no_grad():
        for _ in range(STEPS):
            x = block(x) * 1e-3


def exchange() -> float:
    """A product, and a sum of 1 MiB over both ranks, which the simulator adds up itself."""
    dist.init_process_group("gloo")
    a = torch.ones(64, 64)
    total = torch.full((1 << 18,), float((a @ a)[0, 0]))
    dist.all_reduce(total)
    return float(total[0])


def computed(trace: object, rank: int) -> list[tuple[int, int, int]]:
    ops = trace.ops[int(trace.begin[rank]) : int(trace.end[rank])]  # type: ignore[attr-defined]
    ops = ops[ops["kind"] == OpKind.COMPUTE]
    return [(int(op["a"]), int(op["b"]), int(op["flags"])) for op in ops]


def test_roofline() -> None:
    """Half of the flops on each rank, charged as the device's roofline says; the replay of the
    recording on another platform is the run there."""
    launched = launch(tensor_parallel, SLOW, compute="roofline")
    report = launched.compute
    assert report is not None
    products = {op.name: op for op in report.ops}["aten.mm.default"]
    assert products.calls == 2 * 2 * STEPS
    assert products.flops == 2 * STEPS * 2 * ROWS * 2 * WIDTH * HIDDEN // 2
    device = SLOW.kinds[0]
    for rank in range(2):
        charged = sum(device.seconds(*op) for op in computed(launched.trace, rank))
        assert launched.result.ranks["compute"][rank] == pytest.approx(charged, rel=1e-9)
    assert report.seconds == pytest.approx(float(np.sum(launched.result.ranks["compute"])))
    assert launched.trace.metadata["compute"] == "roofline"
    elsewhere = launch(tensor_parallel, FAST, compute="roofline").result
    replayed = replay(launched.trace, FAST)
    assert (replayed.makespan_ps, replayed.event_hash) == (
        elsewhere.makespan_ps,
        elsewhere.event_hash,
    )
    assert elsewhere.makespan < launched.result.makespan


def test_the_simulators_own_sums_are_not_charged() -> None:
    """What all_reduce adds up is data, not the program's work."""
    launched = launch(exchange, SLOW, compute="roofline")
    assert launched.values == [128.0, 128.0]
    assert launched.compute is not None
    names = {op.name: op.calls for op in launched.compute.ops}
    assert names == {"aten.mm.default": 2, "aten.ones.default": 2, "aten.full.default": 2}


def test_measured() -> None:
    """The trace says by which scale; a larger scale takes longer."""
    launched = launch(exchange, SLOW, compute="measured", scale=1000.0)
    assert launched.trace.metadata["compute.devices"] == (
        "generic: 1000 times the time on this host (given)"
    )
    ranks = launched.result.ranks["compute"]
    assert (ranks > 0).all()
    assert launched.compute is not None
    with pytest.raises(ValueError, match="scale: got 'slow'"):
        launch(exchange, SLOW, scale="slow")  # type: ignore[arg-type]


def test_profiled() -> None:
    """Times of the table, with the device's overhead; the rest by roofline, and named."""
    profile = Profile("generic", 1e9, 1e9)
    from leeboard.sim.distributed.compute.programs import calls_of

    calls = {str(example.call.rule.func): example.call for example in calls_of(exchange)}
    profile.add(calls["aten.mm.default"], 2e-3, 1)
    launched = launch(exchange, SLOW, compute="profiled", profile=profile)
    report = launched.compute
    assert report is not None
    assert report.sources() == {"measured": 2, "roofline": 4}
    assert [op.name for op in report.fallbacks] == ["aten.full.default", "aten.ones.default"]
    device = SLOW.kinds[0]
    rest = sum(device.seconds(0, size) for size in (4 * 64 * 64, 4 << 18))
    expected = 2e-3 + device.overhead + rest
    assert launched.result.ranks["compute"][0] == pytest.approx(expected, rel=1e-9)


def test_meters_of_ones_own() -> None:
    """A function makes the meter of each rank."""
    from leeboard.sim.distributed.compute import NoneMeter

    made: list[int] = []

    def make(platform: Platform, rank: int) -> NoneMeter:
        assert platform is SLOW
        made.append(rank)
        return NoneMeter()

    launched = launch(exchange, SLOW, compute=make)
    assert made == [0, 1]
    assert not launched.result.ranks["compute"].any()
    assert launched.compute is not None
    assert launched.compute.mode == "custom"
