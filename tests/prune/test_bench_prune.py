"""The benchmarks of pruned models: rivals compute the same, and what differs is noticed."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest
import torch

from leeboard import prune
from leeboard.ops.patterns import Dense
from leeboard.prune.backbones._base import EncoderBlock


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config) -> ModuleType:
    monkeypatch.syspath_prepend(str(pytestconfig.rootpath))
    return importlib.import_module("bench.prune.models")


def test_torchs_layer_is_the_block(models: ModuleType) -> None:
    config = models.CONFIG
    block = EncoderBlock(config, Dense()).eval()
    x = torch.randn(1, 12, config.d_model)
    with torch.no_grad():
        torch.testing.assert_close(models.as_torch_layer(block)(x), block(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["shared", "cross", "late"])
def test_rivals_compute_the_same(models: ModuleType, name: str) -> None:
    from bench.prune.timing import require_equal

    model = models.backbone(name, attention="sparse")
    left = models.window(names=tuple(s for s in models.SENSORS if s not in models.GONE))
    plan = models.half(model, tuple(left))
    assert 0.4 < plan.macs / plan.dense_macs <= 0.5
    with torch.no_grad():
        outputs = {
            "leeboard": model(models.window()),
            "torch": models.dense(model)(models.window()),
            "compact": prune.compact(model, plan)(left),
        }
        prune.apply(model, plan)
        outputs["pruned"] = model(left)
    require_equal(outputs, ["leeboard", "torch"], models.TOLERANCE)
    require_equal(outputs, ["compact", "pruned"], models.TOLERANCE)
    with pytest.raises(AssertionError, match="pruned differs from torch"):
        require_equal(outputs, ["torch", "pruned"], models.TOLERANCE)


def test_switches_are_measured(models: ModuleType) -> None:
    from bench import part
    from bench.prune.switch import PART

    part.look()
    rows = PART.measure(True)
    assert [row["backbone"] for row in rows] == ["shared", "cross", "late"]
    for row in rows:
        assert 0 < row["later"] <= row["p99"]
        assert len(PART.cells(row)) == len(PART.head)
