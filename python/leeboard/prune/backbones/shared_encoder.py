"""One encoder over the tokens of all modalities."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from leeboard.ops.patterns import Dense, Modality, Pattern
from leeboard.prune.backbones._base import (
    Backbone,
    EncoderBlock,
    masked_mean,
    self_tokens,
    token_padding,
)
from leeboard.prune.backbones.config import BackboneConfig
from leeboard.prune.units import Tokens

_DENSE = Dense()
# Up to so many modalities the patterns of all their subsets are made with the model.
_MADE_AHEAD = 8


class SharedEncoder(Backbone):
    """Tokens of all modalities behind one another, through the same blocks, to their mean.

    With "sparse" attention a token sees a band of its own modality and the first token of each
    (`leeboard.ops.patterns.Modality` over the modalities that are there).
    """

    def _build(self, config: BackboneConfig) -> None:
        self._patterns: dict[tuple[str, ...], Pattern] = {}
        pattern = self._pattern(self.modalities)
        # A pattern cannot be made while the model is traced.
        if config.attention == "sparse" and len(self.modalities) <= _MADE_AHEAD:
            for count in range(1, len(self.modalities)):
                for names in itertools.combinations(self.modalities, count):
                    self._pattern(names)
        self.blocks = nn.ModuleList(EncoderBlock(config, pattern) for _ in range(config.layers))

    def _pattern(self, names: tuple[str, ...]) -> Pattern:
        if self.config.attention != "sparse":
            return _DENSE
        found = self._patterns.get(names)
        if found is None:
            found = Modality.of_lengths(self.lengths(names).values(), self.config.window)
            self._patterns[names] = found
        return found

    def _pooled(self, tokens: dict[str, Tensor], there: dict[str, Tensor] | None) -> Tensor:
        padding = token_padding(tokens, there)
        pattern = self._pattern(tuple(tokens))
        x = torch.cat(list(tokens.values()), 1)
        for block in self.blocks:
            x = block(x, key_padding=padding, pattern=pattern)
        return masked_mean(x, padding)

    def leeboard_tokens(self, present: frozenset[str]) -> dict[str, Tokens]:
        """The blocks work on the tokens of all modalities that are there."""
        return self_tokens(["blocks"], sum(self.lengths(present).values()))
