"""Pictures of plans: the candidates, and what moves the answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leeboard._files import replacing
from leeboard.sim.table import text_of

if TYPE_CHECKING:
    from leeboard.scenarios.edge_plan import EdgePlan
    from leeboard.scenarios.sensitivity import Sensitivity
    from leeboard.scenarios.speculation_plan import SpeculationPlan

# Okabe and Ito's colours, told apart with any colour vision; markers differ, too.
_STYLES = (("#0072b2", "o"), ("#d55e00", "s"), ("#009e73", "^"), ("#cc79a7", "D"))
_DOWN, _UP, _BEST, _GREY = "#d55e00", "#0072b2", "#111111", "#9aa5ad"


def speculation(plan: SpeculationPlan, path: str | Path | None) -> Any:
    """Tokens a second by depth for each placement, joules a token, and the tornado."""
    known = any(math.isfinite(c.energy) for c in plan.candidates)
    figure, axes = _panels(1 + known, plan.sensitivity)
    best = plan.best
    for (color, marker), placement in zip(_STYLES, plan.question.placements, strict=False):
        own = [c for c in plan.candidates if c.placement == placement]
        if not own:
            continue
        fits = not any(c.fails for c in own)
        look: dict[str, Any] = {
            "color": color,
            "marker": marker,
            "ms": 4,
            "lw": 1.4,
            "ls": "-" if fits else ":",
            "label": placement if fits else f"{placement} (does not fit)",
        }
        depths = [c.depth for c in own]
        axes[0].plot(depths, [c.rate for c in own], **look)
        if known:
            axes[1].plot(depths, [c.energy for c in own], **look)
    axes[0].set_yscale("log")
    _plain_ticks(axes[0].yaxis)
    axes[0].plot([best.depth], [best.rate], "*", color=_BEST, ms=12, zorder=5)
    _titled(axes[0], "Tokens a second", "drafts a round (0: no drafter)", "tokens/s")
    # Curves of energy fall, so there is room above them.
    axes[int(known)].plot([], [], "*", color=_BEST, ms=10, label="best")
    axes[int(known)].legend(fontsize=8, frameon=False, loc="upper right")
    if known:
        axes[1].set_ylim(bottom=0)
        _titled(axes[1], "Energy a token", "drafts a round (0: no drafter)", "J")
        axes[1].plot([best.depth], [best.energy], "*", color=_BEST, ms=12, zorder=5)
    for axis in axes[: 1 + known]:
        axis.xaxis.get_major_locator().set_params(integer=True)
    if plan.sensitivity is not None:
        _tornado(axes[-1], plan.sensitivity)
    q = plan.question
    title = f"{best.name}: {text_of(best.rate)} tokens/s ({q.decoding.target.name})"
    return _saved(figure, title, path)


def edge(plan: EdgePlan, path: str | Path | None) -> Any:
    """Accuracy against latency, expected accuracy by placement, and the tornado."""
    figure, axes = _panels(2, plan.sensitivity)
    q = plan.question
    everything = tuple(q.plans.sensors)
    scale = 1e3
    for (color, marker), choice in zip(_STYLES, plan.choices, strict=False):
        own = [t for t in plan.trials if t.placement == choice.placement]
        for trials, alpha, size in (
            ([t for t in own if t.plan.sensors != everything], 0.3, 3),
            ([t for t in own if t.plan.sensors == everything], 1.0, 6),
        ):
            for failing in (False, True):
                some = [t for t in trials if bool(t.fails) == failing]
                axes[0].plot(
                    [scale * t.latency for t in some],
                    [100 * t.plan.accuracy for t in some],
                    marker,
                    color=color,
                    mfc="none" if failing else color,
                    ms=size,
                    alpha=alpha,
                    label=choice.placement if size == 6 and not failing else None,
                )
    axes[0].axvline(scale * q.deadline, color=_BEST, lw=1, ls="--", label="deadline")
    axes[0].plot([], [], "o", color=_GREY, mfc="none", label="fails")
    axes[0].set_xscale("log")
    _plain_ticks(axes[0].xaxis)
    name = f"P{100 * q.quantile:g} latency (ms)"
    title = "Plans (small: fewer sensors)"
    _titled(axes[0], title, name, "accuracy (%)")
    axes[0].legend(fontsize=8, frameon=False)
    bars = [100 * c.accuracy for c in plan.choices]
    colors = [c for c, _ in _STYLES]
    names = [c.placement for c in plan.choices]
    drawn = axes[1].barh(names, bars, color=colors[: len(bars)], height=0.6)
    for bar, choice in zip(drawn, plan.choices, strict=True):
        mark = "  best" if choice is plan.best else ""
        axes[1].text(
            bar.get_width() + 1,
            bar.get_y() + bar.get_height() / 2,
            f"{100 * choice.accuracy:.1f}{mark}",
            va="center",
            fontsize=8,
        )
    axes[1].set_xlim(0, 118)
    axes[1].set_xticks([0, 25, 50, 75, 100])
    axes[1].invert_yaxis()
    _titled(axes[1], "Expected over all sets of sensors", "accuracy (%)", "")
    if plan.sensitivity is not None:
        _tornado(axes[-1], plan.sensitivity)
    title = f"{plan.best.placement}: {100 * plan.best.accuracy:.1f} % expected accuracy"
    return _saved(figure, title, path)


def _tornado(axis: Any, found: Sensitivity) -> None:
    """Change of the best value with each input down and up; the widest on top."""
    rows = found.rows
    for place, row in enumerate(rows):
        for value, color, height in ((row.low, _DOWN, 0.7), (row.high, _UP, 0.4)):
            axis.barh(place, 100 * (value / found.base - 1), height=height, color=color)
        flips = [flip for flip in (row.below, row.above) if flip is not None]
        notes = [f"{flip.factor:.2f}x" for flip in flips]
        if notes:
            axis.annotate(
                f"flips at {', '.join(notes)}",
                (1.0, place),
                xycoords=("axes fraction", "data"),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=7,
                color="#555555",
                annotation_clip=False,
            )
    axis.set_yticks(range(len(rows)), [f"{r.name} ({r.value})" for r in rows])
    axis.invert_yaxis()
    axis.axvline(0, color=_BEST, lw=0.8)
    reach = max([abs(100 * (v / found.base - 1)) for r in rows for v in (r.low, r.high)] + [0.5])
    axis.set_xlim(-1.15 * reach, 1.15 * reach)
    from matplotlib.patches import Patch

    share = f"{100 * found.share:g} %"
    axis.legend(
        handles=[Patch(color=_DOWN, label=f"-{share}"), Patch(color=_UP, label=f"+{share}")],
        fontsize=8,
        frameon=False,
        loc="lower right",
    )
    _titled(axis, f"What moves the {found.quantity}", "change (%)", "")


def _panels(count: int, sensitivity: Sensitivity | None) -> tuple[Any, Sequence[Any]]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        message = "plots need matplotlib: pip install 'leeboard[viz]'"
        raise ModuleNotFoundError(message, name="matplotlib") from None
    widths = [4.4] * count + ([5.0] if sensitivity is not None else [])
    figure = Figure(figsize=(sum(widths) + 1.5, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0]
    return figure, list(axes)


def _plain_ticks(axis: Any) -> None:
    """Numbers as people write them on an axis of logarithms."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(FuncFormatter(lambda value, _: ""))


def _titled(axis: Any, title: str, x: str, y: str) -> None:
    axis.set_title(title, loc="left", fontsize=9, fontweight="bold")
    axis.set_xlabel(x, fontsize=8)
    axis.set_ylabel(y, fontsize=8)
    axis.tick_params(labelsize=8)
    axis.grid(axis="both", color="#e5e5e5", lw=0.6)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _saved(figure: Any, title: str, path: str | Path | None) -> Any:
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    if path is not None:
        suffix = Path(path).suffix.lstrip(".") or "png"
        with replacing(Path(path)) as temporary:
            figure.savefig(temporary, format=suffix, dpi=130)
    return figure
