"""The simulator's benchmarks at toy sizes: what is timed is right, and the report keeps its place."""

from __future__ import annotations

import dataclasses
import importlib
from types import ModuleType

import pytest

from leeboard import sim

NETWORKS = ("flow", "alpha-beta")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config) -> ModuleType:
    monkeypatch.syspath_prepend(str(pytestconfig.rootpath))
    return importlib.import_module("bench.sim.workloads")


@pytest.fixture(params=["ping_pong", "ring"])
def workload(request: pytest.FixtureRequest, bench: ModuleType):
    return bench.Workload(request.param, 6, bytes=5000).scaled(120)


def test_every_simulator_ends_when_the_arithmetic_says(bench: ModuleType, workload) -> None:
    from bench.sim import own, peer_simgrid, peer_simpy

    assert workload.messages == 120
    for network in NETWORKS:
        outcome = own.run(workload, network, repeats=1)
        outcome.check(workload)
        late = dataclasses.replace(outcome, end=outcome.end * 1.00001)
        with pytest.raises(AssertionError, match="ends at"):
            late.check(workload)
    for peer in (peer_simpy, peer_simgrid):
        if peer.installed():
            peer.run(workload).check(workload)


@pytest.mark.parametrize("uneven", [False, True])
def test_all_to_all_ends_with_its_busiest_port_or_later(bench: ModuleType, uneven: bool) -> None:
    from bench.sim import own, peer_simgrid

    workload = bench.Workload("all_to_all", 5, uneven=uneven)
    sizes = workload.sizes()
    assert (sizes > 0).sum() == workload.messages == 20
    assert len(set(sizes[sizes > 0].tolist())) == (20 if uneven else 4)
    assert all(len(set(row.tolist())) == 5 for row in sizes)
    outcome = own.run(workload, "flow", repeats=1)
    port = max(sizes.sum(0).max(), sizes.sum(1).max()) / workload.bandwidth
    assert outcome.end >= workload.latency + port
    assert outcome.end < workload.latency + 2 * port
    with pytest.raises(ValueError, match="nothing to check"):
        outcome.check(workload)
    if peer_simgrid.installed():
        outcome.check(workload, peer_simgrid.run(workload).end)


def test_scale_points_are_checked(bench: ModuleType) -> None:
    from bench.sim import scale

    for what, size in (("ring", 9), ("folded", 9), ("binomial_tree", 8), ("binomial_tree", 16)):
        platform, trace = scale._subject(what, size)
        result = sim.replay(trace, platform, network=scale.NETWORKS[what])
        row = {"what": what, "size": size, "makespan": result.makespan}
        scale._check(row)
        with pytest.raises(AssertionError):
            scale._check(row | {"makespan": 0.98 * row["makespan"]})
    assert sim.replay(scale.steps(50), scale._star(64)).messages == 50 * 64


def test_accuracy_is_fitted_on_one_message_alone(bench: ModuleType) -> None:
    from bench.sim import accuracy

    rows = accuracy.measure(quick=True)
    assert abs(accuracy.error(rows[0], "own")) < 1e-5
    assert len(rows) == 6
    assert all(len(accuracy.cells(row)) == len(accuracy.PART.head) for row in rows)
    mean = sum(abs(accuracy.error(row, "own")) for row in rows) / 6
    assert mean <= accuracy.AIM
    assert f"Mean error: {mean:.2%}" in accuracy.summary(rows)[0]


def test_the_report_replaces_its_section_only(
    bench: ModuleType, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench import sections as whole
    from bench import systems
    from bench.sim import accuracy

    simulator = systems.System("sim", "Simulator", ("accuracy",), dict)
    target = tmp_path / "RESULTS.md"
    target.write_text("# Measured speed\n\n## some_op\n\nfast\n")
    monkeypatch.setattr(systems, "TARGET", target)
    rows = [{"case": "a", "real": 1.0, "own": 1.01, "lv08": 1.1, "smpi": 0.9}] * 3
    lines = simulator.compose(
        [accuracy.PART], {"accuracy": rows}, {"processor": "P"}, "2000-01-01", quick=False
    )
    simulator.publish(lines)
    once = target.read_text()
    assert once.startswith("# Measured speed\n\n## some_op\n\nfast\n\n<!-- system sim:begin -->")
    assert once.count("### Accuracy") == 1
    assert "+1.0%" in once
    simulator.publish(lines)
    assert target.read_text() == once
    # A new report of the ops keeps it.
    again = whole.keep_systems("# Measured speed\n\n## other_op\n", once)
    assert "some_op" not in again
    assert again.count("### Accuracy") == 1
    report_marks = [again.count(mark) for mark in whole.system_marks("sim")]
    assert report_marks == [1, 1]
