"""What a reader gets: the table, a decoded text, `results.json` and `drift.png`."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leeboard._files import replacing
from leeboard.demo.settings import DRAFTERS, TITLES

CAVEAT = (
    "One seed at toy scale: an illustration, not evidence about large models. A flat RMS is what "
    "post-norm does by construction; acceptance past the bar is the test. Speeds are this "
    "machine's, on one thread: a step of the drafter costs a large part of a pass of a target "
    "this small, so fewer passes need not mean more tokens per second."
)
_WIDTH = 79
_STEP_FIGURES = (
    ("accepted, of the drafts tested", "acceptance_by_depth", ".0%"),
    ("rounds accepted this far", "share_by_depth", ".0%"),
    ("RMS of the fed-back state", "state_rms_by_depth", ".2f"),
)
_COLORS = {"plain": "#8a8a8a", "pre": "#c8553d", "post": "#1f6f8b"}


def table(results: dict[str, Any]) -> str:
    """The figures as text, at most 79 columns wide."""
    decode, settings = results["decode"], results["settings"]
    runs, plain = decode["runs"], decode["plain"]
    ttt, depth = settings["ttt"], settings["depth"]
    depths = sorted({ttt, depth})
    columns = [runs[name][str(d)] for d in depths for name in DRAFTERS]
    count = len(decode["prompts"])

    def row(label: str, first: str, cells: Sequence[str]) -> str:
        return f"{label:<26}{first:>9}" + "".join(f"{cell:>11}" for cell in cells)

    def figures(label: str, field: str, form: str, first: str = "-") -> str:
        return row(label, first, [format(column[field], form) for column in columns])

    span = 11 * len(DRAFTERS)
    opening = (
        f"{count} held-out prompts, {plain['new_tokens']:,} new tokens, greedy; drafters trained "
        f"on chains of {ttt}."
    )
    lines = [
        *textwrap.wrap(opening, _WIDTH),
        "",
        " " * 35 + "".join(f"{f'chains of {d}':>{span}}" for d in depths),
        row("", "plain", [TITLES[name] for _ in depths for name in DRAFTERS]),
        figures(
            "tokens per second", "tokens_per_second", ".0f", f"{plain['tokens_per_second']:.0f}"
        ),
        figures("target forward passes", "target_forwards", ",", f"{plain['target_forwards']:,}"),
        figures("tokens per target pass", "tokens_per_target_forward", ".2f", "1.00"),
        figures("mean accepted (no bonus)", "mean_accepted", ".2f"),
        figures("tau (with the bonus token)", "tau", ".2f"),
        row(
            "same text as plain greedy",
            "-",
            [
                "yes" if c["equal_to_greedy"] == count else f"{c['equal_to_greedy']}/{count}"
                for c in columns
            ],
        ),
        "",
        *_by_depth({name: runs[name][str(depth)] for name in DRAFTERS}, ttt, depth),
        "",
        *textwrap.wrap(
            f"{TITLES['pre']}: EAGLE-3 as first published, its raw state is fed back. "
            f"{TITLES['post']}: norm_output and fc_norm, leeboard's default.",
            _WIDTH,
        ),
        *textwrap.wrap(CAVEAT, _WIDTH),
    ]
    return "\n".join(lines)


def _by_depth(runs: dict[str, dict[str, Any]], ttt: int, depth: int) -> list[str]:
    """Figures per chain step, eight steps to a block so that the lines stay short."""
    lines = []
    for start in range(0, depth, 8):
        steps = range(start, min(start + 8, depth))

        def row(label: str, values: Sequence[Any], form: str, steps: range = steps) -> str:
            cells = ["-" if values[j] is None else format(values[j], form) for j in steps]
            bars = ["|" if j == ttt else " " for j in steps]
            pairs = zip(bars, cells, strict=True)
            return f"{label:<28}" + "".join(f"{bar}{cell:>5}" for bar, cell in pairs)

        lines.append(row(f"chains of {depth}, at step", range(1, depth + 1), "d"))
        for title, field, form in _STEP_FIGURES:
            lines.append(title)
            lines += [row(f"  {TITLES[name]}", run[field], form) for name, run in runs.items()]
        if start <= ttt < steps.stop:
            lines.append(" " * (28 + 6 * (ttt - start)) + "|-> longer than in training")
    return lines


def sample(decoded: dict[str, Any], *, color: bool) -> str:
    """One prompt and its decoded text, accepted drafts between «guillemets» (and in green)."""
    text = "".join(
        (f"\033[32m«{piece}»\033[0m" if color else f"«{piece}»") if drafted else piece
        for piece, drafted in decoded["pieces"]
    )
    head = (
        f"A held-out prompt ({decoded['file']}) and its answer, post-norm: {decoded['new_tokens']} "
        f"tokens in {decoded['target_forwards']} target passes. «Drafted and accepted»; the rest "
        "the target wrote itself."
    )
    return "\n".join([*textwrap.wrap(head, _WIDTH), "", decoded["prompt"] + text.rstrip("\n")])


def plot(results: dict[str, Any], path: Path) -> None:
    """Draw the figures as a PNG: acceptance and state RMS by chain step, tokens per target pass."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    decode, settings = results["decode"], results["settings"]
    ttt, depth = settings["ttt"], settings["depth"]
    steps = range(1, depth + 1)
    style = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    with mpl.rc_context(style):
        figure = Figure(figsize=(12.5, 4.4), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        acceptance, rms, speed = figure.subplots(1, 3)
        for name in DRAFTERS:
            run = decode["runs"][name][str(depth)]
            line = {"color": _COLORS[name], "marker": "o", "label": TITLES[name]}
            acceptance.plot(steps, [100 * share for share in run["share_by_depth"]], **line)
            rms.plot(steps, run["state_rms_by_depth"], **line)
        acceptance.set(
            title="How far is the chain accepted?",
            ylabel="rounds accepted at least this far, %",
            ylim=(-2, 102),
        )
        rms.set(title="Does the fed-back state grow?", ylabel="RMS of the state", ylim=(0, None))
        for axes in (acceptance, rms):
            axes.set(xlabel="step of the drafted chain", xlim=(0.6, depth + 0.4))
            axes.set_xticks(range(1, depth + 1, max(1, depth // 8)))
            axes.axvspan(0.6, min(ttt, depth) + 0.5, color="#000000", alpha=0.07, lw=0)
            axes.text(
                0.7,
                0.02,
                "trained",
                transform=axes.get_xaxis_transform(),
                color="#555555",
                va="bottom",
            )
        acceptance.legend(frameon=False)
        _bars(speed, decode["runs"], sorted({ttt, depth}))
        plain = results["decode"]["plain"]["new_tokens"]
        figure.suptitle(
            f"Two drafters trained on chains of {ttt}, decoding {len(decode['prompts'])} held-out "
            f"prompts ({plain:,} tokens). One seed, toy scale: an illustration",
            fontsize=11,
        )
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png")


def _bars(axes: Any, runs: dict[str, dict[str, Any]], depths: Sequence[int]) -> None:
    """Tokens per target forward pass: plain decoding, then the drafters per chain length."""
    width = 0.36
    bars = [axes.bar([0], [1.0], width, color=_COLORS["plain"])]
    for i, name in enumerate(DRAFTERS):
        heights = [runs[name][str(depth)]["tokens_per_target_forward"] for depth in depths]
        places = [group + (i - 0.5) * (width + 0.02) for group in range(1, len(depths) + 1)]
        bars.append(axes.bar(places, heights, width, color=_COLORS[name]))
    for group in bars:
        axes.bar_label(group, fmt="%.2f", padding=2)
    labels = ["plain greedy", *(f"chains of {depth}" for depth in depths)]
    axes.set_xticks(range(len(labels)), labels)
    axes.set(title="How many tokens per target pass?", ylabel="tokens per target forward pass")
    axes.margins(y=0.12)
