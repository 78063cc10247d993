"""leeboard.nn.replace: what it takes, what it leaves and why, and the way back."""

from __future__ import annotations

import copy
import re
import subprocess
import sys

import pytest
import torch
from torch import nn

import leeboard.nn


class Block(nn.Module):
    def __init__(self, size: int = 16) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(size)
        self.linear = nn.Linear(size, size)
        self.final = nn.LayerNorm(size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.final(self.linear(self.norm(x)))


class Derived(nn.RMSNorm):
    """A subclass may do anything."""


class LlamaRMSNorm(nn.Module):
    """Bears a known name, in the wrong module."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.variance_epsilon = 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


def reasons(report: leeboard.nn.ReplaceReport) -> dict[str, str]:
    return {entry.name: entry.reason for entry in report.left}


def test_takes_the_norm_and_keeps_its_parameter() -> None:
    model = Block().eval()
    nn.init.normal_(model.norm.weight)
    model.norm.weight.requires_grad_(False)
    model.norm.note = "kept"
    old, weight = model.norm, model.norm.weight
    keys = list(model.state_dict())
    x = torch.randn(5, 16)
    before = model(x)
    report = leeboard.nn.replace(model)
    assert type(model.norm) is leeboard.nn.RMSNorm
    assert model.norm.weight is weight
    assert model.norm.eps is None
    assert model.norm.note == "kept"
    assert not model.norm.training
    assert not model.norm.weight.requires_grad
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(model(x), before)
    assert [e.name for e in report.replaced] == ["norm"]
    assert report.replaced[0].class_name == "torch.nn.modules.normalization.RMSNorm"
    assert reasons(report) == {"final": "not a class that leeboard knows"}
    report.undo()
    assert model.norm is old
    assert torch.equal(model(x), before)


def test_a_norm_without_weight() -> None:
    model = nn.Sequential(nn.RMSNorm(8, 1e-3, elementwise_affine=False))
    x = torch.randn(3, 8)
    before = model(x)
    assert len(leeboard.nn.replace(model).replaced) == 1
    assert model[0].weight is None
    torch.testing.assert_close(model(x), before)


def test_second_call_finds_nothing_new() -> None:
    model = Block()
    leeboard.nn.replace(model)
    first = model.norm
    again = leeboard.nn.replace(model)
    assert again.replaced == ()
    assert list(reasons(again)) == ["final"]
    again.undo()
    assert model.norm is first


def test_shared_module_is_relinked_everywhere() -> None:
    norm = nn.RMSNorm(8)
    model = nn.ModuleDict({"a": norm, "b": nn.Sequential(norm, nn.Identity()), "c": norm})
    report = leeboard.nn.replace(model)
    assert type(model["a"]) is leeboard.nn.RMSNorm
    assert model["a"] is model["b"][0] is model["c"]
    assert [e.name for e in report.replaced] == ["a"]
    assert "also at b.0, c" in report.replaced[0].reason
    report.undo()
    assert model["a"] is model["b"][0] is model["c"] is norm


def test_shared_parent_is_handled_once() -> None:
    block = Block()
    model = nn.Sequential(block, block)
    report = leeboard.nn.replace(model)
    assert len(report.replaced) == 1
    assert model[0].norm is model[1].norm is block.norm
    assert type(block.norm) is leeboard.nn.RMSNorm


def test_tied_weights_stay_tied() -> None:
    model = nn.Sequential(nn.RMSNorm(8), nn.RMSNorm(8))
    model[1].weight = model[0].weight
    leeboard.nn.replace(model)
    assert model[0] is not model[1]
    assert model[0].weight is model[1].weight


def test_unknown_classes_are_left_alone() -> None:
    model = nn.ModuleDict(
        {
            "derived": Derived(8),
            "lookalike": LlamaRMSNorm(8),
            "wide": nn.RMSNorm((2, 4)),
            "batch": nn.BatchNorm1d(8),
            "linear": nn.Linear(8, 8),
        }
    )
    before = dict(model.items())
    report = leeboard.nn.replace(model)
    assert dict(model.items()) == before
    assert report.replaced == ()
    found = reasons(report)
    assert found.keys() == {"derived", "lookalike", "wide", "batch"}
    assert "subclass of RMSNorm" in found["derived"]
    assert "not a class" in found["lookalike"]
    assert "(2, 4)" in found["wide"]


def hook(model: nn.Sequential) -> None:
    model[0].register_forward_hook(lambda *_: None)


def pre_hook(model: nn.Sequential) -> None:
    model[0].register_forward_pre_hook(lambda *_: None)


def backward_hook(model: nn.Sequential) -> None:
    model[0].register_full_backward_hook(lambda *_: None)


def state_dict_hook(model: nn.Sequential) -> None:
    model[0].register_state_dict_post_hook(lambda *_: None)


def weight_norm(model: nn.Sequential) -> None:
    nn.utils.parametrizations.weight_norm(model[0])


def own_forward(model: nn.Sequential) -> None:
    model[0].forward = lambda x: x


def extra_buffer(model: nn.Sequential) -> None:
    model[0].register_buffer("scale", torch.ones(1))


def weight_taken_away(model: nn.Sequential) -> None:
    weight = model[0].weight
    del model[0].weight
    model[0].weight = weight.data


def odd_parameter(model: nn.Sequential) -> None:
    model[0].weight = type("Quantised", (nn.Parameter,), {})(torch.ones(8))


def odd_epsilon(model: nn.Sequential) -> None:
    model[0].eps = torch.tensor(1e-6)


@pytest.mark.parametrize(
    ("meddle", "reason"),
    [
        (hook, "has hooks (forward_hooks)"),
        (pre_hook, "has hooks (forward_pre_hooks)"),
        (backward_hook, "has hooks (backward_hooks)"),
        (state_dict_hook, "has hooks (state_dict_hooks)"),
        (weight_norm, "has parametrizations"),
        (own_forward, "has a forward of its own"),
        (extra_buffer, "has extra state (scale)"),
        (weight_taken_away, "weight is not a registered parameter"),
        (odd_parameter, "weight is a Quantised, not a plain Parameter"),
        (odd_epsilon, "eps is tensor"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_modules_that_carry_more_are_left_alone(meddle, reason: str) -> None:
    model = nn.Sequential(nn.RMSNorm(8))
    meddle(model)
    before = model[0]
    report = leeboard.nn.replace(model)
    assert model[0] is before
    assert report.replaced == ()
    assert reason in reasons(report)["0"]


def test_patched_class_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.RMSNorm, "forward", lambda self, x: x)
    report = leeboard.nn.replace(nn.Sequential(nn.RMSNorm(8)))
    assert reasons(report) == {"0": "the forward of its class was patched"}


def test_nothing_changes_under_fsdp() -> None:
    wrapper = type("FullyShardedDataParallel", (nn.Sequential,), {})
    wrapper.__module__ = "torch.distributed.fsdp.fully_sharded_data_parallel"
    model = nn.Sequential(wrapper(nn.Sequential(nn.RMSNorm(8))), nn.RMSNorm(8))
    report = leeboard.nn.replace(model)
    assert [e.name for e in report.replaced] == ["1"]
    assert "FullyShardedDataParallel" in reasons(report)["0.0.0"]


def test_only_selects_by_pattern_or_function() -> None:
    model = nn.Sequential(Block(), Block(), nn.RMSNorm(16))
    report = leeboard.nn.replace(model, only="[01].norm")
    assert [e.name for e in report.replaced] == ["0.norm", "1.norm"]
    assert reasons(report)["2"] == "not selected by `only`"
    report.undo()
    report = leeboard.nn.replace(model, only=["2", "0.*"])
    assert [e.name for e in report.replaced] == ["0.norm", "2"]
    report.undo()
    report = leeboard.nn.replace(model, only=lambda name, module: name == "1.norm")
    assert [e.name for e in report.replaced] == ["1.norm"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("text", None), TypeError, "model: got str"),
        ((nn.RMSNorm(8), None), ValueError, "model: got a torch.nn.modules.normalization.RMSNorm"),
        ((Block(), "layers.*"), ValueError, "only: got 'layers.*', which matches no module"),
        ((Block(), 3), TypeError, "only: got 3"),
        ((Block(), ["norm", 3]), TypeError, "only: got 3 among the patterns"),
    ],
    ids=lambda value: str(value)[:12] if isinstance(value, str) else "",
)
def test_errors(arguments, error: type[Exception], message: str) -> None:
    model, only = arguments
    with pytest.raises(error, match=re.escape(message)):
        leeboard.nn.replace(model, only=only)
    assert not any(type(m) is leeboard.nn.RMSNorm for m in getattr(model, "modules", list)())


def test_undo_twice_is_harmless_and_keeps_later_swaps() -> None:
    model = Block()
    report = leeboard.nn.replace(model)
    report.undo()
    later = leeboard.nn.replace(model)
    swapped = model.norm
    report.undo()
    assert model.norm is swapped
    later.undo()
    assert type(model.norm) is nn.RMSNorm


def test_undo_takes_over_weight_and_mode() -> None:
    model = Block()
    report = leeboard.nn.replace(model)
    model.eval().to(torch.bfloat16)
    fresh = {key: torch.full_like(value, 2.0) for key, value in model.state_dict().items()}
    model.load_state_dict(fresh, assign=True)
    report.undo()
    assert type(model.norm) is nn.RMSNorm
    assert not model.norm.training
    assert torch.equal(model.norm.weight, torch.full((16,), 2.0, dtype=torch.bfloat16))


def gone(model: nn.Sequential) -> None:
    model[0].norm = nn.Identity()


def hooked(model: nn.Sequential) -> None:
    model[0].norm.register_forward_hook(lambda *_: None)


def parametrized(model: nn.Sequential) -> None:
    nn.utils.parametrizations.weight_norm(model[0].norm)


@pytest.mark.parametrize(
    ("meddle", "message"),
    [
        (gone, "0.norm: holds another module now"),
        (hooked, "0.norm: has hooks (forward_hooks)"),
        (parametrized, "0.norm: has become a ParametrizedRMSNorm"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_undo_of_a_changed_model_changes_nothing(meddle, message: str) -> None:
    model = nn.Sequential(Block(), Block())
    report = leeboard.nn.replace(model)
    meddle(model)
    before = list(model.modules())
    with pytest.raises(RuntimeError, match=re.escape(message)):
        report.undo()
    assert list(model.modules()) == before
    assert isinstance(model[1].norm, leeboard.nn.RMSNorm)


def test_report_reads_as_a_table() -> None:
    report = leeboard.nn.replace(nn.Sequential(Block(), nn.RMSNorm(16)))
    lines = str(report).splitlines()
    assert lines[0] == "replaced 2, left alone 1"
    assert sorted(line.split()[1] for line in lines[1:3]) == ["0.norm", "1"]
    assert lines[3].split()[:3] == ["left", "0.final", "LayerNorm"]
    assert len({line.index("RMSNorm") for line in lines[1:3]}) == 1


def test_optimizer_trains_the_replaced_model() -> None:
    torch.manual_seed(0)
    model = Block()
    twin = copy.deepcopy(model)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, twin)]
    leeboard.nn.replace(model)
    x = torch.randn(6, 16)
    for _ in range(3):
        for m, optimizer in zip((model, twin), optimizers, strict=True):
            optimizer.zero_grad()
            m(x).square().mul(torch.arange(16.0)).mean().backward()
            optimizer.step()
    assert not torch.equal(model.norm.weight, torch.ones(16))
    torch.testing.assert_close(model.state_dict(), twin.state_dict(), rtol=1e-4, atol=1e-6)


def test_imports_no_model_library() -> None:
    code = (
        "import sys, torch, leeboard.nn\n"
        "leeboard.nn.replace(torch.nn.Sequential(torch.nn.RMSNorm(8)))\n"
        "assert 'transformers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
