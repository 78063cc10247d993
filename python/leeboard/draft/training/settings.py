"""What a training is told: numbers of the optimizer, and of a drafter's training as a whole."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, get_args

from leeboard.draft.checks import positive_int
from leeboard.draft.loss import Loss
from leeboard.draft.training.encoding import TooLong

Schedule = Literal["cosine", "linear", "constant"]
Precision = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """Numbers of the optimizer and of its checkpoints.

    Args:
        steps: Optimizer steps.
        lr: Highest learning rate.
        schedule: After the warm-up: "cosine" or "linear" down to 0 at the last step, or "constant".
        warmup: Steps over which the rate rises in a line (an int), or their share of all steps (a
            float below 1). 0 for none.
        clip: Largest norm of a model's gradient; longer ones are scaled down to it.
        weight_decay: Of AdamW, on every trained parameter.
        average: How much of the weights' running average a step keeps, 0 to below 1; the average is
            what is evaluated, and what the models have at the end. None for the weights themselves.
        checkpoint_every: Steps between checkpoints; None for none by count.
        checkpoint_seconds: Seconds between checkpoints; None for none by time.

    Raises:
        ValueError: A number is out of range; the message names it.
    """

    steps: int
    lr: float
    schedule: Schedule = "cosine"
    warmup: int | float = 0.05
    clip: float = 0.5
    weight_decay: float = 0.0
    average: float | None = None
    checkpoint_every: int | None = None
    checkpoint_seconds: float | None = 300.0

    def __post_init__(self) -> None:
        positive_int("steps", self.steps)
        _check_optimizer(self)
        if self.average is not None and not 0 <= self.average < 1:
            raise ValueError(f"average: got {self.average!r}, expected 0 to below 1, or None")

    @property
    def warmup_steps(self) -> int:
        """The warm-up in steps, at most all of them."""
        warmup = self.warmup
        return min(warmup if isinstance(warmup, int) else round(warmup * self.steps), self.steps)

    def rate(self, step: int) -> float:
        """The learning rate of step 0 to `steps` - 1; never 0."""
        warmup = self.warmup_steps
        if step < warmup:
            return self.lr * (step + 1) / warmup
        gone = (step - warmup) / max(self.steps - warmup, 1)
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * gone))
        return self.lr * (1 - gone) if self.schedule == "linear" else self.lr


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How a drafter is trained. What it is, its `DrafterConfig` says.

    Args:
        steps: Optimizer steps; None for as many as `epochs` takes.
        epochs: How often the data is gone through; of no effect where `steps` is given.
        batch: Rows of one optimizer step, over all processes.
        accumulate: Parts that a process takes its rows of a step in: less memory, the same result.
        length: Tokens of a row, where the data is text; None for 2048, or less where target or
            drafter take no more.
        packed: Whether a row of text holds several documents, which do not see each other.
        too_long: What becomes of text longer than a row: "truncate", "drop" or "error".
        split_turns: Whether each assistant turn of a chat is learnt on a copy of its own, which
            ends there, as templates that rewrite earlier turns need.
        skip_broken: Leave out broken lines of a file instead of stopping at the first.
        ignore_keys: Unknown keys of a file's lines to pass over.
        ttt: Chain steps unrolled in training (train-time-test).
        step_weights: Weight of each step's loss, `ttt` numbers; None for `decay` to the power 0, 1,
            2, ...
        decay: Weight of a step relative to the one before.
        loss: "kl", or "lk_alpha" or "lk_lambda" of arXiv:2602.23881, which aim at acceptance.
        eta: How fast "lk_lambda" moves from the divergence to the distance.
        lr: Highest learning rate.
        schedule: See `LoopSettings`.
        warmup: See `LoopSettings`.
        clip: Largest norm of the gradient.
        weight_decay: Of AdamW.
        precision: "bfloat16" computes all of the drafter on weights that are rounded to it; weights,
            gradients and the optimizer stay float32. The target runs in its own dtype in either
            case.
        seed: Of the first weights, the order of the data and what is held out.
        heldout_share: Share of the data that is held out for evaluation where none is given; 0
            for none.
        evaluate_every: Steps between evaluations on what is held out; None for ten in all. The
            last step is always followed by one.
        checkpoint_every: Steps between checkpoints; None for none by count.
        checkpoint_seconds: Seconds between checkpoints; None for none by time.

    Raises:
        ValueError: A number is out of range; the message names it.
    """

    steps: int | None = None
    epochs: float = 1.0
    batch: int = 8
    accumulate: int = 1
    length: int | None = None
    packed: bool = True
    too_long: TooLong = "truncate"
    split_turns: bool = False
    skip_broken: bool = False
    ignore_keys: tuple[str, ...] = ()
    ttt: int = 4
    step_weights: tuple[float, ...] | None = None
    decay: float = 0.8
    loss: Loss = "kl"
    eta: float = 3.0
    lr: float = 1e-4
    schedule: Schedule = "cosine"
    warmup: int | float = 0.05
    clip: float = 0.5
    weight_decay: float = 0.0
    precision: Precision = "float32"
    seed: int = 0
    heldout_share: float = 0.05
    evaluate_every: int | None = None
    checkpoint_every: int | None = None
    checkpoint_seconds: float | None = 300.0

    def __post_init__(self) -> None:
        for name in ("batch", "accumulate", "ttt"):
            positive_int(name, getattr(self, name))
        for name in ("steps", "evaluate_every", "length"):
            if getattr(self, name) is not None:
                positive_int(name, getattr(self, name))
        for name in ("packed", "split_turns", "skip_broken"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected True or False")
        object.__setattr__(self, "ignore_keys", tuple(self.ignore_keys))
        _one_of("too_long", self.too_long, TooLong)
        if type(self.seed) is not int or not 0 <= self.seed < 2**63:
            raise ValueError(f"seed: got {self.seed!r}, expected an integer from 0 to 2**63 - 1")
        _number("epochs", self.epochs, above=0)
        _number("decay", self.decay, above=0)
        _number("eta", self.eta)
        _one_of("loss", self.loss, Loss)
        _one_of("precision", self.precision, Precision)
        _check_optimizer(self)
        share = self.heldout_share
        if not _is_number(share) or not 0 <= share < 1:
            raise ValueError(f"heldout_share: got {share!r}, expected a number from 0 to below 1")
        if self.step_weights is not None:
            weights = tuple(self.step_weights)
            object.__setattr__(self, "step_weights", weights)
            if len(weights) != self.ttt:
                raise ValueError(
                    f"step_weights: got {len(weights)} of them, expected ttt = {self.ttt}"
                )
            for weight in weights:
                _number("step_weights", weight)
            if not any(weights):
                raise ValueError("step_weights: got zeros only, expected a positive one")

    @property
    def weights(self) -> tuple[float, ...]:
        """Weight of every chain step's loss."""
        if self.step_weights is not None:
            return tuple(float(weight) for weight in self.step_weights)
        return tuple(self.decay**j for j in range(self.ttt))

    def total_steps(self, rows: int) -> int:
        """Optimizer steps on a training set of so many rows."""
        if self.steps is not None:
            return self.steps
        return max(1, math.ceil(self.epochs * rows / self.batch))

    def loop(self, rows: int) -> LoopSettings:
        """The loop's part of it, on a training set of so many rows."""
        own = {field.name for field in dataclasses.fields(self)}
        names = {field.name for field in dataclasses.fields(LoopSettings)} & own - {"steps"}
        return LoopSettings(
            steps=self.total_steps(rows), **{name: getattr(self, name) for name in names}
        )


def _check_optimizer(settings: LoopSettings | TrainSettings) -> None:
    _number("lr", settings.lr, above=0)
    _number("clip", settings.clip, above=0)
    _number("weight_decay", settings.weight_decay)
    _one_of("schedule", settings.schedule, Schedule)
    warmup = settings.warmup
    if not _is_number(warmup) or warmup < 0 or (isinstance(warmup, float) and warmup >= 1):
        raise ValueError(
            f"warmup: got {warmup!r}, expected steps (an integer from 0 up) or their share (a "
            "float below 1)"
        )
    if settings.checkpoint_every is not None:
        positive_int("checkpoint_every", settings.checkpoint_every)
    if settings.checkpoint_seconds is not None:
        _number("checkpoint_seconds", settings.checkpoint_seconds)


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _number(name: str, value: object, *, above: float | None = None) -> None:
    """Raise ValueError unless `value` is a finite number from 0 up, or above a bound."""
    if not _is_number(value) or value < 0 or (above is not None and value <= above):  # type: ignore[operator]
        expected = "a number from 0 up" if above is None else f"a number above {above:g}"
        raise ValueError(f"{name}: got {value!r}, expected {expected}")


def _one_of(name: str, value: object, kinds: Any) -> None:
    if value not in get_args(kinds):
        raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(get_args(kinds))}")
