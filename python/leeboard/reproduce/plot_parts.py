"""Lines, bars and frames of the pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

# What is known of one arm at one TTT depth, as in results.json; or one figure of it.
Figures = Mapping[str, Any]

# Okabe and Ito's colours, told apart with any colour vision; markers differ, too.
STYLES = {
    "pre": ("#d55e00", "o"),
    "norm_output": ("#0072b2", "s"),
    "norm_output+fc_norm": ("#009e73", "^"),
    "norm_before_residual": ("#cc79a7", "D"),
    "fc_norm": ("#e69f00", "v"),
}


def trained_on(figures: Sequence[Figures], ttt: int) -> list[Figures]:
    return [arm for arm in figures if arm["ttt"] == ttt]


def band(axis: Any, name: str, x: Sequence[float], parts: Sequence[Figures], scale: float) -> None:
    """A line with its interval as a band."""
    color, marker = STYLES[name]
    y = [scaled(part["value"], scale) for part in parts]
    axis.plot(x, y, color=color, marker=marker, markersize=4, lw=1.4, label=name)
    low, high = ([scaled(part[end], scale) for part in parts] for end in ("low", "high"))
    axis.fill_between(x, low, high, color=color, alpha=0.15, lw=0)


def line(axis: Any, name: str, x: Sequence[float], parts: Sequence[Figures], scale: float) -> None:
    """A line with bars, a little aside so that bars do not hide one another."""
    color, marker = STYLES[name]
    step = 0.012 * (max(x) - min(x) or 1)
    at = (list(STYLES).index(name) - (len(STYLES) - 1) / 2) * step
    axis.errorbar(
        [place + at for place in x],
        [scaled(part["value"], scale) for part in parts],
        yerr=errors(parts, scale),
        color=color,
        marker=marker,
        markersize=4,
        lw=1.4,
        elinewidth=0.8,
        label=name,
    )


def errors(parts: Sequence[Figures], scale: float) -> list[list[float]]:
    """Lengths of the bars below and above."""
    made: list[list[float]] = [[], []]
    for part in parts:
        for row, end in zip(made, ("low", "high"), strict=True):
            known = part[end] is not None and part["value"] is not None
            row.append(abs(part[end] - part["value"]) * scale if known else 0.0)
    return made


def scaled(value: float | None, scale: float) -> float:
    return float("nan") if value is None else scale * value


def mark_trained(axis: Any, ttt: int, depth: int) -> None:
    axis.axvspan(0.5, ttt + 0.5, color="#000000", alpha=0.07, lw=0)
    axis.text(
        0.6,
        0.98,
        "trained",
        transform=axis.get_xaxis_transform(),
        color="#555555",
        fontsize=8,
        va="top",
    )
    axis.set_xlim(0.5, depth + 0.5)
    axis.set_xticks(range(1, depth + 1, max(1, depth // 8)))


def plain_numbers() -> Callable[[float, Any], str]:
    def shown(value: float, place: Any) -> str:
        return f"{value:.3g}"

    return shown


def new_figure(
    width: float, height: float, rows: int, columns: int, *, sharey: bool = False
) -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        message = "the plots need matplotlib: pip install 'leeboard[viz]'"
        raise ModuleNotFoundError(message, name="matplotlib") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, sharey=sharey)
    for axis in axes.flat:
        axis.tick_params(labelsize=8)
        axis.grid(axis="y", color="#e5e5e5", lw=0.6)
        axis.set_axisbelow(True)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    return figure, axes


def finish(figure: Any, axes: Any, title: str) -> Any:
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=min(5, max(1, len(labels))),
        fontsize=9,
        frameon=False,
    )
    figure.suptitle(title, fontsize=11)
    return figure
