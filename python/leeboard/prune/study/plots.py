"""Pictures of a study: accuracy against pruning, a forest of differences, a map of rankers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leeboard._files import replacing
from leeboard.prune.study.results import CaseResults, Side
from leeboard.prune.study.settings import CONDITIONED, RANDOM, STATIC
from leeboard.prune.study.statistics import Interval

# Okabe and Ito's colours, told apart with any colour vision; markers differ, too.
_STYLES = (
    ("#0072b2", "o", "-"),
    ("#d55e00", "s", "-"),
    ("#009e73", "^", "-"),
    ("#cc79a7", "D", "--"),
    ("#e69f00", "v", "--"),
    ("#56b4e9", "P", ":"),
    ("#000000", "x", ":"),
)


def curves(results: CaseResults, sides: Sequence[Side], path: Path) -> None:
    """Accuracy on test rows against the share of multiply-adds that is pruned, a panel for each k.

    The lines bear the 95 % intervals of the means over seeds, masks and rows; level 0 is the
    unpruned net of the side's arm.
    """
    ks = results.missing
    columns = min(len(ks), 4)
    rows = -(-len(ks) // columns)
    figure, axes = _figure(3.1 * columns, 2.9 * rows + 0.7, rows, columns)
    for at, axis in enumerate(axes.flat):
        if at >= len(ks):
            axis.set_visible(False)
            continue
        k = ks[at]
        for order, side in enumerate(sides[: len(_STYLES)]):
            shown = [results.unpruned(side.arm, ks=[k])]
            chosen = results.levels(side)
            shown += [results.accuracy(side, ks=[k], levels=[level]) for level in chosen]
            _line(axis, [0.0, *chosen], shown, order, side.title)
        axis.grid(axis="y", color="#e5e5e5", lw=0.6)
        axis.set_axisbelow(True)
        axis.set_title(f"{k} of {_modalities(results)} missing", fontsize=9, loc="left")
        axis.set_xlabel("pruned, % of multiply-adds", fontsize=8)
        axis.set_ylabel("accuracy, %" if at % columns == 0 else "", fontsize=8)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=min(3, len(labels)),
        fontsize=8,
        frameon=False,
    )
    _save(figure, path)


def _line(
    axis: Any, levels: Sequence[float], shown: Sequence[Interval], at: int, label: str
) -> None:
    color, marker, line = _STYLES[at]
    # Side by side, so that bars do not hide one another.
    x = [100 * level + 0.7 * (at - len(_STYLES) // 2) for level in levels]
    y = [100 * value.mean for value in shown]
    bars = None
    if all(value.low is not None for value in shown):
        bars = [[100 * (value.mean - (value.low or 0.0)) for value in shown]] * 2
    axis.errorbar(
        x,
        y,
        yerr=bars,
        color=color,
        marker=marker,
        linestyle=line,
        label=label,
        markersize=4,
        lw=1.3,
        elinewidth=0.7,
    )


def forest(groups: Sequence[tuple[str, Sequence[tuple[str, Interval]]]], path: Path) -> None:
    """Differences in points of accuracy with 95 % intervals, one below the other, in groups."""
    lines = sum(len(parts) + 1 for _, parts in groups)
    figure, axes = _figure(8.2, 0.27 * lines + 1.0, 1, 1)
    axis = axes.flat[0]
    y, ticks, labels = 0.0, [], []
    for title, parts in groups:
        axis.text(
            0.0,
            y,
            title,
            transform=axis.get_yaxis_transform(),
            fontsize=9,
            fontweight="bold",
            va="center",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
            zorder=5,
        )
        y += 1
        for label, part in parts:
            color = _STYLES[0][0] if part.above_zero else "#777777"
            color = _STYLES[1][0] if part.below_zero else color
            marker = "o" if part.above_zero else "s" if part.below_zero else "D"
            if part.low is not None and part.high is not None:
                axis.plot([100 * part.low, 100 * part.high], [y, y], color=color, lw=1.6)
            axis.plot(100 * part.mean, y, color=color, marker=marker, markersize=5)
            ticks.append(y)
            labels.append(label)
            y += 1
    axis.axvline(0, color="#222222", lw=0.8)
    axis.set_yticks(ticks, labels, fontsize=8)
    axis.set_ylim(y - 0.4, -0.8)
    axis.grid(axis="x", color="#dddddd", lw=0.6)
    axis.set_axisbelow(True)
    axis.set_xlabel("difference in accuracy, points (bar: 95 % interval)", fontsize=8)
    _save(figure, path)


def heat_map(results: CaseResults, path: Path) -> None:
    """Mean accuracy of every ranker on every arm, over all levels, masks and k."""
    arms = results.arms
    rankers = [
        r for r in (RANDOM, *STATIC, *CONDITIONED) if any(results.has(Side(a, r)) for a in arms)
    ]
    shown = np.full((len(rankers), len(arms)), np.nan)
    for row, ranker in enumerate(rankers):
        for column, arm in enumerate(arms):
            if results.has(Side(arm, ranker)):
                shown[row, column] = 100 * results.accuracy(Side(arm, ranker)).mean
    figure, axes = _figure(1.9 + 1.05 * len(arms), 0.29 * len(rankers) + 1.0, 1, 1)
    axis = axes.flat[0]
    image = axis.imshow(shown, cmap="cividis", aspect="auto")
    low, high = np.nanmin(shown), np.nanmax(shown)
    for row, column in np.argwhere(~np.isnan(shown)):
        value = shown[row, column]
        dark = value < (low + high) / 2
        axis.text(
            column,
            row,
            f"{value:.1f}",
            ha="center",
            va="center",
            fontsize=8,
            color="white" if dark else "black",
        )
    axis.set_xticks(range(len(arms)), arms, fontsize=8)
    axis.set_yticks(range(len(rankers)), rankers, fontsize=8)
    axis.set_xlabel("training arm", fontsize=8)
    for side in axis.spines.values():
        side.set_visible(False)
    bar = figure.colorbar(image, ax=axis, fraction=0.05, pad=0.03)
    bar.set_label("accuracy, %", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    _save(figure, path)


def _modalities(results: CaseResults) -> int:
    return len(next(iter(results.records.values()))["modalities"])


def _figure(width: float, height: float, rows: int, columns: int) -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        message = "the study's plots need matplotlib: pip install 'leeboard[prune]'"
        raise ModuleNotFoundError(message, name="matplotlib") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.tick_params(labelsize=8)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        # Without the version of matplotlib equal results give equal files.
        figure.savefig(temporary, format="png", dpi=120, metadata={"Software": None})
