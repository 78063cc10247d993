"""`plan_speculation`: against closed forms, against brute force, and what must never happen."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from leeboard.scenarios import (
    DRAFTERS,
    TARGETS,
    Acceptance,
    NothingFitsError,
    SpeculationPlan,
    plan_speculation,
)
from leeboard.scenarios.rounds import Decoding, Reply, Round, draw, program
from leeboard.scenarios.site import site
from leeboard.sim import Device, Platform, run

SHARES = (0.8, 0.7, 0.65, 0.5)
# Compute-bound nowhere, so that a step takes bytes over bandwidth.
EDGE = Device("box", flops="500 TFLOP/s", memory_bandwidth="200 GB/s", active_power="20 W")
SERVER = Device("big", flops="5 PFLOP/s", memory_bandwidth="2 TB/s", active_power="500 W")
BANDWIDTH, LATENCY = 12.5e6, 4e-3
DECODING = Decoding(TARGETS["llama-3.1-8b"], DRAFTERS["eagle3-llama-3.1-8b"], context=1000)


def plan(acceptance: Any = SHARES, **changes: Any) -> SpeculationPlan:
    given: dict[str, Any] = {
        "edge": EDGE,
        "server": SERVER,
        "bandwidth": BANDWIDTH,
        "latency": LATENCY,
        "context": 1000,
        "tokens": 200,
        "sensitivity": False,
    }
    return plan_speculation(acceptance, **(given | changes))


def rates(found: SpeculationPlan) -> dict[tuple[str, int], float]:
    return {(c.placement, c.depth): c.rate for c in found.candidates}


class Times:
    """Seconds of the parts of a round, by hand."""

    def __init__(self, depth: int) -> None:
        target, drafter = DECODING.target, DECODING.drafter
        # A Llama-3.1-8B streams all but its embedding table: 7.50e9 weights of 2 bytes.
        read = (8030261248 - 128256 * 4096) * 2
        cache = 1000 * 2 * 32 * 1024 * 2
        assert read + cache == target.work(1, 1000)["bytes"]
        self.verify = (read + cache) / 2e12
        self.verify_edge = (read + cache) / 200e9
        step = (374341632) * 2 + 1000 * 2 * 1024 * 2
        assert step == drafter.work(1, 1000)["bytes"]
        self.step, self.step_server = step / 200e9, step / 2e12
        entry = 3 * 4096 * 4096 * 2
        self.entry, self.entry_edge = entry / 2e12, entry / 200e9
        self.up = LATENCY + (64 + 4 * depth) / BANDWIDTH

    def down(self, accepted: int, *, states: bool) -> float:
        rows = accepted + 1
        return LATENCY + (64 + 4 * rows + (2 * 4096 * rows if states else 0)) / BANDWIDTH

    def wait(self, accepted: int) -> float:
        """From a draft's sending to the verdict."""
        return self.up + self.verify + self.entry + self.down(accepted, states=True)


def simulated(
    placement: Any, depth: int, reply: Reply, wasted: int = 0, edge: Device = EDGE
) -> float:
    where = site(
        None, {"edge": edge, "server": SERVER}, bandwidth=BANDWIDTH, latency=LATENCY
    ).platform
    return run(program(DECODING, placement, depth, reply, lambda a: wasted), where).makespan


@pytest.mark.parametrize("depth", [1, 3])
def test_rounds_take_what_arithmetic_says(depth: int) -> None:
    reply = draw(Acceptance(SHARES), depth, 60, overlap=False, seed=1)
    times = Times(depth)
    counts = {e[0].accepted: n for e, n in reply.episodes.items()}
    rounds, last = sum(counts.values()), [*counts][-1]
    steps = depth * times.step_server
    server = rounds * (times.entry + steps + times.verify) + times.down(last, states=False)
    assert simulated("server", depth, reply) == pytest.approx(server, rel=1e-9)
    edge = rounds * (times.entry_edge + depth * times.step + times.verify_edge)
    assert simulated("edge", depth, reply) == pytest.approx(edge, rel=1e-9)
    split = sum(n * (depth * times.step + times.wait(a)) for a, n in counts.items())
    assert simulated("split", depth, reply) == pytest.approx(split, rel=1e-9)


