"""The demo's picture: sensors, accuracy, latency and the plan over the stream."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leeboard._files import replacing
from leeboard.prune.demo.scenario import PHASES
from leeboard.prune.demo.stream import Window
from leeboard.prune.planner import block_units
from leeboard.prune.units import Units

# Okabe and Ito's colours, told apart by every kind of sight; lines differ in style, too.
_PLAN, _DENSE, _STATIC = "#0072b2", "#555555", "#d55e00"
_PREDICTED, _SENSOR, _SHED = "#cc79a7", "#009e73", "#dde3e8"


def plot(found: Mapping[str, Any], windows: Sequence[Window], units: Units, path: Path) -> None:
    """Draw the stream as a PNG."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    running = _sublayers(windows, units)
    heights = [1.1, 1.7, 1.7, 2.2 if len(running) < 10 else 3.4]
    style = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    with mpl.rc_context(style):
        figure = Figure(figsize=(12.5, 2.2 + 1.35 * sum(heights)), dpi=130, layout="constrained")
        FigureCanvasAgg(figure)
        sensors, right, ms, plan = figure.subplots(
            4, 1, sharex=True, gridspec_kw={"height_ratios": heights}
        )
        _sensors(sensors, windows, units)
        _accuracy(right, windows, found)
        _latency(ms, windows)
        _plan(plan, windows, running, units)
        for axes in (sensors, right, ms, plan):
            axes.set_xlim(-0.5, len(windows) - 0.5)
            for start in _starts(windows)[1:]:
                axes.axvline(start - 0.5, color="#999999", lw=0.8, ls=(0, (2, 2)))
        plan.set_xlabel("window of the stream")
        settings = found["settings"]
        figure.suptitle(
            f"Sensors drop out, the budget falls: plans by the {settings['ranking']}, backbone "
            f"'{settings['backbone']}', synthetic sensors, one seed. An illustration",
            fontsize=11,
        )
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png")


def _starts(windows: Sequence[Window]) -> list[int]:
    found: dict[int, int] = {}
    for i, window in enumerate(windows):
        found.setdefault(window.moment.phase, i)
    return list(found.values())


def _sensors(axes: Any, windows: Sequence[Window], units: Units) -> None:
    """A strip for each sensor, and what happens above."""
    names = units.modalities
    for y, name in enumerate(names):
        there = [name in w.moment.present for w in windows]
        for start, end in _runs(there):
            axes.barh(y, end - start, left=start - 0.5, height=0.62, color=_SENSOR)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="x", length=0)
    starts = [*_starts(windows), len(windows)]
    for i, phase in enumerate(sorted({w.moment.phase for w in windows})):
        middle = (starts[i] + starts[i + 1]) / 2 - 0.5
        budget = windows[starts[i]].budget
        text = _wrapped(f"{PHASES[phase].title}\n(budget {budget})")
        axes.text(middle, -0.8, text, ha="center", va="bottom", fontsize=8.5)


def _wrapped(text: str, width: int = 20) -> str:
    import textwrap

    return "\n".join(line for part in text.split("\n") for line in textwrap.wrap(part, width))


