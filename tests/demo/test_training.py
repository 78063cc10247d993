from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from leeboard.demo.training import History, fit

pytest.importorskip("safetensors")
pytest.importorskip("tqdm")

STEPS = 12


def models() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    frozen = nn.Linear(4, 4)
    frozen.weight.requires_grad_(False)
    return {"a": nn.Linear(4, 4), "b": frozen}


def train(
    trained: dict[str, nn.Module], checkpoint: Path, stop: int | None = None, every: float = 0.0
) -> History:
    def losses(step: int) -> dict[str, Tensor]:
        if step == stop:
            raise KeyboardInterrupt
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        return {name: (model(x) - x).square().mean() for name, model in trained.items()}

    return fit(
        trained,
        losses,
        steps=STEPS,
        lr=0.1,
        clip=0.5,
        checkpoint=checkpoint,
        title="test",
        checkpoint_seconds=every,
    )


def test_an_interrupted_training_resumes_to_the_same_weights(tmp_path: Path) -> None:
    whole = models()
    expected = train(whole, tmp_path / "whole")

    with pytest.raises(KeyboardInterrupt):
        train(models(), tmp_path / "checkpoint", stop=7)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    resumed = models()
    history = train(resumed, tmp_path / "checkpoint")

    assert history == expected
    assert len(history["a"]) == STEPS
    for name, model in whole.items():
        for key, value in model.state_dict().items():
            torch.testing.assert_close(resumed[name].state_dict()[key], value, rtol=0, atol=0)
    assert list(tmp_path.iterdir()) == []


def test_training_learns_and_leaves_frozen_weights_alone(tmp_path: Path) -> None:
    trained = models()
    before = {k: v.clone() for k, v in trained["b"].state_dict().items()}
    history = train(trained, tmp_path / "checkpoint", every=60.0)
    assert history["a"][-1] < history["a"][0]
    torch.testing.assert_close(trained["b"].state_dict()["weight"], before["weight"])
    assert not torch.equal(trained["b"].state_dict()["bias"], before["bias"])


def test_models_train_as_they_would_alone(tmp_path: Path) -> None:
    together, alone = models(), models()
    train(together, tmp_path / "one")
    train({"b": alone["b"]}, tmp_path / "two")
    torch.testing.assert_close(
        together["b"].state_dict()["bias"], alone["b"].state_dict()["bias"], rtol=0, atol=0
    )
