"""What a platform says is what the simulator does."""

from __future__ import annotations

from pathlib import Path

import pytest

from leeboard import sim
from leeboard.sim import Device, Fault, Link, Platform
from leeboard.sim.collectives import closed_form

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "sim").glob("*.yaml"))


def compute(ranks: int, flops: float = 0.0, bytes_: float = 0.0) -> sim.Program:
    program = sim.Program(ranks)
    for rank in range(ranks):
        program[rank].compute(flops=flops, bytes=bytes_)
    return program


def message(ranks: int, source: int, target: int, size: int) -> sim.Program:
    program = sim.Program(ranks)
    program[source].send(target, bytes=size)
    program[target].recv(source)
    return program


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_run(path: Path) -> None:
    """Everyone sends a mebibyte to rank 0."""
    platform = Platform.load(path)
    program = sim.Program(platform.ranks)
    for rank in range(1, platform.ranks):
        program[rank].send(0, bytes=1 << 20)
        program[0].recv(rank)
    result = sim.run(program, platform)
    assert result.messages == platform.ranks - 1
    # No faster than rank 0's device takes it in.
    first = int(platform.placement[0]) if platform.placement.size else 0
    mine = (platform.graph.link_a == first) | (platform.graph.link_b == first)
    taken_in = platform.core()["link_bandwidth"][mine].sum()
    assert result.makespan >= (platform.ranks - 1) * 2**20 / taken_in


def test_the_table_of_collectives_is_used() -> None:
    star = Platform.star(8, bandwidth="1 Gbit/s", latency="100 us")
    program = sim.Program(8)
    program.all_reduce(bytes=80_000)
    for algorithm in ("ring", "recursive_doubling", "direct"):
        chosen = sim.run(program, star.with_collectives([sim.Rule("all_reduce", algorithm)]))
        expected = closed_form("all_reduce", algorithm, 8, 80_000, 100e-6, 8e-9)
        assert chosen.makespan == pytest.approx(expected)
    # NCCL's table: a ring for this much, a tree for little.
    nccl = sim.run(program, star.with_collectives("nccl"))
    ring = sim.run(program, star.with_collectives([sim.Rule("all_reduce", "ring")]))
    assert nccl.event_hash == ring.event_hash
    small = sim.Program(8)
    small.all_reduce(bytes=8)
    expected = closed_form("all_reduce", "binomial_tree", 8, 8, 100e-6, 8e-9)
    tree = sim.run(small, star.with_collectives("nccl"), network="alpha-beta")
    assert tree.makespan == pytest.approx(expected)


@pytest.mark.parametrize("network", ["flow", "alpha-beta"])
def test_latency_of_a_star_is_device_to_device(network: str) -> None:
    platform = Platform.star(3, bandwidth="1 Gbit/s", latency="100 us")
    result = sim.run(message(3, 0, 2, 125_000), platform, network=network)
    assert result.makespan == pytest.approx(100e-6 + 1e-3, abs=1e-11)


def test_latency_between_sites() -> None:
    platform = Platform.edge(
        2, 2, bandwidth=1e9, latency="4 ms", uplink_bandwidth=1e6, uplink_latency="10 ms"
    )
    # Within a site, and between sites: two gateways' links more, the slowest of which counts.
    assert sim.run(message(4, 0, 1, 0), platform).makespan == pytest.approx(4e-3)
    assert sim.run(message(4, 0, 2, 1000), platform).makespan == pytest.approx(24e-3 + 1e-3)


def test_stragglers_and_presets() -> None:
    platform = Platform.star(2, bandwidth=1, device={"device.1": Device(flops="2 TFLOP/s")})
    slow = platform.with_stragglers({"device.1": 0.1})
    assert sim.run(compute(2, flops=1e12), platform).ranks["finish"] == pytest.approx([1, 0.5])
    assert sim.run(compute(2, flops=1e12), slow).ranks["finish"] == pytest.approx([1, 5])
    fast = platform.with_devices("*", "a100-80gb")
    memory_bound = sim.run(compute(2, flops=1e9, bytes_=2.039e12), fast)
    assert memory_bound.makespan == pytest.approx(1)


def test_efficiency_is_linear_in_the_logarithm_of_work() -> None:
    curve = [("1 MFLOP", 0.1), ("100 MFLOP", 0.5)]
    platform = Platform.star(1, bandwidth=1, device=Device(flops=1e9, flops_curve=curve))
    for flops, efficiency in ((1e5, 0.1), (1e7, 0.3), (1e9, 0.5)):
        result = sim.run(compute(1, flops=flops), platform)
        assert result.makespan == pytest.approx(flops / 1e9 / efficiency)


def test_a_slow_phase_of_a_link_and_of_a_device() -> None:
    platform = Platform.star(2, bandwidth=100.0).with_faults(
        Fault(link="link.0", at=1, duration=2, factor=0.5), Fault(device=1, at=0.5, duration=0.25)
    )
    # 100 bytes at full speed, 100 in two seconds at half of it, 100 at full speed.
    assert sim.run(message(2, 0, 1, 300), platform).makespan == pytest.approx(4)
    assert sim.run(compute(2, flops=1e12), platform).ranks["finish"] == pytest.approx([1, 1.25])


def test_placement_and_given_routes() -> None:
    platform = Platform.custom(
        {"a": None, "b": None},
        [
            ("near", "a", "b", Link(100.0)),
            ("far", "a", "x", Link(1000.0, "1 s")),
            ("back", "x", "b", Link(1000.0, "1 s")),
        ],
        switches={"x": None},
    )
    assert sim.run(message(2, 0, 1, 1000), platform).makespan == pytest.approx(10)
    detour = platform.with_routes(("a", "b", ["far", "back"]))
    assert sim.run(message(2, 0, 1, 1000), detour).makespan == pytest.approx(3)
    # Rank 0 on b: the way back is another route, which was not given.
    swapped = detour.with_placement(["b", "a"])
    assert sim.run(message(2, 0, 1, 1000), swapped).makespan == pytest.approx(10)
