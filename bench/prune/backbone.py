"""Whole backbones, batch 1, all sensors there."""

from __future__ import annotations

import torch

from bench.part import Part, Row, say, wait_for_quiet
from bench.prune.models import TOLERANCE, backbone, dense, half, window
from bench.prune.timing import compiled, medians, require_equal, thread_counts
from leeboard import prune
from leeboard.prune.backbones import BACKBONES


def _measure(quick: bool) -> list[Row]:
    rows = []
    given = window()
    for name in BACKBONES:
        model, pruned = backbone(name), backbone(name)
        plan = half(pruned)
        whole, small = dense(model), prune.compact(pruned, plan)
        prune.apply(pruned, plan)
        calls = {
            "eager": lambda whole=whole: whole(given),
            "leeboard": lambda model=model: model(given),
            "pruned": lambda model=pruned: model(given),
            "compact": lambda small=small: small(given),
        }
        for threads in thread_counts():
            torch.set_num_threads(threads)
            fast = compiled(whole)
            small_fast = torch.compile(small)
            calls["compile"] = lambda whole=fast: whole(given)
            calls["compact-compile"] = lambda small=small_fast: small(given)
            with torch.no_grad():
                outputs = {key: call() for key, call in calls.items()}
            require_equal(outputs, ["eager", "compile", "leeboard"], TOLERANCE)
            require_equal(outputs, ["compact", "compact-compile", "pruned"], TOLERANCE)
            wait_for_quiet()
            times = medians(calls, threads, 0.15 if quick else 0.6)
            share = plan.macs / plan.dense_macs
            rows.append({"backbone": name, "threads": threads, "macs": share, **times})
        say(f"backbone {name}")
    return rows


def _cells(row: Row) -> list[str]:
    def ratio(a: str, b: str) -> str:
        return f"{row[a] / row[b]:.2f}x"

    best = min(("compact", "compact-compile"), key=row.__getitem__)
    times = [f"{row[key] * 1e6:,.0f}" for key in ("eager", "compile", "leeboard", "pruned")]
    return [
        row["backbone"],
        f"{row['threads']}",
        *times,
        ratio("eager", "leeboard"),
        ratio("compile", "leeboard"),
        ratio("leeboard", "pruned"),
        f"{1 / row['macs']:.2f}x",
        ratio("eager", "pruned"),
        f"{ratio(best, 'pruned')} {best}",
    ]


PART = Part(
    name="backbone",
    title="Whole backbones, batch 1",
    reading="""\
Microseconds for one window of five sensors (160 tokens in all; 64 channels, 8 heads, 256 hidden,
3 layers, float32). `eager` and `compile` are the same model made of torch's own layers; other columns
as above.""",
    head=[
        "backbone",
        "threads",
        "eager",
        "compile",
        "dense",
        "50%",
        "fusion: eager",
        "fusion: compile",
        "pruning",
        "at most",
        "both: eager",
        "compact",
    ],
    left=1,
    measure=_measure,
    cells=_cells,
)
