"""Made-up records of a study: only for tests, nothing in them was measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from leeboard.prune.study.settings import Case, Study, Unit
from leeboard.prune.study.storage import RunFolder

ROWS = 400
MODALITIES = ("a", "b", "c")
RANKERS = (
    "random",
    "magnitude",
    "taylor/mix",
    "flap/full",
    "flap+bias/full",
    "table",
    "gate",
    "gate+bias",
    "table, held out",
    "gate, held out",
)
# Accuracy by arm, ranker, missing modalities and level; None where it is not measured.
Accuracy = Callable[[str, str, int, float], float]


def case(**changes: Any) -> Case:
    made: dict[str, Any] = {
        "seeds": 4,
        "rankers": RANKERS,
        "levels": (0.1, 0.5),
        "per_layer": ("taylor/mix", "table", "gate", "gate, held out"),
        "per_layer_levels": (0.5,),
    }
    return Case("digits-4", "shared", **(made | changes))


def record(case: Case, unit: Unit, accuracy: Accuracy) -> dict[str, Any]:
    """A unit in which a row is right if its difficulty, the same for all, is below `accuracy`."""
    random = np.random.default_rng((7, unit.seed))
    difficulty = random.random(ROWS)
    present = [MODALITIES, MODALITIES[:2], MODALITIES[1:], MODALITIES[:1], MODALITIES[2:]]
    masks = [
        {"k": 3 - len(p), "present": list(p), "held_out": i in (1, 3)}
        for i, p in enumerate(present)
    ]

    def cell(ranker: str, planning: str, level: float, mask: int) -> dict[str, Any]:
        share = accuracy(unit.arm, ranker, masks[mask]["k"], level)
        # A little of each cell's own, so that intervals have a width.
        own = np.random.default_rng((8, unit.seed, mask, int(100 * level), len(ranker)))
        right = difficulty + 0.005 * own.standard_normal(ROWS) < share
        return {
            "ranker": ranker,
            "planning": planning,
            "level": level,
            "mask": mask,
            "validation": share,
            "test": float(right.mean()),
            "share": 1 - level,
        }

    cells = [
        cell(ranker, "global", level, mask)
        for ranker in case.rankers
        for level in case.levels
        for mask in range(len(masks))
        if not ranker.endswith("held out") or masks[mask]["held_out"]
    ]
    cells += [
        cell(ranker, "per layer", level, mask)
        for ranker in case.per_layer
        for level in case.per_layer_levels
        for mask in range(len(masks))
        if not ranker.endswith("held out") or masks[mask]["held_out"]
    ]
    unpruned = [
        {
            "mask": m,
            "validation": 0.9,
            "test": float((difficulty < 0.9 - 0.1 * masks[m]["k"]).mean()),
        }
        for m in range(len(masks))
    ]
    return {
        "settings": case.settings(),
        "unit": {"data": unit.data, "backbone": unit.backbone, "arm": unit.arm, "seed": unit.seed},
        "description": "Made up.",
        "modalities": list(MODALITIES),
        "rows": {"train": 100, "validation": 50, "test": ROWS},
        "masks": masks,
        "unpruned": unpruned,
        "cells": cells,
        "training": {"steps": 10, "passes": 17},
        "seconds": {"train": 1.0, "rank": 0.5, "evaluate": 2.0},
    }


def fill(folder: Path, case: Case, accuracy: Accuracy) -> Study:
    """A folder with all units of a study of one case."""
    study = Study("default", (case,))
    run = RunFolder(folder)
    for unit in run.open(study):
        run.write(unit, record(case, unit, accuracy))
    run.add_session(
        {
            "command": "leeboard prune study",
            "workers": 2,
            "units": len(study.units()),
            "seconds": 90.0,
            "versions": {"torch": "0.0", "leeboard": "0.0"},
        }
    )
    return study
