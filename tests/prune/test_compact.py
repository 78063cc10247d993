"""Compact models, against the masked ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from leeboard import nn as lnn
from leeboard.ops.patterns import Band, Modality, TopU
from leeboard.prune import Declaration, active_plan, apply, compact, units
from pruned_models import (
    Fused,
    encoder,
    hugging_face,
    inputs_of,
    masked,
    none,
    odd_units,
    plan_for,
    tensors_of,
    whole_units,
)


def weights_of(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def check(model: nn.Module, call: Callable[[Any], Tensor], **options: Any) -> None:
    """Compact models of all kinds of plans compute what masked ones do, with fewer weights."""
    model.eval()
    found = units(model)
    assert len(found)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    biased = all(model.get_submodule(s.reader).bias is not None for s in found)
    for keep in (whole_units(found), odd_units, none, lambda name, count: tuple(range(count))):
        for extra in (False, True):
            plan = plan_for(found, keep, scales=extra, bias=extra and biased)
            small = compact(model, plan, **options)
            with torch.no_grad():
                torch.testing.assert_close(call(small), call(masked(model, found, plan)))
            assert not small.training
            if all(len(plan.keep[s.name]) < s.units for s in found):
                # Constants of dropped blocks are parameters, too.
                shed = sum(
                    (s.units - len(plan.keep[s.name])) // s.group * s.group * s.width for s in found
                )
                assert weights_of(small) < weights_of(model) - shed
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in state.items())
    assert not any("forward" in vars(m) for m in model.modules())


def windows() -> dict[str, Tensor]:
    return {"left": torch.randn(2, 3, 24), "right": torch.randn(2, 3, 24)}


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_own_modules(plain: bool, gated: bool) -> None:
    x = windows()
    check(Fused(gated=gated, sinks=gated), lambda m: m(x), plain=plain)


def test_blocks_alone() -> None:
    x = torch.randn(2, 6, 24)
    check(lnn.FeedForward(24, 40, residual=False, norm=None), lambda m: m(x))
    check(nn.MultiheadAttention(24, 4, batch_first=True), lambda m: m(x, x, x)[0])
    check(lnn.SparseGQA(24, 4, pattern=TopU(1)), lambda m: m(x), plain=False)


@pytest.mark.parametrize("norm_first", [False, True])
def test_torch_layers(norm_first: bool) -> None:
    x, memory = torch.randn(2, 5, 24), torch.randn(2, 7, 24)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    causal = nn.Transformer.generate_square_subsequent_mask(5)
    model = encoder(norm_first=norm_first, activation="gelu")
    model.use_nested_tensor = False
    check(model, lambda m: m(x, src_key_padding_mask=padding)[~padding])
    check(model, lambda m: m(x, mask=causal, is_causal=True))
    decoder = nn.TransformerDecoderLayer(24, 4, 40, batch_first=True, norm_first=norm_first)
    check(decoder, lambda m: m(x, memory, tgt_mask=causal))
    per_head = torch.randn(8, 5, 5)
    check(decoder, lambda m: m(x, memory, tgt_mask=per_head))


def test_replaced_attention() -> None:
    x = torch.randn(2, 6, 24)
    model = encoder(dropout=0.0)
    lnn.replace(model, attention=Modality.of_lengths([4, 2]))
    check(model, lambda m: m(x))
    check(model, lambda m: m(x), plain=False)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["bert", "vit", "clip", "llama", "qwen3"])
def test_hugging_face(kind: str, attention: str) -> None:
    inputs = inputs_of(kind)
    check(hugging_face(kind, attention), lambda m: tensors_of(m(**inputs))[0])


@pytest.mark.parametrize("keep", [odd_units, none])
def test_generate(keep: Callable[[str, int], tuple[int, ...]]) -> None:
    model, inputs = hugging_face("llama").eval(), inputs_of("llama")
    found = units(model)
    plan = plan_for(found, keep)
    options = {"max_new_tokens": 5, "do_sample": False}
    expected = masked(model, found, plan).generate(**inputs, **options)
    assert torch.equal(compact(model, plan).generate(**inputs, **options), expected)


def test_sizes() -> None:
    model = hugging_face("llama")
    found = units(model)
    plan = plan_for(found, lambda n, c: (1,) if n.endswith("attn") else (3, 5, 7))
    layer: Any = compact(model, plan).get_submodule("model.layers.0")
    # A group of two query heads stays whole.
    assert layer.self_attn.q_proj.weight.shape == (12, 24)
    assert layer.self_attn.k_proj.weight.shape == (6, 24)
    assert layer.self_attn.o_proj.weight.shape == (24, 12)
    assert (layer.self_attn.o_proj.weight[:, :6] == 0).all()
    assert layer.mlp.down_proj.weight.shape == (24, 3)
    fused = compact(Fused(), plan_for(units(Fused()), lambda n, c: (1,)), plain=False)
    block: Any = fused.get_submodule("model.attention")
    assert (block.num_heads, block.num_kv_heads, block.sink_logits.shape) == (3, 1, (3,))


def test_options_of_sparse_gqa() -> None:
    x = torch.randn(2, 6, 24)
    padding = torch.ones(2, 6, dtype=torch.bool)
    padding[0, :4] = False
    angles = torch.rand(1, 6, 6)
    rotation = (angles.cos(), angles.sin())
    for options in ({"sinks": True, "softcap": 5.0}, {}):
        model = lnn.SparseGQA(24, 4, 2, **options)  # type: ignore[arg-type]
        check(
            model,
            lambda m: m(x, key_padding=padding, position_embeddings=rotation, pattern=Band(2)),
        )


def test_patterns_that_no_mask_says() -> None:
    model = nn.ModuleDict({"attend": lnn.SparseGQA(24, 4, pattern=TopU())})
    plan = plan_for(units(model), odd_units)
    with pytest.raises(ValueError, match="plain: attend attends by"):
        compact(model, plan)


def test_declared_blocks() -> None:
    model = nn.Sequential(nn.Linear(24, 33), nn.Sigmoid(), nn.Linear(33, 5)).eval()
    found = units(model, declare=[Declaration("", "feed_forward", ("0",), "2")])
    x = torch.randn(4, 24)
    for keep in (odd_units, none):
        plan = plan_for(found, keep, scales=True, bias=True)
        torch.testing.assert_close(
            compact(model, plan, units=found)(x), masked(model, found, plan)(x)
        )


def test_a_model_under_a_plan_can_be_compacted() -> None:
    model, x = encoder().eval(), torch.randn(2, 5, 24)
    found = units(model)
    first, second = plan_for(found, odd_units), plan_for(found, whole_units(found))
    apply(model, first)
    with torch.no_grad():
        now = model(x)
        small = compact(model, second)
        assert active_plan(model) is first
        assert active_plan(small) is None
        assert torch.equal(model(x), now)
        apply(model, second)
        torch.testing.assert_close(small(x), model(x))
    assert not any("forward" in vars(m) or "_ff_block" in vars(m) for m in small.modules())


def test_only_present_modalities_are_read() -> None:
    class Streams(nn.Module):
        modalities = ("left", "right")

        def __init__(self) -> None:
            super().__init__()
            self.stems = nn.ModuleDict({m: nn.Linear(24, 24) for m in self.modalities})
            self.ff = lnn.FeedForward(24, 40)

        def forward(self, inputs: dict[str, Tensor], present: Tensor | None = None) -> Tensor:
            if not inputs:
                raise ValueError("inputs: no modality")
            return self.ff(torch.cat([self.stems[m](x) for m, x in inputs.items()], 1).mean(1))

    model, x = Streams(), windows()
    plan = plan_for(units(model), odd_units, present=("right",))
    small = compact(model, plan)
    assert small.modalities == ("right",)
    expected = masked(model, units(model), plan)({"right": x["right"]})
    torch.testing.assert_close(small(x), expected)
    # The stem of the missing modality is gone, too.
    assert weights_of(small.get_submodule("model.stems")) == 24 * 24 + 24
    assert weights_of(model.stems) == 2 * (24 * 24 + 24)
    with pytest.raises(RuntimeError, match="without 'left'"):
        small.get_submodule("model")({"left": x["left"]})


def test_a_compact_model_is_plain_torch_and_trains() -> None:
    model = Fused()
    small = compact(model, plan_for(units(model), odd_units))
    assert small.training
    names = {type(m).__module__ for m in small.modules()}
    assert not any(name.startswith("leeboard.nn") for name in names)
    small(windows()).sum().backward()
    assert all(p.grad is not None for p in small.parameters())
    assert all(p.grad is None for p in model.parameters())
    copy.deepcopy(small)


@pytest.mark.parametrize("kind", ["own", "torch"])
@torch.no_grad()
def test_a_compact_model_compiles_into_one_graph(kind: str) -> None:
    torch._dynamo.reset()
    model, x = (Fused(), windows()) if kind == "own" else (encoder(), torch.randn(2, 5, 24))
    model.eval()
    small = compact(model, plan_for(units(model), odd_units))
    compiled = torch.compile(small, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), small(x))


def test_bad_plans() -> None:
    model = Fused()
    plan = plan_for(units(model), odd_units)
    with pytest.raises(ValueError, match="fingerprint 0"):
        compact(model, replace(plan, fingerprint="0"))
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module"):
        compact(plan, model)  # type: ignore[arg-type]
    model.attention.active_heads = [1]
    with pytest.raises(ValueError, match="attention has active_heads"):
        compact(model, plan)
