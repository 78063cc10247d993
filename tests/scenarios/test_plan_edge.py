"""`plan_edge`: against closed forms, against brute force, and what must never happen."""

from __future__ import annotations

import itertools
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from leeboard.scenarios import (
    EdgeCandidate,
    EdgePlan,
    NothingMeetsError,
    Plans,
    Sensor,
    plan_edge,
)
from leeboard.sim import Device, Link, Platform

SENSORS = {"a": Sensor("a", 4000.0, 100.0), "b": Sensor("b", 1000.0, 200.0)}
NODE, HUB, BANDWIDTH, LATENCY = 0.1, 2.0, 1e5, 3e-3


def row(name: str, sensors: str, accuracy: float, encoder: float, fusion: float) -> EdgeCandidate:
    encoders = dict.fromkeys(sensors, encoder)
    total = encoder * len(sensors) + fusion
    return EdgeCandidate(name, tuple(sensors), accuracy, total, encoders, 1e6)


ROWS = (
    row("full", "ab", 0.95, 2e-3, 3e-3),
    row("half", "ab", 0.9, 1e-3, 2e-3),
    row("full", "a", 0.8, 2e-3, 3e-3),
    row("full", "b", 0.6, 2e-3, 3e-3),
)
PLANS = Plans(SENSORS, ROWS)


def plan(plans: Any = PLANS, **changes: Any) -> EdgePlan:
    given: dict[str, Any] = {
        "deadline": 0.2,
        "rate": 1.0,
        "arrivals": "periodic",
        "windows": 20,
        "bandwidth": BANDWIDTH,
        "latency": LATENCY,
        "node_speed": NODE,
        "hub_speed": HUB,
        "sensitivity": False,
    }
    return plan_edge(plans, **(given | changes))


def by_hand(placement: str, candidate: EdgeCandidate, sensors: dict[str, Sensor]) -> float:
    """Seconds to an answer, nothing queuing; links are each node's own."""
    own = [sensors[s] for s in candidate.sensors]
    if placement == "hub":
        return max(LATENCY + s.raw / BANDWIDTH for s in own) + candidate.seconds / HUB
    if placement == "split":
        assert candidate.encoders is not None
        sent = [candidate.encoders[s.name] / NODE + LATENCY + s.features / BANDWIDTH for s in own]
        return max(sent) + candidate.fusion / HUB
    # Through the hub: two links.
    others = sorted(own, key=lambda s: -s.raw)[1:]
    # They share the host's link.
    arrive = 2 * LATENCY + sum(s.raw for s in others) / BANDWIDTH if others else 0.0
    return arrive + candidate.seconds / NODE + LATENCY + 16 / BANDWIDTH


def test_latencies_are_what_arithmetic_says() -> None:
    found = plan()
    assert len(found.trials) == 12
    for t in found.trials:
        assert t.latency == pytest.approx(by_hand(t.placement, t.plan, SENSORS), rel=1e-6), t


def test_energy_a_window() -> None:
    found = plan(node_power=("1 mW", "101 mW"), hub_power=(0.5, 4.5), radio=1e-6, rate=2.0)
    for t in found.trials:
        nodes = len(t.plan.sensors)
        # Windows come every half second; the run ends with the last answer.
        idle = (10.0 + t.latency) / 20 * (1e-3 * nodes + 0.5)
        own = [SENSORS[s] for s in t.plan.sensors]
        if t.placement == "hub":
            busy, sent = 4.0 * t.plan.seconds / HUB, sum(s.raw for s in own)
        elif t.placement == "node":
            busy = 0.1 * t.plan.seconds / NODE
            sent = sum(s.raw for s in own) - max(s.raw for s in own) + 16
        else:
            spent = t.plan.seconds - t.plan.fusion
            busy = 0.1 * spent / NODE + 4.0 * t.plan.fusion / HUB
            sent = sum(s.features for s in own)
        assert t.energy == pytest.approx(idle + busy + 1e-6 * sent, rel=1e-6), t
    nodes_only = plan(node_power=(0.0, 0.1), energy_of="nodes", energy="5 mJ")
    assert {t.placement: t.energy for t in nodes_only.trials}["hub"] == 0.0
    unknown = plan(node_power=(0.0, 0.1))
    assert all(math.isnan(t.energy) for t in unknown.trials)


