"""Inputs of ttt_loss for the contract tests, valid and not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

import leeboard.ops
from harness import Sample

# (S, N, H, V, Ht)
SHAPES: dict[str, tuple[int, int, int, int, int]] = {
    "plain": (2, 5, 24, 40, 24),
    "many": (3, 70, 32, 1100, 40),
    "one-token": (2, 4, 8, 1, 8),
    "two-tokens": (1, 3, 8, 2, 8),
    "one-row": (1, 1, 16, 33, 7),
    "no-rows": (2, 0, 8, 12, 8),
    "no-steps": (0, 3, 8, 12, 8),
    "H1": (2, 4, 1, 17, 1),
    # A block of a sum of the kernels at every level, and one more.
    "V1024": (1, 3, 16, 1024, 16),
    "V1025": (1, 3, 16, 1025, 16),
    "V3000": (2, 3, 16, 3000, 24),
}
SCALES = {"large": 30.0, "small": 1e-6, "vanishing": 1e-30}


def normal(dtype: torch.dtype, *shape: int, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape, dtype=torch.float64) * scale).to(dtype)


def weights(dtype: torch.dtype, *shape: int, skipped: float = 0.3) -> Tensor:
    """Positive weights, some of them 0."""
    wide = torch.promote_types(dtype, torch.float32)
    drawn = torch.rand(shape, dtype=torch.float64) + 0.1
    return torch.where(torch.rand(shape) < skipped, 0.0, drawn).to(wide)


def call(
    size: tuple[int, int, int, int, int],
    scale: float = 1.0,
    *,
    lse: bool = False,
    skipped: float = 0.3,
    teacher_dtype: torch.dtype | None = None,
    **options: Any,
) -> Callable[[torch.dtype], Sample]:
    """Logits of about `scale`; the draft vocabulary has a part of the target's mass with `lse`."""
    S, N, H, V, Ht = size

    def build(dtype: torch.dtype) -> Sample:
        other = dtype if teacher_dtype is None or dtype == torch.float64 else teacher_dtype
        hidden = normal(dtype, S, N, H, scale=scale)
        head = normal(dtype, V, H, scale=H**-0.5)
        teacher = normal(other, N, Ht, scale=scale)
        teacher_head = normal(other, V, Ht, scale=Ht**-0.5)
        row_weight = weights(dtype, S, N, skipped=skipped)
        more = dict(options)
        if lse:
            z = teacher.double() @ teacher_head.double().T
            if "softcap" in options:
                z = options["softcap"] * (z / options["softcap"]).tanh()
            whole = z.logsumexp(-1) + 0.5 * torch.rand(N, dtype=torch.float64)
            more["teacher_logsumexp"] = whole.to(row_weight.dtype)
        args = (hidden, head, teacher, teacher_head, row_weight)
        return Sample(args, more, wanted=(0, 1))

    return build


def special(dtype: torch.dtype) -> Sample:
    """NaN and infinities, each in a row of its own; those of skipped rows are not seen."""
    sample = call((1, 8, 24, 40, 24), skipped=0.0)(dtype)
    hidden, _, teacher, _, row_weight = sample.args
    hidden[0, 0, 3], hidden[0, 1, 2] = float("nan"), float("inf")
    teacher[2, 5], teacher[3, 0] = float("nan"), float("-inf")
    hidden[0, 6], teacher[7] = float("nan"), float("inf")
    row_weight[0, 6:] = 0.0
    return sample


def samples() -> dict[str, Callable[[torch.dtype], Sample]]:
    plain = SHAPES["plain"]
    table = {name: call(size) for name, size in SHAPES.items()}
    table |= {name: call(plain, scale) for name, scale in SCALES.items()}
    for loss in ("lk_alpha", "lk_lambda"):
        table[loss] = call(plain, loss=loss)
        table[f"{loss}-lse"] = call(plain, lse=True, loss=loss)
        table[f"{loss}-V1025"] = call(SHAPES["V1025"], lse=True, loss=loss)
    table["kl-lse"] = call(plain, lse=True)
    table["lk_lambda-eta"] = call(plain, loss="lk_lambda", eta=0.5)
    table["softcap"] = call(plain, 3.0, softcap=2.0)
    table["softcap-lse"] = call(plain, 3.0, lse=True, softcap=5.0, loss="lk_alpha")
    table["every-row"] = call(plain, skipped=0.0)
    table["all-skipped"] = call(plain, skipped=2.0)
    table["other-teacher"] = call(plain, teacher_dtype=torch.bfloat16)
    table["special"] = special
    return table


def arguments(sample: Sample) -> tuple[Any, ...]:
    """The sample as arguments of torch.ops.leeboard.ttt_loss."""
    options = sample.kwargs
    return (
        *sample.args,
        options.get("teacher_logsumexp"),
        options.get("loss", "kl"),
        float(options.get("eta", 3.0)),
        options.get("softcap"),
        sample.args[0].requires_grad,
        sample.args[1].requires_grad,
    )


