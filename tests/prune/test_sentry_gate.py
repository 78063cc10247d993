"""SentryGate: exp(z) is the expected saliency of each mask; the task never sees the gate."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from leeboard.prune import ScoreTable, SentryGate, Units
from prune_models import units_of

MASKS = torch.tensor([m for m in product([False, True], repeat=3) if any(m)])


def toy(**options: object) -> Units:
    return units_of(
        {"x": ("attention", 4, 3, 2), "y": ("feed_forward", 20, 1, 1)},
        ("a", "b", "c"),
        **options,  # type: ignore[arg-type]
    )


def truth(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Means [R, 4] and [R, 20] that depend on the mask, also on pairs of modalities."""
    generator = torch.Generator().manual_seed(1)
    w = torch.randn(3, 24, generator=generator) * 0.5
    pair = torch.randn(24, generator=generator) * 0.5
    m = masks.float() * 2 - 1
    mean = torch.exp(m @ w + (m[:, :1] * m[:, 1:2]) * pair)
    return mean[:, :4], mean[:, 4:] * 1e-3


def batch(seed: int, rows: int = 512) -> tuple[dict[str, Tensor], Tensor]:
    """Heavy-tailed saliencies: mostly near zero, sometimes ten times their mean."""
    generator = torch.Generator().manual_seed(seed)
    present = torch.rand(rows, 3, generator=generator) > 0.4
    present[:, 0] |= ~present.any(1)
    x, y = truth(present)
    spike = (torch.rand(rows, 1, generator=generator) < 0.1).float()
    noise = 10 * spike * 0.9 + 0.1
    return {"x": x * noise, "y": y * noise}, present


def test_exp_z_converges_to_the_expected_saliency() -> None:
    gate = SentryGate(toy(), hidden=32, per="unit", lr=3e-3, momentum=0.995)
    first = gate.update(*batch(0))
    for seed in range(1, 300):
        last = gate.update(*batch(seed))
    assert last < first
    for expected, found in zip(truth(MASKS), gate.score_rows(MASKS).values(), strict=True):
        # Absolute, for both layers, of which one is a thousandth of the other. A tenth of the
        # samples carry most of the mean, so the last steps' noise leaves some percent.
        assert (found / expected).log().abs().mean() < 0.12


def test_it_ranks_by_means_where_a_mean_of_logs_is_wrong() -> None:
    """Half of the units are rarely, but then very, important."""
    units = units_of({"y": ("feed_forward", 8, 1, 1)}, ("a", "b"))
    rare = torch.arange(8) % 2 == 0
    gate, logs = SentryGate(units, hidden=0, per="unit", lr=1e-2), torch.zeros(8)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        spike = torch.rand(512, 8, generator=generator) < 0.1
        s = torch.where(rare, spike * 30.0 + 0.01, torch.ones(512, 8))
        gate.update({"y": s})
        logs += s.log().mean(0) / 200
    mean = torch.where(rare, 3.01, 1.0)
    assert (logs.exp()[rare] < logs.exp()[~rare].min()).all()
    torch.testing.assert_close(gate.scores()["y"], mean, rtol=0.15, atol=0)


def test_panels_blocks_and_units() -> None:
    saliency = {"x": torch.tensor([[1.0, 3, 0, 8]]), "y": torch.arange(20.0)[None]}
    outputs = {"panel": 2 + 2, "block": 2 + 20, "unit": 4 + 20}
    for per, count in outputs.items():
        gate = SentryGate(toy(), hidden=0, per=per, lr=0.1)  # type: ignore[arg-type]
        assert gate(MASKS).shape == (7, count)
        for _ in range(150):
            gate.update(saliency)
        scores = gate.scores()
        if per == "unit":
            torch.testing.assert_close(scores["x"][1:], saliency["x"][0, 1:], rtol=0.05, atol=0.02)
        else:
            expected = torch.tensor([2.0, 2, 4, 4])
            torch.testing.assert_close(scores["x"], expected, rtol=0.02, atol=0)
        if per == "panel":
            expected = torch.tensor([7.5] * 16 + [17.5] * 4)
            torch.testing.assert_close(scores["y"], expected, rtol=0.02, atol=0)