def test_the_quantile_is_of_a_queue() -> None:
    """One sensor without a message's time: an M/D/1 queue at the hub."""
    service, load = 0.01, 0.6
    one = Plans({"a": Sensor("a", 0.0, 0.0)}, (EdgeCandidate("x", ("a",), 0.9, service),))
    given: dict[str, Any] = {
        "rate": load / service,
        "arrivals": "poisson",
        "windows": 20_000,
        "bandwidth": 1e9,
        "latency": 0.0,
        "hub_speed": 1.0,
        "deadline": 10.0,
        "placements": ["hub"],
    }
    # Erlang: the share of windows that do not wait is 1 - load; P(wait <= t) for t below a service
    # time is (1 - load) exp(load t / service).
    inside = 0.5
    share = (1 - load) * math.exp(load * inside)
    found = plan(one, quantile=share, **given)
    assert found.trials[0].latency == pytest.approx(service * (1 + inside), rel=0.03)
    # Half the load: what was simulated for the whole is not used again.
    half = found.question.moved("arrival rate", 0.5).trial("hub", 0)
    again = plan(one, quantile=share, **(given | {"rate": load / service / 2}))
    assert half == again.trials[0]
    assert half.latency < found.trials[0].latency
    none = plan(one, quantile=1 - load - 0.02, **given)
    assert none.trials[0].latency == pytest.approx(service, rel=1e-3)


def test_the_choice_is_that_of_brute_force() -> None:
    draw = random.Random(5)
    names = "abc"
    for _ in range(6):
        sensors = {n: Sensor(n, draw.uniform(1e3, 2e4), draw.uniform(10, 500)) for n in names}
        rows = tuple(
            row(name, "".join(s), draw.random(), draw.uniform(0, 8e-3), draw.uniform(0, 2e-2))
            for size in (1, 2, 3)
            for s in itertools.combinations(names, size)
            for name in ("x", "y")
        )
        gone = {n: draw.random() for n in names}
        deadline = draw.uniform(0.05, 0.25)
        expected = {}
        for placement in ("hub", "split"):
            total = 0.0
            for size in range(4):
                for there in itertools.combinations(names, size):
                    chance = math.prod(1 - gone[n] if n in there else gone[n] for n in names)
                    good = [
                        r.accuracy
                        for r in rows
                        if set(r.sensors) <= set(there)
                        and by_hand(placement, r, sensors) <= deadline
                    ]
                    total += chance * max(good, default=0.0)
            expected[placement] = total
        found = plan(
            Plans(sensors, rows), deadline=deadline, dropout=gone, placements=["hub", "split"]
        )
        got = {c.placement: c.accuracy for c in found.choices}
        assert got == pytest.approx(expected, rel=1e-9)
        assert found.best.accuracy == max(got.values())
        assert sum(found.sets["chance"]) == pytest.approx(1.0)


def test_sensors_that_drop_out() -> None:
    found = plan(dropout={"a": 0.25}, placements=["hub"])
    assert found.best.accuracy == pytest.approx(0.75 * 0.95 + 0.25 * 0.6)
    used = {r["there"]: (r["plan"], r["uses"]) for r in found.sets}
    assert used == {
        "a+b": ("full", "a+b"),
        "a": ("full", "a"),
        "b": ("full", "b"),
        "none": ("nothing", ""),
    }
    assert plan(dropout=0.5, placements=["hub"]).best.accuracy == pytest.approx(
        (0.95 + 0.8 + 0.6) / 4
    )
    # A plan of fewer sensors will do where that of all of them is too slow.
    raw = plan(deadline=0.02, placements=["hub"], dropout=0.0)
    assert raw.sets.row(0)["uses"] == "b"


def test_more_time_and_faster_links_never_cost_accuracy() -> None:
    last = 0.0
    for deadline in (0.02, 0.05, 0.1, 0.2):
        now = plan(deadline=deadline, dropout=0.1).best.accuracy
        assert now >= last
        last = now
    accuracies = []
    for bandwidth in (1e6, 1e5, 4e4, 1e4, 6e3):
        found = plan(bandwidth=bandwidth, dropout=0.1, deadline=0.11)
        accuracies.append({c.placement: c.accuracy for c in found.choices})
    for placement in ("hub", "split", "node"):
        column = [a[placement] for a in accuracies]
        assert column == sorted(column, reverse=True)
    # Features are small: in the end only the encoders at the sensors will do for both.
    assert accuracies[-1]["split"] == max(accuracies[-1].values()) > accuracies[-1]["hub"]


def test_sensors_of_one_device_and_a_shared_platform(tmp_path: Path) -> None:
    wrist = Device("band", speed=NODE, memory="100 kB")
    made = Platform.custom(
        {"wrist": None, "phone": None},
        [("radio", "wrist", "phone", Link(BANDWIDTH, LATENCY))],
        device={"wrist": wrist, "phone": Device("phone", speed=HUB)},
    )
    made.save(tmp_path / "two.yaml")
    on = {"a": "wrist", "b": "wrist"}
    found = plan(platform=tmp_path / "two.yaml", devices=on, hub="phone")
    full = {t.placement: t for t in found.trials if t.plan is ROWS[0]}
    raw = sum(s.raw for s in SENSORS.values())
    assert full["hub"].latency == pytest.approx(LATENCY + raw / BANDWIDTH + ROWS[0].seconds / HUB)
    features = sum(s.features for s in SENSORS.values())
    assert full["split"].latency == pytest.approx(
        4e-3 / NODE + LATENCY + features / BANDWIDTH + 3e-3 / HUB
    )
    assert full["node"].fails == "memory: 976.6 KiB on wrist, which has 97.66 KiB"
    with pytest.raises(ValueError, match="a: the platform has no device 'a'"):
        plan(platform=made, hub="phone")
    with pytest.raises(ValueError, match="hub: the platform has no device 'hub'"):
        plan(platform=made, devices=on)