def _accuracy(axes: Any, windows: Sequence[Window], found: Mapping[str, Any]) -> None:
    """Of the last windows, thin; of all held-out ones with a phase's last plan, broad."""
    rolling = found["settings"]["rolling"]
    starts = [*_starts(windows), len(windows)]
    for name, field, color, line, label in (
        ("dense", "dense_right", _DENSE, "--", "dense, fed everything that is there"),
        ("static", "static_right", _STATIC, ":", "plan of a static ranking, same budget"),
        ("plan", "right", _PLAN, "-", "plan"),
    ):
        values = [float(getattr(w, field)) for w in windows]
        means = [
            100 * statistics.mean(values[max(0, i + 1 - rolling) : i + 1])
            for i in range(len(values))
        ]
        # The first means are of a few windows.
        first = min(rolling // 2, len(means) - 1)
        axes.plot(
            range(first, len(means)), means[first:], color=color, ls=line, lw=1.4, label=label
        )
        for i, phase in enumerate(found["phases"]):
            share, start, end = 100 * phase["right"][name], starts[i] - 0.3, starts[i + 1] - 0.7
            axes.plot(
                [start, end], [share, share], color=color, lw=5, alpha=0.35, solid_capstyle="butt"
            )
    axes.plot(
        [], [], color="#000000", lw=5, alpha=0.35,
        label=f"all {found['held_out_windows']} held-out windows, last plan of the phase",
    )  # fmt: skip
    axes.set_ylabel(f"right answers, %\n(line: last {rolling})")
    axes.set_ylim(0, 103)
    axes.legend(frameon=False, loc="lower left", ncols=2)


def _latency(axes: Any, windows: Sequence[Window]) -> None:
    every = range(len(windows))
    axes.plot(every, [w.dense_ms for w in windows], color=_DENSE, ls="", marker=".", ms=3.5)
    axes.plot(every, [w.ms for w in windows], color=_PLAN, ls="", marker=".", ms=3.5)
    predicted = [w.plan.milliseconds for w in windows]
    if all(p is not None for p in predicted):
        axes.step(every, predicted, where="mid", color=_PREDICTED, lw=1.2, label="plan, predicted")
    axes.plot([], [], color=_DENSE, ls="", marker="o", label="dense, measured")
    axes.plot([], [], color=_PLAN, ls="", marker="o", label="plan, measured")
    # A disturbance of the machine must not flatten the rest.
    ordered = sorted([w.dense_ms for w in windows] + [w.ms for w in windows])
    axes.set_ylim(0, 1.45 * ordered[int(0.95 * (len(ordered) - 1))])
    axes.set_ylabel("latency of a\nwindow, ms")
    axes.legend(frameon=False, loc="upper left", ncols=3)


def _sublayers(windows: Sequence[Window], units: Units) -> list[str]:
    return [s.name for s in units if any(s.name in w.plan.keep for w in windows)]


def _plan(axes: Any, windows: Sequence[Window], names: Sequence[str], units: Units) -> None:
    """A row for each head and each panel of channels, sublayer under sublayer."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    rows: list[list[int]] = []
    places = []
    for name in names:
        sublayer = units[name]
        size = 1 if sublayer.kind == "attention" else block_units(sublayer)
        firsts = range(0, sublayer.units, size)
        places.append(len(rows) + len(firsts) / 2 - 0.5)
        kept = [None if name not in w.plan.keep else set(w.plan.keep[name]) for w in windows]
        rows += [[0 if k is None else 1 + (first in k) for k in kept] for first in firsts]
        axes.axhline(len(rows) - 0.5, color="white", lw=2 if len(names) < 10 else 0.8)
    colors = ("#ffffff", _SHED, _PLAN)
    axes.imshow(
        rows,
        aspect="auto",
        interpolation="nearest",
        cmap=ListedColormap(colors),
        vmin=0,
        vmax=2,
    )
    kinds = {"attention": "heads", "feed_forward": "panels"}
    labels = [f"{name}: {kinds[units[name].kind]}" for name in names]
    axes.set_yticks(places, labels, fontsize=9 if len(names) < 10 else 7)
    axes.tick_params(axis="y", length=0)
    patches = [
        Patch(facecolor=_PLAN, label="runs"),
        Patch(facecolor=_SHED, label="shed"),
    ]
    if any(0 in row for row in rows):
        idle = "not needed for these sensors"
        patches.append(Patch(facecolor="#ffffff", edgecolor="#999999", label=idle))
    axes.legend(
        handles=patches, frameon=False, ncols=3, loc="lower right", bbox_to_anchor=(1.0, 1.0)
    )


def _runs(flags: Sequence[bool]) -> list[tuple[int, int]]:
    """Half-open ranges in which the flags are true."""
    found, start = [], None
    for i, flag in enumerate([*flags, False]):
        if flag and start is None:
            start = i
        elif not flag and start is not None:
            found.append((start, i))
            start = None
    return found
