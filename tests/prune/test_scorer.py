"""Scorer: a ranking learns beside a training whose gradients stay what they were."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from leeboard.prune import (
    ModalityDropout,
    PruneAware,
    Scorer,
    ScoreTable,
    SentryGate,
    Taps,
)
from leeboard.prune.backbones import BackboneConfig, Stream, build
from leeboard.prune.discover import units
from prune_models import Tiny, batch_for


def dropout(seed: int = 0) -> ModalityDropout:
    return ModalityDropout(["a", "b", "c"], warmup=0, ramp_end=0.5, total_steps=8, seed=seed)


def train(model: Tiny, scorer: Scorer | None, masks: list[Tensor]) -> list[Tensor]:
    """Gradients of every step of a short training."""
    optimizer, seen = torch.optim.SGD(model.parameters(), lr=0.1), []
    for step, mask in enumerate(masks):
        inputs, target = batch_for(model, 8, step)
        if scorer is None:
            cross_entropy(model(inputs, mask), target).backward()
        else:
            with scorer(mask) as present:
                cross_entropy(model(inputs, present), target).backward()
        seen += [p.grad.clone() for p in model.parameters() if p.grad is not None]
        optimizer.step()
        optimizer.zero_grad()
    return seen


def model_of(seed: int = 3) -> Tiny:
    torch.manual_seed(seed)
    return Tiny()


def test_the_tasks_gradients_are_bit_equal() -> None:
    drawn = dropout()
    masks = [drawn.sample(8) for _ in range(4) if drawn.step() is None]
    plain = train(model_of(), None, masks)
    model = model_of()
    table, gate = ScoreTable(model.units()), SentryGate(model.units(), hidden=8)
    scorer = Scorer(model, model.units(), [table, gate])
    watched = train(model, scorer, masks)
    assert len(plain) == len(watched) == 4 * len(list(model.parameters()))
    assert all(torch.equal(p, w) for p, w in zip(plain, watched, strict=True))
    assert sum(table.counts.values()) == 32
    assert scorer.blocks == 4
    assert gate.scores()["ffn"].shape == (40,)
    assert table.means() is not None
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_it_learns_what_taps_show() -> None:
    model, table = model_of(), ScoreTable(model_of().units())
    inputs, target = batch_for(model, 8)
    scorer = Scorer(model, model.units(), table, dropout=dropout(1))
    with scorer(8) as present:
        assert present is not None
        cross_entropy(model(inputs, present), target).backward()
    assert torch.equal(present, dropout(1).sample(8))
    with Taps(model, model.units(), saliency=True) as taps:
        cross_entropy(model(inputs, present), target).backward()
    torch.testing.assert_close(table.scores()["ffn"], taps.saliency["ffn"].mean(0))
    assert scorer.dropout is not None
    assert scorer.dropout.steps == 1


def test_scaled_losses() -> None:
    """A GradScaler's factor is taken out; a step that overflowed is not learned from."""
    model = model_of()
    inputs, target = batch_for(model, 8)
    scores = []
    for scale in (1.0, 1024.0):
        table = ScoreTable(model.units())
        scorer = Scorer(model, model.units(), table)
        with scorer(scale=scale):
            (cross_entropy(model(inputs), target) * scale).backward()
        scores.append(table.scores()["ffn"])
    torch.testing.assert_close(scores[0], scores[1])
    with scorer():
        (cross_entropy(model(inputs), target) * torch.inf).backward()
    assert scorer.skipped == 1
    assert torch.equal(table.scores()["ffn"], scores[1])


def test_micro_batches_and_every_other_block() -> None:
    model, whole = model_of(), ScoreTable(model_of().units())
    inputs, target = batch_for(model, 8)
    with Scorer(model, model.units(), whole)():
        cross_entropy(model(inputs), target).backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    parts = ScoreTable(model.units())
    scorer = Scorer(model, model.units(), parts)
    for half in (slice(0, 4), slice(4, 8)):
        with scorer(scale=0.5):
            loss = cross_entropy(model({m: x[half] for m, x in inputs.items()}), target[half])
            (loss / 2).backward()
    assert parts.counts == whole.counts
    for name, scores in parts.scores().items():
        torch.testing.assert_close(scores, whole.scores()[name], rtol=1e-3, atol=1e-6)
    for parameter, grad in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad)
    table = ScoreTable(model.units())
    scorer = Scorer(model, model.units(), table, every=3)
    for _ in range(4):
        with scorer(8):
            cross_entropy(model(inputs), target).backward()
    assert sum(table.counts.values()) == 16


