"""The words of the report; every number in them is computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from leeboard.prune.study.settings import ARMS, Study
from leeboard.prune.study.verdicts import FEWEST_SEEDS, MARGIN, QUESTIONS, Verdict

TRAINING = (
    "The gate on the prune-aware net B against other trainings, each ranked by its best static "
    "ranking. A gain over A that stays over A-matched is not one of compute; a gain over A that is "
    "gone against C or R is one of training under pruning, not of knowing the modalities."
)
CHOSEN = (
    "The same with both sides planned in whichever way is better on validation rows, and the static "
    "ranking chosen along with it."
)
RANKING = "Rankings on the same trained net: what remains when training is equal."
PER_LAYER = (
    "The same with the same share of units shed in every layer, as in the prune-aware pass of the "
    "training, and the rivals planned so, too (those that were planned this way)."
)
SWITCHES = (
    "Bias compensation on and off, and one budget for the whole net (left) against the same share "
    "of units in every layer (right). Mean inputs of `gate+bias` depend on the modalities present; "
    "those of `flap+bias` do not."
)
HELD_OUT = (
    "For each seed one mask of each number of missing modalities was kept from a second gate and a "
    "second table, and these were used on that mask. Below: their accuracy less that of the table "
    "that saw all masks, over k from 1 up; the last line of an arm is the gate that saw all."
)


def opening(
    study: Study, records: Sequence[Mapping[str, Any]], sessions: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Title, what was run, how."""
    asked = len(study.units())
    text = [
        "# The pruning study",
        "",
        "<!-- Written by `leeboard prune study`; do not edit. -->",
        "",
        (
            "Which part of a pruned net's accuracy comes from training, which from the ranking, and "
            "which from a ranking that knows the modalities that are present? Small nets on bundled "
            "data, with controls for each part."
        ),
        "",
        '!!! note "Stand-ins"',
        "",
        (
            "    No sensor was involved. The digits and the breast-cancer figures of scikit-learn are "
            "cut into groups that *stand in* for sensors, and the synthetic sensors are a formula. "
            "What holds here may not hold for a real device or a large net."
        ),
        "",
        "## What was run",
        "",
    ]
    if len(records) < asked:
        text += [
            (
                f"**Unfinished: {len(records)} of {asked} trainings.** Run the command again to "
                "continue."
            ),
            "",
        ]
    if study.preset == "quick":
        text += [
            (
                "**The quick preset: a check that everything runs, far too small to answer "
                "anything.** `leeboard prune study` runs the default grid."
            ),
            "",
        ]
    text += ["| | |", "|---|---|", f"| preset | {study.preset} |"]
    commands = list(dict.fromkeys(str(s["command"]) for s in sessions if s.get("command")))
    text += [f"| command | `{command}` |" for command in commands]
    seconds = sum(float(s["seconds"]) for s in sessions)
    workers = sorted({int(s["workers"]) for s in sessions})
    parts = {name: sum(float(r["seconds"][name]) for r in records) for name in _SECONDS}
    spent = ", ".join(f"{_SECONDS[name]} {value / 60:.1f} min" for name, value in parts.items())
    text += [
        f"| trainings | {len(records)} |",
        f"| pruned nets evaluated | {sum(len(r['cells']) for r in records):,} |",
        (
            f"| wall time | {seconds / 60:.1f} min with {', '.join(map(str, workers))} workers of one "
            "thread |"
        ),
        f"| time of the workers | {spent} |",
    ]
    versions = {f"{k} {v}" for s in sessions for k, v in s["versions"].items()}
    text.append(f"| versions | {', '.join(sorted(versions))} |")
    text += ["", "| training | |", "|---|---|"]
    used = {arm for case in study.cases for arm in case.arms}
    return text + [f"| {arm} | {line} |" for arm, line in ARMS.items() if arm in used]


_SECONDS = {"train": "training", "rank": "ranking", "evaluate": "evaluation"}


def consequences(found: Sequence[Verdict]) -> list[str]:
    """What follows from the answers, in words."""
    lines = [f"- **{name}**, {text}." for name, text in QUESTIONS.items()]
    lines.append("")
    for name in QUESTIONS:
        verdicts = [v for v in found if v.name == name]
        if verdicts:
            lines += [_CONSEQUENCES[name](verdicts), ""]
    lines.append(
        "An answer is *undecided* where the interval holds both answers, or where there are "
        f"fewer than {FEWEST_SEEDS} seeds. Plans are global (one budget for all layers, which may be "
        "dropped whole), or per layer (the same share of units in each), or chosen: for each side the "
        "way that is better on validation rows."
    )
    return lines


def _cases(found: Iterable[Verdict], answer: str) -> str:
    return "; ".join(_where(v) for v in found if v.answer == answer)


def _where(verdict: Verdict) -> str:
    return f"{verdict.case} ({verdict.planning})"


