"""Trains the demo's model and its rankings, or loads them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from leeboard._files import replacing, write_tensors
from leeboard._progress import progress_bar
from leeboard.prune.aware import PruneAware
from leeboard.prune.backbones import Backbone, BackboneConfig, build
from leeboard.prune.baselines import calibrate
from leeboard.prune.data import SensorData, synthetic
from leeboard.prune.demo.settings import Settings
from leeboard.prune.discover import units as find_units
from leeboard.prune.dropout import ModalityDropout
from leeboard.prune.files import load_scores, save_scores
from leeboard.prune.score_table import ScoreTable
from leeboard.prune.scorer import Scorer
from leeboard.prune.scores import Scores
from leeboard.prune.sentry_gate import SentryGate
from leeboard.prune.units import Units

# Of the cached files: a change of what training does gets the next number.
_FORMAT = 1


@dataclass(frozen=True)
class Trained:
    """A model with its rankings, and windows to run it on.

    Attributes:
        model: In evaluation mode.
        units: Of the model.
        ranking: Importances for each set of sensors, from the training itself.
        static: One ranking whatever is there, to compare with: Taylor on the dropout mixture.
        held_out: Windows of people that training has not seen.
        cached: Whether it was loaded.
    """

    model: Backbone
    units: Units
    ranking: Scores
    static: Scores
    held_out: SensorData
    cached: bool


def prepared(settings: Settings) -> tuple[SensorData, SensorData, Backbone, Units]:
    """Training windows, held-out windows, and a model that is not trained yet with its units."""
    data = synthetic(subjects=settings.subjects, windows=settings.windows, seed=settings.seed)
    split = data.split(by="subject", seed=settings.seed)
    config = BackboneConfig.for_inputs(
        split.train.inputs,
        len(data.classes),
        tokens=settings.tokens,
        d_model=settings.d_model,
        heads=settings.heads,
        hidden=settings.hidden,
        layers=settings.layers,
        seed=settings.seed,
    )
    model = build(settings.backbone, config)
    return split.train, split.test, model, find_units(model)


def trained(settings: Settings, folder: Path, *, fresh: bool = False) -> Trained:
    """The model and rankings of these settings, from the folder if they are there.

    Sensors of single windows drop out more and more often. From a quarter on, each step adds the
    loss of the same windows with part of the units left out, as the table ranks them so far.
    """
    train, held_out, model, units = prepared(settings)
    files = _Files(settings, train, folder)
    rankings = None if fresh else files.load(model, units)
    cached = rankings is not None
    if rankings is None:
        table, gate = ScoreTable(units), SentryGate(units, seed=settings.seed)
        _fit(settings, train, model, table, gate)
        files.save(model, table, gate)
        rankings = {"table": table, "gate": gate}
    model.eval()
    static = calibrate(
        "taylor",
        model,
        units,
        train.batches(settings.batch),
        F.cross_entropy,
        masks="mix",
        seed=settings.seed,
    )
    return Trained(model, units, rankings[settings.ranking], static, held_out, cached)


def _fit(
    settings: Settings, train: SensorData, model: Backbone, table: ScoreTable, gate: SentryGate
) -> None:
    steps = settings.epochs * (len(train) // settings.batch)
    dropout = ModalityDropout(
        model.modalities, p_max=settings.p_max, total_steps=steps, seed=settings.seed
    )
    aware = PruneAware(
        model, table.units, table, F.cross_entropy, total_steps=steps, r_max=0.75,
        seed=settings.seed,
    )  # fmt: skip
    scorer = Scorer(model, table.units, [table, gate], dropout=dropout, aware=aware, means=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.rate, total_steps=steps)
    model.train()
    with progress_bar("training", steps) as bar:
        for epoch in range(settings.epochs):
            order = settings.seed * 1000 + epoch
            for inputs, target in train.batches(settings.batch, seed=order, drop_last=True):
                with scorer(len(target)) as present:
                    outputs = model(inputs, present)
                    loss = F.cross_entropy(outputs, target)
                    torch.autograd.backward(loss + scorer.aware_loss(inputs, target))
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                bar.set_postfix_str(f"loss {float(loss.detach()):.2f}", refresh=False)
                bar.update()


class _Files:
    """The cache: weights and rankings as safetensors, what they depend on as JSON."""

    def __init__(self, settings: Settings, train: SensorData, folder: Path) -> None:
        self.folder = folder
        self.key = {
            "format": _FORMAT,
            "torch": str(torch.__version__),
            "data": _digest(train),
            **settings.of_training(),
        }

    def save(self, model: Backbone, table: ScoreTable, gate: SentryGate) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        # While the parts are replaced, no key says that they belong together.
        (self.folder / "settings.json").unlink(missing_ok=True)
        write_tensors(self.folder / "model.safetensors", model.state_dict())
        save_scores(table, self.folder / "table.safetensors")
        save_scores(gate, self.folder / "gate.safetensors")
        with replacing(self.folder / "settings.json") as path:
            path.write_text(json.dumps(self.key, indent=2) + "\n")

    def load(self, model: Backbone, units: Units) -> dict[str, Scores] | None:
        """The rankings, and the weights into the model; None unless all is of these settings."""
        from safetensors.torch import load_file

        try:
            key: Any = json.loads((self.folder / "settings.json").read_text())
        except (OSError, ValueError):
            return None
        if key != self.key:
            return None
        try:
            rankings = {
                name: load_scores(self.folder / f"{name}.safetensors", units)
                for name in ("table", "gate")
            }
            model.load_state_dict(load_file(self.folder / "model.safetensors"))
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"{self.folder}: cannot be read ({error}); --fresh trains again"
            ) from error
        return rankings


def _digest(data: SensorData) -> str:
    """Changes with the windows, so that a model of other data is not taken for one of these."""
    digest = hashlib.sha256(data.target.numpy().tobytes())
    for x in data.inputs.values():
        digest.update(x.numpy().tobytes())
    return digest.hexdigest()[:16]
