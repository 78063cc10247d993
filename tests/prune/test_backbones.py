"""The multimodal backbones: dropping equals masking, checks, tokens."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from leeboard.nn import CrossAttention, FeedForward, SparseGQA
from leeboard.ops.patterns import Dense
from leeboard.prune import apply, compact, plan, revert, units
from leeboard.prune.backbones import BACKBONES, Backbone, BackboneConfig, Stream, build
from leeboard.prune.static import StaticScores

STREAMS = (Stream("acc", 3, 12, 2), Stream("eda", 1, 8, 4), Stream("meta", 5), Stream("ecg", 1, 9))
NAMES = [stream.name for stream in STREAMS]
ATTENTIONS = ("dense", "gqa", "sparse")
SUBSETS = [subset for k in range(1, len(NAMES) + 1) for subset in itertools.combinations(NAMES, k)]

every_backbone = pytest.mark.parametrize("name", BACKBONES)
every_attention = pytest.mark.parametrize("attention", ATTENTIONS)


def model_of(name: str, **changes: Any) -> Backbone:
    config = BackboneConfig(STREAMS, 3, d_model=24, heads=4, hidden=32, window=2)
    model = build(name, config.replace(**changes))
    # Fresh biases are zero, which would hide what they do.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += torch.randn_like(parameter) * 0.1
    return model


def inputs_of(batch: int) -> dict[str, Tensor]:
    return {
        s.name: torch.randn(batch, s.length, s.channels)
        if s.length > 1
        else torch.randn(batch, s.channels)
        for s in STREAMS
    }


def sublayers(model: nn.Module) -> dict[str, nn.Module]:
    kinds = (FeedForward, SparseGQA, CrossAttention)
    return {name: m for name, m in model.named_modules() if isinstance(m, kinds)}


@every_backbone
@every_attention
def test_dropping_equals_masking(name: str, attention: str) -> None:
    """Every subset: one sample of a masked batch against a call without the missing ones."""
    model = model_of(name, attention=attention, fusion_layers=2).double()
    inputs = {m: x.double() for m, x in inputs_of(len(SUBSETS)).items()}
    present = torch.tensor([[m in subset for m in NAMES] for subset in SUBSETS])
    masked = model(inputs, present)
    assert masked.shape == (len(SUBSETS), 3)
    for row, subset in enumerate(SUBSETS):
        given = {m: inputs[m][row : row + 1] for m in subset}
        torch.testing.assert_close(
            model(given), masked[row : row + 1], rtol=1e-12, atol=1e-12, msg=str(subset)
        )
    # They do differ.
    assert (masked[:-1] - model(inputs)[:-1]).abs().amin(1).min() > 1e-6


@every_backbone
def test_dropping_equals_masking_in_float32_and_its_gradients(name: str) -> None:
    model = model_of(name, attention="sparse")
    inputs = inputs_of(4)
    present = torch.tensor([[True, False, True, True]]).expand(4, -1)

    def gradients(logits: Tensor) -> dict[str, Tensor | None]:
        model.zero_grad()
        logits.square().sum().backward()
        return {n: p.grad for n, p in model.named_parameters()}

    masked = model(inputs, present)
    expected = gradients(masked)
    dropped = model({m: x for m, x in inputs.items() if m != "eda"})
    torch.testing.assert_close(dropped, masked, rtol=1e-5, atol=1e-5)
    for parameter, grad in gradients(dropped).items():
        other = expected[parameter]
        if grad is None:
            assert ".eda." in parameter
            assert other is None or not other.any()
        else:
            torch.testing.assert_close(grad, other, rtol=1e-4, atol=1e-5, msg=parameter)


@every_backbone
def test_values_of_what_is_missing_are_not_read(name: str) -> None:
    model = model_of(name)
    inputs = inputs_of(2)
    present = torch.tensor([[True, True, False, True], [False, True, True, True]])
    expected = model(inputs, present)
    inputs["meta"][0] = float("nan")
    inputs["acc"][1] = float("inf")
    logits = model(inputs, present)
    torch.testing.assert_close(logits, expected, rtol=0, atol=0)
    logits.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@every_backbone
@every_attention
def test_tokens_are_those_that_run(name: str, attention: str) -> None:
    """What each sublayer is called with, for every subset; one that is not named does not run."""
    model = model_of(name, attention=attention)
    seen: dict[str, tuple[int, int]] = {}

    def note(of: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            lengths = [t.shape[1] for t in args]
            seen[of] = (lengths[0], lengths[-1])

        return hook

    for of, module in sublayers(model).items():
        module.register_forward_pre_hook(note(of), with_kwargs=True)
    inputs = inputs_of(1)
    for subset in SUBSETS:
        seen.clear()
        model({m: inputs[m] for m in subset})
        declared = model.leeboard_tokens(frozenset(subset))
        expected = {}
        for of in sublayers(model):
            fitting = [p for p in declared if of == p or of.startswith(p + ".")]
            if fitting:
                expected[of] = tuple(declared[max(fitting, key=len)])
        assert seen == expected, subset


@every_backbone
def test_masked_samples_do_not_depend_on_each_other(name: str) -> None:
    model = model_of(name, attention="gqa")
    inputs = inputs_of(5)
    present = torch.rand(5, 4) < 0.6
    present[:, 1] = True
    logits = model(inputs, present)
    for row in range(5):
        alone = model({m: x[row : row + 1] for m, x in inputs.items()}, present[row : row + 1])
        torch.testing.assert_close(alone, logits[row : row + 1], rtol=1e-5, atol=1e-5)


@every_backbone
@every_attention
def test_sizes_by_config(name: str, attention: str) -> None:
    model = model_of(name, attention=attention)
    groups = 4 if attention == "dense" else 2
    for of, module in sublayers(model).items():
        if isinstance(module, FeedForward):
            assert module.up.out_features == 32
        else:
            assert module.num_kv_heads == groups, of
            if name != "late" or "fusion" not in of:
                is_dense = module.pattern == Dense()
                mixes = "cross" in of or "fusion" in of
                assert is_dense == (attention != "sparse" or mixes), of


@every_backbone
def test_seeded(name: str) -> None:
    config = BackboneConfig(STREAMS, 3, d_model=24, heads=4, hidden=32)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = build(name, config)
    # The caller's random numbers go on as if nothing had been drawn.
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)
    second = build(name, config)
    for (key, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=key)
    other = build(name, config.replace(seed=1))
    assert not torch.equal(other.classifier.weight, first.classifier.weight)
    assert torch.equal(copy.deepcopy(first).classifier.weight, first.classifier.weight)


@every_backbone
def test_traces_in_one_graph(name: str) -> None:
    model = model_of(name, modalities=STREAMS[:2], attention="sparse", layers=1)
    inputs = {m: x for m, x in inputs_of(2).items() if m in model.modalities}
    present = torch.tensor([[True, False], [True, True]])
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(inputs, present), model(inputs, present))
        if name == "shared":
            # Its pattern is another one then.
            some = {"eda": inputs["eda"]}
            torch.testing.assert_close(compiled(some), model(some))


@every_backbone
def test_plans_run_and_compact(name: str) -> None:
    """Half of the units, with all modalities and with two: switched plan and smaller model agree."""
    model = model_of(name, attention="sparse").eval()
    found = units(model)
    assert len(found) == len(sublayers(model))
    assert {module.type for module in found.left_alone} == {type(model).__name__, "Tokenizer"}
    ranking = StaticScores(found, "random", {s.name: torch.rand(s.units) for s in found})
    every = inputs_of(3)
    for present in (NAMES, NAMES[1:3]):
        chosen = plan(ranking, present=present, budget="50%")
        inputs = {m: every[m] for m in present}
        with torch.no_grad():
            whole = model(inputs)
            apply(model, chosen)
            pruned = model(inputs)
            revert(model)
            torch.testing.assert_close(model(inputs), whole, rtol=0, atol=0)
            small = compact(model, chosen)(inputs)
        torch.testing.assert_close(small, pruned, rtol=1e-5, atol=1e-5)
        assert (pruned - whole).abs().max() > 1e-3


@every_backbone
def test_bad_calls_name_the_modality(name: str) -> None:
    model = model_of(name)
    inputs = inputs_of(3)
    ones = torch.ones(3, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match="inputs: got 'ppg', expected modalities among acc, eda"):
        model({**inputs, "ppg": inputs["eda"]})
    with pytest.raises(ValueError, match="inputs: got no modality, expected at least one of acc"):
        model({})
    with pytest.raises(TypeError, match="inputs: got Tensor, expected a dict"):
        model(inputs["acc"])
    with pytest.raises(ValueError, match=r"'acc'\]: got shape \[3, 8, 1\], expected \[B, 12, 3\]"):
        model({**inputs, "acc": inputs["eda"]})
    with pytest.raises(ValueError, match=r"'meta'\].* expected \[B, 1, 5\] or \[B, 5\]"):
        model({"meta": torch.zeros(3, 4)})
    with pytest.raises(ValueError, match=r"'eda'\]: got 2 samples, expected 3, as many as of acc"):
        model({**inputs, "eda": inputs["eda"][:2]})
    with pytest.raises(TypeError, match=r"'eda'\]: got torch.int64, expected torch.float32"):
        model({**inputs, "eda": inputs["eda"].long()})
    with pytest.raises(TypeError, match=r"'eda'\]: got list, expected a tensor"):
        model({**inputs, "eda": [0.0]})
    for bad in (float("nan"), float("inf")):
        broken = inputs["eda"].clone()
        broken[1, 3] = bad
        with pytest.raises(ValueError, match=r"'eda'\]: got NaN or infinity in 1 of 3 samples"):
            model({**inputs, "eda": broken})
    with pytest.raises(TypeError, match=r"present: got torch\.float32, expected a bool tensor"):
        model(inputs, ones.float())
    with pytest.raises(ValueError, match=r"present: got shape \[3, 3\], expected \[3, 4\]"):
        model(inputs, ones[:, :3])
    present = ones.clone()
    present[1] = False
    with pytest.raises(ValueError, match=r"present: got no modality for 1 of 3 samples, .* 1;"):
        model(inputs, present)
    # Only the missing one is marked as present.
    with pytest.raises(ValueError, match="present: got no modality for 3 of 3 samples"):
        model({"acc": inputs["acc"]}, ~ones | (torch.arange(4) == 1))
    with pytest.raises(ValueError, match="present: got 'ppg', expected modalities among acc"):
        model.leeboard_tokens(frozenset({"acc", "ppg"}))
    with pytest.raises(ValueError, match="present: got no modality"):
        model.leeboard_tokens(frozenset())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modalities": ()}, "modalities: got none"),
        ({"modalities": (("a", 1, 8, 3),)}, "patch of a: got 3, expected a divisor of its length"),
        ({"modalities": (("a.b", 1),)}, "modalities: got the name 'a.b'"),
        ({"modalities": (("a", 1), ("a", 2))}, "modalities: got 'a' twice"),
        ({"modalities": (("a", 0),)}, "channels of a: got 0"),
        ({"heads": 5}, "heads: got 5, expected a divisor of d_model"),
        ({"kv_heads": 4}, "kv_heads: got 4, expected a divisor of heads"),
        ({"attention": "linear"}, "attention: got 'linear'"),
        ({"activation": "swish"}, "activation: got 'swish'"),
        ({"hidden": 1.5}, "hidden: got 1.5, expected a positive integer"),
    ],
)
def test_bad_configs(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BackboneConfig(STREAMS, 3).replace(**changes)


def test_bad_names() -> None:
    with pytest.raises(ValueError, match=r"name: got 'early', expected one of shared, cross, late"):
        build("early", BackboneConfig(STREAMS, 3))
    with pytest.raises(ValueError, match=r"modalities: .*'keys'.*; choose another name"):
        build("late", BackboneConfig((Stream("keys", 1),), 3))
    with pytest.raises(TypeError, match=r"modalities: got 3, expected \(name, channels"):
        BackboneConfig((3,), 3)  # type: ignore[arg-type]


def test_config_for_inputs() -> None:
    inputs = {"a": torch.zeros(2, 125, 3), "b": torch.zeros(2, 7), "c": torch.zeros(2, 8, 1)}
    config = BackboneConfig.for_inputs(inputs, 4, tokens=8, layers=1)
    assert config.modalities == (("a", 3, 125, 25), ("b", 7, 1, 1), ("c", 1, 8, 1))
    assert config.layers == 1
    assert build("shared", config)(inputs).shape == (2, 4)
    with pytest.raises(ValueError, match=r"inputs\['d'\]: got shape \[2\]"):
        BackboneConfig.for_inputs({"d": torch.zeros(2)}, 4)
