"""ONNX files, run in onnxruntime, against the masked models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from leeboard import nn as lnn
from leeboard.prune import Plan, export_onnx, units
from pruned_models import (
    Fused,
    encoder,
    hugging_face,
    inputs_of,
    masked,
    none,
    odd_units,
    plan_for,
)

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")


def run(path: Path, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == list(inputs)
    results = session.run(None, {name: t.numpy() for name, t in inputs.items()})
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, map(torch.from_numpy, results), strict=True))


def operators(path: Path) -> set[str]:
    import onnx

    return {node.domain for node in onnx.load(path).graph.node}


class Added(nn.Module):
    """Inputs that bear the names of an output and of values inside the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.ff = lnn.FeedForward(8, 32)

    def forward(self, linear: Tensor, output: Tensor) -> Tensor:
        return self.ff(linear) + output


@torch.no_grad()
def test_a_graph_names_every_value_once(tmp_path: Path) -> None:
    model = Added().eval()
    found = units(model)
    plan = plan_for(found, odd_units)
    given = {"linear": torch.randn(2, 8), "output": torch.randn(2, 8)}
    path = export_onnx(model, plan, tmp_path / "m.onnx", given)
    results = run(path, given)
    torch.testing.assert_close(results, {"output_": masked(model, found, plan)(**given)})
    # Whoever may read new files may read this one.
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


@torch.no_grad()
def test_torch_encoder_of_any_batch(tmp_path: Path) -> None:
    model = encoder(activation="gelu").eval()
    model.use_nested_tensor = False
    found = units(model)
    plan = plan_for(found, odd_units, scales=True, bias=True)
    path = export_onnx(model, plan, tmp_path / "m.onnx", torch.randn(2, 5, 24), dynamic_batch=True)
    x = torch.randn(3, 5, 24)
    expected = masked(model, found, plan)(x)
    torch.testing.assert_close(run(path, {"input": x}), {"output": expected})
    assert operators(path) == {""}
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


@torch.no_grad()
def test_own_modules_and_the_modalities_of_the_plan(tmp_path: Path) -> None:
    class Normed(Fused):
        """With leeboard's norm, too."""

        def __init__(self) -> None:
            super().__init__()
            self.norm = lnn.RMSNorm(24)

        def forward(self, inputs: dict[str, Tensor], present: Tensor | None = None) -> Tensor:
            return super().forward({m: self.norm(x) for m, x in inputs.items()})

    model = Normed().eval()
    found = units(model)
    plan = plan_for(found, odd_units, scales=True, present=("right",))
    x = {"left": torch.randn(2, 4, 24), "right": torch.randn(2, 6, 24)}
    path = export_onnx(model, plan, tmp_path / "m.onnx", x)
    right = {"right": x["right"]}
    torch.testing.assert_close(run(path, right), {"output": masked(model, found, plan)(right)})
    assert operators(path) == {""}


def first_dropped(name: str, count: int) -> tuple[int, ...]:
    return none(name, count) if ".0." in name else odd_units(name, count)


@pytest.mark.parametrize(
    "kind",
    [
        "bert",
        "llama",
        pytest.param("vit", marks=pytest.mark.slow),
        pytest.param("clip", marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_hugging_face(kind: str, tmp_path: Path) -> None:
    model, inputs = hugging_face(kind).eval(), inputs_of(kind)
    if "attention_mask" in inputs:
        # Queries that see no key, as with padding on the left, are anything.
        inputs["attention_mask"] = inputs["attention_mask"].flip(-1)
    found = units(model)
    plan = plan_for(found, first_dropped, scales=True)
    path = export_onnx(model, plan, tmp_path / "m.onnx", inputs)
    expected: Any = masked(model, found, plan)(**inputs)
    for name, result in run(path, inputs).items():
        torch.testing.assert_close(result, expected[name])
    assert operators(path) == {""}


@pytest.mark.parametrize(
    ("change", "inputs", "error", "message"),
    [
        (lambda p: replace(p, fingerprint="0"), {}, ValueError, "fingerprint 0"),
        (lambda p: p, {"left": torch.ones(1)}, ValueError, "nothing is given for 'right'"),
        (lambda p: p, torch.ones(1), TypeError, "expected a mapping of the modalities"),
        (lambda p: p, {"left": 1, "right": 2}, TypeError, "'left' is a int"),
    ],
)
def test_bad_arguments_leave_the_file(
    change: Callable[[Plan], Plan],
    inputs: Any,
    error: type[Exception],
    message: str,
    tmp_path: Path,
) -> None:
    model = Fused()
    path = tmp_path / "m.onnx"
    path.write_bytes(b"before")
    with pytest.raises(error, match=message):
        export_onnx(model, change(plan_for(units(model), odd_units)), path, inputs)
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_a_file_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Graph(list[Any]):
        inputs = outputs = ()

    class Program:
        model = SimpleNamespace(graph=Graph())

        def save(self, path: str) -> None:
            Path(path).write_bytes(b"half")
            raise OSError("no space left")

    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: Program())
    model = nn.MultiheadAttention(24, 4, batch_first=True)
    path = tmp_path / "m.onnx"
    path.write_bytes(b"before")
    x = torch.randn(1, 2, 24)
    with pytest.raises(OSError, match="no space left"):
        export_onnx(model, plan_for(units(model), odd_units), path, (x, x, x))
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
