"""A probe's figures as a picture: one panel a question."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leeboard._files import replacing
from leeboard.draft.probe import bootstrap
from leeboard.draft.probe.report import FORCED, TITLES

if TYPE_CHECKING:
    from leeboard.draft.probe.result import Measured, ProbeResult
    from leeboard.draft.probe.tally import Tally

# Told apart by people who see colours differently (Okabe and Ito).
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
_VARIANTS = {"full": "-", "window": ":", "window + sink": "--"}
# Fewer rows than this say little: their points are drawn hollow.
_FEW = 20
# Of the band around acceptance: enough for a picture.
_RESAMPLES = 1000


def plot(result: ProbeResult, path: Path) -> None:
    """Draw every panel that was measured; the file's kind follows its ending (.png without one)."""
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        message = "plots need matplotlib: pip install 'leeboard[viz]'"
        raise ModuleNotFoundError(message, name="matplotlib") from None

    panels = _panels(result)
    columns = min(3 if len(panels) <= 9 else 4, len(panels))
    rows = math.ceil(len(panels) / columns)
    texts = result.texts["matched"]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.6 * columns, 3.7 * rows + 0.7), dpi=140, layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes, draw in zip(grid, panels, strict=False):
            draw(axes, result)
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        figure.suptitle(
            f"Drafted chains of up to {result.depth} tokens over the target's own greedy text: "
            f"{texts['prompts']} prompts, {texts['new_tokens']:,} new tokens. {_loops(texts)}\n"
            f"Solid: surviving rows (all earlier drafts matched, as in decoding); hollow points: "
            f"fewer than {_FEW} of them. Dashed: all rows.",
            fontsize=10,
        )
        with replacing(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:].lower() or "png")


def _panels(result: ProbeResult) -> list[Callable[[Any, ProbeResult], None]]:
    found = list(result.drafters.values())
    panels: list[Callable[[Any, ProbeResult], None]] = [_acceptance, _rms]
    if result.settings["attention"]:
        panels += [_sink, _prompt, _own, _entropy]
    if any(len(drafter.conditions) > 1 for drafter in found):
        panels.append(_conditions)
    if any(drafter.noise for drafter in found):
        panels.append(_noise)
    if any(drafter.forced for drafter in found):
        panels.append(_forced)
    if any(drafter.context for drafter in found):
        panels.append(_context)
    return panels


def _loops(texts: Mapping[str, int]) -> str:
    loops = texts["looping_continuations"]
    if not loops:
        return "No continuation loops."
    if loops == texts["prompts"]:
        return "All continuations loop, which flatters deep drafts."
    return (
        f"Curves by depth leave out the {loops} continuations that loop; bars and long texts count "
        "all."
    )


def acceptance_intervals(kept: Tally, seed: int) -> list[bootstrap.Interval]:
    """Conditional acceptance of surviving rows with its interval, by depth."""
    rows = kept.surviving
    return [
        bootstrap.mean((hits, count), n=_RESAMPLES, seed=seed)
        for hits, count in zip(rows.sums["hit"].T, rows.count.T, strict=True)
    ]


def _tally(found: Any) -> Tally:
    """Of the matched template, without loops if anything is left then."""
    matched: Measured = found.conditions["matched"]
    return matched.tally if matched.looping.all() else matched.without_loops


def _named(result: ProbeResult) -> list[tuple[str, Any, str]]:
    """(name, drafter, colour)."""
    return [
        (name, found, _COLORS[i % len(_COLORS)])
        for i, (name, found) in enumerate(result.drafters.items())
    ]


