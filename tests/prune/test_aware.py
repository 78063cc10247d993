"""The prune-aware pass: what is left out for each sample, and the loss of that."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from leeboard.prune import PruneAware, ScoreTable, StaticScores, Taps
from leeboard.prune.aware import top_groups
from prune_models import Tiny, batch_for

PRESENT = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 1], [0, 1, 1]], dtype=torch.bool)


def table_for(model: Tiny) -> ScoreTable:
    """A table whose ranking depends on the mask."""
    generator, table = torch.Generator().manual_seed(0), ScoreTable(model.units())
    saliency = {s.name: torch.rand(4, s.units, generator=generator) for s in model.units()}
    # With "a" alone, the first pair of heads and the last panel matter most.
    saliency["heads"][1, :2] += 2
    saliency["ffn"][1, 32:] += 2
    table.update(saliency, PRESENT)
    return table


def aware_for(model: Tiny, **options: object) -> PruneAware:
    ranking = options.pop("ranking", None) or table_for(model)
    settings: dict[str, object] = {"total_steps": 8, "start": 0.0, **options}
    return PruneAware(model, model.units(), ranking, cross_entropy, **settings)  # type: ignore[arg-type]


def test_top_groups() -> None:
    values = torch.tensor([[1.0, 5, 4, 0, 9], [2, 2, 2, 2, 1]])
    assert top_groups(values, 2, 0.67).tolist() == [[1, 1, 0, 0, 1], [1, 1, 1, 1, 0]]
    assert top_groups(values, 1, 0.4).tolist() == [[0, 1, 0, 0, 1], [1, 1, 0, 0, 0]]
    assert top_groups(values, 2, 0.0).sum(1).tolist() == [1, 2]
    assert top_groups(values, 2, 1.0).sum() == 10


def test_every_sample_keeps_the_best_for_its_own_modalities() -> None:
    model = Tiny()
    aware = aware_for(model)
    gates = aware.gates(PRESENT, 0.5)
    assert torch.equal(gates["ffn"][0], gates["ffn"][2])
    assert gates["heads"][1].tolist() == [1, 1, 0, 0]
    assert gates["heads"][0].tolist() == [0, 0, 1, 1]
    assert gates["ffn"][1, 32:].all()
    assert not gates["ffn"][0, 32:].any()
    scores = table_for(model).scores(["a"])
    # Panels of 16, 16 and 8 channels: half of three, rounded, are two.
    panels = torch.stack([p.sum() for p in scores["ffn"].split(16)])
    dropped = int(panels.argmin())
    expected = torch.ones(40)
    expected[16 * dropped : 16 * dropped + 16] = 0
    assert torch.equal(gates["ffn"][1], expected)


def test_static_and_random_rankings() -> None:
    model = Tiny()
    fixed = aware_for(model, conditioned=False).gates(PRESENT, 0.5)
    full = aware_for(model).gates(PRESENT[:1], 0.5)
    for name, gates in fixed.items():
        assert torch.equal(gates, full[name].expand(4, -1))
    values = {s.name: torch.arange(float(s.units)) for s in model.units()}
    static = aware_for(model, ranking=StaticScores(model.units(), "ramp", values))
    assert static.gates(PRESENT, 0.5)["heads"].tolist() == [[0, 0, 1, 1]] * 4
    random = aware_for(model, ranking="random", panel=1)
    first, second = random.gates(PRESENT, 0.5), random.gates(PRESENT, 0.5)
    assert first["ffn"].sum(1).tolist() == [20] * 4
    assert torch.equal(first["ffn"][0], first["ffn"][2])
    assert not torch.equal(first["ffn"][0], first["ffn"][1])
    assert not torch.equal(first["ffn"], second["ffn"])


def test_the_loss_is_that_of_the_gated_model() -> None:
    model = Tiny()
    inputs, target = batch_for(model, 4)
    aware = aware_for(model, kl=0.5, seed=4)
    ratio = 0.6 * float(torch.rand((), generator=torch.Generator().manual_seed(4)))
    full = model(inputs, PRESENT)
    loss = aware.loss(inputs, target, PRESENT, outputs=full)
    with Taps(model, model.units(), gates=aware.gates(PRESENT, ratio)):
        pruned = model(inputs, PRESENT)
    teacher, student = log_softmax(full.detach(), -1), log_softmax(pruned, -1)
    expected = cross_entropy(pruned, target) + 0.5 * kl_div(
        student, teacher, reduction="batchmean", log_target=True
    )
    torch.testing.assert_close(loss, expected)
    # The full model's logits are a target: no gradient goes there.
    loss.backward()
    grads: list[Tensor | None] = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    expected.backward()
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        torch.testing.assert_close(parameter.grad, grad)


def test_curriculum_and_resume() -> None:
    model = Tiny()
    inputs, target = batch_for(model, 4)
    aware = aware_for(model, start=0.25)
    assert not aware.active
    loss = aware.loss(inputs, target)
    assert loss.item() == 0
    assert not loss.requires_grad
    for _ in range(2):
        aware.step()
    assert aware.active
    aware.loss(inputs, target)
    kept = aware.state_dict()
    expected = [aware.loss(inputs, target).item() for _ in range(2)]
    assert expected[0] != expected[1]
    other = aware_for(model, start=0.25)
    other.load_state_dict(kept)
    assert [other.loss(inputs, target).item() for _ in range(2)] == expected


def test_it_teaches_the_model_to_live_without_what_is_shed() -> None:
    """A few dozen steps lower the pruned loss more than as many ordinary ones do."""
    results = []
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        model = Tiny()
        inputs, target = batch_for(model, 24, 5)
        values = {s.name: torch.rand(s.units) for s in model.units()}
        ranking = StaticScores(model.units(), "drawn", values)
        aware = aware_for(model, ranking=ranking, r_max=0.9, panel=4)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(40):
            loss = cross_entropy(model(inputs), target)
            loss = loss + weight * aware.loss(inputs, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        everything = torch.ones(24, 3, dtype=torch.bool)
        with Taps(model, model.units(), gates=aware.gates(everything, 0.6)), torch.no_grad():
            results.append(cross_entropy(model(inputs), target).item())
    assert results[1] < results[0]


def test_errors() -> None:
    model = Tiny()
    inputs, target = batch_for(model, 4)
    with pytest.raises(ValueError, match="r_max: got 1"):
        aware_for(model, r_max=1.0)
    with pytest.raises(ValueError, match="start: got 2"):
        aware_for(model, start=2.0)
    with pytest.raises(ValueError, match="ranking: got 'best'"):
        aware_for(model, ranking="best")
    with pytest.raises(ValueError, match="outputs: got None"):
        aware_for(model, kl=1.0).loss(inputs, target)
    with pytest.raises(ValueError, match=r"got shape \[3, 3\], expected \[4, 3\]"):
        aware_for(model).loss(inputs, target, PRESENT[:3])
    with pytest.raises(RuntimeError, match="the table is empty"):
        aware_for(model, ranking=ScoreTable(model.units())).loss(inputs, target)
    with pytest.raises(TypeError, match="inputs: got int"):
        aware_for(model).loss(3, target)
