"""What is trained, and every number that decides how: arms, sizes, presets."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from leeboard.demo.settings import Settings as DemoSettings

STAGES = ("corpus", "tokens", "target", "states", "texts", "threshold", "arms")

# The drafters under comparison, as overrides of DrafterConfig.
_PLAIN = {"norm_output": False, "fc_norm": False, "norm_before_residual": False}
ARMS: dict[str, dict[str, bool]] = {
    "pre": _PLAIN,
    "norm_output": _PLAIN | {"norm_output": True},
    "norm_output+fc_norm": _PLAIN | {"norm_output": True, "fc_norm": True},
    "norm_before_residual": _PLAIN | {"norm_before_residual": True},
    "fc_norm": _PLAIN | {"fc_norm": True},
}
ABOUT = {
    "pre": "EAGLE-3 as first published: the raw residual stream is fed back",
    "norm_output": "the final norm's output is fed back (post-norm)",
    "norm_output+fc_norm": "post-norm, and one RMSNorm per captured state before `fc`",
    "norm_before_residual": "the residual stream of every step starts from the normed state",
    "fc_norm": "one RMSNorm per captured state before `fc`, the raw stream is fed back",
}

# Name -> whether the chat template is there, and BOS. The drafters see the first alone in training.
CONDITIONS: dict[str, tuple[bool, bool]] = {
    "template + BOS": (True, True),
    "template, no BOS": (True, False),
    "raw + BOS": (False, True),
    "raw": (False, False),
}
MATCHED = "template + BOS"


@dataclass(frozen=True)
class Arm:
    """One training: a drafter's norms, the chain in its training, its seed."""

    name: str
    ttt: int
    seed: int

    @property
    def title(self) -> str:
        return f"{self.name} · TTT {self.ttt} · seed {self.seed}"

    @property
    def slug(self) -> str:
        """For names of folders."""
        return f"{self.name.replace('+', '-')}-ttt{self.ttt}-seed{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes, seeds and the rule of the training's end. The defaults fit 30 minutes on two cores.

    What the defaults cost on two cores of 2024 (an arm runs on one thread, two at a time): the
    target 4 minutes, its states and texts 1, the threshold 2, 30 trainings of about 350,000 tokens 9,
    and what is counted on them 8, half a minute of one core each. To fit, all arms read the states
    of one pool of rows, the target is small, there are three seeds, long contexts are counted in
    chains of 8, and noise on half of the prompts.

    An arm trains with a constant learning rate until the mean of its last `smooth` checks of
    depth-1 acceptance reaches a threshold that all arms share, or for `most_steps`. Checked, and
    measured in the end, is the running average of the weights: at a constant rate the weights
    themselves jump from check to check. So arms are compared at equal depth-1 acceptance, not after
    equal training. Unless it is given, the threshold is what "pre", trained on the longest chains,
    has after `anchor_steps` steps: the least over the seeds.

    Attributes:
        preset: Where the numbers come from.
        seed: Seeds the split, the target and the choice of prompts.
        seeds: Trainings of each arm; seeds 0, 1, ... of its weights and of the order of its rows.
        arms: Names out of `ARMS`.
        ttt: Chain steps unrolled in training (train-time-test), each for every arm.
        max_functions: Functions of the corpus to keep, None for all of them.
        heldout_share: Share of the files (not of the functions) held out from all training.
        vocab_size: Entries of the byte-level BPE vocabulary, special tokens included.
        layers: Decoder layers of the target.
        hidden_size: Width of the target and of the drafters.
        intermediate_size: Width of their feed-forward networks.
        heads: Attention heads of the target and of the drafters.
        target_tokens: Tokens that the target is trained on.
        target_row: Tokens of one training row of the target, and its longest context.
        target_batch: Rows per optimizer step of the target.
        target_lr: Its highest learning rate.
        pool_rows: Training rows of the drafters, whose states are kept on disk; an arm that needs
            more goes over them again in another order.
        row: Tokens of one of them; what lies beyond is a context longer than in training.
        batch: Rows per optimizer step.
        lr: Learning rate.
        warmup_steps: Steps in which it rises to that.
        average: How much of the weights' running average a step keeps.
        decay: Weight of a chain step's loss relative to the one before.
        check_every: Steps between two checks of depth-1 acceptance.
        smooth: Checks whose mean is compared with the threshold.
        threshold: Depth-1 acceptance on held-out texts at which training ends; None for that of the
            slowest arm.
        anchor_steps: Steps that the slowest arm is given for it.
        most_steps: Steps at most.
        cached: Whether the target's states on the pool are kept on disk; else the target runs for
            every batch of every arm.
        margin: Final depth-1 acceptances agree if they lie within so much of each other.
        depth: Chain steps measured.
        tail: First chain step of what is called the tail, counted from 1.
        prompts: Held-out prompts to count on.
        checks: Held-out prompts for the checks of depth-1 acceptance; others than those.
        prompt_tokens: Longest prompt, in tokens. With its new tokens it stays within `row`, so that
            depth is not mixed up with length.
        new_tokens: Tokens of a greedy text.
        contexts: Long contexts per bucket.
        context_tokens: Tokens of a greedy text behind a long context.
        context_depth: Chain steps measured behind a long context.
        buckets: Buckets of context length, each `row` tokens wide.
        window: Rows that a drafter sees in the windowed readings.
        sinks: First rows that stay visible there in the reading with sinks.
        noise: Sizes of the noise on the fed-back state, relative to its RMS.
        noise_prompts: The first so many of the prompts are used for it.
    """

    preset: str = "default"
    seed: int = 0
    seeds: int = 3
    arms: tuple[str, ...] = tuple(ARMS)
    ttt: tuple[int, ...] = (2, 4)
    max_functions: int | None = None
    heldout_share: float = 0.12
    vocab_size: int = 1024
    layers: int = 6
    hidden_size: int = 128
    intermediate_size: int = 352
    heads: int = 4
    target_tokens: int = 2_000_000
    target_row: int = 512
    target_batch: int = 4
    target_lr: float = 4e-3
    pool_rows: int = 6000
    row: int = 128
    batch: int = 16
    lr: float = 2e-3
    warmup_steps: int = 20
    average: float = 0.97
    decay: float = 0.8
    check_every: int = 5
    smooth: int = 2
    threshold: float | None = None
    anchor_steps: int = 280
    most_steps: int = 390
    cached: bool = True
    margin: float = 0.02
    depth: int = 16
    tail: int = 5
    prompts: int = 64
    checks: int = 64
    prompt_tokens: int = 48
    new_tokens: int = 80
    contexts: int = 24
    context_tokens: int = 48
    context_depth: int = 8
    buckets: int = 4
    window: int = 64
    sinks: int = 1
    noise: tuple[float, ...] = (0.1, 0.5, 1.0)
    noise_prompts: int = 32

    def __post_init__(self) -> None:
        for name in self.arms:
            if name not in ARMS:
                raise ValueError(f"arms: got {name!r}, expected some of {', '.join(ARMS)}")
        for field in (
            "seeds",
            "batch",
            "checks",
            "prompts",
            "contexts",
            "buckets",
            "noise_prompts",
        ):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}: got {getattr(self, field)}, expected 1 or more")
        if not self.arms or not self.ttt:
            raise ValueError("arms, ttt: expected at least one of each")
        for field in ("arms", "ttt"):
            if len(set(getattr(self, field))) < len(getattr(self, field)):
                raise ValueError(f"{field}: got {getattr(self, field)}, expected each only once")
        if min(self.ttt) < 1:
            raise ValueError(f"ttt: got {min(self.ttt)}, expected chains of 1 or more")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold: got {self.threshold}, expected a share between 0 and 1")
        if not 1 < self.tail <= self.depth:
            raise ValueError(f"tail: got {self.tail}, expected 2 to depth = {self.depth}")
        if self.prompt_tokens + self.new_tokens > self.row:
            raise ValueError(
                f"prompt_tokens + new_tokens: got {self.prompt_tokens + self.new_tokens}, expected "
                f"at most row = {self.row}: longer texts are for the buckets of context"
            )
        if self.buckets * self.row > self.target_row:
            raise ValueError(
                f"buckets: got {self.buckets} of {self.row} tokens, expected at most target_row = "
                f"{self.target_row} in all"
            )

    @property
    def demo(self) -> DemoSettings:
        """The demo's settings, for what is shared with it: the corpus, the tokenizer, the target."""
        shared = {field.name for field in dataclasses.fields(DemoSettings)} & set(vars(self))
        values: dict[str, Any] = {name: getattr(self, name) for name in shared}
        return DemoSettings(**values)

    def trainings(self) -> list[Arm]:
        """All trainings, seed by seed, the dearest first."""
        return [
            Arm(name, ttt, seed)
            for seed in range(self.seeds)
            for ttt in sorted(self.ttt, reverse=True)
            for name in self.arms
        ]

    def anchors(self) -> list[Arm]:
        """The trainings that set the threshold: the slowest arm's, all seeds."""
        slowest = "pre" if "pre" in self.arms else self.arms[0]
        return [Arm(slowest, max(self.ttt), seed) for seed in range(self.seeds)]

    @property
    def anchor(self) -> Settings:
        """Settings of such a training: its constant part, and nothing else."""
        return dataclasses.replace(self, threshold=1.0, most_steps=self.anchor_steps)

    def to_dict(self) -> dict[str, Any]:
        """As JSON gives it back: tuples are lists."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> Settings:
        """Inverse of `to_dict`.

        Raises:
            ValueError: Fields are unknown or wrong.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(given) - known):
            raise ValueError(f"settings: got unknown {', '.join(unknown)}")
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in given.items()
        }
        return cls(**values)


