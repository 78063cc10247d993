"""Writes the page about a study from its run folder: nothing in it is typed by hand but the words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from leeboard._files import replacing
from leeboard.prune.study import plots, wording
from leeboard.prune.study.comparisons import Row, ranking, switches, training
from leeboard.prune.study.results import CHOSEN, CaseResults, Side
from leeboard.prune.study.settings import CONDITIONED, HELD_OUT, RANDOM, STATIC
from leeboard.prune.study.statistics import Bootstrap, Interval
from leeboard.prune.study.storage import RunFolder
from leeboard.prune.study.verdicts import Verdict, verdicts


def write_report(run_dir: str | Path, out: str | Path) -> list[Verdict]:
    """Write the page and its pictures; equal folders give equal files.

    Args:
        run_dir: Folder of a study with at least one finished unit.
        out: The Markdown file. Pictures go to `images/<its name>-*.png` beside it.

    Returns:
        The verdicts of the cases of which something is claimed.

    Raises:
        FileNotFoundError: The folder holds no study.
        ValueError: No unit is finished.
    """
    folder, page = RunFolder(run_dir), Path(out)
    study, records = folder.study(), folder.records()
    if not records:
        raise ValueError(f"run_dir: {folder.path} holds no finished unit yet")
    bootstrap = Bootstrap()
    cases = []
    for case in study.cases:
        chosen = [
            r
            for r in records
            if (r["unit"]["data"], r["unit"]["backbone"]) == (case.data, case.backbone)
        ]
        if chosen:
            cases.append(CaseResults(case, chosen, bootstrap))
    found = [v for results in cases if results.case.claim for v in verdicts(results)]
    text = [
        *wording.opening(study, records, folder.sessions()),
        *_verdict_lines(found),
    ]
    (page.parent / "images").mkdir(parents=True, exist_ok=True)
    if forest := _forest(cases):
        name = f"{page.stem}-differences.png"
        plots.forest(forest, page.parent / "images" / name)
        text += [
            "",
            f"![Differences in accuracy with their intervals](images/{name})",
            "",
            (
                "Differences over all numbers of missing modalities. Blue: the interval is above zero; "
                "orange: below; grey: it holds zero."
            ),
        ]
    for results in cases:
        text += _case(results, page)
    text += wording.methods(study, records)
    with replacing(page) as temporary:
        temporary.write_text("\n".join(text) + "\n", encoding="utf-8")
    return found


def _verdict_lines(found: Sequence[Verdict]) -> list[str]:
    lines = ["", "## Verdicts", ""]
    if not found:
        return [*lines, "None: the arms that they compare are not finished."]
    lines += [
        "| question | case | plans | answer | differences in points |",
        "|---|---|---|---|---|",
    ]
    for verdict in sorted(found, key=lambda v: v.name):
        parts = "; ".join(f"{label}: {points(part)}" for label, part in verdict.parts)
        start = f"| {verdict.name} | {verdict.case} | {verdict.planning} "
        lines.append(f"{start}| **{verdict.answer}** | {parts} |")
    lines += ["", *wording.consequences(found)]
    return lines


def _forest(cases: Sequence[CaseResults]) -> list[tuple[str, list[tuple[str, Interval]]]]:
    groups = []
    for results in cases:
        made = training(results)
        made += [row for row in ranking(results) if row.comparison.left.arm in ("A", "B")]
        made += training(results, "per layer") + training(results, CHOSEN)
        if made:
            parts = [(row.comparison.title, row.overall) for row in made]
            groups.append((results.case.title, parts))
    return groups


def _case(results: CaseResults, page: Path) -> list[str]:
    case = results.case
    counts = {arm: len(results.seeds(arm)) for arm in results.arms}
    first = next(iter(results.records.values()))
    text = ["", f"## {case.title[0].upper()}{case.title[1:]}", ""]
    text += [
        " ".join(
            (
                first["description"],
                (
                    f"Rows: {first['rows']['train']} to train on, {first['rows']['validation']} to "
                    f"choose on, {first['rows']['test']} to count."
                ),
                "Trainings: " + ", ".join(f"{arm} {n}" for arm, n in counts.items()) + ".",
                f"Size: {case.note}." if case.note else "",
            )
        ).strip()
    ]
    if not case.claim:
        text += ["", "A sanity check: too small for claims, so no verdict is drawn from it."]
    text += ["", "### Accuracy", "", *_accuracies(results)]
    text += _curves(results, page)
    for title, note, made in (
        ("What training gives", wording.TRAINING, training(results)),
        (
            "What training gives: plans per layer",
            wording.PER_LAYER,
            training(results, "per layer"),
        ),
        (
            "What training gives: plans as validation chooses",
            wording.CHOSEN,
            training(results, CHOSEN),
        ),
        ("What ranking gives", wording.RANKING, ranking(results)),
        ("Switches", wording.SWITCHES, switches(results)),
    ):
        if made:
            text += ["", f"### {title}", "", note, "", *_rows(results, made)]
    return text + _held_out(results)


def _accuracies(results: CaseResults) -> list[str]:
    """A table: arm and ranker by k, averaged over levels."""
    ks = results.missing
    header = ["training", "ranking", *(f"{k} missing" for k in ks), "mean"]
    lines = [_line(header), _line(["---"] * 2 + ["---:"] * (len(ks) + 1))]
    levels = ", ".join(f"{100 * level:g}" for level in results.case.levels)
    for arm in results.arms:
        cells = [percent(results.unpruned(arm, ks=[k])) for k in ks]
        lines.append(_line([arm, "*unpruned*", *cells, percent(results.unpruned(arm))]))
        best = results.best_static(arm) if results.statics(arm) else None
        for ranker in (RANDOM, *STATIC, *CONDITIONED):
            side = Side(arm, ranker)
            if not results.has(side):
                continue
            cells = [percent(results.accuracy(side, ks=[k])) for k in ks]
            name = f"{ranker} (best static)" if ranker == best else ranker
            lines.append(_line([arm, name, *cells, percent(results.accuracy(side))]))
        for ranker in results.case.per_layer:
            side = Side(arm, ranker, "per layer")
            if results.has(side) and ranker not in HELD_OUT:
                cells = [percent(results.accuracy(side, ks=[k])) for k in ks]
                cells.append(percent(results.accuracy(side)))
                lines.append(_line([arm, f"{ranker} (per layer)", *cells]))
    return [
        (
            f"Right answers on test rows in %, the mean over {levels} % of the prunable multiply-adds "
            "pruned (global knapsack), masks and seeds. The best static ranking is the one with the "
            "best accuracy on validation rows."
        ),
        "",
        *lines,
    ]


def _curves(results: CaseResults, page: Path) -> list[str]:
    sides = [
        Side(arm, results.best_static(arm))
        for arm in ("A", "A-matched", "C", "R")
        if results.statics(arm)
    ]
    sides += [Side("A", "gate"), Side("B", "gate"), Side("B", "gate", "per layer")]
    sides = [side for side in sides if side.arm in results.arms and results.has(side)]
    stem = f"{page.stem}-{results.case.data}-{results.case.backbone}"
    folder = page.parent / "images"
    plots.curves(results, sides, folder / f"{stem}-curves.png")
    plots.heat_map(results, folder / f"{stem}-rankers.png")
    return [
        "",
        (
            f"![Accuracy against pruning, a panel for each number of missing modalities]"
            f"(images/{stem}-curves.png)"
        ),
        "",
        f"![Mean accuracy of every ranking on every training](images/{stem}-rankers.png)",
    ]


def _rows(results: CaseResults, made: Sequence[Row]) -> list[str]:
    ks = results.missing
    header = ["left - right", "asks", "all k", "relative", *(f"{k} missing" for k in ks)]
    lines = [_line(header), _line(["---"] * 2 + ["---:"] * (len(ks) + 2))]
    for row in made:
        per_k = [points(part) for _, part in row.per_k]
        relative = f"{100 * row.relative:+.1f} %"
        cells = [row.comparison.title, row.comparison.question, points(row.overall), relative]
        lines.append(_line([*cells, *per_k]))
    return lines


def _held_out(results: CaseResults) -> list[str]:
    lines = []
    for arm in results.arms:
        for ranker in (*HELD_OUT, "gate"):
            left, right = Side(arm, ranker), Side(arm, "table")
            ks = [k for k in results.missing if k > 0]
            if not (results.has(left) and results.has(right) and ks):
                continue
            part = results.difference(left, right, ks=ks, held_out=True)
            lines.append(_line([arm, ranker, points(part)]))
    if not lines:
        return []
    header = [_line(["training", "ranking", "less the full table"]), _line(["---", "---", "---:"])]
    return ["", "### Masks that the ranking never saw", "", wording.HELD_OUT, "", *header, *lines]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def percent(value: Interval) -> str:
    """An accuracy."""
    return f"{100 * value.mean:.1f}"


def points(value: Interval) -> str:
    """A difference with its interval, in points."""
    if value.low is None or value.high is None:
        return _signed(value.mean)
    return f"{_signed(value.mean)} [{_signed(value.low)}, {_signed(value.high)}]"


def _signed(value: float) -> str:
    # No minus before a zero.
    return f"{round(100 * value, 1) + 0.0:+.1f}"