def test_sublayers_that_do_not_run() -> None:
    gate = SentryGate(toy(missing={"y": "b"}), hidden=8, per="unit", lr=0.03)
    present = torch.tensor([[1, 0, 0], [1, 1, 0]], dtype=torch.bool).repeat(8, 1)
    saliency = {"x": torch.ones(16, 4), "y": torch.full((16, 20), 5.0) * present[:, 1:2]}
    for _ in range(200):
        loss = gate.update(saliency, present)
    assert torch.tensor(loss).isfinite()
    assert (gate.scores(["a"])["y"] == 0).all()
    # Zeros of samples without b count neither for z nor for the layer's mean.
    torch.testing.assert_close(
        gate.scores(["a", "b"])["y"], torch.full((20,), 5.0), rtol=0.02, atol=0
    )


def test_units_that_never_matter_stay_finite() -> None:
    gate = SentryGate(toy(), hidden=0, per="unit", lr=0.1)
    saliency = {"x": torch.tensor([[0.0, 1, 1, 1]]), "y": torch.zeros(1, 20)}
    for _ in range(200):
        gate.update(saliency)
    scores = gate.scores()
    assert scores["x"][0] < 1e-2 * scores["x"][1]
    assert all(s.isfinite().all() for s in scores.values())
    gate.update({"x": torch.full((1, 4), torch.inf), "y": torch.full((1, 20), torch.nan)})
    assert all(s.isfinite().all() for s in gate.scores().values())


def test_it_goes_on_where_it_was() -> None:
    gate, other = SentryGate(toy()), SentryGate(toy(), seed=7)
    for seed in range(5):
        saliency, present = batch(seed)
        gate.update(saliency, present, {"x": torch.rand(512, 12)})
    before = other.version
    other.load_state_dict(gate.state_dict())
    assert other.version != before
    for each in (gate, other):
        for seed in range(5, 8):
            each.update(*batch(seed), {"x": torch.ones(512, 12)})
    assert {*gate.scores(["a"])} == {"x", "y"}
    for name, scores in gate.scores(["a"]).items():
        assert torch.equal(scores, other.scores(["a"])[name])
    first, second = gate.means(["a"]), other.means(["a"])
    assert first is not None
    assert second is not None
    assert torch.equal(first["x"], second["x"])


def test_it_leaves_torch_and_gradients_alone() -> None:
    state = torch.random.get_rng_state()
    gate = SentryGate(toy())
    with torch.no_grad():
        gate.update(*batch(0))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(p.grad is None for p in gate.parameters())
    weight = torch.ones(1, requires_grad=True)
    gate.update({n: s * weight for n, s in batch(1)[0].items()}, batch(1)[1])
    assert weight.grad is None


def test_for_unseen_masks_the_gate_generalises() -> None:
    """Without a single sample with all three, a linear gate knows them where effects multiply."""
    units = units_of({"y": ("feed_forward", 6, 1, 1)}, ("a", "b", "c"))
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(3, 6, generator=generator)
    table = ScoreTable(units)
    gate = SentryGate(units, hidden=0, per="unit", lr=2e-2)
    for _ in range(250):
        present = MASKS[torch.randint(6, (64,), generator=generator)]
        s = {"y": torch.exp((present.float() * 2 - 1) @ w)}
        gate.update(s, present)
        table.update(s, present)
    expected = torch.exp(w.sum(0))
    assert ("a", "b", "c") not in table.counts
    error = (gate.scores()["y"] / expected).log().abs().mean()
    assert error < 0.1
    assert error < (table.scores()["y"] / expected).log().abs().mean()


def test_errors() -> None:
    with pytest.raises(ValueError, match="hidden: got -1"):
        SentryGate(toy(), hidden=-1)
    with pytest.raises(ValueError, match="per: got 'head'"):
        SentryGate(toy(), per="head")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="momentum: got 1"):
        SentryGate(toy(), momentum=1)
    gate = SentryGate(toy())
    with pytest.raises(RuntimeError, match="no saliencies"):
        gate.scores()
    saliency, present = batch(0)
    with pytest.raises(ValueError, match="expected \\[512, 3\\]"):
        gate.update(saliency, present[:, :2])
    gate.update(saliency, present)
    with pytest.raises(ValueError, match="got 'd', expected modalities"):
        gate.scores(["d"])
    with pytest.raises(ValueError, match="no modality"):
        gate.scores([])
