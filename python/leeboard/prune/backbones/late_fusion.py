"""An encoder for each modality; their vectors meet in a bottleneck."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from leeboard.ops.patterns import Band, Blocks, Pattern
from leeboard.prune.backbones._base import (
    Backbone,
    Encoder,
    EncoderBlock,
    embedding,
    replicate,
    self_tokens,
)
from leeboard.prune.backbones.config import BackboneConfig
from leeboard.prune.units import Tokens


class LateFusion(Backbone):
    """Encoders of the single modalities, one vector of each, and a bottleneck between them.

    A modality's vector is the norm of its tokens' mean. Learned bottleneck tokens see all vectors,
    a vector sees the bottleneck and itself: modalities meet nowhere else (after Nagrani et al.,
    2021, arXiv:2107.00135, who put the bottleneck between the tokens of two encoders). The result
    is read from the bottleneck. The encoder of a modality that is missing for the whole batch does
    not run. With "sparse" attention the encoders see bands; the bottleneck is the same in all.
    """

    def _build(self, config: BackboneConfig) -> None:
        self._patterns = {
            n: _bottleneck(config.fusion_tokens, n) for n in range(1, len(config.modalities) + 1)
        }
        self.encoders = nn.ModuleDict({s.name: Encoder(config) for s in config.modalities})
        self.vector_norms = nn.ModuleDict(
            {s.name: nn.LayerNorm(config.d_model) for s in config.modalities}
        )
        self.bottleneck = embedding(config.fusion_tokens, config.d_model)
        pattern = self._patterns[len(config.modalities)]
        self.fusion = nn.ModuleList(
            EncoderBlock(config, pattern) for _ in range(config.fusion_layers)
        )

    def _pooled(self, tokens: dict[str, Tensor], there: dict[str, Tensor] | None) -> Tensor:
        vectors = [
            self.vector_norms[name](self.encoders[name](x).mean(1)) for name, x in tokens.items()
        ]
        batch, fused = vectors[0].shape[0], self.config.fusion_tokens
        x = torch.cat((replicate(self.bottleneck, batch), torch.stack(vectors, 1)), 1)
        padding = None
        if there is not None:
            missing = ~torch.cat(list(there.values()), 1)
            padding = torch.cat((missing.new_zeros(batch, fused), missing), 1)
        for block in self.fusion:
            x = block(x, key_padding=padding, pattern=self._patterns[len(vectors)])
        return x[:, :fused].mean(1)

    def leeboard_tokens(self, present: frozenset[str]) -> dict[str, Tokens]:
        """Encoders of the modalities that are there, and the bottleneck with their vectors."""
        lengths = self.lengths(present)
        found = {f"encoders.{name}": Tokens(n, n) for name, n in lengths.items()}
        return found | self_tokens(["fusion"], self.config.fusion_tokens + len(lengths))


def _bottleneck(fused: int, vectors: int) -> Pattern:
    """The first `fused` tokens see all, the others them and themselves."""
    blocks = -(-(fused + vectors) // fused)
    rows = (tuple(range(blocks)), *((),) * (blocks - 1))
    return Band(1, sinks=fused, causal=False) | Blocks(rows, fused)
