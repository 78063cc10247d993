"""Loss of a drafter's steps against the target's distribution over the draft vocabulary."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class TTTLossTerms(NamedTuple):
    """What `ttt_loss` returns.

    Attributes:
        loss: [], the weighted sum of the rows' losses. It alone has a gradient.
        row_loss: [S, N], each row's loss in nats, without its weight.
        hit: bool [S, N], whether the drafter's most likely token is the target's.
        overlap: [S, N], sum over v of min(p, q): the chance that sampling accepts the draft.
    """

    loss: Tensor
    row_loss: Tensor
    hit: Tensor
    overlap: Tensor


def ttt_loss(
    hidden: Tensor,
    weight: Tensor,
    teacher: Tensor,
    teacher_weight: Tensor,
    row_weight: Tensor,
    *,
    teacher_logsumexp: Tensor | None = None,
    loss: str = "kl",
    eta: float = 3.0,
    softcap: float | None = None,
) -> TTTLossTerms:
    """sum over s, n of row_weight[s, n] * row_loss[s, n], hidden[s, n] against teacher[n].

    q = softmax(hidden weight^T), z = teacher teacher_weight^T (softcap tanh(z / softcap) with a
    softcap), p~ = softmax(z) and p = exp(z - teacher_logsumexp), which is p~ without one.
    row_loss is, with the overlap a = sum_v min(p, q),

    - "kl": KL(p~ || q) = sum_v p~ log(p~ / q);
    - "lk_alpha": -log a;
    - "lk_lambda": lam KL(p~ || q) + (1 - lam) (1 - a), where 1 - a is the total variation of p and
      q over the full vocabulary, and lam = exp(-eta a) is held constant (arXiv:2602.23881).

    `hidden` is [S, N, H], `weight` [V, H], `teacher` [N, Ht], `teacher_weight` [V, Ht],
    `row_weight` [S, N], `teacher_logsumexp` [N]. A row whose weight is 0 counts for nothing and
    gives zeros. float32 throughout (float64 for float64 inputs), whatever the storage type.
    """
    log_p, log_q, shift, live = _distributions(
        hidden, weight, teacher, teacher_weight, row_weight, teacher_logsumexp, softcap
    )
    p = log_p.exp()
    # Where p~ is 0, its logarithm does not count.
    kl = torch.where(p == 0, 0.0, p * (log_p - log_q)).sum(-1)
    overlap = torch.minimum((log_p - shift).exp(), log_q.exp()).sum(-1)
    if loss == "kl":
        each = kl
    elif loss == "lk_alpha":
        each = -overlap.log()
    else:
        lam = (-eta * overlap.detach()).exp()
        each = lam * kl + (1 - lam) * (1 - overlap)
    each = torch.where(live, each, 0.0)
    hit = (log_q.argmax(-1) == log_p.argmax(-1)) & live
    total = (row_weight.to(each.dtype) * each).sum()
    return TTTLossTerms(total, each.detach(), hit, torch.where(live, overlap, 0.0).detach())


def ttt_loss_gradients(
    hidden: Tensor,
    weight: Tensor,
    teacher: Tensor,
    teacher_weight: Tensor,
    row_weight: Tensor,
    *,
    teacher_logsumexp: Tensor | None = None,
    loss: str = "kl",
    eta: float = 3.0,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients of `ttt_loss(...).loss` in hidden and weight, in closed form and float32.

    With x = hidden weight^T and m_v = 1 where q_v < p_v, 1/2 where they are equal, else 0:
    dKL/dx = q - p~ and da/dx = q (m - sum_u m_u q_u).
    """
    log_p, log_q, shift, live = _distributions(
        hidden, weight, teacher, teacher_weight, row_weight, teacher_logsumexp, softcap
    )
    q, p = log_q.exp(), (log_p - shift).exp()
    below = (q < p).to(q.dtype) + 0.5 * (q == p).to(q.dtype)
    kl_slope = q - log_p.exp()
    overlap_slope = q * (below - (below * q).sum(-1, keepdim=True))
    overlap = torch.minimum(p, q).sum(-1, keepdim=True)
    if loss == "kl":
        slope = kl_slope
    elif loss == "lk_alpha":
        slope = -overlap_slope / overlap
    else:
        lam = (-eta * overlap).exp()
        slope = lam * kl_slope - (1 - lam) * overlap_slope
    factor = torch.where(live, row_weight.to(slope.dtype), 0.0)[..., None]
    slope = torch.where(live[..., None], factor * slope, 0.0)
    flat = torch.where(live[..., None], hidden, 0.0).to(slope.dtype).flatten(0, 1)
    return slope @ weight.to(slope.dtype), slope.flatten(0, 1).T @ flat


def _distributions(
    hidden: Tensor,
    weight: Tensor,
    teacher: Tensor,
    teacher_weight: Tensor,
    row_weight: Tensor,
    teacher_logsumexp: Tensor | None,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """log p~ [N, V], log q [S, N, V], log(p~ / p) [N, 1], and the rows [S, N] that count."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    live = row_weight != 0
    # What a skipped row holds, a NaN for one, reaches neither a result nor a gradient.
    h = torch.where(live[..., None], hidden, 0.0).to(wide)
    used = live.any(0)
    t = torch.where(used[:, None], teacher, 0.0).to(wide)
    log_q = (h @ weight.to(wide).T).log_softmax(-1)
    z = t @ teacher_weight.to(wide).T
    if softcap is not None:
        z = softcap * (z / softcap).tanh()
    log_p = z.log_softmax(-1)
    shift = torch.zeros_like(z[:, :1])
    if teacher_logsumexp is not None:
        whole = torch.where(used, teacher_logsumexp, 0.0).to(wide)
        shift = whole[:, None] - z.logsumexp(-1, keepdim=True)
    return log_p, log_q, shift, live
