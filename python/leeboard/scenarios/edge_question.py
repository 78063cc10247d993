"""The question which pruning plan to run where: its inputs, and one plan in the simulator."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from leeboard.scenarios.edge_plans import EdgeCandidate, Plans
from leeboard.scenarios.edge_programs import EdgePlacement, Wiring, arrivals, program
from leeboard.scenarios.sensitivity import Input
from leeboard.scenarios.site import Site
from leeboard.sim import ArrivalTimes, Trace, run
from leeboard.sim.table import text_of


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


def first(choice: Choice) -> Trial:
    """What runs on the largest set for which there is something."""
    return next(trial for trial in choice.plans.values() if trial is not None)


def _merit(choice: Choice) -> tuple[float, float, float]:
    trial = first(choice)
    energy = trial.energy if math.isfinite(trial.energy) else 0.0
    return (round(choice.accuracy, 12), -energy, -trial.latency)
