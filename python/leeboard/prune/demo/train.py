"""Trains the demo's model with sensor dropout and a prune-aware pass, or loads it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from leeboard.prune.backbones import Backbone, BackboneConfig, build
from leeboard.prune.data import SensorData, synthetic
from leeboard.prune.demo.settings import Settings
from leeboard.prune.discover import units as find_units
from leeboard.prune.dropout import ModalityDropout
from leeboard.prune.score_table import ScoreTable
from leeboard.prune.taps import Taps
from leeboard.prune.units import Units

# Of the cached files: a change of what training does gets the next number.
FORMAT = 1


@dataclass(frozen=True)
class Trained:
    """A model with its ranking, and the data that it was made from.

    Attributes:
        model: In evaluation mode.
        units: Of the model.
        table: Importances for each set of sensors, from the training itself.
        calibration: Training windows, for static rankings.
        held_out: Windows of people that training has not seen.
        cached: Whether it was loaded.
    """

    model: Backbone
    units: Units
    table: ScoreTable
    calibration: SensorData
    held_out: SensorData
    cached: bool


def prepared(settings: Settings) -> tuple[SensorData, SensorData, Backbone, Units]:
    """Training windows, held-out windows, and a model that is not trained yet."""
    data = synthetic(subjects=settings.subjects, windows=settings.windows, seed=settings.seed)
    split = data.split(by="subject", seed=settings.seed)
    config = BackboneConfig.for_inputs(
        split.train.inputs,
        len(data.classes),
        d_model=settings.d_model,
        heads=settings.heads,
        hidden=settings.hidden,
        layers=settings.layers,
        seed=settings.seed,
    )
    model = build(settings.backbone, config)
    return split.train, split.test, model, find_units(model)


def trained(settings: Settings, folder: Path) -> Trained:
    """The model of these settings, from the folder if it is there.

    Training drops sensors of single windows more and more often, and from a quarter on adds the
    loss of the same windows under a random share of the best units, as the table ranks them so far
    for each window's own sensors. The table reads the saliencies of the ordinary pass.
    """
    train, held_out, model, units = prepared(settings)
    table = ScoreTable(units)
    cached = False
    _fit(settings, train, model, table)
    model.eval()
    return Trained(model, units, table, train, held_out, cached)


def _fit(settings: Settings, train: SensorData, model: Backbone, table: ScoreTable) -> None:
    steps = settings.epochs * (len(train) // settings.batch)
    dropout = ModalityDropout(
        model.modalities, p_max=settings.p_max, total_steps=steps, seed=settings.seed
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.rate, total_steps=steps, pct_start=0.1
    )
    generator = torch.Generator().manual_seed(settings.seed)
    model.train()
    with progress_bar("training", steps) as bar, Taps(model, table.units, saliency=True) as taps:
        for epoch in range(settings.epochs):
            seed = settings.seed * 1000 + epoch
            for inputs, target in train.batches(settings.batch, seed=seed, drop_last=True):
                present = dropout.sample(len(target))
                loss = F.cross_entropy(model(inputs, present), target)
                loss.backward()  # type: ignore[no-untyped-call]
                table.update(taps.saliency, present)
                if dropout.steps >= steps // 4:
                    kept = 1 - 0.75 * float(torch.rand((), generator=generator))
                    with taps.gated(best(table, present, kept)):
                        F.cross_entropy(model(inputs, present), target).backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                dropout.step()
                bar.set_postfix_str(f"loss {float(loss.detach()):.2f}", refresh=False)
                bar.update()


def best(table: ScoreTable, present: Tensor, kept: float) -> dict[str, Tensor]:
    """Gates [B, units] of one for the best share of each sublayer, by each window's own sensors."""
    rows, which = torch.unique(present, dim=0, return_inverse=True)
    gates = {s.name: torch.zeros(len(rows), s.units) for s in table.units}
    for i, row in enumerate(rows):
        names = [m for m, there in zip(table.units.modalities, row.tolist(), strict=True) if there]
        for name, scores in table.scores(names).items():
            count = max(1, round(kept * len(scores)))
            gates[name][i, scores.topk(count).indices] = 1.0
    return {name: gate[which] for name, gate in gates.items()}


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Any]:
    """A tqdm bar on stderr; a log gets a line at times."""
    import sys

    from tqdm import tqdm

    terminal = sys.stderr.isatty()
    bar = tqdm(
        total=total,
        desc=title,
        bar_format="{desc:<12} {percentage:3.0f}% |{bar}| {elapsed} gone, {remaining} left{postfix}",
        dynamic_ncols=terminal,
        ncols=None if terminal else 78,
        mininterval=0.3 if terminal else 20.0,
        maxinterval=1.0 if terminal else 20.0,
        leave=not terminal,
    )
    try:
        yield bar
    finally:
        bar.close()
