"""Every baseline against a slow formula of its own: loops over samples, explicit variances."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from baseline_model import NAMES, Tiny, tiny_batches, tiny_units
from leeboard.prune import Plan, StaticScores, Sublayer, plan
from leeboard.prune.backbones import BackboneConfig, build
from leeboard.prune.baselines import BASELINES, calibrate, calibrate_all
from leeboard.prune.baselines.refining import output_gram, rearrange, rescale
from leeboard.prune.baselines.rules import unit_weights
from leeboard.prune.baselines.statistics import Moments, mixture
from leeboard.prune.discover import units

UNITS = tiny_units()
# Sums of a few dozen float32 terms on either side.
CLOSE = {"rtol": 2e-4, "atol": 1e-7}
Batch = tuple[dict[str, Tensor], Tensor]


@pytest.fixture
def model() -> Tiny:
    return Tiny().double().float()


def reader(model: Tiny, name: str) -> Tensor:
    weight = model.get_submodule(UNITS[name].reader).weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def each_sample(batches: list[Batch], masks: str, seed: int) -> Iterator[list[Batch]]:
    """Per batch its samples, one by one, with what is missing under `masks` taken away."""
    dropout = mixture(["a", "b"], seed)
    for inputs, target in batches:
        present = torch.ones(len(target), 2, dtype=torch.bool)
        if masks == "mix":
            present = dropout.sample(len(target))
        yield [
            (
                {m: inputs[m][i : i + 1] for j, m in enumerate("ab") if present[i, j]},
                target[i : i + 1],
            )
            for i in range(len(target))
        ]


def gate_gradients(model: Tiny, sample: Batch) -> dict[str, Tensor]:
    """d loss / d gates of one sample, by the model's own gates."""
    gates = {s.name: torch.ones(s.units, requires_grad=True) for s in UNITS}
    loss = F.cross_entropy(model(sample[0], gates), sample[1])
    found = torch.autograd.grad(loss, list(gates.values()), allow_unused=True)
    return {
        name: torch.zeros_like(gate) if g is None else g
        for (name, gate), g in zip(gates.items(), found, strict=True)
    }


def slow_inputs(model: Tiny, batches: list[Batch], masks: str, seed: int) -> dict[str, Tensor]:
    """All rows that the readers see, float64 [tokens, columns]."""
    for rows in model.recorded.values():
        rows.clear()
    with torch.no_grad():
        for samples in each_sample(batches, masks, seed):
            for sample in samples:
                model(sample[0])
    found = {name: torch.cat(rows, dim=0).flatten(0, 1) for name, rows in model.recorded.items()}
    return {name: rows.double() for name, rows in found.items()}


@pytest.mark.parametrize("masks", ["full", "mix"])
def test_taylor_averages_what_each_sample_says(model: Tiny, masks: str) -> None:
    batches = tiny_batches()
    expected = {s.name: torch.zeros(s.units) for s in UNITS}
    samples = list(itertools.chain(*each_sample(batches, masks, seed=5)))
    for sample in samples:
        for name, g in gate_gradients(model, sample).items():
            expected[name] += g.abs() / len(samples)
    scores = calibrate("taylor", model, UNITS, batches, F.cross_entropy, masks=masks, seed=5)
    assert scores.name == f"taylor/{masks}"
    for name, value in scores.scores(["a"]).items():
        torch.testing.assert_close(value, expected[name], **CLOSE)
        assert value.min() > 0


@pytest.mark.parametrize("masks", ["full", "mix"])
def test_fisher_squares_the_gradient_of_each_batch(model: Tiny, masks: str) -> None:
    batches = tiny_batches()
    expected = {s.name: torch.zeros(s.units) for s in UNITS}
    for samples in each_sample(batches, masks, seed=5):
        found = [gate_gradients(model, sample) for sample in samples]
        for name in NAMES:
            expected[name] += torch.stack([g[name] for g in found]).mean(dim=0).square()
    scores = calibrate("fisher", model, UNITS, batches, F.cross_entropy, masks=masks, seed=5)
    for name, value in scores.scores().items():
        torch.testing.assert_close(value, expected[name], **CLOSE)


