"""Which pruning plan to run where, for each set of sensors that is there."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from leeboard.scenarios.edge_arguments import devices_of, dropouts, joules, power
from leeboard.scenarios.edge_plan import EdgePlan, NothingMeetsError
from leeboard.scenarios.edge_plans import Plans, plans_of
from leeboard.scenarios.edge_programs import EDGE_PLACEMENTS, EdgePlacement, Wiring
from leeboard.scenarios.edge_question import Choice, EdgeQuestion, Trial
from leeboard.scenarios.report import advancing, check_integer, check_share
from leeboard.scenarios.sensitivity import Input, Outcome, Sensitivity, analyse
from leeboard.scenarios.site import site
from leeboard.sim import Device, Platform
from leeboard.sim.table import text_of
from leeboard.sim.units import BANDWIDTH, RATIO, TIME, parse

# Beyond these there are more sets of sensors than anybody reads.
_MOST_SENSORS = 12


def plan_edge(
    plans: Plans | str | Path | Mapping[str, Any],
    *,
    deadline: float | str,
    energy: float | str | None = None,
    energy_of: Literal["all", "nodes"] = "all",
    dropout: float | Mapping[str, float] = 0.0,
    rate: float = 1.0,
    arrivals: Literal["poisson", "periodic"] = "poisson",
    quantile: float = 0.99,
    windows: int = 1000,
    platform: Platform | str | Path | None = None,
    devices: Mapping[str, str] | None = None,
    hub: str = "hub",
    bandwidth: float | str = "1 Mbit/s",
    latency: float | str = "5 ms",
    node_speed: float = 0.05,
    hub_speed: float = 1.0,
    node_power: tuple[float | str, float | str] | None = None,
    hub_power: tuple[float | str, float | str] | None = None,
    radio: float = 0.0,
    placements: Sequence[EdgePlacement] | None = None,
    seed: int = 0,
    sensitivity: bool = True,
    share: float = 0.2,
    progress: bool = False,
) -> EdgePlan:
    """Find the plans and the placement with the highest expected accuracy that meet all demands.

    The placement is one for all times; the plan follows the sensors that are there. A plan may use
    fewer sensors than there are. Windows arrive at all sensors at once, queue, and are answered at the
    hub.

    Args:
        plans: `Plans` or a file of them (see `plans_of`); those of a study: `plans_of_study`.
        deadline: From a window's arrival to its answer, seconds or text such as "50 ms".
        energy: Joules a window at most ("20 mJ" is 0.02); None: no matter.
        energy_of: Whether the hub's energy counts ("all") or that of the sensor nodes only ("nodes").
        dropout: Probability that a sensor is not there, of each by itself; or by sensor.
        rate: Windows a second.
        arrivals: "poisson" or "periodic".
        quantile: Share of windows that must meet the deadline.
        windows: To simulate.
        platform: Of the simulator, or its file; it is taken as it is. Plans' times are those of a
            device of speed 1. None: a node for each sensor, linked to a hub.
        devices: Sensor to the device that it is on; default: devices named as the sensors.
        hub: The hub's device.
        bandwidth: Of a node's link, each way; not used with a platform.
        latency: One way; not used with a platform.
        node_speed: Of a node, times the device whose times the plans have; not used with a platform.
        hub_speed: The same of the hub.
        node_power: Watts of a node when idle and when it computes; not used with a platform.
        hub_power: The same of the hub.
        radio: Joules for a byte that is sent.
        placements: To try; default: all of "node", "hub", "split".
        seed: Of the arrivals, and of jitter and loss.
        sensitivity: Whether to move the inputs, too.
        share: By how much, up and down.
        progress: Whether to draw a progress bar.

    Raises:
        NothingMeetsError: Nothing meets all demands; it says what is nearest.
        ValueError: An argument is wrong.
        FileNotFoundError: There is no such file.
    """
    read = plans_of(plans)
    names = tuple(read.sensors)
    if len(names) > _MOST_SENSORS:
        raise ValueError(f"plans: got {len(names)} sensors, expected at most {_MOST_SENSORS}")
    due = parse("deadline", deadline, TIME)
    if due <= 0:
        raise ValueError(f"deadline: got {deadline!r}, expected more than 0")
    budget = math.inf if energy is None else joules(energy)
    if not 0.0 < quantile <= 1.0:
        raise ValueError(f"quantile: got {quantile!r}, expected a share above 0 and up to 1")
    for name, value, known in (
        ("arrivals", arrivals, ("poisson", "periodic")),
        ("energy_of", energy_of, ("all", "nodes")),
    ):
        if value not in known:
            raise ValueError(f"{name}: got {value!r}, expected {' or '.join(map(repr, known))}")
    if parse("rate", rate, RATIO) == 0:
        raise ValueError(f"rate: got {rate!r}, expected more than 0 windows a second")
    check_integer("windows", windows, 1, 10**6)
    if not (math.isfinite(radio) and radio >= 0):
        raise ValueError(f"radio: got {radio!r}, expected joules a byte from 0 on")
    chosen = tuple(EDGE_PLACEMENTS) if placements is None else tuple(placements)
    for placement in chosen:
        if placement not in EDGE_PLACEMENTS:
            raise ValueError(
                f"placements: got {placement!r}, expected some of {', '.join(EDGE_PLACEMENTS)}"
            )
    if not chosen:
        raise ValueError(f"placements: got none, expected some of {', '.join(EDGE_PLACEMENTS)}")
    check_share(share)
    parse("bandwidth", bandwidth, BANDWIDTH)
    on = devices_of(devices, names)
    powers = [power(n, p) for n, p in (("node_power", node_power), ("hub_power", hub_power))]
    nodes: dict[str, tuple[str, ...]] = {}
    for name in names:
        nodes[on[name]] = (*nodes.get(on[name], ()), name)
    if platform is None:
        node = Device("node", speed=node_speed, idle_power=powers[0][0], active_power=powers[0][1])
        center = Device("hub", speed=hub_speed, idle_power=powers[1][0], active_power=powers[1][1])
        roles: dict[str, str | Device] = {**dict.fromkeys(nodes, node), "hub": center}
    else:
        roles = {**{name: name for name in nodes}, "hub": hub}
    made = site(platform, roles, bandwidth=bandwidth, latency=latency)

    def weight(device: str) -> tuple[float, float]:
        return (made.device(device).speed, sum(read.sensors[s].raw for s in nodes[device]))

    asked = EdgeQuestion(
        read,
        made,
        Wiring(nodes, sorted(nodes, key=weight, reverse=True)),
        chosen,
        due,
        quantile,
        budget,
        energy_of,
        float(rate),
        arrivals,
        windows,
        dropouts(dropout, names),
        radio,
        seed,
    )
    order = [(p, i) for p in chosen for i in sorted(asked.able(p))]
    if not order:
        raise ValueError(
            "placements: only 'split' is asked for, but the plans have no times of their encoders"
        )
    inputs = asked.inputs() if sensitivity else []
    with advancing(len(order) + 10 * len(inputs), wanted=progress) as advance:
        trials = []
        for placement, number in order:
            trials.append(asked.trial(placement, number))
            advance(1)
        best = asked.best()
        if best is None:
            raise NothingMeetsError(_nothing(asked, trials), tuple(trials))
        choices = tuple(best if p == best.placement else asked.choose(p) for p in chosen)
        found = None
        if inputs:
            found = _sensitivity(asked, best, inputs, share, lambda n: advance(10 * n))
    return EdgePlan(asked, tuple(trials), choices, best, found)


def _sensitivity(
    asked: EdgeQuestion,
    best: Choice,
    inputs: list[Input],
    share: float,
    advance: Callable[[int], object],
) -> Sensitivity:
    kept = replace(asked, traces={})

    def evaluate(name: str, factor: float) -> Outcome:
        moved = kept.moved(name, factor)
        now = moved.best()
        keeping = moved.keeping(best)
        if now is None:
            return Outcome("nothing meets all", 0.0, keeping)
        first = next(iter(now.plans.values()))
        words = "no answer" if first is None else f"{first.plan.name} of {first.plan.set_name}"
        return Outcome(f"{now.placement}, {words}", now.accuracy, keeping)

    return analyse(evaluate, inputs, share=share, quantity="expected accuracy", advance=advance)


def _nothing(asked: EdgeQuestion, trials: Sequence[Trial]) -> str:
    nearest = min(trials, key=lambda t: (t.miss, -t.plan.accuracy))
    wanted = f"deadline {text_of(asked.deadline, 's')} at P{100 * asked.quantile:g}"
    if math.isfinite(asked.energy):
        wanted += f" and {text_of(asked.energy)} J a window"
    return (
        f"nothing meets {wanted}. Nearest is {nearest.plan.name} of {nearest.plan.set_name} on "
        f"placement {nearest.placement!r}: {nearest.fails}"
    )
