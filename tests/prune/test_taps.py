"""Taps: saliencies against explicit gates, and the model is left as it was."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from leeboard.prune import Taps
from prune_models import Pair, Tiny, batch_for, units_of

PRESENT = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0], [1, 0, 0], [1, 1, 0]], dtype=torch.bool)


def oracle(model: Tiny, inputs: dict[str, Tensor], target: Tensor) -> dict[str, Tensor]:
    """|dL_n / dg_u| by autograd on explicit gates of ones, one sample at a time."""
    rows: dict[str, list[Tensor]] = {s.name: [] for s in model.units()}
    for n in range(len(target)):
        one = {m: x[n : n + 1] for m, x in inputs.items()}
        gates = {
            s.name: torch.ones(1, s.units, requires_grad=True)
            for s in model.units()
            if s.name in rows
        }
        with Taps(model, model.units(), gates=gates):
            loss = cross_entropy(model(one, PRESENT[n : n + 1]), target[n : n + 1])
        found = torch.autograd.grad(loss, list(gates.values()))
        for name, grad in zip(gates, found, strict=True):
            rows[name].append(grad.abs())
    return {name: torch.cat(parts) for name, parts in rows.items()}


def test_saliency_is_the_gradient_of_gates_for_every_sample() -> None:
    model = Tiny()
    inputs, target = batch_for(model, 5)
    expected = oracle(model, inputs, target)
    with Taps(model, model.units(), saliency=True) as taps:
        cross_entropy(model(inputs, PRESENT), target).backward()
        saliency = taps.saliency
    assert saliency.keys() == expected.keys()
    for name, values in saliency.items():
        torch.testing.assert_close(values, expected[name], rtol=1e-4, atol=1e-7)
    # An encoder of a missing modality still sees all rows, and does not matter.
    assert (saliency["encoders.b"][1] == 0).all()
    assert (saliency["encoders.b"][0] > 0).all()


class Recomputed(Pair):
    """Its activations are computed again in the backward pass."""

    def forward(self, x: Tensor, gates: Tensor | None = None) -> Tensor:
        return checkpoint(super().forward, x, gates, use_reentrant=False)


def test_gates_in_the_taps_are_the_gates_of_the_model() -> None:
    """The oracle's own gates, against a block that multiplies by itself."""
    pair, x = Pair(8, 12), torch.randn(3, 5, 8)
    units = units_of({"": ("attention", 4, 3, 1)})
    units = replace(units, sublayers=(replace(units.sublayers[0], reader="reader"),))
    gates = torch.rand(3, 4)
    with Taps(pair, units, gates={"": gates}):
        ours = pair(x)
    torch.testing.assert_close(ours, pair(x, gates.repeat_interleave(3, 1)))
    with Taps(pair, units, gates={"": gates[0]}):
        ours = pair(x)
    torch.testing.assert_close(ours, pair(x, gates[:1].repeat_interleave(3, 1)))


def test_gradients_are_equal_to_the_bit() -> None:
    model = Tiny()
    inputs, target = batch_for(model, 5)
    cross_entropy(model(inputs, PRESENT), target).backward()
    plain = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    with Taps(model, model.units(), saliency=True, means=True) as taps:
        cross_entropy(model(inputs, PRESENT), target).backward()
    assert taps.means.keys() == taps.saliency.keys()
    assert len(plain) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, plain[name])
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_a_sublayer_that_does_not_run_has_zeros() -> None:
    model = Tiny()
    inputs, target = batch_for(model, 4)
    del inputs["b"]
    with Taps(model, model.units(), saliency=True, means=True) as taps:
        cross_entropy(model(inputs), target).backward()
    assert taps.saliency["encoders.b"].shape == (4, 6)
    assert (taps.saliency["encoders.b"] == 0).all()
    assert "encoders.b" not in taps.means
    assert (taps.saliency["ffn"] > 0).any()


def test_means_leave_out_tokens_that_do_not_count() -> None:
    """The mean under a mask is that of the sample without the missing modality's tokens."""
    model = Tiny()
    inputs, target = batch_for(model, 5)
    with Taps(model, model.units(), means=True) as taps:
        cross_entropy(model(inputs, PRESENT), target).backward()
        masked = taps.means
    for n in range(5):
        there = [m for m, p in zip(model.modalities, PRESENT[n].tolist(), strict=True) if p]
        seen: dict[str, Tensor] = {}
        with Taps(
            model,
            model.units(),
            on_input=lambda s, x, seen=seen: seen.update({s.name: x.mean(1)[0]}),
        ):
            model({m: inputs[m][n : n + 1] for m in there})
        assert {*seen} == {"heads", "ffn", *(f"encoders.{m}" for m in there)}
        for name, mean in seen.items():
            torch.testing.assert_close(masked[name][n], mean)
    assert masked["encoders.b"][1].isnan().all()


