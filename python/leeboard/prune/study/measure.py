"""One unit of the study: train, rank, prune, count."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from leeboard._files import write_tensors
from leeboard.prune import data as sources
from leeboard.prune.backbones import BackboneConfig, build
from leeboard.prune.baselines import calibrate_all
from leeboard.prune.data import SensorData
from leeboard.prune.discover import units as find_units
from leeboard.prune.plan import Plan
from leeboard.prune.planner import plan
from leeboard.prune.runtime import apply, revert
from leeboard.prune.scores import Scores
from leeboard.prune.study.fit import Trained, fit
from leeboard.prune.study.settings import HELD_OUT, Case, Unit

# Rows that static rankings are calibrated on, in batches.
_CALIBRATION, _CALIBRATION_BATCH = 512, 32
_VALIDATION, _TEST = 0.15, 0.25


def measure(case: Case, unit: Unit, *, weights: Path | None = None) -> dict[str, Any]:
    """The record of a unit, as JSON has it.

    Args:
        case: What to do.
        unit: Which arm and seed.
        weights: Where trained weights go (safetensors); None for nowhere.
    """
    whole = load(case, unit.seed)
    split = whole.split(validation=_VALIDATION, test=_TEST, seed=unit.seed)
    train = _some(split.train, case.train_rows, unit.seed)
    validation = _some(split.validation, case.validation_rows, unit.seed)
    test = _some(split.test, case.test_rows, unit.seed)
    config = BackboneConfig.for_inputs(
        whole.inputs, len(whole.classes), seed=unit.seed, **case.model
    )
    model = build(unit.backbone, config)
    units = find_units(model)
    masks = choose_masks(whole.modalities, case.masks, unit.seed)
    started = time.process_time()
    trained = fit(
        model,
        units,
        train,
        unit.arm,
        epochs=case.epochs,
        seed=unit.seed,
        batch=case.batch,
        rate=case.rate,
        held_out=[frozenset(m["present"]) for m in masks if m["held_out"]],
    )
    trained_at = time.process_time()
    if weights is not None:
        _store(trained.model, weights)
    rankings = rank(trained, case.rankers, train, unit.seed)
    ranked_at = time.process_time()
    counter = Counter(trained.model, validation, test)
    unpruned = [
        {"mask": index, **counter.count(None, mask["present"])} for index, mask in enumerate(masks)
    ]
    cells = [
        {
            "ranker": ranker,
            "planning": planning,
            "level": level,
            "mask": index,
            **counter.count(made, made.present),
            "share": round(made.macs / made.dense_macs, 4),
        }
        for ranker, planning, level, index, made in plans(case, rankings, trained.model, masks)
    ]
    done = time.process_time()
    return {
        "unit": {"data": unit.data, "backbone": unit.backbone, "arm": unit.arm, "seed": unit.seed},
        "description": whole.notes,
        "modalities": list(whole.modalities),
        "classes": len(whole.classes),
        "parameters": sum(p.numel() for p in model.parameters()),
        "rows": {"train": len(train), "validation": len(validation), "test": len(test)},
        "masks": masks,
        "unpruned": unpruned,
        "cells": cells,
        "training": {
            "steps": trained.steps,
            "passes": trained.passes,
            "loss": round(trained.loss, 4),
        },
        "seconds": {
            "train": round(trained_at - started, 2),
            "rank": round(ranked_at - trained_at, 2),
            "evaluate": round(done - ranked_at, 2),
        },
    }


def load(case: Case, seed: int) -> SensorData:
    """The data of a case; synthetic sensors are drawn anew for each seed.

    Raises:
        ValueError: For an unknown name.
    """
    makers = {
        "digits-4": sources.digits_quadrants,
        "digits-8": sources.digits_rows,
        "breast-cancer": sources.breast_cancer,
    }
    if case.data in makers:
        return makers[case.data]()
    presets = {"synthetic": "mixed", "synthetic-unique": "unique"}
    if case.data in presets:
        preset: Any = presets[case.data]
        return sources.synthetic(preset, seed=seed, **case.options)
    known = ", ".join([*makers, *presets])
    raise ValueError(f"data: got {case.data!r}, expected one of {known}")


def choose_masks(modalities: Sequence[str], most: int, seed: int) -> list[dict[str, Any]]:
    """At most so many sets of present modalities for each number of missing ones.

    They are drawn by the seed, alike for all arms. The first of each k >= 1 is held out from the
    second table and gate.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for k in range(len(modalities)):
        every = list(itertools.combinations(modalities, len(modalities) - k))
        for order, index in enumerate(torch.randperm(len(every), generator=generator)[:most]):
            present = list(every[int(index)])
            chosen.append({"k": k, "present": present, "held_out": k > 0 and order == 0})
    return chosen