def test_a_deadline_that_nothing_meets_names_the_nearest() -> None:
    with pytest.raises(NothingMeetsError) as caught:
        plan(deadline="1 ms")
    nearest = min(caught.value.trials, key=lambda t: t.latency)
    text = str(caught.value)
    assert text.startswith("nothing meets deadline 1 ms at P99. Nearest is ")
    assert f"{nearest.plan.name} of {nearest.plan.set_name} on placement" in text
    assert f"deadline: {1e3 * nearest.latency:.4g} ms" in text
    assert all(note.startswith("deadline") for note in caught.value.table["note"])
    with pytest.raises(NothingMeetsError, match="energy: power not known"):
        plan(energy="1 J")
    with pytest.raises(NothingMeetsError, match=r"and 1e-06 J a window.*energy"):
        plan(energy="1 uJ", node_power=(0, 1), hub_power=(0, 1))


def test_sensitivity_is_what_planning_anew_gives(tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "dropout": 0.1,
        "node_power": (0.0, 0.1),
        "hub_power": (0.0, 1.0),
        "energy": "9 mJ",
    }
    found = plan(deadline=0.06, sensitivity=True, **given)
    assert found.sensitivity is not None
    rows = {r.name: r for r in found.sensitivity.rows}
    for name, changes in (
        ("deadline", [{"deadline": 0.06 * f} for f in (0.8, 1.2)]),
        ("link bandwidth", [{"bandwidth": BANDWIDTH * f} for f in (0.8, 1.2)]),
        ("link latency", [{"latency": LATENCY * f} for f in (0.8, 1.2)]),
        ("node speed", [{"node_speed": NODE * f} for f in (0.8, 1.2)]),
        ("hub speed", [{"hub_speed": HUB * f} for f in (0.8, 1.2)]),
        ("sensor dropout", [{"dropout": 0.1 * f} for f in (0.8, 1.2)]),
        ("energy budget", [{"energy": 9e-3 * f} for f in (0.8, 1.2)]),
        ("arrival rate", [{"rate": f} for f in (0.8, 1.2)]),
    ):
        low, high = (
            plan(**({"deadline": 0.06} | given | change)).best.accuracy for change in changes
        )
        assert (rows[name].low, rows[name].high) == pytest.approx((low, high)), name
    flip = rows["deadline"].below
    assert flip is not None
    beyond = plan(**given, deadline=0.06 * flip.factor)
    assert flip.decision.startswith(beyond.best.placement)
    found.to_json(tmp_path / "plan.json")
    read = json.loads((tmp_path / "plan.json").read_text())
    assert (read["format"], read["version"]) == ("leeboard.plan.edge", 1)
    assert read["best"] == found.best.placement
    assert len(read["trials"]) == len(found.trials)
    assert "the decision flips" in str(found)
    pytest.importorskip("matplotlib")
    found.plot(tmp_path / "plan.svg")
    assert b"</svg>" in (tmp_path / "plan.svg").read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"deadline": 0}, "deadline: got 0, expected more than 0"),
        ({"deadline": "5 mm"}, "deadline: got '5 mm'"),
        ({"dropout": 1.5}, "dropout: got 1.5 of a, expected a probability"),
        ({"dropout": {"x": 0.1}}, "dropout: unknown sensor 'x'; expected some of a, b"),
        ({"rate": 0}, "rate: got 0"),
        ({"windows": 0}, "windows: got 0"),
        ({"quantile": 0.0}, "quantile: got 0.0"),
        ({"arrivals": "bursts"}, "arrivals: got 'bursts', expected 'poisson' or 'periodic'"),
        ({"energy": "5 watts"}, "energy: got '5 watts', expected joules"),
        ({"energy": 0}, "energy: got 0, expected more than 0 J"),
        ({"energy_of": "me"}, "energy_of: got 'me'"),
        ({"placements": ["cloud"]}, "placements: got 'cloud'"),
        ({"devices": {"x": "y"}}, "devices: unknown sensor 'x'"),
        ({"devices": {"a": "hub"}}, "devices: a sensor is on 'hub'"),
        ({"node_power": 3}, "node_power: got 3, expected watts when idle and active"),
        ({"radio": -1.0}, "radio: got -1.0"),
        ({"node_speed": 0}, "speed: got 0"),
        ({"share": 0}, "share: got 0"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(**changes)


def test_splitting_needs_times_of_encoders() -> None:
    whole = Plans(SENSORS, (EdgeCandidate("full", ("a",), 0.8, 1e-3),))
    assert {t.placement for t in plan(whole).trials} == {"node", "hub"}
    with pytest.raises(ValueError, match="only 'split' is asked for"):
        plan(whole, placements=["split"])
