"""Pictures of a reproduction, from its results alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from leeboard._files import replacing
from leeboard.reproduce.claims import Answer, Part
from leeboard.reproduce.plot_parts import (
    STYLES,
    Figures,
    band,
    errors,
    finish,
    line,
    mark_trained,
    new_figure,
    plain_numbers,
    trained_on,
)
from leeboard.reproduce.readings import WINDOWS, context, noisy
from leeboard.reproduce.settings import CONDITIONS, MATCHED, Settings

_VERDICTS = {
    "holds at this scale": ("#0072b2", "o"),
    "does not hold": ("#d55e00", "s"),
    "not decided": ("#777777", "D"),
}


def draw(
    results: Mapping[str, Any], folder: Path, stem: str, only: Sequence[str] | None = None
) -> dict[str, str]:
    """Draw pictures as `folder/stem-NAME.png`.

    Args:
        results: What was found.
        folder: Made if missing.
        stem: How names of files begin.
        only: Names of those to draw; None for all that there is something to show in.

    Returns:
        Their file names, by NAME.
    """
    settings = Settings.from_dict(results["settings"])
    answers = [Answer.from_dict(claim) for claim in results["claims"]]
    made = {}
    folder.mkdir(parents=True, exist_ok=True)
    for name, drawn in _pictures(results["figures"], settings, answers):
        if only is not None and name not in only:
            continue
        made[name] = f"{stem}-{name}.png"
        with replacing(folder / made[name]) as temporary:
            # Without the version of matplotlib equal results give equal files.
            drawn().savefig(temporary, format="png", dpi=120, metadata={"Software": None})
    return made


def _pictures(
    figures: Sequence[Figures], settings: Settings, answers: Sequence[Answer]
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Names of the pictures, and what draws each."""
    if any(answer.parts for answer in answers):
        yield "verdicts", lambda: _verdicts(answers)
    yield "acceptance", lambda: _acceptance(figures, settings)
    yield "state", lambda: _state(figures, settings)
    yield "attention", lambda: _attention(figures, settings)
    yield "template", lambda: _template(figures, settings)
    yield "context", lambda: _context(figures, settings)
    if settings.noise:
        yield "noise", lambda: _noise(figures, settings)


def _acceptance(figures: Sequence[Figures], settings: Settings) -> Any:
    title = "Is a chain still accepted beyond the depth it was trained for?"
    label = "drafts accepted, % of those tested"
    figure, axes = _by_step(figures, settings, "acceptance", 100)
    axes.flat[0].set_ylabel(label, fontsize=9)
    return finish(figure, axes, title)


def _state(figures: Sequence[Figures], settings: Settings) -> Any:
    figure, axes = _by_step(figures, settings, "rms", 1)
    for axis in axes.flat:
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(plain_numbers())
        axis.yaxis.set_minor_formatter(plain_numbers())
    axes.flat[0].set_ylabel("RMS of the fed-back state", fontsize=9)
    return finish(figure, axes, "Does the state that is fed back grow along the chain?")


def _by_step(
    figures: Sequence[Figures], settings: Settings, of: str, scale: float
) -> tuple[Any, Any]:
    columns = len(settings.ttt)
    figure, axes = new_figure(5.2 * columns, 4.0, 1, columns, sharey=True)
    for axis, ttt in zip(axes.flat, settings.ttt, strict=True):
        for arm in trained_on(figures, ttt):
            band(axis, arm["arm"], range(1, settings.depth + 1), arm[of], scale)
        mark_trained(axis, ttt, settings.depth)
        axis.set_title(f"trained on chains of {ttt}", fontsize=10, loc="left")
        axis.set_xlabel("step of the drafted chain", fontsize=9)
    return figure, axes


def _attention(figures: Sequence[Figures], settings: Settings) -> Any:
    shown = (
        ("sink", "share on the sink, %"),
        ("prompt", "share on the prompt, %"),
        ("own", "share on the chain's own tokens, %"),
    )
    figure, axes = new_figure(
        4.0 * len(shown), 3.2 * len(settings.ttt), len(settings.ttt), len(shown)
    )
    x = list(range(1, settings.depth + 1))
    for row, ttt in enumerate(settings.ttt):
        for axis, (of, label) in zip(axes[row], shown, strict=True):
            for arm in trained_on(figures, ttt):
                band(axis, arm["arm"], x, arm["shares"][of], 100)
            mark_trained(axis, ttt, settings.depth)
            axis.set_title(f"trained on chains of {ttt}", fontsize=9, loc="left")
            axis.set_ylabel(label, fontsize=9)
            axis.set_ylim(bottom=0)
        for axis in axes[-1]:
            axis.set_xlabel("step of the drafted chain", fontsize=9)
    return finish(figure, axes, "Where does the drafter look as its chain grows?")