def test_snip_multiplies_weights_by_their_gradients(model: Tiny) -> None:
    batches = tiny_batches()
    loss = sum(F.cross_entropy(model(x), y, reduction="sum") for x, y in batches) / 18
    assert isinstance(loss, Tensor)
    scores = calibrate("snip", model, UNITS, batches, F.cross_entropy).scores()
    for s in UNITS:
        weight = model.get_submodule(s.reader).weight
        assert isinstance(weight, Tensor)
        (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True)
        product = (weight * gradient).abs().sum(dim=0).detach()
        expected = torch.stack(
            [product[u * s.width : (u + 1) * s.width].sum() for u in range(s.units)]
        )
        torch.testing.assert_close(scores[s.name], expected, **CLOSE)
    model.cross.o.weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"weight of cross\.o is frozen"):
        calibrate("snip", model, UNITS, batches, F.cross_entropy)


def in_proportion(found: Tensor, expected: Tensor) -> None:
    """Rules within a sublayer are free of scale."""
    torch.testing.assert_close(
        found / found.mean(), (expected / expected.mean()).float(), rtol=2e-4, atol=1e-6
    )


def test_magnitude_sums_the_norms_of_columns(model: Tiny) -> None:
    scores = calibrate("magnitude", model, UNITS, [], F.cross_entropy)
    assert scores.name == "magnitude"
    for s in UNITS:
        weight = reader(model, s.name)
        expected = [
            sum(float(weight[:, u * s.width + c].norm()) for c in range(s.width))
            for u in range(s.units)
        ]
        in_proportion(scores.scores()[s.name], torch.tensor(expected))


@pytest.mark.parametrize("masks", ["full", "mix"])
def test_wanda_weighs_columns_by_the_norm_of_their_inputs(model: Tiny, masks: str) -> None:
    batches = tiny_batches()
    scores = calibrate("wanda_sp", model, UNITS, batches, F.cross_entropy, masks=masks, seed=5)
    for name, rows in slow_inputs(model, batches, masks, seed=5).items():
        s, weight = UNITS[name], reader(model, name).double()
        expected = torch.zeros(s.units, dtype=torch.float64)
        for u in range(s.units):
            for c in range(u * s.width, (u + 1) * s.width):
                expected[u] += (weight[:, c].abs() * rows[:, c].norm()).mean()
        in_proportion(scores.scores()[name], expected)


def slow_flap(model: Tiny, inputs: dict[str, Tensor]) -> dict[str, list[float]]:
    """Standardised scores before they are made positive."""
    standard = {}
    for s in UNITS:
        rows, weight = inputs[s.name], reader(model, s.name).double()
        metric = []
        for c in range(s.columns):
            variance = sum((float(x) - float(rows[:, c].mean())) ** 2 for x in rows[:, c])
            value = variance / len(rows) * float((weight[:, c] ** 2).sum())
            metric.append(value**2 if s.kind == "attention" else value)
        values = torch.tensor(metric, dtype=torch.float64)
        values = (values - values.mean()) / values.std()
        standard[s.name] = [
            float(values[u * s.width : (u + 1) * s.width].mean()) for u in range(s.units)
        ]
    return standard


@pytest.mark.parametrize("masks", ["full", "mix"])
def test_flap_standardises_the_fluctuation(model: Tiny, masks: str) -> None:
    batches = tiny_batches()
    scores = calibrate("flap", model, UNITS, batches, F.cross_entropy, masks=masks, seed=5)
    standard = slow_flap(model, slow_inputs(model, batches, masks, seed=5))
    lowest = min(itertools.chain(*standard.values()))
    # A head has 3 columns: 3 x (6 + 6) weights of its own, and half of a key-value head's.
    heads = {"a.attention": 36 + 2 * 3 * 6 / 2, "cross": 36 + 2 * 3 * 8 / 2}
    for name, values in standard.items():
        weight = heads.get(name, 12.0) / 12.0
        expected = torch.tensor(values) - lowest
        torch.testing.assert_close(
            scores.scores()[name], (expected * weight).float(), rtol=1e-3, atol=1e-5
        )


def test_a_llama_head_counts_512_thirds_of_a_channel() -> None:
    head = Sublayer("h", "attention", "x", "o", (), 32, 128, 1, 4096, 4096, 4096)
    channel = Sublayer("c", "feed_forward", "x", "o", (), 11008, 1, 1, 4096, 4096, 4096, gated=True)
    weights = unit_weights(replace(UNITS, sublayers=(head, channel)))
    assert weights == {"h": pytest.approx(512 / 3), "c": 1.0}


