"""What a reader gets as text: the live table, the summary by phase, `results.json`."""

from __future__ import annotations

import json
import statistics
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from leeboard._files import replacing
from leeboard.prune.demo.scenario import PHASES, glyphs
from leeboard.prune.demo.settings import Settings
from leeboard.prune.demo.stream import Window
from leeboard.prune.plan import Plan
from leeboard.prune.planner import block_units
from leeboard.prune.units import Units

_WIDTH = 79
_LINES_PER_PHASE = 7

HEAD = (
    "window  sensors  budget     heads  panels  predicted  measured  dense  switch  right",
    "                                                  ms        ms     ms      us      %",
)


class LiveTable:
    """Lines for the windows that tell something new: at the start of a phase and after a switch.

    Args:
        settings: Of the demo.
        units: Of the model.
    """

    def __init__(self, settings: Settings, units: Units) -> None:
        self.settings, self.units = settings, units
        self._seen: list[Window] = []
        self._lines = 0

    def add(self, window: Window) -> Iterator[str]:
        """Lines to print for the next window."""
        moment = window.moment
        first = not self._seen or self._seen[-1].moment.phase != moment.phase
        self._seen.append(window)
        if first:
            self._lines = 0
            yield ""
            yield f"-- {PHASES[moment.phase].title}"
        last = moment.window % self.settings.phase == self.settings.phase - 1
        changed = window.switch_us is not None and self._lines < _LINES_PER_PHASE
        if first or last or changed:
            self._lines += 1
            yield self._line(window)

    def _line(self, window: Window) -> str:
        recent = self._seen[-self.settings.rolling :]
        right = statistics.mean(w.right for w in recent)
        counts = kept(self.units, window.plan)
        predicted = window.plan.milliseconds
        sensors = glyphs(self.units.modalities, window.moment.present)
        return (
            f"{window.moment.window:>6}  {sensors:<7}  {window.budget:<9}"
            f"{counts['heads']:>7} {counts['panels']:>7}"
            f"{'-' if predicted is None else format(predicted, '.2f'):>11}"
            f"{window.ms:>10.2f}{window.dense_ms:>7.2f}"
            f"{'' if window.switch_us is None else format(window.switch_us, '.0f'):>8}"
            f"{100 * right:>7.0f}"
        )


def kept(units: Units, plan: Plan) -> dict[str, str]:
    """Heads and panels of channels that run, of those that the present sensors use: "8/12"."""
    found = {}
    for name, kind in (("heads", "attention"), ("panels", "feed_forward")):
        own = [units[s] for s in plan.keep if units[s].kind == kind]
        size = {s.name: 1 if kind == "attention" else block_units(s) for s in own}
        run = sum(len({u // size[s.name] for u in plan.keep[s.name]}) for s in own)
        found[name] = f"{run}/{sum(-(-s.units // size[s.name]) for s in own)}"
    return found


def by_phase(windows: Sequence[Window]) -> list[dict[str, Any]]:
    """Medians of each phase, and shares of right answers in the stream."""
    rows = []
    for index, phase in enumerate(PHASES):
        own = [w for w in windows if w.moment.phase == index]
        if not own:
            continue
        ms, dense = (statistics.median(getattr(w, f) for w in own) for f in ("ms", "dense_ms"))
        rows.append(
            {
                "title": phase.title,
                "windows": len(own),
                "budget": own[-1].budget,
                "present": list(own[-1].moment.present),
                "plan_ms": ms,
                "dense_ms": dense,
                "macs_share": own[-1].plan.macs / own[-1].plan.dense_macs,
                "stream_right": statistics.mean(w.right for w in own),
                "stream_dense_right": statistics.mean(w.dense_right for w in own),
                "stream_static_right": statistics.mean(w.static_right for w in own),
            }
        )
    return rows


def results(
    settings: Settings,
    windows: Sequence[Window],
    phases: Sequence[Mapping[str, Any]],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything, as JSON has it; plans once each, windows by their number."""
    plans: dict[Plan, int] = {}
    for window in windows:
        plans.setdefault(window.plan, len(plans))
    rows = []
    for w in windows:
        row = {**asdict(w.moment), "present": list(w.moment.present), "budget": w.budget}
        row |= {"plan": plans[w.plan], "plan_us": w.plan_us, "switch_us": w.switch_us}
        row |= {"new_plan": w.new, "ms": w.ms, "dense_ms": w.dense_ms}
        row |= {"predicted_ms": w.plan.milliseconds}
        row |= {"right": w.right, "dense_right": w.dense_right, "static_right": w.static_right}
        rows.append(row)
    return {
        "caveat": caveat(),
        **about,
        "settings": asdict(settings),
        "phases": list(phases),
        "plans": [json.loads(plan.to_json()) for plan in plans],
        "windows": rows,
    }


def write(found: Mapping[str, Any], path: Path) -> None:
    """`results.json`."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n")


def switches(windows: Sequence[Window]) -> dict[str, Any]:
    """Microseconds of switches: to a plan that never ran, and to one that did."""
    found: dict[str, Any] = {}
    for name, new in (("first", True), ("again", False)):
        times = [w.switch_us for w in windows if w.switch_us is not None and w.new is new]
        found[name] = {
            "count": len(times),
            "median_us": statistics.median(times) if times else None,
            "largest_us": max(times, default=None),
        }
    return found


def caveat() -> str:
    """What the numbers are."""
    return (
        "The sensors are synthetic: the data was made so that it is known which sensor tells "
        "what, and says nothing about real ones. One training, one seed, a small model: an "
        "illustration, not evidence. Times are this machine's, batch 1; what is faster at full "
        "budget is gained by fused kernels, only what is gained beyond that by pruning. In a model "
        "this small a call costs much whatever it computes: less work need not mean less time."
    )


def summary(found: Mapping[str, Any]) -> str:
    """The phases as a table, the switches, and what the numbers are; at most 79 columns wide."""
    count = found["held_out_windows"]
    lines = [
        *textwrap.wrap(
            f"By phase. Right answers are of all {count} held-out windows with the phase's last "
            "sensors and budget: the dense model, fed everything that is there; the plan; a plan "
            "of the same budget by a static ranking (Taylor on the dropout mixture).",
            _WIDTH,
        ),
        "",
        f"{'':<42}{'ms, median':>13}{'':>2}{'right, %':>20}",
        f"{'':<34}{'budget':>9}{'dense':>7}{'plan':>6}{'x':>6}{'dense':>6}{'plan':>5}{'static':>7}",
    ]
    for phase in found["phases"]:
        right = phase["right"]
        title = textwrap.shorten(phase["title"], 34, placeholder="...")
        lines.append(
            f"{title:<34}{phase['budget']:>9}{phase['dense_ms']:>7.2f}{phase['plan_ms']:>6.2f}"
            f"{phase['dense_ms'] / phase['plan_ms']:>6.2f}"
            f"{100 * right['dense']:>6.0f}{100 * right['plan']:>5.0f}{100 * right['static']:>7.0f}"
        )
    took = found["switches"]
    words = []
    for name, what in (("first", "to a plan that is new"), ("again", "to one that ran before")):
        if took[name]["count"]:
            words.append(
                f"{what} {took[name]['median_us']:.0f} us (median of {took[name]['count']}, "
                f"at most {took[name]['largest_us']:.0f})"
            )
    lines += ["", *textwrap.wrap(f"A switch {', '.join(words)}.", _WIDTH)]
    lines += ["", *textwrap.wrap(caveat(), _WIDTH)]
    return "\n".join(lines)