@pytest.mark.parametrize(("wasted", "slower"), [(0, 1), (2, 1), (40, 1), (1, 10)])
def test_overlap_hides_drafting_behind_the_verdict(wasted: int, slower: int) -> None:
    """Or the verdict behind drafting, where a step takes long."""
    depth, times = 2, Times(2)
    times.step *= slower
    assert ((depth + 1) * times.step > times.wait(depth)) == (slower > 1)
    episode = (Round(2, True), Round(2, True), Round(1))
    reply = Reply({episode: 3, (Round(0),): 2})

    def once(rounds: tuple[Round, ...]) -> float:
        total = depth * times.step
        for r in rounds:
            more = depth + 1 if r.goes_on else wasted
            total += max(more * times.step, times.wait(r.accepted))
        return total

    expected = 3 * once(episode) + 2 * once((Round(0),))
    edge = replace(EDGE, speed=1 / slower)
    found = simulated("split+overlap", depth, reply, wasted, edge)
    assert found == pytest.approx(expected, rel=1e-9)


def test_the_rate_is_tau_over_the_time_of_a_round() -> None:
    """The closed form that serving engines use."""
    found, acceptance = plan(tokens=20_000), Acceptance(SHARES)
    for depth in range(1, 5):
        times, tau = Times(depth), 1.0
        tau = 1 + sum(math.prod(SHARES[: d + 1]) for d in range(depth))
        assert acceptance.tau(depth) == pytest.approx(tau)
        server = times.entry + depth * times.step_server + times.verify
        assert rates(found)["server", depth] == pytest.approx(tau / server, rel=2e-3)
        # What comes back grows with what was accepted, so its mean is that of tau rows.
        split = depth * times.step + times.wait(0) + (tau - 1) * (4 + 8192) / BANDWIDTH
        assert rates(found)["split", depth] == pytest.approx(tau / split, rel=2e-3)
    alone = 1 / Times(0).verify
    assert rates(found)["server", 0] == pytest.approx(alone, rel=2e-3)


def test_even_draws_come_in_their_shares_and_seeded_ones_nearly() -> None:
    acceptance = Acceptance(SHARES)
    for depth in (1, 2, 4):
        tau = acceptance.tau(depth)
        even = draw(acceptance, depth, 3000, overlap=False)
        assert even.tokens / even.rounds == pytest.approx(tau, rel=3e-3)
        assert 3000 <= even.tokens <= 3000 + depth
        totals = [draw(acceptance, depth, 3000, overlap=False, seed=s) for s in range(10)]
        mean = sum(r.tokens for r in totals) / sum(r.rounds for r in totals)
        rounds = sum(r.rounds for r in totals)
        # A round's tokens are between 1 and depth + 1, so their deviation is at most depth / 2.
        assert abs(mean - tau) < 4 * depth / 2 / math.sqrt(rounds)
    assert draw(acceptance, 2, 500, overlap=True, seed=3) == draw(
        acceptance, 2, 500, overlap=True, seed=3
    )


def test_overlap_goes_on_as_often_as_the_depths_say() -> None:
    acceptance = Acceptance((0.9, 0.8, 0.7, 0.6))
    reply = draw(acceptance, 1, 20_000, overlap=True)
    first = sum(reply.episodes.values())
    second = sum(n for e, n in reply.episodes.items() if len(e) > 1)
    third = sum(n for e, n in reply.episodes.items() if len(e) > 2)
    # The draft and the guess of the target's own token; then depths 3 and 4; beyond: the least.
    assert second / first == pytest.approx(0.9 * 0.8, rel=1e-2)
    assert third / second == pytest.approx(0.7 * 0.6, rel=2e-2)
    certain = draw(Acceptance((1.0,)), 3, 100, overlap=True)
    assert certain.tokens == 100
    assert len(next(iter(certain.episodes))) == 25


