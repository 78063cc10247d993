from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from leeboard.demo.training import History, fit

pytest.importorskip("safetensors")
pytest.importorskip("tqdm")


def train(names: str, checkpoint: Path, stop: int | None = None) -> tuple[nn.Module, History]:
    torch.manual_seed(0)
    models = {name: nn.Linear(4, 4) for name in names}

    def losses(step: int) -> dict[str, Tensor]:
        if step == stop:
            raise KeyboardInterrupt
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        return {name: (model(x) - x).square().mean() for name, model in models.items()}

    history = fit(
        models,
        losses,
        steps=12,
        lr=0.1,
        clip=0.5,
        checkpoint=checkpoint,
        title="test",
        checkpoint_seconds=0.0,
    )
    return models[names[0]], history


def test_an_interrupted_stage_goes_on_and_leaves_no_checkpoint(tmp_path: Path) -> None:
    whole, expected = train("ab", tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train("ab", tmp_path / "checkpoint", stop=7)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    resumed, history = train("ab", tmp_path / "checkpoint")
    assert history == expected
    assert [len(history[name]) for name in "ab"] == [12, 12]
    assert torch.equal(resumed.weight, whole.weight)
    assert list(tmp_path.iterdir()) == []
    assert history["a"][-1] < history["a"][0]


def test_one_model_alone(tmp_path: Path) -> None:
    assert train("a", tmp_path / "one")[1]["a"] == train("ab", tmp_path / "two")[1]["a"]
