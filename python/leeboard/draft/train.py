"""The loss that trains a drafter: its own unrolled chain against the target's distribution."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from leeboard.draft.checks import positive_int
from leeboard.draft.model import Eagle3Drafter


@dataclasses.dataclass(frozen=True)
class TTTLoss:
    """Result of `ttt_loss`. Entry j of the per-step tensors belongs to chain step j.

    Attributes:
        loss: Scalar, differentiable: the sum over steps of decay^j times the step's mean loss.
        step_losses: float32 [steps], detached: mean KL divergence of the step's rows, in nats.
        step_accuracies: float32 [steps]: share of rows whose most likely draft token is the
            target's most likely token. Rows where the target's token lies outside the draft
            vocabulary count as misses.
        step_rows: int64 [steps]: rows behind each accuracy. Where it is 0, loss and accuracy are 0.
    """

    loss: Tensor
    step_losses: Tensor
    step_accuracies: Tensor
    step_rows: Tensor


def ttt_loss(
    drafter: Eagle3Drafter,
    target_logits: Tensor,
    input_ids: Tensor,
    hiddens: Sequence[Tensor],
    loss_mask: Tensor,
    steps: int,
    *,
    decay: float = 0.8,
) -> TTTLoss:
    """Train-time-test loss of EAGLE-3 (arXiv:2503.01840): unroll the drafter and match the target.

    Step j of row t predicts token x_{t+2+j}; its teacher is the target's distribution at position
    t+1+j, restricted to the draft vocabulary and renormalised. The step's loss is the mean of
    KL(teacher || drafter) over the rows whose predicted token is marked in `loss_mask` and whose
    teacher's most likely token can be drafted. loss = sum_j decay^j * step_loss_j.

    Only marked rows pass through the head, so peak memory follows the marked tokens.

    Args:
        drafter: The drafter in training; in the same dtype on the same device.
        target_logits: [B, T, V], the target's logits for `input_ids`: position p scores x_{p+1}.
            No gradient flows into it.
        input_ids: [B, T] int64, the teacher-forced sequence, padded on the right if at all.
        hiddens: The target's captured states [B, T, Ht] for `input_ids` (see `capture`).
        loss_mask: [B, T], true (or nonzero) where x_p is a token to learn to predict, such as the
            assistant's tokens.
        steps: Length of the unrolled chain, at least 1.
        decay: Weight of a step relative to the one before.

    Returns:
        A `TTTLoss`.

    Raises:
        ValueError: Shapes do not fit each other or the drafter's config.
    """
    positive_int("steps", steps)
    config = drafter.config
    if target_logits.shape != (*input_ids.shape, config.vocab_size):
        raise ValueError(
            f"target_logits: got shape {tuple(target_logits.shape)}, expected "
            f"{(*input_ids.shape, config.vocab_size)}"
        )
    if loss_mask.shape != input_ids.shape:
        raise ValueError(
            f"loss_mask: got shape {tuple(loss_mask.shape)}, expected {tuple(input_ids.shape)}"
        )
    with torch.no_grad():
        best = target_logits.argmax(-1)
        draftable = drafter.t2d[best]
        if config.draft_vocab_size < config.vocab_size:
            target_logits = target_logits[..., drafter.t2d]
        teacher = target_logits.softmax(-1, dtype=torch.float32)
        entropy = torch.special.entr(teacher).sum(-1)
        wanted = loss_mask.bool()

    total = torch.zeros((), device=input_ids.device)
    losses = torch.zeros(steps, device=input_ids.device)
    accuracies = torch.zeros(steps, device=input_ids.device)
    counts = torch.zeros(steps, dtype=torch.int64, device=input_ids.device)
    for j, (hidden, _) in enumerate(drafter.iter_unroll(input_ids, hiddens, steps)):
        rows = max(input_ids.shape[1] - 2 - j, 0)
        here = slice(1 + j, 1 + j + rows)
        marked = wanted[:, 2 + j :]
        valid = marked & draftable[:, here]
        counts[j] = marked.sum()
        logits = drafter.logits(hidden[:, :rows][valid]).float()
        cross = F.cross_entropy(logits, teacher[:, here][valid], reduction="sum")
        divergence = cross - entropy[:, here][valid].sum()
        step_loss = divergence / max(logits.shape[0], 1)
        total = total + decay**j * step_loss
        losses[j] = step_loss.detach()
        drafted = logits.detach().argmax(-1)
        hits = (drafted + drafter.d2t[drafted] == best[:, here][valid]).sum()
        accuracies[j] = hits / counts[j].clamp(min=1)
    return TTTLoss(total, losses, accuracies, counts)
