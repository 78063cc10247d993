"""Small models of every known family, plans for them, and an oracle that zeroes weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from leeboard.nn import CrossAttention, FeedForward, SparseGQA
from leeboard.ops.patterns import Band
from leeboard.prune import Plan, Units


class Fused(nn.Module):
    """leeboard's own blocks, with inputs of two modalities."""

    modalities = ("left", "right")

    def __init__(self, *, gated: bool = True, sinks: bool = True) -> None:
        super().__init__()
        self.attention = SparseGQA(24, 6, 2, head_dim=5, pattern=Band(4), sinks=sinks)
        self.cross = CrossAttention(24, 4, 2, key_dim=12)
        self.memory = nn.Linear(24, 12)
        self.ff = FeedForward(24, 40, gated=gated, activation="silu" if gated else "gelu")
        self.head = nn.Linear(24, 3)
        if sinks:
            nn.init.normal_(self.attention.sink_logits)

    def leeboard_tokens(self, present: frozenset[str]) -> dict[str, tuple[int, int]]:
        count = 3 * len(present)
        return {"attention": (count, count), "cross": (count, count), "ff": (count, 0)}

    def forward(self, inputs: dict[str, Tensor], present: Tensor | None = None) -> Tensor:
        x = torch.cat([inputs[m] for m in self.modalities if m in inputs], 1)
        x = x + self.attention(x)
        x = x + self.cross(x, self.memory(x))
        return self.head(self.ff(x).mean(1))


def encoder(**options: Any) -> nn.Module:
    layer = nn.TransformerEncoderLayer(24, 4, 40, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=not options.get("norm_first"))


def text(model: nn.Module, x: Tensor, padding: Tensor) -> Tensor:
    return model(input_ids=x, attention_mask=(~padding).long()).last_hidden_state


def hugging_face(kind: str, attention: str = "sdpa") -> nn.Module:
    """A tiny random model of transformers."""
    import transformers as t

    sizes = {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 40,
        "attn_implementation": attention,
    }
    ids = {"vocab_size": 30, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    image = {"image_size": 8, "patch_size": 4}
    if kind == "bert":
        return t.BertModel(t.BertConfig(**sizes, **ids))
    if kind == "vit":
        return t.ViTModel(t.ViTConfig(**sizes, **image))
    if kind == "clip":
        config = t.CLIPConfig(text_config={**sizes, **ids}, vision_config={**sizes, **image})
        config._attn_implementation = attention
        return t.CLIPModel(config)
    classes = {
        "llama": (t.LlamaConfig, t.LlamaForCausalLM),
        "qwen3": (t.Qwen3Config, t.Qwen3ForCausalLM),
    }
    config_class, model_class = classes[kind]
    return model_class(config_class(**sizes, **ids, num_key_value_heads=2, head_dim=6))


def inputs_of(kind: str) -> dict[str, Any]:
    """Keyword arguments for a model of transformers, padded on the left for the last rows."""
    ids = torch.randint(3, 30, (2, 7))
    mask = torch.ones(2, 7, dtype=torch.int64)
    mask[1, :3] = 0
    pixels = torch.randn(2, 3, 8, 8)
    if kind == "vit":
        return {"pixel_values": pixels}
    text_inputs = {"input_ids": ids, "attention_mask": mask}
    return {**text_inputs, "pixel_values": pixels} if kind == "clip" else text_inputs


def tensors_of(output: Any) -> list[Tensor]:
    """The result as a list of tensors."""
    if isinstance(output, Tensor):
        return [output]
    for name in ("last_hidden_state", "logits", "logits_per_text"):
        if getattr(output, name, None) is not None:
            return [getattr(output, name)]
    raise AssertionError(type(output))


def plan_for(
    units: Units,
    keep: Callable[[str, int], tuple[int, ...]],
    *,
    scales: bool = False,
    bias: bool = False,
    present: tuple[str, ...] | None = None,
) -> Plan:
    """A plan that keeps keep(name, units) of every sublayer, with random scales and biases."""
    kept = {s.name: keep(s.name, s.units) for s in units}
    return Plan(
        units.fingerprint,
        present or units.modalities,
        "by hand",
        kept,
        {n: tuple((0.5 + torch.rand(len(k))).tolist()) for n, k in kept.items()} if scales else {},
        {s.name: tuple(torch.randn(s.out_features).tolist()) for s in units} if bias else {},
    )


def whole_units(units: Units) -> Callable[[str, int], tuple[int, ...]]:
    """Keeps whole groups of heads and panels of 16 channels: the last of each."""

    def keep(name: str, count: int) -> tuple[int, ...]:
        sublayer = units[name]
        step = sublayer.group if sublayer.kind == "attention" else 16
        return tuple(range((count - 1) // step * step, count))

    return keep


def odd_units(name: str, count: int) -> tuple[int, ...]:
    """Keeps units that fill no group and no panel."""
    return tuple(n for n in range(count) if n % 3 == 1)


def none(name: str, count: int) -> tuple[int, ...]:
    """Drops everything."""
    return ()


def masked(model: nn.Module, units: Units, plan: Plan) -> nn.Module:
    """A copy of the model whose readers have zero weights where the plan keeps nothing."""
    model = copy.deepcopy(model)
    for name, kept in plan.keep.items():
        sublayer = units[name]
        reader: Any = model.get_submodule(sublayer.reader)
        factors = torch.zeros(sublayer.units)
        factors[list(kept)] = torch.tensor(plan.scales.get(name, (1.0,) * len(kept)))
        with torch.no_grad():
            reader.weight *= factors.repeat_interleave(sublayer.width)
            if reader.bias is not None and not kept:
                reader.bias.zero_()
            if name in plan.bias:
                assert reader.bias is not None
                reader.bias += torch.tensor(plan.bias[name])
    return model
