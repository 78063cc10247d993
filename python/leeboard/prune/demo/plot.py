"""The demo's picture: sensors, accuracy, latency and the plan over the stream."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leeboard.prune.demo.files import replacing
from leeboard.prune.demo.scenario import PHASES
from leeboard.prune.demo.stream import Window
from leeboard.prune.units import Units

# Okabe and Ito's colours, told apart by every kind of sight; lines differ in style, too.
_PLAN, _DENSE, _STATIC = "#0072b2", "#555555", "#d55e00"


def plot(found: Mapping[str, Any], windows: Sequence[Window], units: Units, path: Path) -> None:
    """Draw the stream as a PNG."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    running = _sublayers(windows, units)
    heights = [1.1, 1.7, 1.7, max(1.6, 0.17 * len(running))]
    style = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    with mpl.rc_context(style):
        figure = Figure(figsize=(12.5, 2.2 + 1.35 * sum(heights)), dpi=130, layout="constrained")
        FigureCanvasAgg(figure)
        sensors, right, ms, plan = figure.subplots(
            4, 1, sharex=True, gridspec_kw={"height_ratios": heights}
        )
        _sensors(sensors, windows, units)
        _accuracy(right, windows, found["settings"]["rolling"])
        _latency(ms, windows)
        image = _plan(plan, windows, running, units)
        figure.colorbar(image, ax=plan, label="share of units kept", pad=0.01, aspect=12)
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
    found = {}
    for i, window in enumerate(windows):
        found.setdefault(window.moment.phase, i)
    return list(found.values())


def _sensors(axes: Any, windows: Sequence[Window], units: Units) -> None:
    """A strip for each sensor, and what happens above."""
    names = units.modalities
    for y, name in enumerate(names):
        there = [name in w.moment.present for w in windows]
        for start, end in _runs(there):
            axes.barh(y, end - start, left=start - 0.5, height=0.62, color="#009e73")
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


def _accuracy(axes: Any, windows: Sequence[Window], rolling: int) -> None:
    for field, color, line, label in (
        ("dense_right", _DENSE, "--", "dense, fed everything that is there"),
        ("static_right", _STATIC, ":", "plan of a static ranking, same budget"),
        ("right", _PLAN, "-", "plan"),
    ):
        values = [float(getattr(w, field)) for w in windows]
        means = [
            100 * statistics.mean(values[max(0, i + 1 - rolling) : i + 1])
            for i in range(len(values))
        ]
        # The first means are of a few windows.
        first = min(rolling // 2, len(means) - 1)
        axes.plot(
            range(first, len(means)), means[first:], color=color, ls=line, lw=1.8, label=label
        )
    axes.set_ylabel(f"right answers,\nlast {rolling} windows, %")
    axes.set_ylim(0, 103)
    axes.legend(frameon=False, loc="lower left", ncols=3)


def _latency(axes: Any, windows: Sequence[Window]) -> None:
    every = range(len(windows))
    axes.plot(every, [w.dense_ms for w in windows], color=_DENSE, ls="", marker=".", ms=3.5)
    axes.plot(every, [w.ms for w in windows], color=_PLAN, ls="", marker=".", ms=3.5)
    predicted = [w.plan.milliseconds for w in windows]
    if all(p is not None for p in predicted):
        axes.step(every, predicted, where="mid", color="#cc79a7", lw=1.2, label="plan, predicted")
    axes.plot([], [], color=_DENSE, ls="", marker="o", label="dense, measured")
    axes.plot([], [], color=_PLAN, ls="", marker="o", label="plan, measured")
    # A disturbance of the machine must not flatten the rest.
    ordered = sorted([w.dense_ms for w in windows] + [w.ms for w in windows])
    axes.set_ylim(0, 1.3 * ordered[int(0.97 * (len(ordered) - 1))])
    axes.set_ylabel("latency of a\nwindow, ms")
    axes.legend(frameon=False, loc="lower left", ncols=3)


def _sublayers(windows: Sequence[Window], units: Units) -> list[str]:
    return [s.name for s in units if any(s.name in w.plan.keep for w in windows)]


def _plan(axes: Any, windows: Sequence[Window], names: Sequence[str], units: Units) -> Any:
    """A row for each sublayer; darker keeps more, white does not run for these sensors."""
    shares = [
        [
            len(w.plan.keep[name]) / units[name].units if name in w.plan.keep else float("nan")
            for w in windows
        ]
        for name in names
    ]
    image = axes.imshow(
        shares, aspect="auto", interpolation="nearest", cmap="cividis_r", vmin=0, vmax=1
    )
    labels = [
        f"{name} ({'heads' if units[name].kind == 'attention' else 'channels'})" for name in names
    ]
    axes.set_yticks(range(len(names)), labels, fontsize=7.5 if len(names) > 8 else 9)
    axes.set_ylabel("plan")
    return image


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