def rank(
    trained: Trained, rankers: Sequence[str], train: SensorData, seed: int
) -> dict[str, tuple[Scores, bool]]:
    """Rankings by name, and whether plans compensate biases on top of them."""
    wanted: dict[str, set[str]] = {"full": set(), "mix": set()}
    for ranker in rankers:
        name, _, masks = ranker.partition("/")
        if masks in wanted:
            wanted[masks].add(name)
        elif name in ("random", "magnitude"):
            wanted["full"].add(name)
    found: dict[str, tuple[Scores, bool]] = {}
    rows = _some(train, _CALIBRATION, seed)
    for masks, names in wanted.items():
        if names:
            how: Any = masks
            made = calibrate_all(
                sorted(names),
                trained.model,
                trained.units,
                rows.batches(_CALIBRATION_BATCH),
                cross_entropy,
                masks=how,
                seed=seed,
            )
            found.update({scores.name: (scores, False) for scores in made.values()})
    for name, ranking in trained.rankings.items():
        found[name] = (ranking, False)
    found["gate+bias"] = (trained.rankings["gate"], True)
    return {ranker: found[ranker] for ranker in rankers}


def plans(
    case: Case,
    rankings: dict[str, tuple[Scores, bool]],
    model: nn.Module,
    masks: Sequence[dict[str, Any]],
) -> Iterator[tuple[str, str, float, int, Plan]]:
    """Ranker, kind of planning, share pruned, index of the mask, plan."""
    for ranker, (scores, compensate) in rankings.items():
        grids = [("global", case.levels)]
        if ranker in case.per_layer:
            grids.append(("per layer", case.per_layer_levels))
        for planning, levels in grids:
            for level, (index, mask) in itertools.product(levels, enumerate(masks)):
                if ranker in HELD_OUT and not mask["held_out"]:
                    continue
                made = plan(
                    scores,
                    present=mask["present"],
                    budget=1 - level,
                    compensate=compensate,
                    per_layer=planning == "per layer",
                    drop=True,
                    model=model if compensate else None,
                )
                yield ranker, planning, level, index, made


class Counter:
    """Counts right answers of a model under plans, on validation and test rows at once.

    Args:
        model: In evaluation mode; it stays under the last plan.
        validation: Rows that choose.
        test: Rows that count.
    """

    def __init__(self, model: nn.Module, validation: SensorData, test: SensorData) -> None:
        self._model, self._rows = model, len(validation)
        self._inputs = {
            name: torch.cat([validation.inputs[name], test.inputs[name]])
            for name in validation.modalities
        }
        self._target = torch.cat([validation.target, test.target])

    def count(self, made: Plan | None, present: Sequence[str]) -> dict[str, float]:
        """Shares of right answers, {"validation": ..., "test": ...}."""
        right = self.outputs(made, present).argmax(1) == self._target
        return {
            "validation": round(float(right[: self._rows].float().mean()), 6),
            "test": round(float(right[self._rows :].float().mean()), 6),
        }

    @torch.no_grad()
    def outputs(self, made: Plan | None, present: Sequence[str]) -> Tensor:
        """Logits [rows, classes] of the model under the plan, or with all units."""
        if made is None:
            revert(self._model)
        else:
            apply(self._model, made)
        outputs: Tensor = self._model({name: self._inputs[name] for name in present})
        return outputs


def _some(rows: SensorData, most: int, seed: int) -> SensorData:
    """At most so many rows, drawn by the seed, in their order."""
    if len(rows) <= most:
        return rows
    generator = torch.Generator().manual_seed(seed)
    return rows.take(torch.randperm(len(rows), generator=generator)[:most].sort().values)


def _store(model: nn.Module, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, model.state_dict())