def test_the_best_is_the_fastest_that_fits() -> None:
    found = plan()
    assert found.best.rate == max(rates(found).values())
    assert {(c.placement, c.depth) for c in found.candidates} == {
        *itertools.product(("server", "edge"), range(5)),
        *itertools.product(("split", "split+overlap"), range(1, 5)),
    }
    small = replace(SERVER, memory="10 GB")
    crowded = plan(server=small)
    assert {c.placement for c in crowded.candidates if c.fails} == {
        "server",
        "split",
        "split+overlap",
    }
    assert crowded.best.placement == "edge"
    fails = next(c.fails for c in crowded.candidates if c.fails)
    # 16.06 GB of weights and 131 MB of keys and values.
    assert fails == "memory: 15.08 GiB on the server, which has 9.313 GiB"
    with pytest.raises(NothingFitsError, match=r"nothing fits: edge: memory.*server: memory") as e:
        plan(server=small, edge=replace(EDGE, memory="10 GB"))
    assert set(e.value.table["note"]) - {""} == {c.fails for c in e.value.candidates}


def test_a_slower_link_never_makes_the_remote_placements_better() -> None:
    last: dict[tuple[str, int], float] = {}
    for bandwidth, latency in ((1e9, 0.0), (1e7, 1e-3), (1e6, 1e-2), (1e5, 1e-1), (1e3, 1.0)):
        now = rates(plan(bandwidth=bandwidth, latency=latency))
        for key, rate in now.items():
            if key in last and not key[0].endswith("overlap"):
                assert rate <= last[key] * (1 + 1e-9), (key, bandwidth)
            if key[0] == "edge" and key in last:
                assert rate == pytest.approx(last[key])
        last = now
    # With a second between them the best is where nothing waits for the other end.
    assert plan(bandwidth=1e3, latency=1.0, placements=("split", "edge")).best.placement == "edge"


def test_acceptance_decides_the_depth() -> None:
    assert plan((0.0, 0.0, 0.0)).best.depth == 0
    assert plan((1.0,) * 6, placements=("server",)).best.depth == 6
    depths = [plan((a,) * 8, placements=("server",)).best.depth for a in (0.3, 0.6, 0.8, 0.95)]
    assert depths == sorted(depths)
    assert depths[0] < depths[-1]


def test_energy_a_token() -> None:
    found = plan(tokens=500)
    for c in found.candidates:
        times = Times(c.depth)
        head = c.depth * times.step_server + (times.entry if c.depth else 0.0)
        if c.placement == "server":
            # Idle power is 0, so only computing counts.
            assert c.energy == pytest.approx(500 * (head + times.verify) / c.tau, rel=1e-6)
    shared = {(c.placement, c.depth): c for c in plan(tokens=500, batch=4).candidates}
    one = {(c.placement, c.depth): c for c in found.candidates}
    assert shared["server", 0].energy < 0.3 * one["server", 0].energy
    assert shared["edge", 0] == one["edge", 0]
    unknown = plan(server=replace(SERVER, active_power=0.0))
    energies = {c.placement: c.energy for c in unknown.candidates}
    assert math.isnan(energies["server"])
    assert not math.isnan(energies["edge"])


def test_a_platform_gives_the_same_as_its_figures(tmp_path: Path) -> None:
    where = site(None, {"edge": EDGE, "server": SERVER}, bandwidth=BANDWIDTH, latency=LATENCY)
    where.platform.with_placement(None).save(tmp_path / "two.yaml")
    assert rates(plan(platform=tmp_path / "two.yaml", edge="edge", server="server")) == rates(
        plan()
    )
    star = Platform.star(3, bandwidth="1 Gbit/s", latency="1 ms")
    named = plan(platform=star, edge="device.2", server="device.0")
    assert dict(named.question.site.roles) == {"edge": "device.2", "server": "device.0"}


def test_seeded_draws_average_replies() -> None:
    found = plan(draws="seeded", replies=4, seed=7, depth=2)
    assert found.best == plan(draws="seeded", replies=4, seed=7, depth=2).best
    even = rates(plan(depth=2, tokens=2000))
    for key, rate in rates(plan(draws="seeded", replies=10, depth=2, tokens=500)).items():
        assert rate == pytest.approx(even[key], rel=0.05)