def test_flap_counts_its_first_batch_and_forgets_no_mean() -> None:
    """The published code reads the mean after it is overwritten, and starts the variance at 0."""
    rows = torch.randn(30, 4) * torch.tensor([1.0, 2.0, 0.0, 5.0]) + torch.tensor(
        [0.0, 100.0, 3.0, -7.0]
    )
    for sizes in ([30], [1] * 30, [10, 0, 3, 17]):
        moments = Moments(4)
        for part in rows.split(sizes):
            moments.add(part)
        torch.testing.assert_close(moments.mean, rows.double().mean(dim=0))
        expected = rows.double().var(dim=0, correction=0)
        torch.testing.assert_close(moments.variance, expected, rtol=1e-5, atol=1e-8)
        expected = rows.double().square().mean(dim=0)
        torch.testing.assert_close(moments.mean_square, expected, rtol=1e-6, atol=0)
    assert Moments(2).variance.tolist() == [0.0, 0.0]


def a_plan(**keep: tuple[int, ...]) -> Plan:
    full = {s.name: tuple(range(s.units)) for s in UNITS}
    return Plan(
        fingerprint=UNITS.fingerprint,
        present=("a", "b"),
        budget="50%",
        keep=full | {name.replace("__", "."): kept for name, kept in keep.items()},
    )