def _template(figures: Sequence[Figures], settings: Settings) -> Any:
    figure, axes = new_figure(5.6 * len(settings.ttt), 4.0, 1, len(settings.ttt), sharey=True)
    for axis, ttt in zip(axes.flat, settings.ttt, strict=True):
        arms = trained_on(figures, ttt)
        taken = [name for name in CONDITIONS if all(name in arm["accepted"] for arm in arms)]
        width = 0.8 / max(1, len(arms))
        for at, arm in enumerate(arms):
            chosen = [arm["accepted"][name] for name in taken]
            places = [group + (at - (len(arms) - 1) / 2) * width for group in range(len(taken))]
            axis.bar(
                places,
                [part["value"] or 0 for part in chosen],
                0.92 * width,
                yerr=errors(chosen, 1),
                color=STYLES[arm["arm"]][0],
                label=arm["arm"],
                error_kw={"lw": 0.8},
            )
        names = [f"{name}\n(as trained)" if name == MATCHED else name for name in taken]
        axis.set_xticks(range(len(taken)), names, fontsize=8)
        axis.set_title(f"trained on chains of {ttt}", fontsize=10, loc="left")
    axes.flat[0].set_ylabel("drafts accepted per round, no bonus token", fontsize=9)
    return finish(figure, axes, "What is lost off the template that the drafter was trained on?")


def _context(figures: Sequence[Figures], settings: Settings) -> Any:
    titles = {
        "full": "sees everything",
        "window": f"sees the last {settings.window} rows",
        "window + sinks": f"the last {settings.window} and the first {settings.sinks}",
    }
    figure, axes = new_figure(
        3.7 * len(WINDOWS),
        3.2 * len(settings.ttt),
        len(settings.ttt),
        len(WINDOWS),
        sharey=True,
    )
    x = list(range(1, settings.buckets + 1))
    for row, ttt in enumerate(settings.ttt):
        for axis, window in zip(axes[row], WINDOWS, strict=True):
            for arm in trained_on(figures, ttt):
                parts = [arm["accepted"][context(bucket - 1, window)] for bucket in x]
                line(axis, arm["arm"], x, parts, 1)
            axis.set_title(f"chains of {ttt}; {titles[window]}", fontsize=9, loc="left")
            axis.set_xticks(x, [f"{bucket}x" for bucket in x])
            axis.set_ylim(bottom=0)
        axes[row][0].set_ylabel("drafts accepted per round", fontsize=9)
        for axis in axes[-1]:
            axis.set_xlabel(f"length, in training rows of {settings.row} tokens", fontsize=9)
    return finish(figure, axes, "Does a context longer than in training cost acceptance?")


def _noise(figures: Sequence[Figures], settings: Settings) -> Any:
    figure, axes = new_figure(5.2 * len(settings.ttt), 4.0, 1, len(settings.ttt), sharey=True)
    clean = {"value": 1.0, "low": None, "high": None}
    x = [0.0, *settings.noise]
    for axis, ttt in zip(axes.flat, settings.ttt, strict=True):
        for arm in trained_on(figures, ttt):
            parts = [clean, *(arm["relative"][noisy(alpha)] for alpha in settings.noise)]
            line(axis, arm["arm"], x, parts, 100)
        axis.set_ylim(bottom=0)
        axis.set_title(f"trained on chains of {ttt}", fontsize=10, loc="left")
        axis.set_xlabel("noise on the fed-back state, relative to its RMS", fontsize=9)
    axes.flat[0].set_ylabel("drafts accepted, % of those without noise", fontsize=9)
    return finish(figure, axes, "How much noise on its own state does a chain bear?")


def _verdicts(answers: Sequence[Answer]) -> Any:
    """All figures less their bounds, in blocks of one claim."""
    blocks: dict[str, list[tuple[str, Answer, Part]]] = {}
    for answer in answers:
        name, _, ttt = answer.name.partition(", TTT ")
        for part in answer.parts:
            label = f"TTT {ttt}: {part.label}" if ttt else part.label
            blocks.setdefault(name, []).append((label, answer, part))
    lines = sum(len(block) for block in blocks.values()) + len(blocks)
    figure, axes = new_figure(9.5, 0.21 * lines + 1.4, 1, 1)
    axis, y, ticks, labels = axes.flat[0], 0, [], []
    for name, block in blocks.items():
        place = {"transform": axis.get_yaxis_transform(), "fontsize": 8, "va": "center"}
        axis.text(0.005, y, name, fontweight="bold", **place)
        y += 1
        for label, answer, part in block:
            _part(axis, y, answer, part)
            ticks.append(y)
            labels.append(label)
            y += 1
    for verdict, (color, marker) in _VERDICTS.items():
        axis.plot([], [], color=color, marker=marker, lw=1.6, label=verdict)
    axis.axvline(0, color="#222222", lw=0.8)
    axis.set_xscale("symlog", linthresh=0.1)
    axis.set_xticks([-1, -0.1, 0, 0.1, 1])
    axis.xaxis.set_major_formatter(plain_numbers())
    axis.set_yticks(ticks, labels, fontsize=7)
    axis.set_ylim(y - 0.4, -0.8)
    axis.grid(axis="x", color="#dddddd", lw=0.6)
    axis.set_xlabel(
        "figure less its bound: right of 0 as claimed\n(bar: 95 % interval of all seeds; ticks: each "
        "seed)",
        fontsize=8,
    )
    return finish(figure, axes, "What holds at this scale, and what does not")


def _part(axis: Any, y: float, answer: Answer, part: Part) -> None:
    color, marker = _VERDICTS[answer.verdict]
    pooled = part.pooled
    if pooled.low is not None and pooled.high is not None:
        axis.plot([pooled.low - part.bound, pooled.high - part.bound], [y, y], color=color, lw=1.6)
    if math.isfinite(pooled.value):
        axis.plot(pooled.value - part.bound, y, color=color, marker=marker, markersize=5)
    for seed in part.seeds:
        if math.isfinite(seed.value):
            axis.plot(seed.value - part.bound, y, color=color, marker="|", markersize=8)
