"""Which pruning plan to run where, for each set of sensors that is there."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from leeboard._progress import progress_bar
from leeboard.scenarios.edge_plans import EdgeCandidate, Plans, plans_of
from leeboard.scenarios.edge_programs import (
    EDGE_PLACEMENTS,
    EdgePlacement,
    Wiring,
    arrivals,
    program,
)
from leeboard.scenarios.sensitivity import (
    Input,
    Outcome,
    Sensitivity,
    analyse,
    check_share,
    write_report,
)
from leeboard.scenarios.site import Site, site
from leeboard.sim import ArrivalTimes, Device, Platform, Trace, run
from leeboard.sim.table import Table, aligned, text_of
from leeboard.sim.units import BANDWIDTH, POWER, RATIO, TIME, parse

FORMAT = "leeboard.plan.edge"
# Beyond these there are more sets of sensors than anybody reads.
_MOST_SENSORS = 12
_UNITS = {"accuracy": "%", "latency": "s", "energy": "J"}


@dataclass(frozen=True)
class Trial:
    """A plan in a placement, as the simulator finds it.

    Attributes:
        placement: "node", "hub" or "split".
        plan: The plan.
        latency: Seconds from a window's arrival to its answer at the hub, at the quantile asked for.
        energy: Joules a window of the devices that count; NaN where their power is not known.
        fails: Why it cannot be; "" if it can.
    """

    placement: EdgePlacement
    plan: EdgeCandidate
    latency: float
    energy: float
    fails: str = ""
    # By what share it misses what is asked; 0: it meets it.
    miss: float = 0.0


@dataclass(frozen=True)
class Choice:
    """A placement with a plan for each set of sensors that may be there.

    Attributes:
        placement: Where.
        accuracy: Expected over the sets; a set without a plan that meets all counts as 0.
        plans: Set (joined names) to what runs then; None: nothing meets all.
        chances: Set to its probability.
    """

    placement: EdgePlacement
    accuracy: float
    plans: Mapping[str, Trial | None]
    chances: Mapping[str, float]


@dataclass(frozen=True)
class EdgeQuestion:
    """All inputs; a changed copy is a what-if."""

    plans: Plans
    site: Site
    wiring: Wiring
    placements: tuple[EdgePlacement, ...]
    deadline: float
    quantile: float
    energy: float
    counts: Literal["all", "nodes"]
    rate: float
    arrivals: str
    windows: int
    dropout: Mapping[str, float]
    radio: float
    seed: int
    network: Literal["flow", "alpha-beta"] = "flow"
    runs: dict[tuple[str, int], tuple[float, float, str]] = field(
        default_factory=dict, compare=False, repr=False
    )
    # Compiled programs, where the same ones run on many platforms.
    traces: dict[tuple[str, int], tuple[Trace, int]] | None = field(
        default=None, compare=False, repr=False
    )

    @cached_property
    def times(self) -> ArrivalTimes:
        """When windows arrive."""
        return arrivals(self.rate, self.windows, self.arrivals, self.seed)

    def sets(self) -> Iterator[tuple[tuple[str, ...], float]]:
        """Sets of sensors that are there, none too, and their probabilities; the largest first."""
        names = tuple(self.plans.sensors)
        for size in range(len(names), -1, -1):
            for there in itertools.combinations(names, size):
                chance = math.prod(
                    1.0 - self.dropout[n] if n in there else self.dropout[n] for n in names
                )
                yield there, chance

    def trial(self, placement: EdgePlacement, number: int) -> Trial:
        """Simulate plan `number` in a placement, once."""
        plan = self.plans.rows[number]
        key: tuple[EdgePlacement, int] = (placement, number)
        if key not in self.runs:
            self.runs[key] = self._simulate(plan, *self._compiled(key))
        latency, energy, memory = self.runs[key]
        fails, miss = [], 0.0
        if memory:
            fails.append(memory)
            miss = math.inf
        if latency > self.deadline:
            fails.append(f"deadline: {text_of(latency, 's')}")
            miss = max(miss, latency / self.deadline - 1.0)
        if math.isfinite(self.energy) and not energy <= self.energy:
            known = f"{text_of(energy)} J" if math.isfinite(energy) else "power not known"
            fails.append(f"energy: {known}")
            miss = max(miss, energy / self.energy - 1.0) if math.isfinite(energy) else math.inf
        return Trial(placement, plan, latency, energy, "; ".join(fails), miss)

    def _compiled(self, key: tuple[EdgePlacement, int]) -> tuple[Trace, int]:
        if self.traces is not None and key in self.traces:
            return self.traces[key]
        plan = self.plans.rows[key[1]]
        made, queue = program(self.wiring, self.plans.sensors, plan, key[0], self.times)
        compiled = made.trace()
        if self.traces is not None:
            self.traces[key] = (compiled, queue)
        return compiled, queue

    def _simulate(self, plan: EdgeCandidate, trace: Trace, queue: int) -> tuple[float, float, str]:
        result = run(
            trace,
            self.site.platform,
            network=self.network,
            seed=self.seed,
            timeline=False,
            links=False,
        )
        # Every window is answered: the hub waits for each of them.
        latency = float(np.quantile(result.queues[queue].latency, self.quantile))
        out = result.out_of_memory
        memory = ""
        if out:
            needed = text_of(out[0].in_use, "B")
            device = list(self.site.roles)[out[0].rank]
            memory = f"memory: {needed} on {device}, which has {text_of(out[0].limit, 'B')}"
        return latency, self._joules(plan, result), memory

    def _joules(self, plan: EdgeCandidate, result: Any) -> float:
        ranks = list(self.wiring.of(plan))
        if self.counts == "all":
            ranks.append(len(self.wiring.nodes))
        roles = list(self.site.roles)
        if not all(self.site.draws(roles[rank]) for rank in ranks):
            return math.nan
        sent = sum(float(result.ranks["sent"][rank]) for rank in ranks)
        spent = sum(float(result.ranks["energy"][rank]) for rank in ranks)
        return (spent + self.radio * sent) / self.windows

    def able(self, placement: EdgePlacement) -> list[int]:
        """Plans that can be tried there, the most accurate first; of equal ones the fastest."""
        rows = self.plans.rows
        found = [
            i for i, row in enumerate(rows) if placement != "split" or row.encoders is not None
        ]
        return sorted(found, key=lambda i: (-rows[i].accuracy, rows[i].seconds, i))

    def choose(self, placement: EdgePlacement) -> Choice:
        """The most accurate plan that meets all, for each set of sensors."""
        order = self.able(placement)
        plans: dict[str, Trial | None] = {}
        chances: dict[str, float] = {}
        total = 0.0
        for there, chance in self.sets():
            found = None
            for number in order:
                if set(self.plans.rows[number].sensors) <= set(there):
                    trial = self.trial(placement, number)
                    if not trial.fails:
                        found = trial
                        break
            name = "+".join(there) or "none"
            plans[name], chances[name] = found, chance
            total += chance * (0.0 if found is None else found.plan.accuracy)
        return Choice(placement, total, plans, chances)

    def best(self) -> Choice | None:
        """The placement with the highest expected accuracy; of equal ones the one with the least
        energy, then latency, with all sensors there; None: no plan meets all anywhere."""
        found = [c for c in map(self.choose, self.placements) if any(c.plans.values())]
        return max(found, key=_merit) if found else None

    def keeping(self, choice: Choice) -> float:
        """Expected accuracy of an earlier choice with these inputs."""
        numbers = {(row.name, row.sensors): i for i, row in enumerate(self.plans.rows)}
        total = 0.0
        for there, chance in self.sets():
            kept = choice.plans["+".join(there) or "none"]
            if kept is not None:
                trial = self.trial(choice.placement, numbers[kept.plan.name, kept.plan.sensors])
                total += chance * (0.0 if trial.fails else trial.plan.accuracy)
        return total

    def moved(self, name: str, factor: float) -> EdgeQuestion:
        """The same with one input times a factor."""
        # What does not change the simulation keeps what was simulated.
        if name == "deadline":
            return replace(self, deadline=self.deadline * factor)
        if name == "energy budget":
            return replace(self, energy=self.energy * factor)
        if name == "sensor dropout":
            moved = {n: min(1.0, p * factor) for n, p in self.dropout.items()}
            return replace(self, dropout=moved)
        if name == "arrival rate":
            return replace(self, rate=self.rate * factor, runs={}, traces=None)
        if name == "link bandwidth":
            return replace(self, site=self.site.scaled(bandwidth=factor), runs={})
        if name == "link latency":
            return replace(self, site=self.site.scaled(latency=factor), runs={})
        moved_site = self.site
        for role in ["hub"] if name == "hub speed" else list(self.wiring.nodes):
            moved_site = moved_site.faster(role, factor)
        return replace(self, site=moved_site, runs={})

    def inputs(self) -> list[Input]:
        """What is moved to see how far the answer depends on it."""
        links = self.site.platform.graph.kinds
        likely = max(self.dropout.values())
        slowest = min(k.bandwidth for k in links)
        found = [
            Input("deadline", lambda f: text_of(self.deadline * f, "s")),
            Input("arrival rate", lambda f: f"{text_of(self.rate * f)} a second"),
            Input("link bandwidth", lambda f: f"{text_of(8e-6 * slowest * f)} Mbit/s"),
            Input("node speed", lambda f: f"{f:.2f}x"),
            Input("hub speed", lambda f: f"{f:.2f}x"),
        ]
        if any(k.latency for k in links):
            most = max(k.latency for k in links)
            found.append(Input("link latency", lambda f: text_of(most * f, "s")))
        if math.isfinite(self.energy):
            found.append(Input("energy budget", lambda f: f"{text_of(self.energy * f)} J"))
        if likely > 0:
            show = lambda f: f"{100 * min(1.0, likely * f):.3g} %"
            found.append(Input("sensor dropout", show, most=1.0 / likely))
        return found


def _first(choice: Choice) -> Trial:
    """What runs on the largest set for which there is something."""
    return next(trial for trial in choice.plans.values() if trial is not None)


def _merit(choice: Choice) -> tuple[float, float, float]:
    first = _first(choice)
    energy = first.energy if math.isfinite(first.energy) else 0.0
    return (round(choice.accuracy, 12), -energy, -first.latency)


@dataclass(frozen=True)
class EdgePlan:
    """The answer of `plan_edge`; `print(plan)` shows it.

    Attributes:
        question: All inputs.
        trials: Every plan in every placement.
        choices: Each placement with its plans by set of sensors.
        best: The one with the highest expected accuracy.
        sensitivity: How far that depends on the inputs; None if it was not asked.
    """

    question: EdgeQuestion
    trials: tuple[Trial, ...]
    choices: tuple[Choice, ...]
    best: Choice
    sensitivity: Sensitivity | None = None

    @cached_property
    def table(self) -> Table:
        """A row a plan and placement: placement, sensors, plan, accuracy, latency (at the quantile),
        energy (joules a window), chosen (for some set in the best placement), note (why it fails)."""
        return _table(self.trials, [self._note(t) for t in self.trials])

    @property
    def sets(self) -> Table:
        """A row a set of sensors: there, chance, plan, uses (its sensors), accuracy, latency, energy of
        what the best placement runs then."""
        rows = [(n, self.best.chances[n], t) for n, t in self.best.plans.items()]
        return Table(
            {
                "there": [name for name, _, _ in rows],
                "chance": [chance for _, chance, _ in rows],
                "plan": ["nothing" if t is None else t.plan.name for _, _, t in rows],
                "uses": ["" if t is None else t.plan.set_name for _, _, t in rows],
                "accuracy": [0.0 if t is None else t.plan.accuracy for _, _, t in rows],
                "latency": [math.nan if t is None else t.latency for _, _, t in rows],
                "energy": [math.nan if t is None else t.energy for _, _, t in rows],
            },
            {**_UNITS, "chance": "%"},
        )

    def _chosen(self, trial: Trial) -> bool:
        return trial.placement == self.best.placement and any(
            t is not None and t.plan is trial.plan for t in self.best.plans.values()
        )

    def _note(self, trial: Trial) -> str:
        if trial.fails:
            return trial.fails
        if self._chosen(trial):
            return "best"
        own = next(c for c in self.choices if c.placement == trial.placement)
        used = any(t is not None and t.plan is trial.plan for t in own.plans.values())
        if used:
            return f"would be chosen here, but {self.best.placement} is better"
        return "less accurate than another plan"

    def plot(self, path: str | Path | None = None) -> Any:
        """Draw accuracy against latency, the placements, and what moves the answer.

        Args:
            path: Where to (.png, .svg, .pdf); None: nowhere.

        Returns:
            The matplotlib Figure.
        """
        from leeboard.scenarios.pictures import edge

        return edge(self, path)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        q = self.question

        def entry(trial: Trial | None) -> dict[str, Any] | None:
            if trial is None:
                return None
            return {
                "placement": trial.placement,
                "plan": trial.plan.name,
                "sensors": list(trial.plan.sensors),
                "accuracy": trial.plan.accuracy,
                "latency": trial.latency,
                "energy": trial.energy,
                "fails": trial.fails,
            }

        return {
            "plans_source": q.plans.source,
            "deadline": q.deadline,
            "quantile": q.quantile,
            "energy_budget": q.energy,
            "energy_counts": q.counts,
            "rate": q.rate,
            "arrivals": q.arrivals,
            "windows": q.windows,
            "dropout": dict(q.dropout),
            "platform": q.site.platform.describe(),
            "nodes": {name: list(sensors) for name, sensors in q.wiring.nodes.items()},
            "trials": [entry(t) for t in self.trials],
            "choices": [
                {
                    "placement": c.placement,
                    "accuracy": c.accuracy,
                    "plans": {n: entry(t) for n, t in c.plans.items()},
                    "chances": dict(c.chances),
                }
                for c in self.choices
            ],
            "best": self.best.placement,
            "sensitivity": None if self.sensitivity is None else self.sensitivity.to_dict(),
        }

    def to_json(self, path: str | Path) -> None:
        """Write everything to a JSON file, whole or not at all."""
        write_report(path, FORMAT, self.to_dict())

    def __str__(self) -> str:
        q = self.question
        asked = f"deadline {text_of(q.deadline, 's')} at P{100 * q.quantile:g}"
        if math.isfinite(q.energy):
            asked += f", {text_of(q.energy)} J a window"
        coming = f"{text_of(q.rate)} windows a second, {q.arrivals}"
        parts = [
            f"{len(q.plans.rows)} plans of {len(q.plans.sensors)} sensors ({q.plans.source})",
            f"{asked}; {coming}",
            "",
            f"plans with {'+'.join(q.plans.sensors)} there",
            self._full(),
            "",
            "expected accuracy over all sets of sensors (* best)",
            self._placements(),
            "",
            f"what runs on which set that may occur ({self.best.placement})",
            self._sets(),
            "",
            self._verdict(),
        ]
        if self.sensitivity is not None:
            parts += ["", str(self.sensitivity)]
        return "\n".join(parts)

    def _full(self) -> str:
        everything = tuple(self.question.plans.sensors)
        own = [t for t in self.trials if t.plan.sensors == everything]
        if not own:
            own = list(self.trials)
        name = f"P{100 * self.question.quantile:g}"
        header = ("placement", "plan", "accuracy", name, "J/window", "note")
        rows = [
            (
                t.placement,
                t.plan.name,
                text_of(t.plan.accuracy, "%"),
                text_of(t.latency, "s"),
                text_of(t.energy),
                self._note(t),
            )
            for t in own
        ]
        return aligned(header, rows)

    def _placements(self) -> str:
        rows = []
        for c in self.choices:
            answered = sum(c.chances[n] for n, t in c.plans.items() if t is not None)
            mark = "*" if c is self.best else ""
            words = EDGE_PLACEMENTS[c.placement]
            rows.append(
                (c.placement + mark, text_of(c.accuracy, "%"), text_of(answered, "%"), words)
            )
        return aligned(("placement", "accuracy", "answered", "where"), rows)

    def _sets(self) -> str:
        likely = self.sets.take(np.argsort(-self.sets["chance"], kind="stable"))
        return str(likely.take(likely["chance"] > 0.0))

    def _verdict(self) -> str:
        best = self.best
        words = f"Best: {best.placement}, {text_of(best.accuracy, '%')} expected"
        equal = [
            c.placement
            for c in self.choices
            if c is not best and math.isclose(c.accuracy, best.accuracy, rel_tol=1e-12)
        ]
        if equal:
            known = math.isfinite(_first(best).energy)
            what = "takes less energy" if known else "answers sooner"
            words += f"; {', '.join(equal)} as accurate, but {best.placement} {what}"
        return f"{words}."


class NothingMeetsError(ValueError):
    """No plan meets deadline, energy budget and memory in any placement.

    Attributes:
        trials: Every plan in every placement, and why it fails.
    """

    def __init__(self, message: str, trials: tuple[Trial, ...]) -> None:
        super().__init__(message)
        self.trials = trials

    @property
    def table(self) -> Table:
        """As `EdgePlan.table`."""
        return _table(self.trials, [t.fails for t in self.trials])


def _table(rows: Sequence[Trial], notes: Sequence[str]) -> Table:
    return Table(
        {
            "placement": [t.placement for t in rows],
            "sensors": [t.plan.set_name for t in rows],
            "plan": [t.plan.name for t in rows],
            "accuracy": [t.plan.accuracy for t in rows],
            "latency": [t.latency for t in rows],
            "energy": [t.energy for t in rows],
            "chosen": [note == "best" for note in notes],
            "note": list(notes),
        },
        _UNITS,
    )


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
    budget = math.inf if energy is None else _joules(energy)
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
    if isinstance(windows, bool) or not isinstance(windows, int) or not 1 <= windows <= 10**6:
        raise ValueError(f"windows: got {windows!r}, expected an integer from 1 to 1000000")
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
    on = _devices(devices, names)
    powers = [_power(n, p) for n, p in (("node_power", node_power), ("hub_power", hub_power))]
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
        _dropout(dropout, names),
        radio,
        seed,
    )
    order = [(p, i) for p in chosen for i in sorted(asked.able(p))]
    if not order:
        raise ValueError(
            "placements: only 'split' is asked for, but the plans have no times of their encoders"
        )
    inputs = asked.inputs() if sensitivity else []
    with progress_bar("planning", len(order) + 10 * len(inputs), quiet=not progress) as bar:
        trials = []
        for placement, number in order:
            trials.append(asked.trial(placement, number))
            bar.update(1)
        best = asked.best()
        if best is None:
            raise NothingMeetsError(_nothing(asked, trials), tuple(trials))
        choices = tuple(best if p == best.placement else asked.choose(p) for p in chosen)
        found = None
        if inputs:
            found = _sensitivity(asked, best, inputs, share, lambda n: bar.update(10 * n))
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


def _joules(given: float | str) -> float:
    text = given.strip() if isinstance(given, str) else given
    scale = 1.0
    if isinstance(text, str):
        for unit, factor in (("mJ", 1e-3), ("uJ", 1e-6), ("kJ", 1e3), ("J", 1.0)):
            if text.endswith(unit):
                text, scale = text[: -len(unit)].strip(), factor
                break
        try:
            text = float(text)
        except ValueError:
            raise ValueError(
                f"energy: got {given!r}, expected joules such as '20 mJ' or 0.02"
            ) from None
    value = scale * float(text)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"energy: got {given!r}, expected more than 0 J")
    return value


def _power(name: str, given: Any) -> tuple[float, float]:
    if given is None:
        return (0.0, 0.0)
    try:
        idle, active = given
    except (TypeError, ValueError):
        raise ValueError(f"{name}: got {given!r}, expected watts when idle and active") from None
    return (parse(f"{name} (idle)", idle, POWER), parse(f"{name} (active)", active, POWER))


def _dropout(given: float | Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    found = dict.fromkeys(names, 0.0)
    if isinstance(given, Mapping):
        for name in given:
            if name not in found:
                raise ValueError(
                    f"dropout: unknown sensor {name!r}; expected some of {', '.join(names)}"
                )
        found.update(given)
    else:
        found = dict.fromkeys(names, given)
    for name, chance in found.items():
        good = isinstance(chance, int | float) and not isinstance(chance, bool)
        if not good or not 0.0 <= chance <= 1.0:
            raise ValueError(f"dropout: got {chance!r} of {name}, expected a probability, 0 to 1")
    return found


def _devices(given: Mapping[str, str] | None, names: Sequence[str]) -> dict[str, str]:
    found = {name: name for name in names}
    for name, device in (given or {}).items():
        if name not in found:
            raise ValueError(
                f"devices: unknown sensor {name!r}; expected some of {', '.join(names)}"
            )
        found[name] = device
    if "hub" in found.values():
        raise ValueError("devices: a sensor is on 'hub', which is the hub's name")
    return found
