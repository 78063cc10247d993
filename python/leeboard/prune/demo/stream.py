"""Streams windows through the model, under plans for what is there and what may be spent."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from leeboard.prune.backbones import Backbone
from leeboard.prune.budget import Budget
from leeboard.prune.data import SensorData
from leeboard.prune.demo.scenario import PHASES, Moment, moments
from leeboard.prune.demo.settings import Settings
from leeboard.prune.latency import LatencyTable
from leeboard.prune.plan import Plan
from leeboard.prune.planner import plan
from leeboard.prune.runtime import apply
from leeboard.prune.scores import Scores
from leeboard.prune.static import StaticScores
from leeboard.prune.units import Units

PER_LAYER = True
"""Plans keep the same share of every block, for that is what the model was trained under."""


@dataclass(frozen=True)
class Window:
    """What happened to one window.

    Attributes:
        moment: Its place in the script.
        budget: As text.
        plan: That it ran under.
        plan_us: Microseconds that making the plan took, next to nothing when it was made before.
        switch_us: Microseconds that the switch to it took, or None if it was in place.
        new: Whether the plan had never run before.
        ms: Milliseconds of a call under the plan, the fastest of a few.
        dense_ms: The same of the dense model, in turns with it.
        right: Whether the answer was right.
        dense_right: Whether the dense model's was, fed everything that is there.
        static_right: Whether it was under a plan of the same budget from the static ranking.
    """

    moment: Moment
    budget: str
    plan: Plan
    plan_us: float
    switch_us: float | None
    new: bool
    ms: float
    dense_ms: float
    right: bool
    dense_right: bool
    static_right: bool


class Budgets:
    """The budget of each phase, absolute: what a missing sensor does not use is free for the rest.

    Args:
        lowest: As the user gave it. A share is of the multiply-adds with all sensors.
        units: Of the model.
        latency: For milliseconds.

    Raises:
        ValueError: For text that says no budget, or one above what the dense model needs.
    """

    def __init__(self, lowest: str, units: Units, latency: LatencyTable | None) -> None:
        self.lowest = Budget.parse(lowest)
        dense = Plan.dense(units, latency=latency)
        self.kind = "macs" if self.lowest.kind == "share" else self.lowest.kind
        needs = {
            "macs": dense.dense_macs,
            "bytes": dense.dense_bytes,
            "milliseconds": dense.dense_milliseconds or 0.0,
        }
        self.dense = needs[self.kind]
        share = self.lowest.kind == "share"
        self.low = self.lowest.amount * (self.dense if share else 1.0)
        if self.low > self.dense:
            raise ValueError(
                f"--budget: got {self.lowest}, but all of the model needs no more than "
                f"{Budget(self.dense, self.kind)}; expected less"
            )

    def of(self, power: float) -> Budget:
        """Between the lowest (0) and what the dense model needs with all sensors (1)."""
        # A rounding above all that is needed, so that full power keeps everything.
        return Budget((self.low + power * (self.dense - self.low)) * (1 + 1e-9), self.kind)

    def text(self, power: float) -> str:
        """Rounded, for the reader; as a share where the user gave a share."""
        amount = self.of(power).amount
        if self.lowest.kind == "share":
            return f"{amount / self.dense:.0%}"
        return str(Budget(float(f"{amount:.3g}"), self.kind))


def check_budgets(units: Units, lowest: str) -> None:
    """Refuse before the training what no plan can meet.

    Raises:
        ValueError: The message has the smallest budget that can be met.
    """
    if Budget.parse(lowest).kind == "milliseconds":
        return  # Known only once the model was measured.
    equal = StaticScores(units, "equal", {s.name: torch.ones(s.units) for s in units})
    budgets = Budgets(lowest, units, None)
    for phase in PHASES:
        present = tuple(m for m in units.modalities if m not in phase.missing)
        plan(equal, present=present, budget=budgets.of(phase.power), per_layer=PER_LAYER)


class Stream:
    """Runs the script.

    Three copies of the model run each window: the dense one, which is fed everything that is
    there; the one that switches plans; and one under plans of a static ranking, which is asked for
    its answer only. Calls of the first two are timed in turns.
    """

    def __init__(
        self,
        settings: Settings,
        model: Backbone,
        units: Units,
        ranking: Scores,
        static: Scores,
        held_out: SensorData,
        latency: LatencyTable | None,
    ) -> None:
        self.settings, self.units, self.held_out, self.latency = settings, units, held_out, latency
        self.ranking, self.static_ranking = ranking, static
        self.dense, self.adaptive, self.static = (copy.deepcopy(model) for _ in range(3))
        self.budgets = Budgets(settings.budget, units, latency)
        self._seen: set[int] = set()

    def script(self) -> list[Moment]:
        """What will be streamed."""
        s = self.settings
        return moments(self.units.modalities, s.phase, len(self.held_out), s.seed)

    @torch.inference_mode()
    def run(self) -> Iterator[Window]:
        """Window by window."""
        active: Plan | None = None
        # The first switch sets the model up; that is no switch between two plans.
        apply(self.adaptive, Plan.dense(self.units))
        for moment in self.script():
            power = PHASES[moment.phase].power
            started = time.perf_counter()
            made = self._plan(self.ranking, moment.present, power)
            plan_us = (time.perf_counter() - started) * 1e6
            switch = None
            new = id(made) not in self._seen
            if made is not active:
                started = time.perf_counter()
                apply(self.adaptive, made)
                switch = (time.perf_counter() - started) * 1e6
                active = made
                self._seen.add(id(made))
            inputs, target = self._window(moment)
            ms, dense_ms = self._timed(inputs)
            apply(self.static, self._plan(self.static_ranking, moment.present, power))
            yield Window(
                moment,
                self.budgets.text(power),
                made,
                plan_us,
                switch,
                new,
                ms,
                dense_ms,
                _answer(self.adaptive, inputs) == target,
                _answer(self.dense, inputs) == target,
                _answer(self.static, inputs) == target,
            )

    @torch.inference_mode()
    def accuracy(self, present: tuple[str, ...], power: float) -> dict[str, float]:
        """Shares of right answers on all held-out windows: dense, under the plan, static plan."""
        apply(self.adaptive, self._plan(self.ranking, present, power))
        apply(self.static, self._plan(self.static_ranking, present, power))
        inputs = {name: self.held_out.inputs[name] for name in present}
        found = {}
        for name, model in (
            ("dense", self.dense),
            ("plan", self.adaptive),
            ("static", self.static),
        ):
            right = model(inputs).argmax(dim=1) == self.held_out.target
            found[name] = float(right.double().mean())
        return found

    def _plan(self, scores: Scores, present: tuple[str, ...], power: float) -> Plan:
        budget = self.budgets.of(power)
        return plan(
            scores, present=present, budget=budget, latency=self.latency, per_layer=PER_LAYER
        )

    def _window(self, moment: Moment) -> tuple[dict[str, Tensor], int]:
        row = slice(moment.row, moment.row + 1)
        inputs = {name: self.held_out.inputs[name][row] for name in moment.present}
        return inputs, int(self.held_out.target[moment.row])

    def _timed(self, inputs: dict[str, Tensor]) -> tuple[float, float]:
        """Milliseconds of the switching and of the dense model, the fastest of calls in turns.

        What else the machine does only ever adds to a call.
        """
        calls: tuple[Callable[[], Any], ...] = (
            lambda: self.adaptive(inputs),
            lambda: self.dense(inputs),
        )
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(self.settings.repeats):
            for call, taken in zip(calls, times, strict=True):
                started = time.perf_counter()
                call()
                taken.append((time.perf_counter() - started) * 1e3)
        return min(times[0]), min(times[1])


def _answer(model: nn.Module, inputs: dict[str, Tensor]) -> int:
    return int(model(inputs).argmax(dim=1))
