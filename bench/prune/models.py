"""The measured models, their rankings, and torch's own forms of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from leeboard import prune
from leeboard.prune.backbones import BackboneConfig, Stream, build

# Five sensors of 64 steps, two steps to a token: 160 tokens.
SENSORS = ("ACC", "GYR", "PPG", "EDA", "TEMP")
GONE = ("PPG", "EDA")
CONFIG = BackboneConfig(
    modalities=tuple(Stream(name, 3, length=64, patch=2) for name in SENSORS),
    num_classes=12,
    d_model=64,
    heads=8,
    kv_heads=2,
    layers=3,
    hidden=256,
)
# Outputs of float32 models of a few layers; the ops have bounds of their own.
TOLERANCE = 2e-5


def backbone(name: str, **changes: Any) -> nn.Module:
    """A backbone with random weights, in eval mode."""
    return build(name, dataclasses.replace(CONFIG, **changes)).eval()


def window(batch: int = 1, names: tuple[str, ...] = SENSORS) -> dict[str, Tensor]:
    """One window of these sensors."""
    generator = torch.Generator().manual_seed(1)
    found = {name: torch.randn(batch, 64, 3, generator=generator) for name in SENSORS}
    return {name: found[name] for name in names}


def half(model: nn.Module, present: tuple[str, ...] | None = None, budget: str = "50%") -> Any:
    """A plan under random scores: time depends on how much is kept, not on what."""
    units = prune.units(model)
    generator = torch.Generator().manual_seed(2)
    values = {s.name: 0.5 + torch.rand(s.units, generator=generator) for s in units}
    scores = prune.StaticScores(units, "random", values)
    return prune.plan(scores, present=present, budget=budget, per_layer=True)


def dense(model: nn.Module, present: tuple[str, ...] | None = None) -> nn.Module:
    """The whole model in plain torch, for these modalities."""
    return prune.compact(model, prune.Plan.dense(prune.units(model), present))


def as_torch_layer(block: nn.Module) -> nn.TransformerEncoderLayer:
    """torch's own encoder layer with the weights of a backbone's block."""
    block_any: Any = block
    attention, feed = block_any.attention, block_any.feed_forward
    layer = nn.TransformerEncoderLayer(
        attention.embed_dim,
        attention.num_heads,
        feed.up.out_features,
        dropout=0.0,
        activation="gelu",
        batch_first=True,
        norm_first=True,
    ).eval()
    state: Mapping[str, Tensor] = {
        "self_attn.in_proj_weight": torch.cat(
            [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
        ),
        "self_attn.in_proj_bias": torch.cat(
            [attention.q_proj.bias, attention.k_proj.bias, attention.v_proj.bias]
        ),
        "self_attn.out_proj.weight": attention.out_proj.weight,
        "self_attn.out_proj.bias": attention.out_proj.bias,
        "linear1.weight": feed.up.weight,
        "linear1.bias": feed.up.bias,
        "linear2.weight": feed.down.weight,
        "linear2.bias": feed.down.bias,
        "norm1.weight": block_any.norm.weight,
        "norm1.bias": block_any.norm.bias,
        "norm2.weight": feed.norm.weight,
        "norm2.bias": feed.norm.bias,
    }
    layer.load_state_dict(state)
    return layer
