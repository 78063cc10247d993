"""Loss of a drafter's train-time-test steps: checks, dispatch, autograd and fake tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from leeboard import _C, reference
from leeboard.ops import _check
from leeboard.ops._check import KERNEL_DTYPES
from leeboard.ops._library import choose, define, kernels, takes_reference
from leeboard.ops._state import Backend, state
from leeboard.ops._ttt_checks import check_arguments, check_options, check_result
from leeboard.ops._ttt_chunks import Options, RowKernels, compute
from leeboard.reference import TTTLossTerms

TTTLoss = Literal["kl", "lk_alpha", "lk_lambda"]


def ttt_loss(
    hidden: Tensor,
    weight: Tensor,
    teacher: Tensor,
    teacher_weight: Tensor,
    row_weight: Tensor,
    *,
    teacher_logsumexp: Tensor | None = None,
    loss: TTTLoss = "kl",
    eta: float = 3.0,
    softcap: float | None = None,
    out: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
) -> TTTLossTerms:
    """Loss of a drafter's steps against its target's distribution, without [N, V] anywhere.

    loss = sum over s, n of row_weight[s, n] * row_loss[s, n], where row_loss compares the drafter's
    q = softmax(hidden weight^T) with the target's p~ = softmax(z) over the draft vocabulary and
    p = exp(z - teacher_logsumexp), z = teacher teacher_weight^T, softcap tanh(z / softcap) with a
    softcap:

    - "kl": KL(p~ || q), the loss of EAGLE-3 (arXiv:2503.01840) but for a constant;
    - "lk_alpha": -log a, with the overlap a = sum over v of min(p, q);
    - "lk_lambda": lam KL(p~ || q) + (1 - lam)(1 - a), lam = exp(-eta a) held constant
      (arXiv:2602.23881).

    The logits exist a chunk of rows at a time; those of the teacher are made once for all steps.
    Gradients are made along with the loss, and only scaled in the backward. Rows of weight 0 are
    left out of every product, whatever they hold.

    Args:
        hidden: [S, N, H], what the drafter's head multiplies at each of S steps; float32, bfloat16,
            float16 (float64 by the reference).
        weight: [V, H], the drafter's head over the draft vocabulary; hidden's dtype, or float32.
        teacher: [N, Ht], what the target's head multiplies; any of these dtypes. hidden[s, n] is
            compared with teacher[n].
        teacher_weight: [V, Ht], the target's head at the draft vocabulary; teacher's dtype, or
            float32.
        row_weight: [S, N] float32 (float64 for float64 hidden); a row of weight 0 is skipped and
            gives zeros.
        teacher_logsumexp: [N] of row_weight's dtype, log sum exp z over the *full* vocabulary; None
            where the draft vocabulary is the full one. It matters to the overlap only.
        loss: "kl", "lk_alpha" or "lk_lambda".
        eta: How fast "lk_lambda" leaves the KL term; >= 0.
        softcap: Bound of the target's logits, > 0; None for none.
        out: Written and returned, if given: (loss, row_loss, hit, overlap). Not differentiable.

    Returns:
        loss [], row_loss [S, N] and overlap [S, N], float32 (float64 for float64 hidden), in nats,
        and hit, bool [S, N]: whether the drafter's most likely token is the target's. `loss` alone
        is differentiable (once), in hidden and weight. Products and sums are float32, whatever the
        storage type; same inputs give bit-identical row results for equal products.

    Raises:
        TypeError, ValueError: For an argument that does not fit; the message names it.
        RuntimeError: If another argument requires grad while grad mode is on, `out` is given while a
            gradient is wanted, or a forced backend cannot run.
    """
    check_arguments(hidden, weight, teacher, teacher_weight, row_weight, teacher_logsumexp)
    eta, cap = check_options(loss, eta, softcap)
    tensors = (hidden, weight, teacher, teacher_weight, row_weight, teacher_logsumexp)
    if out is not None:
        check_result(hidden, out)
        _check.no_grad(
            "ttt_loss",
            "with out= is not differentiable",
            **dict(zip(_NAMES, tensors, strict=True)),
        )
    elif takes_reference("ttt_loss"):
        return reference.ttt_loss(
            hidden,
            weight,
            teacher,
            teacher_weight,
            row_weight,
            teacher_logsumexp=teacher_logsumexp,
            loss=loss,
            eta=eta,
            softcap=cap,
        )
    _check.no_grad(
        "ttt_loss", "has no gradient in it", **dict(zip(_NAMES[2:], tensors[2:], strict=True))
    )
    grad = torch.is_grad_enabled()
    made = torch.ops.leeboard.ttt_loss(
        *tensors, loss, eta, cap, grad and hidden.requires_grad, grad and weight.requires_grad
    )[:4]
    if out is None:
        return TTTLossTerms(*made)
    return TTTLossTerms(*(given.copy_(fresh) for given, fresh in zip(out, made, strict=True)))


_NAMES = ("hidden", "weight", "teacher", "teacher_weight", "row_weight", "teacher_logsumexp")


@dataclass(frozen=True)
class _CpuRows:
    level: int

    def teacher(
        self,
        logits: Tensor,
        logsumexp: Tensor | None,
        total: Tensor,
        coverage: Tensor,
        best: Tensor,
        softcap: float,
    ) -> None:
        done = _C.ttt_loss_teacher(logits, logsumexp, total, coverage, best, softcap, self.level)
        assert done, "leeboard._C.ttt_loss_teacher: arguments do not fit together"

    def rows(
        self,
        logits: Tensor,
        teacher: Tensor,
        place: Tensor,
        total: Tensor,
        coverage: Tensor,
        best: Tensor,
        weight: Tensor,
        row_loss: Tensor,
        hit: Tensor,
        overlap: Tensor,
        loss: str,
        eta: float,
        gradient: bool,
    ) -> None:
        done = _C.ttt_loss_rows(
            logits,
            teacher,
            place,
            total,
            coverage,
            best,
            weight,
            row_loss,
            hit,
            overlap,
            loss,
            eta,
            gradient,
            self.level,
        )
        assert done, "leeboard._C.ttt_loss_rows: arguments do not fit together"


def _forward(
    hidden: Tensor,
    weight: Tensor,
    teacher: Tensor,
    teacher_weight: Tensor,
    row_weight: Tensor,
    teacher_logsumexp: Tensor | None,
    loss: str,
    eta: float,
    softcap: float | None,
    grad_hidden: bool,
    grad_weight: bool,
) -> tuple[Tensor, ...]:
    others = [t.dtype for t in (weight, teacher, teacher_weight) if t.dtype not in KERNEL_DTYPES]
    refusals: dict[Backend, str] = {}
    if others:
        why = f"kernels take float32, bfloat16 and float16, not {others[0]}"
        refusals = {"cpu": f"the cpu {why}", "triton": f"the triton {why}"}
    backend = choose("ttt_loss", [hidden], refusals=refusals)
    tensors = [hidden, weight, teacher, teacher_weight, row_weight]
    if backend == "reference":
        options = {
            "teacher_logsumexp": teacher_logsumexp,
            "loss": loss,
            "eta": eta,
            "softcap": softcap,
        }
        terms = reference.ttt_loss(*tensors, **options)  # type: ignore[arg-type]
        grads = (terms.loss.new_empty(0), terms.loss.new_empty(0))
        if grad_hidden or grad_weight:
            grads = reference.ttt_loss_gradients(*tensors, **options)  # type: ignore[arg-type]
        blank = terms.loss.new_empty(0)
        return (
            *terms,
            grads[0] if grad_hidden else blank,
            grads[1] if grad_weight else blank.clone(),
        )
    rows = kernels("ttt_loss") if backend == "triton" else _CpuRows(state().level)
    wanted = Options(loss, eta, softcap, grad_hidden, grad_weight)
    whole = None if teacher_logsumexp is None else _plain(teacher_logsumexp)
    with torch.no_grad():
        return compute(
            cast(RowKernels, rows),
            wanted,
            _plain(hidden),
            _plain(weight),
            _plain(teacher),
            _plain(teacher_weight),
            _plain(row_weight),
            whole,
        )


def _plain(t: Tensor) -> Tensor:
    """Without a subclass or a negative bit, and with memory: torch's own products take it so."""
    plain = t.as_subclass(Tensor).resolve_neg()
    if plain.numel() and plain.device.type == "cpu" and not plain.untyped_storage().nbytes():
        raise RuntimeError("leeboard.ops.ttt_loss: the storage of an argument is empty")
    return plain


