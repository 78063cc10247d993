"""Replacing the norms of Hugging Face models: same outputs, same gradients, same text."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import leeboard.nn
import leeboard.ops
from tolerances import assert_close_to_reference

transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
# Model: configuration class, causal LM class, norms per layer, rounding, offset.
MODELS = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", 2, "before_weight", 0.0),
    "mistral": ("MistralConfig", "MistralForCausalLM", 2, "before_weight", 0.0),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", 2, "before_weight", 0.0),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", 4, "before_weight", 0.0),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", 2, "after_weight", 1.0),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", 4, "after_weight", 1.0),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", 6, "after_weight", 1.0),
}
each_model = pytest.mark.parametrize("kind", MODELS)


def build(kind: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    config = getattr(transformers, MODELS[kind][0])(**SIZES)
    model = getattr(transformers, MODELS[kind][1])(config).eval()
    for name, parameter in model.named_parameters():
        # A fresh norm hides a wrong offset or a wrong rounding.
        if "norm" in name:
            nn.init.normal_(parameter, parameter.mean().item(), 0.2)
    return model.to(dtype)


def tokens() -> torch.Tensor:
    return torch.randint(1, 97, (2, 9), generator=torch.Generator().manual_seed(1))


@each_model
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_outputs(kind: str, dtype: torch.dtype) -> None:
    model = build(kind, dtype)
    _, _, per_layer, rounding, offset = MODELS[kind]
    with torch.no_grad():
        before = model(tokens()).logits
        report = leeboard.nn.replace(model)
        assert len(report.replaced) == 2 * per_layer + 1
        assert report.left == ()
        for entry in report.replaced:
            module = model.get_submodule(entry.name)
            assert (module.rounding, module.weight_offset) == (rounding, offset)
        # Same operations in the same order: the reference gives the same bits.
        with leeboard.ops.backend("reference"):
            assert torch.equal(model(tokens()).logits, before)
            exact = copy.deepcopy(model).double()(tokens()).logits
        assert_close_to_reference(model(tokens()).logits, before, exact)


@each_model
def test_gradients_and_way_back(kind: str) -> None:
    model = build(kind)
    originals = dict(model.named_modules())
    keys = list(model.state_dict())

    def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
        model.zero_grad()
        model(tokens(), labels=tokens()).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    low = gradients(model)
    report = leeboard.nn.replace(model)
    assert list(model.state_dict()) == keys
    actual = gradients(model)
    with leeboard.ops.backend("reference"):
        exact = gradients(copy.deepcopy(model).double())
    assert actual.keys() == low.keys()
    for name, grad in actual.items():
        assert grad.abs().sum() > 0, name
        assert_close_to_reference(grad, low[name], exact[name])
    report.undo()
    assert dict(model.named_modules()) == originals


@each_model
def test_weight_of_another_type(kind: str) -> None:
    name = "model.norm"
    norm = build(kind).get_submodule(name)
    holder = nn.Sequential(copy.deepcopy(norm))
    assert len(leeboard.nn.replace(holder).replaced) == 1
    x = torch.randn(5, 48, generator=torch.Generator().manual_seed(2))
    for weight in (torch.float32, torch.bfloat16, torch.float16):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            theirs, ours = norm.to(weight)(x.to(dtype)), holder.to(weight)(x.to(dtype))
            assert ours.dtype == theirs.dtype, (weight, dtype)
            with leeboard.ops.backend("reference"):
                assert torch.equal(holder(x.to(dtype)), theirs), (weight, dtype)
            torch.testing.assert_close(ours, theirs)


def test_generates_the_same_text() -> None:
    model = build("llama")
    settings = {"max_new_tokens": 8, "do_sample": False}
    before = model.generate(tokens(), **settings)
    leeboard.nn.replace(model)
    after = model.generate(tokens(), **settings)
    assert after.shape == (2, 17)
    assert torch.equal(after, before)


def test_compiles_as_one_graph() -> None:
    model = build("llama")
    layer = model.model.layers[0].input_layernorm
    leeboard.nn.replace(model)
    swapped = model.model.layers[0].input_layernorm
    x = torch.randn(3, 48)
    compiled = torch.compile(swapped, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))


def test_reinitialising_resets_the_norms() -> None:
    # transformers finds norms by class name when it initialises weights.
    model = build("gemma")
    leeboard.nn.replace(model)
    norm = model.model.norm
    model._init_weights(norm)
    assert torch.equal(norm.weight, torch.zeros(48))
