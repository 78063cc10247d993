"""The Lightning callback: a trainer's batches teach a ranking, and checkpoints carry it."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from leeboard.prune import ModalityDropout, PruneAware, Scorer, ScoreTable, Taps
from leeboard.prune.lightning import scoring_callback
from prune_models import Tiny, batch_for

# Lightning warns about small loaders, folders that exist, and its own dependencies.
pytestmark = pytest.mark.filterwarnings("ignore")


def parts(package: str, seed: int = 0) -> tuple[Any, Scorer, Any]:
    """A LightningModule, its scorer and the package."""
    lightning = importlib.import_module(package)
    torch.manual_seed(seed)
    model = Tiny()

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.present: Any = None
            self.seen: list[Any] = []

        def training_step(self, batch: Any, index: int) -> Any:
            inputs, target = batch
            self.seen.append(self.present)
            if index == 3:
                return None
            loss = cross_entropy(self.model(inputs, self.present), target)
            return loss + scorer.aware_loss(inputs, target)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.model.parameters(), lr=0.1)

    found = model.units()
    table = ScoreTable(found)
    dropout = ModalityDropout(found.modalities, warmup=0, ramp_end=0.5, total_steps=4)
    aware = PruneAware(model, found, table, cross_entropy, total_steps=4)
    scorer = Scorer(model, found, table, dropout=dropout, aware=aware)
    return Module(), scorer, lightning


def trainer_of(lightning: Any, scorer: Scorer, package: str, **options: Any) -> Any:
    settings = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": [scoring_callback(scorer, package=package)],
    }
    return lightning.Trainer(**{**settings, **options})


def batches(count: int) -> DataLoader[Any]:
    return DataLoader([batch_for(Tiny(), 6, n) for n in range(count)], batch_size=None)


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_a_trainer_teaches_the_ranking(package: str, tmp_path: Path) -> None:
    pytest.importorskip(package)
    module, scorer, lightning = parts(package)
    trainer = trainer_of(lightning, scorer, package, default_root_dir=tmp_path)
    trainer.fit(module, batches(5))
    # The fourth step gave no loss: nothing to learn from.
    assert scorer.blocks == 4
    table: Any = scorer.rankings[0]
    assert sum(table.counts.values()) == 24
    assert len(module.seen) == 5
    assert all(mask.shape == (6, 3) and mask.any(1).all() for mask in module.seen)
    assert not all(mask.all() for mask in module.seen)
    assert not any(m._forward_pre_hooks for m in module.modules())
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    other, again, _ = parts(package, 1)
    second = trainer_of(lightning, again, package, default_root_dir=tmp_path, max_epochs=2)
    second.fit(other, batches(2), ckpt_path=tmp_path / "c.ckpt")
    assert again.blocks == 6
    more: Any = again.rankings[0]
    assert sum(more.counts.values()) == 36


def test_factors_on_the_loss_are_taken_out(tmp_path: Path) -> None:
    module, scorer, lightning = parts("lightning.pytorch")
    scorer.dropout = scorer.aware = None
    module.training_step = lambda batch, *_: cross_entropy(
        module.model(batch[0], module.present), batch[1]
    )
    inputs, target = batch_for(Tiny(), 6, 0)
    with Taps(module.model, scorer.units, saliency=True) as taps:
        cross_entropy(module.model(inputs), target).backward()
    module.zero_grad()
    trainer = trainer_of(
        lightning,
        scorer,
        "lightning.pytorch",
        accumulate_grad_batches=4,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, batches(1))
    table: Any = scorer.rankings[0]
    torch.testing.assert_close(table.scores()["ffn"], taps.saliency["ffn"].mean(0))


def test_without_lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    _, scorer, _ = parts("lightning.pytorch")
    monkeypatch.setattr("leeboard.prune.lightning._PACKAGES", ("no_such_lightning",))
    with pytest.raises(ImportError, match="pip install lightning"):
        scoring_callback(scorer)