def test_bias_makes_up_for_the_mean_of_what_is_shed(model: Tiny) -> None:
    batches = tiny_batches()
    plain, scores = calibrate_all(
        ["flap", "flap+bias"], model, UNITS, batches, F.cross_entropy
    ).values()
    inputs = slow_inputs(model, batches, "full", seed=0)
    plan = scores.refine(a_plan(cross=(0, 1), feed_forward=(2, 5, 11), a__attention=()))
    assert set(plan.bias) == {"cross", "feed_forward", "a.attention"}
    for name in plan.bias:
        s = UNITS[name]
        columns = [c for c in range(s.columns) if c // s.width not in plan.keep[name]]
        expected = reader(model, name).double()[:, columns] @ inputs[name].mean(dim=0)[columns]
        if not plan.keep[name]:
            # The block is its bias alone.
            expected += model.a["attention"].o.bias.detach()
        torch.testing.assert_close(
            torch.tensor(plan.bias[name], dtype=torch.float64), expected, rtol=1e-5, atol=1e-6
        )
    assert plain.refine(plan) is plan
    for name, mean in (plain.means() or {}).items():
        torch.testing.assert_close(mean, inputs[name].mean(dim=0).float(), rtol=1e-5, atol=1e-6)


def shed_cost(gradients: Tensor, shed: set[int]) -> float:
    return float(gradients[:, sorted(shed)].sum(dim=1).square().sum())


def test_rearranging_never_costs_more_and_finds_units_that_cancel() -> None:
    s = replace(UNITS["feed_forward"], units=7)
    found_best = 0
    for seed in range(12):
        gradients = torch.randn(9, 7, generator=torch.Generator().manual_seed(seed))
        own = gradients.square().sum(dim=0)
        kept = tuple(sorted(own.argsort(descending=True)[:4].tolist()))
        chosen = rearrange(s, kept, gradients)
        assert len(set(chosen)) == 4
        assert chosen == tuple(sorted(chosen))
        everything = set(range(7))
        cost = shed_cost(gradients, everything - set(chosen))
        assert cost <= shed_cost(gradients, everything - set(kept)) * (1 + 1e-6)
        best = min(shed_cost(gradients, set(c)) for c in itertools.combinations(range(7), 3))
        found_best += cost <= best * 1.0001
    assert found_best >= 6
    # Two units that matter most alone and cancel each other are shed together.
    gradients = torch.tensor([[5.0, -5.0, 1.0, 1.0]])
    assert rearrange(replace(s, units=4), (0, 1), gradients) == (2, 3)


def test_rearranging_moves_whole_groups_and_whole_panels() -> None:
    attention = UNITS["cross"]
    gradients = torch.tensor([[5.0, -5.0, 1.0, 2.0]])
    # As groups of two the first adds up to 0, the second to 3.
    assert rearrange(attention, (0, 1), gradients) == (2, 3)
    panels = replace(UNITS["feed_forward"], units=40)
    gradients = torch.cat([torch.full((1, 16), 2.0), torch.ones(1, 16), torch.ones(1, 8)], dim=1)
    kept = (*range(16, 32), *range(32, 40))
    # The last panel has 8 channels: it is not exchanged for one of 16.
    assert rearrange(panels, kept, gradients) == (*range(16), *range(32, 40))
    odd = tuple(u for u in range(40) if u % 2)
    assert len(rearrange(panels, odd, gradients)) == 20
    assert rearrange(panels, tuple(range(40)), gradients) == tuple(range(40))
    assert rearrange(panels, (), gradients) == ()


def test_rescaling_solves_the_damped_least_squares(model: Tiny) -> None:
    inputs = slow_inputs(model, tiny_batches(), "full", seed=0)
    for name, keep in (("cross", (0, 1)), ("feed_forward", (1, 2, 5, 6, 13))):
        s, weight = UNITS[name], reader(model, name).double()
        adds = torch.stack(
            [
                (
                    inputs[name][:, u * s.width : (u + 1) * s.width]
                    @ weight[:, u * s.width : (u + 1) * s.width].T
                ).flatten()
                for u in range(s.units)
            ],
            dim=1,
        )
        # LSMR with damp 1 on the normal equations, as Kwon et al. have it, for what is beyond 1.
        left, wanted = adds[:, keep].T @ adds[:, keep], adds[:, keep].T @ adds.sum(dim=1)
        size = len(keep)
        matrix = torch.cat([left, torch.eye(size, dtype=torch.float64)])
        goal = torch.cat([wanted - left.sum(dim=1), torch.zeros(size, dtype=torch.float64)])
        solution = torch.linalg.lstsq(matrix, goal[:, None], driver="gelsd").solution
        expected = 1 + solution[:, 0]
        gram = output_gram(s, inputs[name].T @ inputs[name], weight)
        torch.testing.assert_close(
            torch.tensor(rescale(keep, gram), dtype=torch.float64), expected, rtol=1e-6, atol=1e-8
        )


def test_wild_factors_fall_back_to_one() -> None:
    # A unit that does little would have to become a hundred times a large one.
    adds = torch.tensor([[100.0, 1.0]], dtype=torch.float64)
    gram = adds.T @ adds
    assert rescale((1,), gram, damp=0.1) is None
    assert rescale((0,), gram, damp=0.1) == (pytest.approx(1.01, abs=1e-4),)
    assert rescale((0, 1), gram) is None
    assert rescale((), gram) is None


def test_kwon_refines_a_plan_in_both_ways(model: Tiny) -> None:
    batches = tiny_batches((4,) * 6)
    found = calibrate_all(
        ["fisher", "fisher+rearrange", "kwon"], model, UNITS, batches, F.cross_entropy
    )
    plan = a_plan(cross=(0, 1), feed_forward=tuple(range(0, 20, 2)), b__feed_forward=())
    assert found["fisher"].refine(plan) is plan
    rearranged, both = found["fisher+rearrange"].refine(plan), found["kwon"].refine(plan)
    assert rearranged.keep == both.keep
    assert not rearranged.scales
    for name, kept in both.keep.items():
        assert len(kept) == len(plan.keep[name])
    assert len(both.scales["feed_forward"]) == 10
    assert len(both.scales["cross"]) == 2
    assert "b.feed_forward" not in both.scales
    # Rescaled, what stays is nearer to the dense output on the calibration data.
    rows = slow_inputs(model, batches, "full", seed=0)["feed_forward"]
    kept, weight = list(both.keep["feed_forward"]), reader(model, "feed_forward").double()
    dense, scales = rows @ weight.T, torch.tensor(both.scales["feed_forward"])
    without = (rows[:, kept] @ weight[:, kept].T - dense).square().sum()
    scaled = (rows[:, kept] * scales @ weight[:, kept].T - dense).square().sum()
    assert scaled < without


def test_random_follows_its_seed_only(model: Tiny) -> None:
    def draw(seed: int) -> dict[str, Tensor]:
        return calibrate("random", model, UNITS, [], F.cross_entropy, seed=seed).scores()

    first, again, other = draw(0), draw(0), draw(1)
    for name in NAMES:
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])