def _fake(
    hidden: Tensor,
    weight: Tensor,
    teacher: Tensor,
    teacher_weight: Tensor,
    row_weight: Tensor,
    teacher_logsumexp: Tensor | None,
    loss: str,
    eta: float,
    softcap: float | None,
    grad_hidden: bool,
    grad_weight: bool,
) -> tuple[Tensor, ...]:
    wide = torch.promote_types(hidden.dtype, torch.float32)

    def made(shape: Sequence[int], dtype: torch.dtype = wide) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=hidden.device)

    rows = hidden.shape[:2]
    return (
        made(()),
        made(rows),
        made(rows, torch.bool),
        made(rows),
        made(hidden.shape if grad_hidden else (0,)),
        made(weight.shape if grad_weight else (0,)),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    # Nothing looks at their gradients: zeros as large as a head need not be made.
    ctx.set_materialize_grads(False)
    ctx.made = inputs[-2:]
    ctx.save_for_backward(inputs[0], inputs[1], output[4], output[5])


def _backward(ctx: Any, grad: Tensor | None, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    wanted = ctx.needs_input_grad[:2]
    if grad is None:
        return (None,) * 11
    for name, asked, made in zip(_NAMES, wanted, ctx.made, strict=False):
        if asked and not made:
            raise RuntimeError(f"leeboard.ops.ttt_loss: no gradient in {name} was made")
    grads = torch.ops.leeboard.ttt_loss_backward(grad, *ctx.saved_tensors)
    return (*(g if asked else None for g, asked in zip(grads, wanted, strict=True)), *[None] * 9)


def _scaled(
    grad: Tensor, hidden: Tensor, weight: Tensor, grad_hidden: Tensor, grad_weight: Tensor
) -> tuple[Tensor, Tensor]:
    return (grad * grad_hidden).to(hidden.dtype), (grad * grad_weight).to(weight.dtype)


def _fake_scaled(
    grad: Tensor, hidden: Tensor, weight: Tensor, grad_hidden: Tensor, grad_weight: Tensor
) -> tuple[Tensor, Tensor]:
    return (
        torch.empty(grad_hidden.shape, dtype=hidden.dtype, device=hidden.device),
        torch.empty(grad_weight.shape, dtype=weight.dtype, device=weight.device),
    )


define(
    "ttt_loss(Tensor hidden, Tensor weight, Tensor teacher, Tensor teacher_weight, "
    "Tensor row_weight, Tensor? teacher_logsumexp, str loss, float eta, float? softcap, "
    "bool grad_hidden, bool grad_weight) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _fake,
    # The loss sums over every row: vmap takes the batched calls one by one.
    row_arguments=(),
    setup_context=_setup_context,
    backward=_backward,
)
define(
    "ttt_loss_backward(Tensor grad, Tensor hidden, Tensor weight, Tensor grad_hidden, "
    "Tensor grad_weight) -> (Tensor, Tensor)",
    _scaled,
    _fake_scaled,
    row_arguments=(),
)
