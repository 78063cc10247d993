"""The multimodal backbones under plans: run, compact, exported, with some modalities gone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from leeboard.prune import active_plan, apply, compact, export_onnx, revert, units
from leeboard.prune.backbones import BACKBONES, Backbone, BackboneConfig, Stream, build
from pruned_models import masked, none, odd_units, plan_for, whole_units

STREAMS = (Stream("acc", 3, 8, 2), Stream("gyro", 2, 6, 2), Stream("rate", 4))


def backbone(kind: str, attention: str) -> Backbone:
    config = BackboneConfig(
        STREAMS,
        num_classes=4,
        d_model=24,
        heads=4,
        hidden=40,
        layers=1,
        attention=attention,  # type: ignore[arg-type]
    )
    return build(kind, config).eval()


def windows() -> dict[str, Tensor]:
    return {s.name: torch.randn(2, s.length, s.channels) for s in STREAMS}


@pytest.mark.parametrize("attention", ["dense", "sparse"])
@pytest.mark.parametrize("kind", sorted(BACKBONES))
@torch.no_grad()
def test_plans_and_compact_models(kind: str, attention: str) -> None:
    model, x = backbone(kind, attention), windows()
    found = units(model)
    dense = model(x)
    for present in (("acc", "gyro", "rate"), ("acc", "rate"), ("gyro",)):
        given = {name: x[name] for name in present}
        for keep in (whole_units(found), odd_units, none):
            plan = plan_for(found, keep, scales=True, bias=True, present=present)
            expected = masked(model, found, plan)(given)
            apply(model, plan)
            # What the plan does without is dropped from the inputs.
            torch.testing.assert_close(model(x), expected)
            small = compact(model, plan)
            assert active_plan(model) is plan
            torch.testing.assert_close(small(x), expected)
    revert(model)
    assert torch.equal(model(x), dense)


@torch.no_grad()
def test_unknown_names_are_refused_under_a_plan() -> None:
    """A plan leaves out the modalities that it does without, not what is spelt wrong."""
    model, x = backbone("shared", "dense"), windows()
    plan = plan_for(units(model), odd_units, present=("acc", "rate"))
    apply(model, plan)
    for one in (model, compact(model, plan)):
        with pytest.raises(ValueError, match="inputs: got 'acceleration'"):
            one({**x, "acceleration": x["acc"]})
        with pytest.raises(ValueError, match="inputs: got no modality"):
            one({"gyro": x["gyro"]})


@torch.no_grad()
def test_samples_with_masks_of_their_own_under_a_plan() -> None:
    model, x = backbone("cross", "gqa"), windows()
    found = units(model)
    plan = plan_for(found, odd_units)
    present = torch.tensor([[True, True, False], [False, True, True]])
    expected = masked(model, found, plan)(x, present)
    apply(model, plan)
    torch.testing.assert_close(model(x, present), expected)
    torch.testing.assert_close(compact(model, plan)(x, present), expected)
    # A compact model's columns are those of its own modalities.
    two = plan_for(found, odd_units, present=("acc", "rate"))
    mask = torch.tensor([[True, False], [True, True]])
    wide = torch.tensor([[True, False, False], [True, False, True]])
    expected = masked(model, found, two)({m: x[m] for m in two.present}, wide)
    torch.testing.assert_close(compact(model, two)(x, mask), expected)


@torch.no_grad()
def test_export(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model, x = backbone("late", "sparse"), windows()
    found = units(model)
    plan = plan_for(found, odd_units, scales=True, present=("acc", "rate"))
    path = export_onnx(model, plan, tmp_path / "m.onnx", x)
    given = {name: x[name] for name in plan.present}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {name: t.numpy() for name, t in given.items()})
    torch.testing.assert_close(torch.from_numpy(result), masked(model, found, plan)(given))


def test_compact_leaves_out_the_weights_of_missing_modalities() -> None:
    model = backbone("cross", "dense")
    keep_all = plan_for(units(model), lambda name, count: tuple(range(count)))
    one = plan_for(units(model), lambda name, count: tuple(range(count)), present=("gyro",))
    sizes = [sum(p.numel() for p in compact(model, p).parameters()) for p in (keep_all, one)]
    gone = [model.encoders["acc"], model.encoders["rate"]]  # type: ignore[index]
    gone += [model.tokenizers["acc"], model.tokenizers["rate"]]
    assert sizes[0] - sizes[1] == sum(p.numel() for m in gone for p in m.parameters())