@pytest.mark.parametrize("masks", ["full", "mix"])
def test_all_together_equal_each_alone_and_leave_the_model_as_it_was(
    model: Tiny, masks: str
) -> None:
    model.train()
    model.cross.eval()
    model.head.weight.grad = torch.ones_like(model.head.weight)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    together = calibrate_all(
        list(BASELINES), model, UNITS, tiny_batches(), F.cross_entropy, masks=masks, seed=2
    )
    assert list(together) == list(BASELINES)
    for name, scores in together.items():
        assert isinstance(scores, StaticScores)
        alone = calibrate(
            name, model, UNITS, iter(tiny_batches()), F.cross_entropy, masks=masks, seed=2
        )
        assert alone.name == scores.name
        for sublayer, value in scores.scores().items():
            assert torch.equal(value, alone.scores()[sublayer])
    assert model.training
    assert not model.cross.training
    assert model.cross.o.weight.grad is None
    assert torch.equal(model.head.weight.grad, torch.ones_like(model.head.weight))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_the_mixture_drops_and_never_drops_all() -> None:
    present = mixture(["a", "b", "c"], 0).sample(2000)
    assert present.any(dim=1).all()
    # 1/2 each, and the eighth that would lose all gets one of three back.
    assert present.float().mean(dim=0).tolist() == pytest.approx([0.5 + 0.125 / 3] * 3, abs=0.03)


def test_batches_without_a_modality(model: Tiny) -> None:
    batches = [({"a": inputs["a"]}, target) for inputs, target in tiny_batches()]
    for masks in ("full", "mix"):
        scores = calibrate("taylor", model, UNITS, batches, F.cross_entropy, masks=masks).scores()
        assert scores["b.feed_forward"].count_nonzero() == 0
        assert scores["a.attention"].min() > 0
    flap = calibrate("flap", model, UNITS, batches, F.cross_entropy)
    assert (flap.means() or {})["b.feed_forward"].count_nonzero() == 0


def test_plans_for_a_backbone_with_a_modality_missing() -> None:
    """Grouped queries, cross-attention and a block per modality, found and planned for."""
    streams = (("acc", 3, 12, 3), ("ppg", 1, 12, 3))
    sizes = {"d_model": 24, "heads": 4, "kv_heads": 2, "hidden": 64, "layers": 1}
    model = build("cross", BackboneConfig(streams, 3, attention="gqa", **sizes))
    found, batches = units(model), []
    for _ in range(3):
        inputs = {name: torch.randn(8, 12, channels) for name, channels, *_ in streams}
        batches.append((inputs, torch.randint(3, (8,))))
    scores = calibrate_all(list(BASELINES), model, found, batches, F.cross_entropy, masks="mix")
    for name, ranking in scores.items():
        for budget in ("40%", "60%"):
            made = plan(ranking, present=["ppg"], budget=budget, drop=False)
            made.check(found)
            assert made.ranking == ranking.name
            assert made.macs <= made.dense_macs * float(budget[:-1]) / 100
            if name == "kwon":
                assert {s: len(scales) for s, scales in made.scales.items()}.items() <= {
                    s: len(kept) for s, kept in made.keep.items()
                }.items()
    # What a plan compensates when asked is what the ranking does by itself.
    asked = plan(
        scores["flap"], present=["ppg"], budget="30%", drop=True, compensate=True, model=model
    )
    own = plan(scores["flap+bias"], present=["ppg"], budget="30%", drop=True)
    assert asked.keep == own.keep
    assert asked.bias.keys() == own.bias.keys()
    assert own.bias
    for name, bias in own.bias.items():
        torch.testing.assert_close(
            torch.tensor(bias), torch.tensor(asked.bias[name]), rtol=1e-5, atol=1e-7
        )


def test_errors_say_what_is_wrong(model: Tiny) -> None:
    with pytest.raises(ValueError, match="name: got 'wand', expected one of random"):
        calibrate("wand", model, UNITS, tiny_batches(), F.cross_entropy)
    with pytest.raises(ValueError, match="masks: got 'half'"):
        calibrate("flap", model, UNITS, tiny_batches(), F.cross_entropy, masks="half")
    with pytest.raises(ValueError, match="batches: got none"):
        calibrate("flap", model, UNITS, [], F.cross_entropy)
    with pytest.raises(ValueError, match="loss_fn: got nan"):
        calibrate("taylor", model, UNITS, tiny_batches(), lambda out, y: out.sum() * float("nan"))
    with pytest.raises(ValueError, match="the model has one input"):
        calibrate(
            "flap",
            model,
            replace(UNITS, modalities=("input",)),
            tiny_batches(),
            F.cross_entropy,
            masks="mix",
        )