def _depths(axes: Any, result: ProbeResult, title: str, ylabel: str) -> None:
    axes.set(title=title, ylabel=ylabel, xlabel="depth of the draft in its chain")
    axes.set_xlim(0.6, result.depth + 0.4)
    axes.set_xticks(range(1, result.depth + 1, max(1, result.depth // 8)))
    axes.grid(axis="y", alpha=0.25, lw=0.6)


def _line(
    axes: Any,
    values: Sequence[float | None],
    *,
    color: str,
    label: str | None = None,
    style: str = "-",
    rows: Sequence[int] | None = None,
    scale: float = 1.0,
) -> None:
    """One curve; where `rows` are few its points are hollow, without `rows` there are none."""
    points = [(j + 1, scale * v, j) for j, v in enumerate(values) if v is not None]
    if not points:
        return
    x, y, at = zip(*points, strict=True)
    axes.plot(x, y, style, color=color, lw=1.6, label=label)
    if rows is not None:
        for few in (False, True):
            chosen = [i for i, j in enumerate(at) if (rows[j] < _FEW) == few]
            axes.plot(
                [x[i] for i in chosen],
                [y[i] for i in chosen],
                "o",
                ms=4,
                color=color,
                markerfacecolor="white" if few else color,
            )


def _by_depth(
    axes: Any, result: ProbeResult, key: str, scale: float = 1.0, *, legend: bool = False
) -> None:
    """Surviving rows solid, all rows dashed, a colour for each drafter."""
    for name, found, color in _named(result):
        rows = _tally(found).figures()["rows"]
        alive = rows["surviving"]
        if key not in alive:
            continue
        _line(axes, alive[key], color=color, label=name, rows=alive["count"], scale=scale)
        _line(axes, rows["all"][key], color=color, style="--", scale=scale)
    if legend and axes.get_legend_handles_labels()[0]:
        axes.legend()


def _acceptance(axes: Any, result: ProbeResult) -> None:
    _depths(axes, result, "Does the next draft hold, too?", "drafts that match, %")
    for name, found, color in _named(result):
        kept = _tally(found)
        mean = kept.mean_accepted
        label = f"{name}: {mean:.2f} accepted per round\n(tau with the bonus token {mean + 1:.2f})"
        rows = kept.figures()["rows"]
        alive = rows["surviving"]
        _line(axes, alive["hit"], color=color, label=label, rows=alive["count"], scale=100)
        _line(axes, rows["all"]["hit"], color=color, style="--", scale=100)
        band = [
            (j + 1, 100 * found.low, 100 * found.high)
            for j, found in enumerate(acceptance_intervals(kept, result.seed))
            if math.isfinite(found.low)
        ]
        if band:
            x, low, high = zip(*band, strict=True)
            axes.fill_between(x, low, high, color=color, alpha=0.13, lw=0)
    # Room for the legend above.
    axes.set_ylim(0, 104 + 26 * len(result.drafters))
    axes.set_yticks(range(0, 101, 20))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper right")


def _rms(axes: Any, result: ProbeResult) -> None:
    _depths(axes, result, "Does the state that is fed back grow?", "root mean square of the state")
    _by_depth(axes, result, "rms", legend=True)
    axes.set_ylim(0, None)


def _sink(axes: Any, result: ProbeResult) -> None:
    columns = sorted({found.sinks["matched"].column for _, found, _ in _named(result)})
    which = ", ".join("the first token" if c == 0 else f"token {c + 1}" for c in columns)
    _depths(axes, result, f"Does it still look at the sink ({which})?", "attention, %")
    _by_depth(axes, result, "sink", 100, legend=True)
    for _, found, color in _named(result):
        axes.axhline(100 * found.sinks["matched"].even, color=color, lw=0.8, ls=":")
    axes.text(
        0.99, 0.02, "dotted: spread evenly", transform=axes.transAxes, ha="right", va="bottom",
        fontsize=8, color="#555555",
    )  # fmt: skip
    axes.set_ylim(0, None)


def _prompt(axes: Any, result: ProbeResult) -> None:
    _depths(axes, result, "Does it still look at the prompt?", "attention, sink included, %")
    _by_depth(axes, result, "prompt", 100, legend=True)
    axes.set_ylim(0, None)


def _own(axes: Any, result: ProbeResult) -> None:
    _depths(axes, result, "Does it turn to its own drafts?", "attention on them, %")
    for name, found, color in _named(result):
        alive = _tally(found).figures()["rows"]["surviving"]
        if "own" not in alive:
            continue
        _line(axes, alive["own"], color=color, label=name, rows=alive["count"], scale=100)
        _line(axes, [None, *alive["matched"][1:]], color=color, style=":", scale=100)
    axes.plot([], [], ":", color="#555555", label="the same tokens, fed by the target")
    axes.legend(loc="upper left")
    axes.set_ylim(0, 1.3 * axes.get_ylim()[1])


def _entropy(axes: Any, result: ProbeResult) -> None:
    _depths(axes, result, "Is its attention more spread out?", "entropy of a head, nats")
    _by_depth(axes, result, "entropy", legend=True)


def _bars(
    axes: Any, result: ProbeResult, cases: Sequence[tuple[str, Callable[[Any], Measured | None]]]
) -> None:
    """Mean accepted per round with its interval, per case and drafter."""
    named = _named(result)
    width = 0.8 / len(named)
    for i, (name, found, color) in enumerate(named):
        for place, (_, chosen) in enumerate(cases):
            measured = chosen(found)
            if measured is None or math.isnan(measured.tally.mean_accepted):
                continue
            x = place + (i + 0.5) * width - 0.4
            mean, low, high = measured.accepted(min(result.resamples, 2000), result.seed)
            axes.bar(x, mean, 0.92 * width, color=color, label=name if place == 0 else None)
            axes.plot([x, x], [low, high], color="#222222", lw=1)
            axes.text(x, high, f"{mean:.2f}", ha="center", va="bottom", fontsize=7)
    axes.set_xticks(range(len(cases)), [textwrap.fill(title, 9) for title, _ in cases], fontsize=8)
    axes.set_ylabel("accepted per round, no bonus token")
    axes.set_xlim(-0.6, len(cases) - 0.4)
    axes.margins(y=0.25)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper right", ncols=2)


def _of(kind: str, key: Any) -> Callable[[Any], Measured | None]:
    """What a drafter has under `key` of its `kind` of measurements."""

    def chosen(found: Any) -> Measured | None:
        measured: Measured | None = getattr(found, kind).get(key)
        return measured

    return chosen


def _conditions(axes: Any, result: ProbeResult) -> None:
    names = list(next(iter(result.drafters.values())).conditions)
    axes.set_title("What if the template is not as trained?")
    _bars(axes, result, [(TITLES[n], _of("conditions", n)) for n in names])


def _noise(axes: Any, result: ProbeResult) -> None:
    levels = list(next(iter(result.drafters.values())).noise)
    axes.set_title("What if the fed-back state is noisy?")
    cases = [("none", _of("conditions", "matched"))]
    cases += [(f"{alpha:g} of the RMS", _of("noise", alpha)) for alpha in levels]
    _bars(axes, result, cases)


def _forced(axes: Any, result: ProbeResult) -> None:
    names = list({name: None for found in result.drafters.values() for name in found.forced})
    axes.set_title(f"Forced switch ({FORCED})")
    cases = [("as trained", _of("conditions", "matched"))]
    cases += [(name.replace("=", " = "), _of("forced", name)) for name in names]
    _bars(axes, result, cases)


def _context(axes: Any, result: ProbeResult) -> None:
    trained = result.settings["train_length"]
    axes.set(
        title="What if the text is longer than in training?",
        xlabel=f"tokens of the text (trained on {trained})",
        ylabel="accepted per round, no bonus token",
    )
    for name, found, color in _named(result):
        for variant, by_length in found.context.items():
            lengths = sorted(by_length)
            values = [by_length[n].tally.mean_accepted for n in lengths]
            label = name if variant == "full" else None
            axes.plot(
                lengths, values, _VARIANTS[variant], color=color, marker="o", ms=3, label=label
            )
            axes.set_xticks(lengths)
    window = result.settings["window"]
    for variant, style in _VARIANTS.items():
        text = {"full": "all of the text", "window": f"window of {window} tokens"}
        label = text.get(variant, f"window of {window} + sink")
        axes.plot([], [], style, color="#555555", label=label)
    axes.set_ylim(0, None)
    axes.grid(axis="y", alpha=0.25, lw=0.6)
    axes.legend()
