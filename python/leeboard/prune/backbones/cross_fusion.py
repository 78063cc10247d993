"""An encoder for each modality; learned tokens read what they found."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from leeboard.nn import CrossAttention, FeedForward
from leeboard.ops.patterns import Dense
from leeboard.prune.backbones._base import (
    Backbone,
    Encoder,
    EncoderBlock,
    embedding,
    kv_heads,
    replicate,
    self_tokens,
    token_padding,
)
from leeboard.prune.backbones.config import BackboneConfig
from leeboard.prune.units import Tokens


class CrossBlock(nn.Module):
    """x + attention(norm(x), norm(memory)), then x + feed_forward(norm(x)): [B, L, d]."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.d_model)
        self.memory_norm = nn.LayerNorm(config.d_model)
        self.attention = CrossAttention(config.d_model, config.heads, kv_heads(config))
        self.feed_forward = FeedForward(config.d_model, config.hidden, activation=config.activation)

    def forward(self, x: Tensor, memory: Tensor, *, key_padding: Tensor | None = None) -> Tensor:
        """`key_padding` bool [B, tokens of the memory], true for those that nobody sees."""
        seen = self.attention(self.norm(x), self.memory_norm(memory), key_padding=key_padding)
        y: Tensor = self.feed_forward(x + seen)
        return y


class CrossFusion(Backbone):
    """Encoders of the single modalities; learned fusion tokens attend to all of their tokens.

    The fusion tokens then go through encoder blocks of their own, to their mean. The encoder of a
    modality that is missing for the whole batch does not run.
    """

    def _build(self, config: BackboneConfig) -> None:
        self.encoders = nn.ModuleDict({s.name: Encoder(config) for s in config.modalities})
        self.fusion_tokens = embedding(config.fusion_tokens, config.d_model)
        self.cross = CrossBlock(config)
        self.fusion = nn.ModuleList(
            EncoderBlock(config, Dense()) for _ in range(config.fusion_layers)
        )

    def _pooled(self, tokens: dict[str, Tensor], there: dict[str, Tensor] | None) -> Tensor:
        padding = token_padding(tokens, there)
        memory = torch.cat([self.encoders[name](x) for name, x in tokens.items()], 1)
        x = replicate(self.fusion_tokens, memory.shape[0])
        x = self.cross(x, memory, key_padding=padding)
        for block in self.fusion:
            x = block(x)
        pooled: Tensor = x.mean(1)
        return pooled

    def leeboard_tokens(self, present: frozenset[str]) -> dict[str, Tokens]:
        """Encoders of the modalities that are there, the cross block and the fusion blocks."""
        lengths = self.lengths(present)
        fused = self.config.fusion_tokens
        found = {f"encoders.{name}": Tokens(n, n) for name, n in lengths.items()}
        found["cross"] = Tokens(fused, sum(lengths.values()))
        return found | self_tokens(["cross.feed_forward", "fusion"], fused)