def test_a_reader_called_twice_is_one_unit() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.p = Pair(8, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.p(self.p(x))

    model, x = Twice(), torch.randn(3, 2, 8)
    units = units_of({"p": ("feed_forward", 6, 1, 1)})
    gates = torch.ones(3, 6, requires_grad=True)
    with Taps(model, units, gates={"p": gates}):
        model(x).square().sum((1, 2)).mean().backward()
    with Taps(model, units, saliency=True) as taps:
        model(x).square().sum((1, 2)).mean().backward()
    assert gates.grad is not None
    torch.testing.assert_close(taps.saliency["p"], gates.grad.abs() * 3, rtol=1e-4, atol=1e-6)


def test_another_user_of_the_activation_does_not_show() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.p = Pair(8, 6)

        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.tanh(self.p.writer(x))
            return self.p.reader(hidden).sum(-1) + 5 * hidden.square().sum(-1)

    model, x = Shared(), torch.randn(3, 8)
    units = units_of({"p": ("feed_forward", 6, 1, 1)})
    gates = torch.ones(3, 6, requires_grad=True)
    with Taps(model, units, gates={"p": gates}):
        model(x).mean().backward()
    with Taps(model, units, saliency=True) as taps:
        model(x).mean().backward()
    assert gates.grad is not None
    torch.testing.assert_close(taps.saliency["p"], gates.grad.abs() * 3, rtol=1e-4, atol=1e-6)


def test_frozen_models_and_checkpointing() -> None:
    model = Tiny()
    inputs, target = batch_for(model, 5)
    expected = oracle(model, inputs, target)
    model.requires_grad_(False)
    with Taps(model, model.units(), saliency=True) as taps:
        cross_entropy(model(inputs, PRESENT), target).backward()
    for name, values in taps.saliency.items():
        torch.testing.assert_close(values, expected[name], rtol=1e-4, atol=1e-7)
    model.requires_grad_(True)
    model.ffn.__class__ = Recomputed
    with Taps(model, model.units(), saliency=True) as taps:
        cross_entropy(model(inputs, PRESENT), target).backward()
    torch.testing.assert_close(taps.saliency["ffn"], expected["ffn"], rtol=1e-4, atol=1e-7)


def test_each_pass_stands_for_itself() -> None:
    """Accumulated gradients do not add up in the saliencies; a gated pass leaves no trace."""
    model = Tiny()
    first, second = batch_for(model, 5, 1), batch_for(model, 3, 2)
    with Taps(model, model.units(), saliency=True) as taps:
        cross_entropy(model(second[0]), second[1]).backward()
        alone = taps.saliency
        cross_entropy(model(first[0]), first[1]).backward()
        assert taps.saliency["ffn"].shape == (5, 40)
        loss = cross_entropy(model(second[0]), second[1])
        with taps.gated({"ffn": torch.zeros(40)}):
            gated = cross_entropy(model(second[0]), second[1])
        assert gated.item() != loss.item()
        (loss + gated).backward()
        for name, values in taps.saliency.items():
            assert torch.equal(values, alone[name])


def test_low_precision_gives_float32() -> None:
    model = Tiny()
    inputs, target = batch_for(model, 5)
    with (
        Taps(model, model.units(), saliency=True, means=True) as taps,
        torch.autocast("cpu", torch.bfloat16),
    ):
        cross_entropy(model(inputs, PRESENT), target).backward()
    expected = oracle(model, inputs, target)
    for name, values in taps.saliency.items():
        assert values.dtype == torch.float32
        # Eight bits of mantissa, through four layers.
        torch.testing.assert_close(values, expected[name], rtol=0.1, atol=3e-2)


def test_errors() -> None:
    model, units = Tiny(), Tiny().units()
    inputs, _ = batch_for(model, 5)
    with pytest.raises(ValueError, match=r"no module 'encoders\.a\.reader'"):
        Taps(Pair(8, 6), units)
    with pytest.raises(ValueError, match="got 'fnf', expected one of"):
        Taps(model, units, gates={"fnf": torch.ones(40)})
    with pytest.raises(ValueError, match=r"got shape \[39\] for 'ffn', expected \[40\]"):
        Taps(model, units, gates={"ffn": torch.ones(39)})
    with (
        pytest.raises(ValueError, match="got 4 rows for 'ffn', expected the 5"),
        Taps(model, units, gates={"ffn": torch.ones(4, 40)}),
    ):
        model(inputs)
    with Taps(model, units, saliency=True) as taps:
        with pytest.raises(RuntimeError, match="no backward pass"):
            _ = taps.saliency
        with torch.no_grad():
            model(inputs)
        with pytest.raises(RuntimeError, match="no backward pass"):
            _ = taps.saliency
        with pytest.raises(RuntimeError, match="entered twice"), taps:
            pass
    assert not any(m._forward_pre_hooks for m in model.modules())
    with Taps(model, units, saliency=True), pytest.raises(ValueError, match="samples first"):
        model.ffn(torch.randn(8))
    inputs["c"] = inputs["c"].repeat(2, 1, 1)
    with Taps(model, units, saliency=True), pytest.raises(ValueError, match="10 rows after 5"):
        model(inputs)
