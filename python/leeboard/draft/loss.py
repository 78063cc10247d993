"""The loss that trains a drafter: its own unrolled chain against the target's distribution."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from leeboard.draft.batch import Batch
from leeboard.draft.protocol import Drafter
from leeboard.ops import ttt_loss

Loss = Literal["kl", "lk_alpha", "lk_lambda"]


@dataclasses.dataclass(frozen=True)
class ChainLoss:
    """Result of `chain_loss`. Entry j of the per-step tensors, all detached, is chain step j's.

    Attributes:
        loss: Scalar, differentiable: the sum over steps of weight times the step's loss.
        step_losses: float32 [S], the sum of the rows' losses over `counts` (by default the mean),
            in nats.
        step_accuracies: float32 [S], share of the marked rows whose most likely draft token is the
            target's most likely token. Where that token cannot be drafted the row counts as a miss.
        step_overlaps: float32 [S], mean over the valid rows of sum_v min(p, q), p the target's
            distribution and q the drafter's: what sampling accepts in expectation.
        step_rows: int64 [S], marked rows: those whose predicted token is to be learnt. Where it is
            0, all figures of the step are 0.
        step_valid: int64 [S], those of them that bear a loss, because the target's most likely
            token can be drafted.
    """

    loss: Tensor
    step_losses: Tensor
    step_accuracies: Tensor
    step_overlaps: Tensor
    step_rows: Tensor
    step_valid: Tensor


def chain_loss(
    drafter: Drafter,
    batch: Batch,
    teacher_weight: Tensor,
    *,
    step_weights: Sequence[float],
    loss: Loss = "kl",
    eta: float = 3.0,
    softcap: float | None = None,
    counts: Tensor | None = None,
) -> ChainLoss:
    """Unroll the drafter S steps and match the target's distribution (EAGLE-3, arXiv:2503.01840).

    Step j of row t predicts token p = t + 2 + j; its teacher is the target's distribution at
    position p - 1. A row is marked if p lies in its document and in `batch.loss_mask`, and valid if
    the target's most likely token at p - 1 can be drafted, too. The loss is

        sum_j step_weights[j] * (sum over the valid rows of step j of row_loss) / counts[j].

    With p~ the target's distribution restricted to the draft vocabulary and renormalised, p the
    same not renormalised, and q the drafter's, the loss of a row is KL(p~ || q) for "kl";
    -log a, a = sum_v min(p, q), for "lk_alpha"; and lam KL(p~ || q) + (1 - lam) TV(p, q) for
    "lk_lambda", where lam = exp(-eta a) without gradient (both arXiv:2602.23881).

    Only rows with a loss are unrolled and pass through the head (`leeboard.ops.ttt_loss`); under
    autocast both heads' products are in its dtype.

    Args:
        drafter: The drafter in training, on the batch's device.
        batch: Rows and the target's states.
        teacher_weight: [Vd, Ht], the rows of the target's head that belong to the draft vocabulary.
        step_weights: One weight per chain step; their number is S. A step of weight 0 is not
            measured either.
        loss: Which loss.
        eta: How fast "lk_lambda" turns from KL to TV.
        softcap: Of the target's logits (`softcap * tanh(logits / softcap)`); None for none.
        counts: [S], what each step's sum is divided by; None for its valid rows. Where gradients
            are averaged over processes, give the mean over the processes of `count_rows`.

    Returns:
        A `ChainLoss`.

    Raises:
        ValueError: Shapes do not fit each other or the drafter's config, or an option is unknown.
    """
    steps, width = len(step_weights), batch.ids.shape[1]
    _check(drafter, batch, teacher_weight, step_weights, loss, counts)
    marked, valid = _rows(drafter, batch, steps)
    step_rows, step_valid = marked.sum((1, 2)), valid.sum((1, 2))
    divisors = (step_valid if counts is None else counts).to(torch.float32).clamp(min=1e-9)
    if counts is None:
        divisors = divisors.clamp(min=1.0)
    # Positions p - 1 that teach a row of any step, and the rows that they teach.
    live = valid.flatten(1).any(0).nonzero()[:, 0]
    depths = range(steps)
    taught = torch.stack(
        [F.pad(valid[j, :, 1 + j :], (0, 1 + j)) for j in depths if 1 + j <= width]
    )
    rows = taught.flatten(1).any(0).nonzero()[:, 0]
    place = torch.zeros(valid[0].numel(), dtype=torch.int64, device=rows.device)
    place[rows] = torch.arange(rows.shape[0], device=rows.device)
    weights = torch.tensor(step_weights, dtype=torch.float32, device=live.device)
    row_weight = valid.flatten(1)[:, live] * (weights / divisors)[:, None]
    unrolled = drafter.iter_rows(batch.ids, batch.hiddens, steps, rows, positions=batch.positions)
    # Where step j has no row for a position, any row will do: its weight is 0.
    hidden = torch.stack([h[place[(live - 1 - j).clamp(min=0)]] for j, h in enumerate(unrolled)])
    head = drafter.head_weight
    if not isinstance(head, Tensor):
        head = head.dequantize(hidden.dtype)
    teacher = batch.final.detach().flatten(0, 1)[live]
    teacher_weight = teacher_weight.detach().to(teacher.dtype)
    if torch.is_autocast_enabled(hidden.device.type):
        low = torch.get_autocast_dtype(hidden.device.type)
        hidden, head, teacher, teacher_weight = (
            x.to(low) for x in (hidden, head, teacher, teacher_weight)
        )
    whole = drafter.config.draft_vocab_size == drafter.config.vocab_size
    terms = ttt_loss(
        hidden,
        head,
        teacher,
        teacher_weight,
        row_weight,
        teacher_logsumexp=None if whole else batch.logsumexp.flatten()[live],
        loss=loss,
        eta=eta,
        softcap=softcap,
    )
    with torch.no_grad():
        step_losses = terms.row_loss.sum(1) / divisors
        accuracies = terms.hit.sum(1) / step_rows.clamp(min=1)
        overlaps = terms.overlap.sum(1) / step_valid.clamp(min=1)
    return ChainLoss(terms.loss, step_losses, accuracies, overlaps, step_rows, step_valid)


def count_rows(drafter: Drafter, batch: Batch, steps: int) -> Tensor:
    """int64 [steps]: the rows that bear a loss in `chain_loss`, per step."""
    return _rows(drafter, batch, steps)[1].sum((1, 2))


def count_marked(batch: Batch, steps: int) -> Tensor:
    """int64 [steps]: the rows that count in the accuracies of `chain_loss`, per step."""
    return _marked(batch, steps).sum((1, 2))


def _rows(drafter: Drafter, batch: Batch, steps: int) -> tuple[Tensor, Tensor]:
    """(marked, valid), bool [steps, B, T], in the place of the position p - 1 that teaches."""
    marked = _marked(batch, steps)
    return marked, marked & drafter.t2d[batch.best]


def _marked(batch: Batch, steps: int) -> Tensor:
    # Counted from the document's begin, or the row's if the document began before it.
    place = torch.minimum(
        batch.positions, torch.arange(batch.ids.shape[1], device=batch.ids.device)
    )
    depth = torch.arange(steps, device=place.device)[:, None, None]
    marked = batch.loss_mask.bool() & (place >= 2 + depth)
    return F.pad(marked[..., 1:], (0, 1))


def _check(
    drafter: Drafter,
    batch: Batch,
    teacher_weight: Tensor,
    step_weights: Sequence[float],
    loss: str,
    counts: Tensor | None,
) -> None:
    if not step_weights:
        raise ValueError("step_weights: got none, expected one for every chain step")
    if loss not in get_args(Loss):
        raise ValueError(f"loss: got {loss!r}, expected one of {get_args(Loss)}")
    if counts is not None and counts.shape != (len(step_weights),):
        raise ValueError(
            f"counts: got shape {tuple(counts.shape)}, expected ({len(step_weights)},) as in "
            "step_weights"
        )
    expected = (drafter.config.draft_vocab_size, batch.final.shape[-1])
    if teacher_weight.shape != expected:
        raise ValueError(
            f"teacher_weight: got shape {tuple(teacher_weight.shape)}, expected {expected}"
        )