def check_hit(sample: Sample, got: Tensor) -> None:
    """A hit where both choices are clear; either answer where rounding decides."""
    sample = sample.in_double()
    hidden, head, teacher, teacher_head, row_weight = sample.args
    z, x = teacher @ teacher_head.T, hidden @ head.T
    if sample.kwargs.get("softcap"):
        z = sample.kwargs["softcap"] * (z / sample.kwargs["softcap"]).tanh()
    hit = (x.argmax(-1) == z.argmax(-1)) & (row_weight != 0)

    def clear(logits: Tensor) -> Tensor:
        if logits.shape[-1] == 1:
            return torch.ones(logits.shape[:-1], dtype=torch.bool)
        first, second = logits.topk(2).values.unbind(-1)
        return first - second > 1e-5 * logits.abs().amax(-1)

    decided = (clear(x) & clear(z)) | (row_weight == 0)
    assert torch.equal(got[decided], hit[decided])


def bad_calls() -> dict[str, tuple[Callable[[], object], type[Exception], str]]:
    """Calls that must raise, the error and its message."""
    good = dict(
        zip(
            ("hidden", "weight", "teacher", "teacher_weight", "row_weight"),
            (
                torch.ones(2, 3, 8),
                torch.ones(10, 8),
                torch.ones(3, 6),
                torch.ones(10, 6),
                torch.ones(2, 3),
            ),
            strict=True,
        )
    )

    def bad(
        error: type[Exception], match: str, **changes: Any
    ) -> tuple[Callable[[], object], type[Exception], str]:
        return lambda: leeboard.ops.ttt_loss(**{**good, **changes}), error, match

    def with_grad(name: str) -> Tensor:
        return good[name].clone().requires_grad_()

    return {
        "hidden-list": bad(TypeError, r"hidden: expected a torch.Tensor, got list", hidden=[1.0]),
        "hidden-numpy": bad(TypeError, r"hidden: .*, got ndarray", hidden=np.ones((2, 3, 8))),
        "hidden-int": bad(ValueError, r"hidden: dtype torch.int64", hidden=good["hidden"].long()),
        "hidden-2d": bad(
            ValueError,
            r"hidden: shape \[3, 8\] was given; expected \[S, N, H\]",
            hidden=torch.ones(3, 8),
        ),
        "hidden-H0": bad(ValueError, r"hidden: shape \[2, 3, 0\]", hidden=torch.ones(2, 3, 0)),
        "weight-none": bad(TypeError, r"weight: expected a torch.Tensor", weight=None),
        "weight-width": bad(
            ValueError,
            r"weight: shape \[10, 7\] was given; expected \[10, 8\]",
            weight=torch.ones(10, 7),
        ),
        "weight-V0": bad(
            ValueError,
            r"weight: shape \[0, 8\] was given; expected \[V, 8\] with V >= 1",
            weight=torch.ones(0, 8),
        ),
        "weight-dtype": bad(
            ValueError,
            r"weight: dtype torch.float16 .* expected torch.float32",
            weight=good["weight"].half(),
        ),
        "weight-device": bad(
            ValueError, r"weight: device meta .* expected cpu", weight=good["weight"].to("meta")
        ),
        "teacher-rows": bad(
            ValueError,
            r"teacher: shape \[4, 6\] was given; expected \[3, 6\]",
            teacher=torch.ones(4, 6),
        ),
        "teacher-grad": bad(
            RuntimeError,
            r"teacher: requires grad, but ttt_loss has no gradient in it",
            teacher=with_grad("teacher"),
        ),
        "teacher_weight-rows": bad(
            ValueError,
            r"teacher_weight: shape \[9, 6\] was given; expected \[10, 6\]",
            teacher_weight=torch.ones(9, 6),
        ),
        "teacher_weight-grad": bad(
            RuntimeError,
            r"teacher_weight: requires grad, .* or pass a detached tensor",
            teacher_weight=with_grad("teacher_weight"),
        ),
        "row_weight-shape": bad(
            ValueError,
            r"row_weight: shape \[3\] was given; expected \[2, 3\]",
            row_weight=torch.ones(3),
        ),
        "row_weight-bool": bad(
            ValueError,
            r"row_weight: dtype torch.bool was given; expected torch.float32",
            row_weight=good["row_weight"].bool(),
        ),
        "row_weight-grad": bad(
            RuntimeError, r"row_weight: requires grad", row_weight=with_grad("row_weight")
        ),
        "logsumexp-shape": bad(
            ValueError,
            r"teacher_logsumexp: shape \[2, 3\] was given; expected \[3\]",
            teacher_logsumexp=torch.ones(2, 3),
        ),
        "loss-unknown": bad(
            ValueError, r"loss: 'tv' was given; expected one of kl, lk_alpha, lk_lambda", loss="tv"
        ),
        "eta-negative": bad(ValueError, r"eta: -1 was given; expected a finite", eta=-1),
        "eta-nan": bad(ValueError, r"eta: nan was given", eta=float("nan")),
        "eta-text": bad(TypeError, r"eta: expected a number, got str", eta="3"),
        "softcap-zero": bad(ValueError, r"softcap: 0 was given; expected a finite", softcap=0),
        "softcap-bool": bad(TypeError, r"softcap: expected a number, got bool", softcap=True),
        "out-three": bad(
            ValueError, r"out: 3 tensors given; expected 4", out=(torch.ones(()),) * 3
        ),
    }