PRESETS: dict[str, Settings] = {
    "default": Settings(),
    # Two minutes; shows that everything runs.
    "quick": Settings(
        preset="quick",
        seeds=1,
        vocab_size=512,
        layers=4,
        hidden_size=64,
        intermediate_size=176,
        heads=2,
        target_tokens=80_000,
        target_row=256,
        target_batch=4,
        pool_rows=400,
        row=64,
        batch=8,
        warmup_steps=5,
        anchor_steps=30,
        most_steps=45,
        average=0.9,
        check_every=5,
        depth=8,
        prompts=8,
        checks=8,
        prompt_tokens=40,
        new_tokens=24,
        contexts=3,
        context_tokens=24,
        context_depth=4,
        window=32,
        noise_prompts=4,
    ),
    # A target that is worth the name, on one GPU.
    "gpu": Settings(
        preset="gpu",
        seeds=5,
        vocab_size=4096,
        layers=12,
        hidden_size=512,
        intermediate_size=1376,
        heads=8,
        target_tokens=60_000_000,
        target_row=1024,
        target_batch=32,
        target_lr=1e-3,
        pool_rows=40_000,
        row=256,
        batch=64,
        lr=5e-4,
        warmup_steps=100,
        anchor_steps=2000,
        most_steps=3000,
        average=0.99,
        cached=False,
        check_every=25,
        prompts=256,
        checks=128,
        prompt_tokens=128,
        new_tokens=128,
        contexts=64,
        context_tokens=96,
        window=128,
        noise_prompts=128,
    ),
}