def make(model: Tiny) -> Scorer:
    gate = SentryGate(model.units(), hidden=8)
    aware = PruneAware(model, model.units(), gate, cross_entropy, total_steps=8, start=0.2)
    table = ScoreTable(model.units())
    return Scorer(model, model.units(), [gate, table], dropout=dropout(), aware=aware)


def steps(model: Tiny, scorer: Scorer, numbers: range) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in numbers:
        inputs, target = batch_for(model, 8, step)
        with scorer(8) as present:
            loss = cross_entropy(model(inputs, present), target)
            (loss + scorer.aware_loss(inputs, target)).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_a_training_that_stops_and_resumes_ends_the_same(tmp_path: object) -> None:
    model = model_of()
    scorer = make(model)
    steps(model, scorer, range(4))
    path = f"{tmp_path}/checkpoint.pt"
    torch.save({"model": model.state_dict(), "scorer": scorer.state_dict()}, path)
    steps(model, scorer, range(4, 8))
    other = model_of(9)
    resumed = make(other)
    kept = torch.load(path, weights_only=True)
    other.load_state_dict(kept["model"])
    resumed.load_state_dict(kept["scorer"])
    steps(other, resumed, range(4, 8))
    assert resumed.blocks == 8
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    for first, second in zip(scorer.rankings, resumed.rankings, strict=True):
        for name, scores in first.scores(["b"]).items():  # type: ignore[attr-defined]
            assert torch.equal(scores, second.scores(["b"])[name])  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="dropout is in one of state and scorer"):
        Scorer(other, other.units(), scorer.rankings).load_state_dict(kept["scorer"])
    fewer = make(other)
    fewer.rankings.pop()
    with pytest.raises(ValueError, match="got 2 rankings, expected 1"):
        fewer.load_state_dict(kept["scorer"])


@pytest.mark.parametrize("name", ["shared", "cross", "late"])
def test_backbones(name: str) -> None:
    """Saliencies of the package's own models, whose fused blocks show no reader by themselves."""
    config = BackboneConfig(
        modalities=(Stream("a", 3, 4), Stream("b", 2, 4)),
        num_classes=3,
        d_model=16,
        heads=4,
        kv_heads=2,
        attention="gqa",
        layers=1,
        hidden=32,
    )
    model = build(name, config)
    found = units(model)
    inputs = {"a": torch.randn(3, 4, 3), "b": torch.randn(3, 4, 2)}
    target, present = torch.tensor([0, 1, 2]), torch.tensor([[1, 1], [1, 0], [0, 1]]).bool()
    table = ScoreTable(found)
    with Scorer(model, found, table)(present) as mask:
        cross_entropy(model(inputs, mask), target).backward()
    gates = {s.name: torch.ones(3, s.units, requires_grad=True) for s in found}
    with Taps(model, found, gates=gates):
        cross_entropy(model(inputs, present), target).backward()
    for row, names in enumerate([("a", "b"), ("a",), ("b",)]):
        for sublayer, scores in table.scores(names).items():
            grad = gates[sublayer].grad
            assert grad is not None
            torch.testing.assert_close(scores, grad[row].abs() * 3, rtol=1e-3, atol=1e-6)
    assert table.means(["a"]) is not None


def test_errors() -> None:
    model = model_of()
    scorer = Scorer(model, model.units(), ScoreTable(model.units()))
    with pytest.raises(RuntimeError, match="no backward pass"), scorer(4):
        model(batch_for(model, 4)[0])
    with pytest.raises(ZeroDivisionError), scorer(4):
        _ = 1 / 0
    assert scorer.blocks == 0
    assert not any(m._forward_pre_hooks for m in model.modules())
    with pytest.raises(RuntimeError, match="expected an aware pass"), scorer(4):
        scorer.aware_loss(*batch_for(model, 4))
    drops = ModalityDropout(["a"], total_steps=2)
    with pytest.raises(ValueError, match=r"got the modalities a, expected the model's: a, b, c"):
        Scorer(model, model.units(), ScoreTable(model.units()), dropout=drops)
    with pytest.raises(ValueError, match="every: got 0"):
        Scorer(model, model.units(), ScoreTable(model.units()), every=0)
    scorer.model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"no module 'encoders\.a\.reader'"), scorer(4):
        pass
