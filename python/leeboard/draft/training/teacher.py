"""The target's head as a teacher: from the states that it is given to the target's distribution."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from leeboard.draft.training.passes import evaluating, run_target, target_device

# What configs call a bound c of the logits, c tanh(z / c).
SOFTCAPS = (
    "final_logit_softcapping",
    "logits_soft_cap",
    "output_logit_soft_cap",
    "final_logit_softcap",
)
# What configs call a factor of the logits, or its reciprocal: families differ under one name.
SCALES = (
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "output_multiplier_scale",
    "logits_scale",
)

# Logits of a chunk: float32 numbers that fit the caches of a CPU, or fill a GPU.
_CHUNK_BYTES = {"cpu": 16 << 20}
_GPU_CHUNK_BYTES = 256 << 20

# Largest difference between logits that are the same but for rounding, relative to the largest.
_TOLERANCE = {torch.bfloat16: 3e-2, torch.float16: 4e-3}


@dataclasses.dataclass(frozen=True)
class Teacher:
    """The target's head: logits = softcap(scale (weight x + bias)) of its input x.

    Attributes:
        weight: [V, H], the target's own parameter (no copy).
        bias: [V], or None.
        scale: Factor of the logits.
        softcap: c where the logits are bounded by c tanh(z / c), or None.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.weight.shape[0]

    @property
    def width(self) -> int:
        """Ht of `final` and `rows`: H, and one more where there is a bias."""
        return self.weight.shape[1] + (self.bias is not None)

    def final(self, inputs: Tensor) -> Tensor:
        """What `rows` is to be multiplied with, [..., Ht], of the head's input [..., H].

        The scale is folded in; a bias is a last column of ones.
        """
        states = inputs if self.scale == 1.0 else inputs * self.scale
        return states if self.bias is None else F.pad(states, (0, 1), value=1.0)

    def rows(self, t2d: Tensor) -> Tensor:
        """[Vd, Ht] of a draft vocabulary: softcap(final rows^T) are the target's logits of it.

        The head's own weight where the vocabulary is whole and there is no bias.

        Args:
            t2d: bool [V], which tokens can be drafted.

        Raises:
            ValueError: `t2d` is of another vocabulary.
        """
        if t2d.shape != (self.vocab_size,):
            raise ValueError(
                f"t2d: got shape {tuple(t2d.shape)}, expected ({self.vocab_size},), the target's "
                "vocabulary"
            )
        chosen = t2d.to(self.weight.device)
        weight = self.weight.detach()
        if not bool(chosen.all()):
            weight = weight[chosen]
        if self.bias is None:
            return weight
        bias = self.bias.detach()[chosen] * self.scale
        return torch.cat((weight, bias[:, None].to(weight.dtype)), dim=1)

    def logits(self, inputs: Tensor) -> Tensor:
        """The target's logits [..., V] of the head's input [..., H], rounded as the target does."""
        z = F.linear(inputs.to(self.weight.dtype), self.weight, self.bias)
        if self.scale != 1.0:
            z = z * self.scale
        return z if self.softcap is None else (z / self.softcap).tanh() * self.softcap

    @torch.no_grad()
    def summary(self, inputs: Tensor, *, chunk: int | None = None) -> tuple[Tensor, Tensor]:
        """The most likely token and the logarithm of the sum of exponentials, over all of V.

        Args:
            inputs: [..., H], what the head is given.
            chunk: Positions whose logits are held at a time; None for what suits the device.

        Returns:
            (best int64 [...], logsumexp float32 [...]).
        """
        flat = inputs.reshape(-1, inputs.shape[-1])
        if chunk is None:
            budget = _CHUNK_BYTES.get(inputs.device.type, _GPU_CHUNK_BYTES)
            chunk = max(1, budget // (4 * self.vocab_size))
        best = torch.empty(len(flat), dtype=torch.int64, device=flat.device)
        sums = torch.empty(len(flat), dtype=torch.float32, device=flat.device)
        for begin in range(0, len(flat), chunk):
            here = slice(begin, begin + chunk)
            logits = self.logits(flat[here])
            best[here] = logits.argmax(-1)
            sums[here] = logits.float().logsumexp(-1)
        return best.view(inputs.shape[:-1]), sums.view(inputs.shape[:-1])


def teacher_of(target: Any) -> Teacher:
    """The head of a target, checked against the logits of a pass over a few tokens.

    A softcap and a scale are looked up under the names that configs use for them (`SOFTCAPS`,
    `SCALES`) and taken as the target's own logits show them to be applied.

    Args:
        target: A Hugging Face causal LM.

    Raises:
        ValueError: It has no output head with a plain weight, or its logits are not the head's
            product under any softcap and scale that its config names.
    """
    head = target.get_output_embeddings()
    weight = getattr(head, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or not weight.is_floating_point():
        raise ValueError(
            f"target: {type(target).__name__} has an output head {type(head).__name__}, expected "
            "one with a weight [V, H] in floating point"
        )
    if weight.is_meta:
        raise ValueError("target: its output head is on the meta device, expected its values")
    bias = getattr(head, "bias", None)
    with evaluating(target):
        logits, inputs = run_target(target, probe_ids(target, 1, 8), last_only=False)
        choices = [
            Teacher(weight, bias, scale, softcap)
            for softcap, scale in itertools.product(
                _named(target, SOFTCAPS, (None,)), _scales(target)
            )
        ]
        if logits.shape[-1] != weight.shape[0]:
            raise ValueError(
                f"target: its head has {weight.shape[0]} rows but it returns {logits.shape[-1]} "
                "logits, expected as many"
            )
        errors = [_distance(choice.logits(inputs), logits) for choice in choices]
    least = min(range(len(choices)), key=errors.__getitem__)
    if not errors[least] <= _TOLERANCE.get(weight.dtype, 1e-4):
        raise ValueError(
            f"target: the logits of {type(target).__name__} are not its head's product, with or "
            f"without what its config has of {', '.join((*SOFTCAPS, *SCALES))}: the nearest differ "
            f"by {errors[least]:.2g} of the largest"
        )
    return choices[least]


def probe_ids(target: Any, rows: int, length: int) -> Tensor:
    """int64 [rows, length], arbitrary tokens of the target, always the same."""
    size = target.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(size, (rows, length), generator=generator)
    return ids.to(target_device(target))


def _distance(got: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    difference = (got.float() - expected.float().to(got.device)).abs().max()
    return float(difference / expected.float().abs().max().clamp(min=1e-30))


def _scales(target: Any) -> list[float]:
    named = _named(target, SCALES, (1.0,))
    return [*named, *(1.0 / scale for scale in named[1:])]


def _named(target: Any, names: tuple[str, ...], first: tuple[Any, ...]) -> list[Any]:
    """`first`, then the positive numbers that the config has under these names."""
    config = target.config
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    found = [getattr(config, name, None) for name in names]
    numbers = [float(x) for x in found if isinstance(x, (int, float)) and x > 0]
    return [*first, *numbers]
