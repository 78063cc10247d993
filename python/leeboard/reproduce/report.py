"""Writes the page about a reproduction from its results: nothing in it is typed but the words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leeboard._files import replacing
from leeboard.reproduce import plots, wording
from leeboard.reproduce.claims import Answer
from leeboard.reproduce.readings import FORCED, SHARES, WINDOWS, context, noisy
from leeboard.reproduce.results import FORMAT
from leeboard.reproduce.settings import CONDITIONS, MATCHED, Settings
from leeboard.reproduce.statistics import Interval

PAGE = "reproduction-drift"


def write_docs(results: Mapping[str, Any], docs: Path) -> Path:
    """Write `reproduction-drift.md` and its pictures; equal results give equal files.

    Args:
        results: What `leeboard draft reproduce` wrote as results.json.
        docs: A folder; pictures go to `images` in it.

    Returns:
        The page.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: The results are of another version of the program.
    """
    if results.get("format") != FORMAT:
        raise ValueError(f"results: format {results.get('format')!r}, expected {FORMAT}")
    if not docs.is_dir():
        raise FileNotFoundError(f"{docs}: no such folder")
    pictures = plots.draw(results, docs / "images", PAGE)
    page = docs / f"{PAGE}.md"
    with replacing(page) as temporary:
        temporary.write_text(text(results, pictures), encoding="utf-8")
    return page


def text(results: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    """The page.

    Args:
        results: See `write_docs`.
        pictures: File names by name, in a folder `images`.
    """
    settings = Settings.from_dict(results["settings"])
    answers = [Answer.from_dict(claim) for claim in results["claims"]]
    figures = results["figures"]
    lines = [
        *wording.opening(results, settings),
        *_verdicts(results, answers, pictures),
        *_matching(results, settings),
        *_acceptance(figures, settings, pictures),
        *_state(figures, settings, pictures),
        *_attention(figures, settings, pictures),
        *_template(results, figures, settings, pictures),
        *_context(results, figures, settings, pictures),
        *_noise(figures, settings, pictures),
        *_claims(answers),
        *wording.methods(results, settings),
    ]
    return "\n".join(lines) + "\n"


def table(results: Mapping[str, Any]) -> str:
    """The verdicts for a terminal."""
    answers = [Answer.from_dict(claim) for claim in results["claims"]]
    width = max(len(answer.name) for answer in answers)
    return "\n".join(f"{answer.name:<{width}}  {answer.verdict}" for answer in answers)


def _verdicts(
    results: Mapping[str, Any], answers: Sequence[Answer], pictures: Mapping[str, str]
) -> list[str]:
    lines = ["", "## What holds", "", wording.tally(answers), ""]
    if not results["matching"]["agrees"]:
        lines += [wording.UNMATCHED, ""]
    lines += ["| claim | verdict | figures | must lie above |", "|---|---|---|---|"]
    for answer in answers:
        shown = "<br>".join(f"{p.label}: {number(p.pooled)}" for p in answer.parts) or "-"
        bounds = "<br>".join(f"{part.bound:g}" for part in answer.parts) or "-"
        lines.append(_row([answer.name, f"**{answer.verdict}**", shown, bounds]))
    return [*lines, "", wording.VERDICTS, *_picture(pictures, "verdicts", wording.FOREST)]


def _matching(results: Mapping[str, Any], settings: Settings) -> list[str]:
    lines = ["", "## Equal at depth 1", "", *wording.matching(results, settings), ""]
    header = ["arm", "TTT", "seed", "steps", "tokens", "depth 1, checks", "depth 1, prompts", "met"]
    lines += [_row(header), _rule(header, 1)]
    figures = {(f["arm"], f["ttt"]): f for f in results["figures"]}
    for training in results["trainings"]:
        arm = training["arm"]
        found = figures.get((arm["name"], arm["ttt"]))
        shown = "-"
        if found is not None and arm["seed"] < len(found["depth_one"]["seeds"]):
            shown = percent(found["depth_one"]["seeds"][arm["seed"]])
        lines.append(
            _row(
                [
                    arm["name"],
                    str(arm["ttt"]),
                    str(arm["seed"]),
                    f"{training['steps']:,}",
                    f"{training['tokens']:,}",
                    f"{100 * training['depth_one']:.1f} %",
                    shown,
                    "yes" if training["reached"] else "**no**",
                ]
            )
        )
    return lines


def _acceptance(
    figures: Sequence[Mapping[str, Any]], settings: Settings, pictures: Mapping[str, str]
) -> list[str]:
    first, last = settings.tail, settings.depth
    header = [
        "arm",
        "TTT",
        "accepted per round",
        "per seed",
        "with the bonus token",
        "depth 1",
        f"depths {first} to {last}",
        "mean over these depths",
        f"depths {first} to {last}, no looping texts",
        "accepted, no looping texts",
    ]
    lines = ["", "## Along the chain", "", wording.ACCEPTANCE, "", _row(header), _rule(header, 1)]
    for arm in figures:
        accepted = arm["accepted"][MATCHED]
        bonus = {
            end: None if accepted[end] is None else accepted[end] + 1
            for end in ("value", "low", "high")
        }
        lines.append(
            _row(
                [
                    arm["arm"],
                    str(arm["ttt"]),
                    number(accepted),
                    ", ".join(_short(seed["value"]) for seed in accepted["seeds"]),
                    number(bonus),
                    percent(arm["depth_one"]),
                    percent(arm["tail"]),
                    percent(arm["tail_mean"]),
                    percent(arm["tail_without_loops"]),
                    number(arm["accepted_without_loops"][MATCHED]),
                ]
            )
        )
    lines += _picture(pictures, "acceptance", wording.ACCEPTANCE_PICTURE)
    lines += ["", *_steps(figures, settings, "acceptance", percent_only)]
    lines += ["", wording.REACHED, "", *_steps(figures, settings, "reached", "{:,}".format)]
    return [*lines, "", wording.ACCURACY, "", *_steps(figures, settings, "accuracy", percent_only)]


def _state(
    figures: Sequence[Mapping[str, Any]], settings: Settings, pictures: Mapping[str, str]
) -> list[str]:
    lines = ["", "## The fed-back state", "", wording.STATE]
    lines += _picture(pictures, "state", wording.STATE_PICTURE)
    lines += ["", *_steps(figures, settings, "rms", lambda part: _short(part["value"]))]
    lines += ["", "On rows whose drafts were right so far:", ""]
    return lines + _steps(figures, settings, "surviving_rms", lambda part: _short(part["value"]))


def _attention(
    figures: Sequence[Mapping[str, Any]], settings: Settings, pictures: Mapping[str, str]
) -> list[str]:
    lines = ["", "## Attention", "", wording.ATTENTION]
    lines += _picture(pictures, "attention", wording.ATTENTION_PICTURE)
    header = ["arm", "TTT", "of", "step 1", f"step {settings.depth}", "slope per step"]
    lines += ["", _row(header), _rule(header, 1)]
    for arm in figures:
        for of in SHARES:
            ends = (arm["shares"][of][0], arm["shares"][of][-1])
            cells = [_short(part["value"]) for part in ends]
            slope = number(arm["slopes"][of])
            lines.append(_row([arm["arm"], str(arm["ttt"]), wording.SHARES[of], *cells, slope]))
    lines += ["", wording.OWN, ""]
    return lines + _steps(figures, settings, "own_by_matched", lambda part: _short(part["value"]))


def _template(
    results: Mapping[str, Any],
    figures: Sequence[Mapping[str, Any]],
    settings: Settings,
    pictures: Mapping[str, str],
) -> list[str]:
    lines = ["", "## Off the template", "", wording.template(results)]
    lines += _picture(pictures, "template", wording.TEMPLATE_PICTURE)
    for title, of, shown in (
        ("Accepted per round, without the bonus token:", "accepted", number),
        ("By the matched condition:", "relative", percent),
        ("Accepted per round, texts that loop left out:", "accepted_without_loops", number),
    ):
        taken = [name for name in CONDITIONS if name in results["texts"]["loops"]]
        names = [name for name in taken if of != "relative" or name != MATCHED]
        lines += ["", title, "", _row(["arm", "TTT", *names]), _rule(["", "", *names], 1)]
        for arm in figures:
            cells = [shown(arm[of][name]) for name in names]
            lines.append(_row([arm["arm"], str(arm["ttt"]), *cells]))
    return lines


def _context(
    results: Mapping[str, Any],
    figures: Sequence[Mapping[str, Any]],
    settings: Settings,
    pictures: Mapping[str, str],
) -> list[str]:
    lines = ["", "## Long contexts", "", wording.context(results, settings)]
    lines += _picture(pictures, "context", wording.CONTEXT_PICTURE)
    buckets = range(settings.buckets)
    header = ["arm", "TTT", "sees", *(f"{bucket + 1}x" for bucket in buckets)]
    lines += ["", _row(header), _rule(header, 1)]
    for arm in figures:
        for window in WINDOWS:
            cells = [number(arm["accepted"][context(bucket, window)]) for bucket in buckets]
            lines.append(_row([arm["arm"], str(arm["ttt"]), window, *cells]))
    return lines


def _noise(
    figures: Sequence[Mapping[str, Any]], settings: Settings, pictures: Mapping[str, str]
) -> list[str]:
    lines = ["", "## Noise, and the negative control", "", wording.NOISE]
    lines += _picture(pictures, "noise", wording.NOISE_PICTURE)
    header = ["arm", "TTT", *(f"noise {a:g}" for a in settings.noise), FORCED]
    lines += ["", _row(header), _rule(header, 1)]
    for arm in figures:
        cells = [percent(arm["relative"][noisy(alpha)]) for alpha in settings.noise]
        forced = arm["relative"].get(FORCED)
        cells.append("-" if forced is None else percent(forced))
        lines.append(_row([arm["arm"], str(arm["ttt"]), *cells]))
    return lines


def _claims(answers: Sequence[Answer]) -> list[str]:
    lines = ["", "## The claims one by one", "", wording.NOTES]
    for answer in answers:
        lines += ["", f"### {answer.name}", "", f"{answer.statement} **{_upper(answer.verdict)}.**"]
        lines += ["", f"Criterion: {answer.criterion}"]
        if answer.notes:
            lines += ["", f"Elsewhere (secondary figures): {answer.notes}"]
        if answer.parts:
            seeds = range(len(answer.parts[0].seeds))
            header = ["figure", "must lie above", "all seeds", *(f"seed {s}" for s in seeds)]
            lines += ["", _row(header), _rule(header, 1)]
        for part in answer.parts:
            cells = [number(seed) for seed in part.seeds]
            lines.append(_row([part.label, f"{part.bound:g}", number(part.pooled), *cells]))
    return lines


def _steps(
    figures: Sequence[Mapping[str, Any]], settings: Settings, of: str, shown: Any
) -> list[str]:
    """A table by chain step."""
    steps = range(1, settings.depth + 1)
    header = ["arm", "TTT", *map(str, steps)]
    lines = [_row(header), _rule(header, 1)]
    lines += [
        _row([arm["arm"], str(arm["ttt"]), *(shown(part) for part in arm[of])]) for arm in figures
    ]
    return lines


def _picture(pictures: Mapping[str, str], name: str, caption: str) -> list[str]:
    if name not in pictures:
        return []
    return ["", f"![{caption}](images/{pictures[name]})"]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _rule(header: Sequence[str], left: int) -> str:
    return _row(["---"] * left + ["---:"] * (len(header) - left))


def number(part: Interval | Mapping[str, Any]) -> str:
    """A figure with its interval; small ones with more digits."""
    given: Mapping[str, Any] = part.to_dict() if isinstance(part, Interval) else part
    known = [abs(given[end]) for end in ("value", "low", "high") if given[end] is not None]
    digits = 2 if max(known, default=0.0) >= 0.1 or not any(known) else 4
    # No minus before a zero.
    return _with_ends(given, lambda value: f"{round(value, digits) + 0.0:.{digits}f}", "")


def percent(part: Interval | Mapping[str, Any]) -> str:
    """A share with its interval, in per cent."""
    return _with_ends(part, lambda value: f"{100 * value:.1f}", " %")


def percent_only(part: Mapping[str, Any]) -> str:
    """A share in per cent, no interval."""
    return "-" if part["value"] is None else f"{100 * part['value']:.0f}"


def _with_ends(part: Interval | Mapping[str, Any], shown: Any, unit: str) -> str:
    given = part.to_dict() if isinstance(part, Interval) else part
    if given["value"] is None:
        return "-"
    if given["low"] is None or given["high"] is None:
        return f"{shown(given['value'])}{unit}"
    return f"{shown(given['value'])}{unit} [{shown(given['low'])}, {shown(given['high'])}]"


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _upper(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