def _tally(found: Sequence[Verdict]) -> str:
    parts = [
        f"{answer} in {_cases(found, answer)}"
        for answer in ("pass", "fail", "undecided")
        if _cases(found, answer)
    ]
    return ", ".join(parts)


def _p1(found: Sequence[Verdict]) -> str:
    text = f"{found[0].name}: {_tally(found)}."
    if all(v.answer == "pass" for v in found):
        return text + " As a whole, the system is better than pruning an ordinary net."
    if any(v.answer == "pass" for v in found):
        return text + " The system's advantage is shown for the cases that pass, and no others."
    return text + " An advantage of the system is not shown."


def _p2(found: Sequence[Verdict]) -> str:
    text = f"P2: {_tally(found)}."
    if all(v.answer == "pass" for v in found):
        return text + " Masks that know the modalities add to prune-aware training."
    for answer, word in (
        ("fail", "**Masks that know the modalities add nothing to prune-aware training**"),
        ("undecided", "It is not shown that they add anything"),
    ):
        if _cases(found, answer):
            text += f" {word} in {_cases(found, answer)}."
    return text + " Where P2 does not pass, call it prune-aware training, not modality-aware."


def _p3(found: Sequence[Verdict]) -> str:
    text = f"P3: {_tally(found)}."
    if all(v.answer == "pass" for v in found):
        return text + f" The gate generalises to unseen masks within {100 * MARGIN:g} points."
    return (
        text + " Where it does not pass, use the table, and train it on every set of modalities "
        "that will occur."
    )


_CONSEQUENCES = {"P1": _p1, "P1 at equal compute": _p1, "P2": _p2, "P3": _p3}


def methods(study: Study, records: Sequence[Mapping[str, Any]]) -> list[str]:
    """How it was done and what it does not say."""
    text = [
        "",
        "## How it was done",
        "",
        (
            "- Every training updates a score table and a gate from its own backward pass; they never "
            "touch the weights, so every ranking can be had on every net. Static rankings are "
            "calibrated on training rows, complete (`full`) or with modalities missing at random "
            "(`mix`). The weights of the last epoch are used; no epoch is picked."
        ),
        (
            "- Prune-aware training adds, after the first quarter of the steps, a second pass under "
            "masks of a random share of units; A-matched has as many forward and backward passes as B, "
            "as more steps of the ordinary kind."
        ),
        (
            "- A plan sheds heads and panels of feed-forward channels until the given share of the "
            "prunable multiply-adds is gone, with the same modalities present. Missing modalities are "
            "dropped, not fed. There is no fine-tuning after pruning."
        ),
        (
            "- A global plan may drop a whole block, with its output bias; the prune-aware pass, and a "
            "plan per layer, keep a part of every block."
        ),
        "- Validation rows choose the best static ranking; test rows are only counted.",
        (
            "- Differences are paired by seed and mask. Every seed has its own split, weights, order "
            "and masks. Intervals: 2,000 bootstrap resamples of seeds and of masks within a seed; "
            "their standard deviation times Student's t for so few seeds. "
            "They are not corrected for the number of comparisons."
        ),
        (
            "- Kwon et al. tune masks layer by layer on the pruned net; here their rescaling follows "
            "from statistics of the dense net, as the plan must be made without data."
        ),
        "",
        "## What it does not say",
        "",
        "- Nothing about time or memory: see the benchmarks for those.",
        (
            "- Nothing about real sensors, other sizes, or nets that were trained long. Nothing was "
            "tuned for any arm."
        ),
        "- P3 holds out masks from the ranking only: the net itself was trained with all of them.",
        (
            "- Baselines that were made for one rule of planning (per layer, or a threshold over all "
            "layers) meet another one here; a bad figure under one of them is no verdict on the "
            "baseline."
        ),
        "",
        "## The grid",
        "",
        "| case | arms | seeds | rankings | pruned % | masks per k | epochs | why this size |",
        "|---|---|---:|---:|---|---:|---:|---|",
    ]
    for case in study.cases:
        levels = ", ".join(f"{100 * level:g}" for level in case.levels)
        text.append(
            f"| {case.title} | {', '.join(case.arms)} | {case.seeds} | {len(case.rankers)} | "
            f"{levels} | <= {case.masks} | {case.epochs} | {case.note or 'the whole grid'} |"
        )
    means: dict[str, list[float]] = {}
    for record in records:
        unit = record["unit"]
        name = f"{unit['data']}, {unit['backbone']}, {unit['arm']}"
        means.setdefault(name, []).append(float(record["training"]["passes"]))
    text += ["", "Forward and backward passes of a training, the mean over seeds:", ""]
    text += ["| training | passes |", "|---|---:|"]
    return text + [f"| {name} | {sum(v) / len(v):,.0f} |" for name, v in means.items()]
