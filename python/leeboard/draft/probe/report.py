"""A probe's figures as text."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from leeboard.draft.probe.bootstrap import Interval

if TYPE_CHECKING:
    from leeboard.draft.probe.result import DrafterProbe, Measured, ProbeResult

_WIDTH = 79
_BLOCK = 8

TITLES = {
    "matched": "template as trained",
    "no_bos": "no BOS token",
    "no_template": "no template",
    "no_template_no_bos": "no template, no BOS",
    "renamed_roles": "roles renamed",
}

# (title, key, format, as per cent); of all rows and of surviving rows.
_ROWS = (
    ("rows", "count", ",d", False),
    ("draft matches, %", "hit", ".0f", True),
    ("RMS of the fed-back state", "rms", ".2f", False),
    ("attention on the sink, %", "sink", ".1f", True),
    ("  on the prompt, sink too, %", "prompt", ".1f", True),
    ("  on own chain tokens, %", "own", ".1f", True),
    ("    per own token, %", "own_per_key", ".1f", True),
    ("    over distance-matched", "own_over_matched", ".2f", False),
    ("  less than 8 away, %", "recent", ".1f", True),
    ("entropy, nats", "entropy", ".2f", False),
    ("mean distance, tokens", "distance", ".1f", False),
)

FORCED = "TEST, not a way to run a drafter"


def report(result: ProbeResult) -> str:
    """The whole report, at most 79 columns wide where names are short."""
    lines = _opening(result)
    for name, found in result.drafters.items():
        lines += ["", *_drafter(result, name, found)]
    many = (
        ("prompts perturbed", "conditions", TITLES),
        ("noise on the fed-back state, times its RMS", "noise", None),
    )
    for title, kind, titles in many:
        cases = {name: dict(getattr(found, kind)) for name, found in result.drafters.items()}
        if all(len(measured) > (kind == "conditions") for measured in cases.values()):
            lines += ["", *_compared(result, title, cases, titles)]
    if any(found.forced for found in result.drafters.values()):
        cases = {name: dict(found.forced) for name, found in result.drafters.items()}
        lines += ["", *_compared(result, f"forced switch: {FORCED}", cases, None)]
    lines += _contexts(result)
    for key, figures in result.comparisons().items():
        found = figures["mean_accepted"]
        if None in found.values():
            continue
        if not lines[-1].startswith("accepted per round, "):
            lines.append("")
        lines.append(
            f"accepted per round, {key}: {found['value']:+.2f} "
            f"({found['low']:+.2f} to {found['high']:+.2f})"
        )
    lines += ["", *_notes(result)]
    return "\n".join(lines)


def _opening(result: ProbeResult) -> list[str]:
    texts = result.texts["matched"]
    return textwrap.wrap(
        f"{texts['prompts']} prompts, {texts['new_tokens']:,} new tokens of the target's greedy "
        f"text, {texts['looping_continuations']} continuations loop; chains of "
        f"{result.depth}. Intervals: 95%, paired bootstrap over prompts.",
        _WIDTH,
    )


def _drafter(result: ProbeResult, name: str, found: DrafterProbe) -> list[str]:
    matched = found.conditions["matched"]
    sink = found.sinks["matched"]
    switches = ", ".join(
        f"{key} {_yes(value)}"
        for key, value in found.switches.items()
        if isinstance(value, bool) or value
    )
    lines = [f"{name}, template as trained", *_wrapped("", switches)]
    lines += _wrapped("all continuations: ", _accepted(result, matched))
    if matched.looping.any():
        tally = matched.without_loops
        figures = tally.figures()
        text = "there are no others"
        if figures["rounds"]:
            text = f"accepted {figures['mean_accepted']:.2f}, tau {figures['tau']:.2f}"
        lines += _wrapped(f"without the {int(matched.looping.sum())} that loop: ", text)
    rms = matched.tally.figures()["rows"]["all"]["rms"]
    if rms[0] and rms[-1]:
        text = f"{rms[0]:.2f} at depth 1, {rms[-1] / rms[0]:.2f} times that at depth {len(rms)}"
        lines += _wrapped("RMS of the fed-back state, all rows: ", text)
    lines += _wrapped(
        "sink: ",
        f"column {sink.column} (0 is the first token) draws {sink.share:.1%} of the attention of "
        f"target-fed rows; spread evenly, a column would draw {sink.even:.1%}",
    )
    others = matched.without_loops.figures() if matched.looping.any() else None
    lines += _by_depth(matched.tally.figures(), others, result.depth)
    return lines


def _accepted(result: ProbeResult, measured: Measured) -> str:
    figures = measured.tally.figures()
    if not figures["rounds"]:
        return "no round: the continuations are too short"
    found = measured.accepted(result.resamples, result.seed)
    return (
        f"accepted per round (no bonus token) {found.mean:.2f} ({found.low:.2f} to "
        f"{found.high:.2f}), tau (with the bonus token) {found.mean + 1:.2f}; "
        f"{figures['rounds']:,} rounds, {figures['rounds_cut_by_the_end']} cut by the text's end"
    )


def _by_depth(
    figures: Mapping[str, Any], without_loops: Mapping[str, Any] | None, depth: int
) -> list[str]:
    lines = []
    for start in range(0, depth, _BLOCK):
        steps = range(start, min(start + _BLOCK, depth))

        def row(
            title: str, values: Sequence[Any], form: str, share: bool, steps: range = steps
        ) -> str:
            cells = [_cell(values[j], form, share) for j in steps]
            return f"{title:<30}" + "".join(f"{cell:>6}" for cell in cells)

        lines += ["", row("depth of the draft", range(1, depth + 1), "d", False)]
        lines.append("rounds, as decoded")
        lines.append(row("  rounds that tested it", figures["reached_by_depth"], ",d", False))
        lines.append(row("  accepted of them, %", figures["acceptance_by_depth"], ".0f", True))
        for which, title in (
            ("surviving", "surviving rows (all earlier drafts matched)"),
            ("all", "all rows (the text's tokens are fed in any case)"),
        ):
            lines.append(title)
            lines += [
                row(f"  {text}", figures["rows"][which][key], form, share)
                for text, key, form, share in _ROWS
                if key in figures["rows"][which]
            ]
            if without_loops is not None:
                left = without_loops["rows"][which]
                lines.append(row("  rows without loops", left["count"], ",d", False))
                lines.append(row("  draft matches, %", left["hit"], ".0f", True))
    return lines


def _compared(
    result: ProbeResult,
    title: str,
    cases: Mapping[str, Mapping[Any, Measured]],
    titles: Mapping[str, str] | None,
) -> list[str]:
    """Mean accepted, tau and the ratio to the matched template, per case and drafter."""
    lines = [title]
    lines.append(f"{'':<31}{'accepted':>9}{'tau':>6}{'ratio to matched':>20}{'loops out':>12}")
    for name, measured_by in cases.items():
        if not measured_by:
            continue
        lines.append(name)
        matched = result.drafters[name].conditions["matched"]
        for case, measured in measured_by.items():
            label = (titles or {}).get(case, f"{case:g}" if isinstance(case, float) else str(case))
            mean = measured.tally.mean_accepted
            ratios = ["", ""]
            if measured is not matched:
                ratios = [
                    _interval(measured.against(matched, result.resamples, result.seed, loops=all_))
                    for all_ in (True, False)
                ]
                ratios[1] = ratios[1].partition(" ")[0]
            lines.append(
                f"  {label:<29}{_cell(mean, '.2f'):>9}{_cell(mean + 1, '.2f'):>6}"
                f"{ratios[0]:>20}{ratios[1]:>12}".rstrip()
            )
    return lines


def _contexts(result: ProbeResult) -> list[str]:
    if not any(found.context for found in result.drafters.values()):
        return []
    window = result.settings["window"]
    lengths = sorted({n for d in result.drafters.values() for v in d.context.values() for n in v})
    title = (
        f"long texts: accepted per round (add 1 for tau); window of {window} tokens, trained on "
        f"{result.settings['train_length']}"
    )
    lines = ["", title]
    lines.append(f"{'tokens of the text':<31}" + "".join(f"{n:>9,}" for n in lengths))
    for name, found in result.drafters.items():
        lines.append(name)
        for variant, measured in found.context.items():
            cells = [
                _cell(measured[n].tally.mean_accepted, ".2f") if n in measured else "-"
                for n in lengths
            ]
            lines.append(f"  {variant:<29}" + "".join(f"{cell:>9}" for cell in cells))
    return lines


_ACCEPTED = (
    "accepted: drafts per round that the target keeps; tau adds the token of its own that ends every "
    "round."
)
_MATCHED = (
    "over distance-matched: attention on own tokens, over what a target-fed row at the same place "
    "gives to the same tokens. Own tokens' share grows with depth in any case: there are more of them."
)


def _notes(result: ProbeResult) -> list[str]:
    texts = (_ACCEPTED, _MATCHED, *result.notes)
    return [line for text in texts for line in textwrap.wrap(text, _WIDTH, subsequent_indent="  ")]


def _interval(found: Interval | None) -> str:
    if found is None or math.isnan(found.mean):
        return "-"
    return f"{found.mean:.2f} ({found.low:.2f}-{found.high:.2f})"


def _cell(value: Any, form: str, share: bool = False) -> str:
    """The value as text of at most five characters where `form` allows it."""
    if value is None or math.isnan(value):
        return "-"
    if isinstance(value, int):
        return format(value, form) if value < 10_000 else f"{value / 1000:,.0f}k"
    if not share and abs(value) >= 100:
        form = ",.0f" if abs(value) < 10_000 else ".0e"
    return format(100 * value if share else value, form)


def _wrapped(head: str, text: str) -> list[str]:
    return textwrap.wrap(head + text, _WIDTH, initial_indent="  ", subsequent_indent="    ")


def _yes(value: Any) -> str:
    return (
        {True: "on", False: "off"}.get(value, str(value)) if isinstance(value, bool) else str(value)
    )