def test_sensitivity_is_what_trying_everything_gives(tmp_path: Path) -> None:
    """Candidates are left out only where they cannot win; flips are where they are said to be."""
    found = plan(depth=2, tokens=60, sensitivity=True, share=0.25)
    assert found.sensitivity is not None
    names = {row.name for row in found.sensitivity.rows}
    assert names == {given.name for given in found.question.inputs()}
    for row in found.sensitivity.rows:
        for factor, value, kept in (
            (0.75, row.low, row.keeping_low),
            (1.25, row.high, row.keeping_high),
        ):
            moved = found.question.moved(row.name, factor)
            every = {c: moved.try_(*c).rate for c in moved.candidates()}
            assert value == pytest.approx(max(every.values()), rel=1e-12), row.name
            assert kept == every[found.best.placement, found.best.depth]
        for flip in (row.below, row.above):
            if flip is not None:
                beyond = found.question.moved(row.name, flip.factor)
                best = max((beyond.try_(*c) for c in beyond.candidates()), key=lambda c: c.rate)
                assert best.name == flip.decision != found.best.name
                back = 1.03 if flip.factor < 1 else 1 / 1.03
                before = found.question.moved(row.name, flip.factor * back)
                best = max((before.try_(*c) for c in before.candidates()), key=lambda c: c.rate)
                assert best.name == found.best.name
    assert found.sensitivity.rows[0].width == max(r.width for r in found.sensitivity.rows)
    text = str(found)
    assert "*" in text
    assert "the decision flips" in text
    found.to_json(tmp_path / "plan.json")
    read = json.loads((tmp_path / "plan.json").read_text())
    assert (read["format"], read["version"]) == ("leeboard.plan.speculation", 1)
    assert read["best"]["depth"] == found.best.depth
    assert len(read["sensitivity"]["inputs"]) == len(names)
    table = found.table
    assert table.row(int(table["best"].argmax()))["rate"] == found.best.rate
    pytest.importorskip("matplotlib")
    found.plot(tmp_path / "plan.svg")
    assert b"</svg>" in (tmp_path / "plan.svg").read_bytes()


def test_a_rival_that_is_slower_now_is_tried_where_it_may_win() -> None:
    near = replace(SERVER, memory_bandwidth="220 GB/s")
    found = plan((0.5,), server=near, tokens=40, placements=("server", "edge"), sensitivity=True)
    assert found.best.placement == "server"
    assert found.sensitivity is not None
    rows = {row.name: row for row in found.sensitivity.rows}
    flip = rows["edge speed"].above
    assert flip is not None
    assert flip.factor == pytest.approx(1.1, rel=0.03)
    assert flip.decision.startswith("edge")
    back = rows["server speed"].below
    assert back is not None
    assert back.factor == pytest.approx(1 / 1.1, rel=0.03)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"acceptance": ()}, "acceptance: got none"),
        ({"acceptance": (0.5, 1.5)}, r"got 1.5 at depth 2, expected a share from 0 to 1 \(80 % is"),
        ({"acceptance": (0.5, -0.1)}, "got -0.1 at depth 2"),
        ({"acceptance": (0.5, "x")}, "got 'x' at depth 2"),
        ({"acceptance": (float("nan"),)}, "got nan at depth 1"),
        ({"edge": "jetson-orin-nanno"}, "did you mean 'jetson-orin-nano'"),
        ({"target": "llama"}, "target: got 'llama', expected llama-3.1-8b"),
        ({"drafter": {"name": "x"}}, "drafter: step, layers, hidden missing"),
        ({"drafter": {"nam": "x"}}, "drafter: unknown field 'nam'"),
        ({"placements": ("moon",)}, "placements: got 'moon'"),
        ({"placements": ()}, "placements: got none"),
        ({"placements": ("split",), "depth": 0}, "depth: got 0"),
        ({"depth": 33}, "depth: got 33, expected an integer from 0 to 32"),
        ({"tokens": 0}, "tokens: got 0"),
        ({"batch": True}, "batch: got True"),
        ({"share": 1.0}, "share: got 1.0"),
        ({"efficiency": 0.0}, "efficiency: got 0.0"),
        ({"draws": "odd"}, "draws: got 'odd'"),
        ({"bandwidth": "1 Gb/s"}, "may mean bits or bytes"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(**changes)


def test_a_platform_without_the_devices_is_refused() -> None:
    star = Platform.star(2, bandwidth="1 Gbit/s")
    with pytest.raises(ValueError, match=r"edge: the platform has no device 'edge' \(it has dev"):
        plan(platform=star, edge="edge", server="device.0")
    with pytest.raises(ValueError, match=r"server: got 'device\.0', which is the edge"):
        plan(platform=star, edge="device.0", server="device.0")
    with pytest.raises(ValueError, match="expected a device of the platform by name"):
        plan(platform=star)
