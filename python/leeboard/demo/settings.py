"""Every number that decides what the demo trains and decodes."""

from __future__ import annotations

import dataclasses

STAGES = ("corpus", "tokens", "target", "drafters", "decode")

# The two drafters under comparison, as overrides of DrafterConfig.
DRAFTERS: dict[str, dict[str, bool]] = {
    "pre": {"norm_output": False, "fc_norm": False},
    "post": {"norm_output": True, "fc_norm": True},
}
TITLES = {"plain": "plain greedy", "pre": "pre-norm", "post": "post-norm"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes and seeds of one demo run. The defaults fit eight minutes on two cores.

    Attributes:
        seed: Seeds the split, the order of the data, the weights and the choice of prompts.
        max_functions: Functions of the corpus to keep, None for all of them.
        heldout_share: Share of the files (not of the functions) held out from all training.
        vocab_size: Entries of the byte-level BPE vocabulary, special tokens included.
        layers: Decoder layers of the target.
        hidden_size: Width of the target and of the drafters.
        intermediate_size: Width of their feed-forward networks.
        heads: Attention heads of the target and of the drafters.
        target_tokens: Tokens that the target is trained on.
        target_row: Tokens of one training row of the target.
        target_batch: Rows per optimizer step of the target.
        target_lr: Its highest learning rate.
        drafter_tokens: Tokens that each drafter is trained on.
        drafter_row: Tokens of one training row of the drafters.
        drafter_batch: Rows per optimizer step of the drafters.
        drafter_lr: Their highest learning rate.
        ttt: Chain steps unrolled in the drafters' training (train-time-test).
        depth: Chain steps drafted per round in decoding.
        prompts: Held-out prompts to decode.
        prompt_tokens: Longest prompt, in tokens.
        new_tokens: Most tokens to decode for a prompt.
    """

    seed: int = 0
    max_functions: int | None = None
    heldout_share: float = 0.1
    vocab_size: int = 1024
    layers: int = 10
    hidden_size: int = 96
    intermediate_size: int = 256
    heads: int = 3
    target_tokens: int = 1_500_000
    target_row: int = 256
    target_batch: int = 6
    target_lr: float = 4e-3
    drafter_tokens: int = 600_000
    drafter_row: int = 128
    drafter_batch: int = 8
    drafter_lr: float = 2e-3
    ttt: int = 2
    depth: int = 8
    prompts: int = 32
    prompt_tokens: int = 128
    new_tokens: int = 96

    @classmethod
    def quick(cls, **changes: int) -> Settings:
        """A run of about a minute whose numbers mean little."""
        small = cls(
            max_functions=1500,
            vocab_size=512,
            layers=4,
            hidden_size=64,
            intermediate_size=176,
            heads=2,
            target_tokens=120_000,
            target_row=128,
            target_batch=8,
            drafter_tokens=50_000,
            drafter_row=96,
            drafter_batch=8,
            prompts=4,
            prompt_tokens=96,
            new_tokens=40,
        )
        return dataclasses.replace(small, **changes)

    @property
    def positions(self) -> int:
        """Longest sequence that any stage runs through a model."""
        return max(self.target_row, self.prompt_tokens + self.new_tokens)
