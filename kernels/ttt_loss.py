"""Losses of rows of logits against rows of a teacher's, and their gradient in place.

A program owns a row and walks it in blocks: once for its largest logit, once for its sum, once for
the loss (and, of the KL loss, the gradient), and once more for the gradient of the others. A row of
a draft vocabulary stays in the second-level cache meanwhile. Sums stay with their thread until the
end of the row; no atomics: equal inputs give equal bits. The products around it are torch's.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from leeboard.kernels._common import PINNED, device_of
from leeboard.kernels._gqa_scores import tanh

LOSSES = {"kl": 0, "lk_alpha": 1, "lk_lambda": 2}


@triton.jit
def _logits_at(row, cols, V, softcap, CAP: tl.constexpr):
    x = tl.load(row + cols, cols < V, other=0.0)
    if CAP:
        x = softcap * tanh(x / softcap)
    return tl.where(cols < V, x, -float("inf"))


@triton.jit
def _row_sums(row, V, softcap, CAP: tl.constexpr, BLOCK: tl.constexpr):
    """A row's largest logit, sum exp(x - largest), and the largest's first index."""
    lanes = tl.arange(0, BLOCK)
    top = tl.full([BLOCK], -float("inf"), tl.float32)
    at = tl.zeros([BLOCK], tl.int32)
    for start in range(0, V, BLOCK):
        x = _logits_at(row, start + lanes, V, softcap, CAP)
        at = tl.where(x > top, start + lanes, at)
        top = tl.where(x > top, x, top)
    most = tl.max(top, 0)
    best = tl.min(tl.where(top == most, at, 0x7FFFFFFF), 0)
    sums = tl.zeros([BLOCK], tl.float32)
    for start in range(0, V, BLOCK):
        cols = start + lanes
        x = _logits_at(row, cols, V, softcap, CAP)
        sums += tl.where(cols < V, tl.exp(x - most), 0.0)
    total = tl.sum(sums, 0)
    # At least 1, but for a NaN: then the first is taken for the largest.
    return most, total, tl.where(total >= 1.0, best, 0)


@triton.jit
def _ttt_loss_teacher_kernel(
    logits,
    logsumexp,
    total,
    coverage,
    best,
    V,
    stride,
    softcap,
    CAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    r = tl.program_id(0).to(tl.int64)
    row = logits + r * stride
    softcap = tl.cast(softcap, tl.float32)
    most, sums, index = _row_sums(row, V, softcap, CAP, BLOCK)
    for start in range(0, V, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        x = _logits_at(row, cols, V, softcap, CAP)
        tl.store(row + cols, x - most, cols < V)
    tl.store(best + r, index.to(tl.int64))
    part = 1.0
    if logsumexp is not None:
        part = tl.exp(most - tl.load(logsumexp + r)) * sums
    tl.store(coverage + r, part)
    tl.store(total + r, sums)


@triton.jit
def _shares(row, z_row, cols, V, most, inverse_p, inverse_q, log_ratio, coverage):
    """log(p~ / q), p~, p and q at some columns; beyond the last one the shares are 0."""
    inside = cols < V
    z = tl.load(z_row + cols, inside, other=-float("inf"))
    x = tl.load(row + cols, inside, other=0.0) - most
    p_draft = tl.exp(z) * inverse_p
    q = tl.where(inside, tl.exp(x) * inverse_q, 0.0)
    # Where p~ is 0, any number from 1 on will do.
    d = tl.where(p_draft == 0.0, 1.0, (z - x) - log_ratio)
    return d, p_draft, p_draft * coverage, q


@triton.jit
def _divergence(d, p, q):
    """p d - p + q for d = log(p / q), which sums to the divergence and is nowhere negative.

    What rounding makes of the sums of p and q has no part in it. Where p and q are close, by the
    series of (d + exp(-d) - 1) / d^2.
    """
    close = tl.abs(d) < 1.0
    e = tl.where(close, d, 0.0)
    series = -1.0 / 39916800.0
    series = series * e + 1.0 / 3628800.0
    series = series * e - 1.0 / 362880.0
    series = series * e + 1.0 / 40320.0
    series = series * e - 1.0 / 5040.0
    series = series * e + 1.0 / 720.0
    series = series * e - 1.0 / 120.0
    series = series * e + 1.0 / 24.0
    series = series * e - 1.0 / 6.0
    series = series * e + 0.5
    return tl.where(close, p * e * (e * series), p * d - (p - q))


@triton.jit
def _below(p, q):
    """Half where they are equal: what autograd makes of a minimum."""
    return tl.where(q < p, 1.0, tl.where(q == p, 0.5, 0.0))


@triton.jit
def _ttt_loss_rows_kernel(
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
    V,
    stride,
    teacher_stride,
    eta,
    LOSS: tl.constexpr,
    GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    r = tl.program_id(0).to(tl.int64)
    row = logits + r * stride
    t = tl.load(place + r)
    z_row = teacher + t * teacher_stride
    part, w = tl.load(coverage + t), tl.load(weight + r)
    most, q_sum, index = _row_sums(row, V, 0.0, False, BLOCK)
    p_sum = tl.load(total + t)
    inverse_p, inverse_q, log_ratio = 1.0 / p_sum, 1.0 / q_sum, tl.log(p_sum / q_sum)
    lanes = tl.arange(0, BLOCK)
    kl = tl.zeros([BLOCK], tl.float32)
    least = tl.zeros([BLOCK], tl.float32)
    below = tl.zeros([BLOCK], tl.float32)
    for start in range(0, V, BLOCK):
        cols = start + lanes
        log_share, p_draft, p, q = _shares(
            row, z_row, cols, V, most, inverse_p, inverse_q, log_ratio, part
        )
        kl += _divergence(log_share, p_draft, q)
        least += tl.where(q < p, q, p)
        if GRADIENT:
            if LOSS == 0:
                tl.store(row + cols, w * (q - p_draft), cols < V)
            else:
                below += _below(p, q) * q
    divergence, a = tl.sum(kl, 0), tl.sum(least, 0)
    # A comparison lost the NaN.
    a = tl.where(q_sum >= 1.0, a, q_sum)
    lam = tl.exp(-tl.cast(eta, tl.float32) * a)
    if LOSS == 0:
        loss = divergence
    elif LOSS == 1:
        loss = -tl.log(a)
    else:
        loss = lam * divergence + (1.0 - lam) * (1.0 - a)
    tl.store(row_loss + r, loss)
    tl.store(overlap + r, a)
    tl.store(hit + r, (index == tl.load(best + t)).to(tl.uint8))
    if GRADIENT and LOSS != 0:
        mean = tl.sum(below, 0)
        for start in range(0, V, BLOCK):
            cols = start + lanes
            _, p_draft, p, q = _shares(
                row, z_row, cols, V, most, inverse_p, inverse_q, log_ratio, part
            )
            slope = q * (_below(p, q) - mean)
            if LOSS == 1:
                slope = (-w / a) * slope
            else:
                slope = (w * lam) * (q - p_draft) - (w * (1.0 - lam)) * slope
            tl.store(row + cols, slope, cols < V)


def config(vocabulary: int) -> dict[str, int]:
    """Tile of both kernels: 16 elements a thread, 128-bit loads."""
    block = min(2048, triton.next_power_of_2(vocabulary))
    return {"BLOCK": block, "num_warps": max(1, block // 512), **PINNED}


def teacher(
    logits: torch.Tensor,
    logsumexp: torch.Tensor | None,
    total: torch.Tensor,
    coverage: torch.Tensor,
    best: torch.Tensor,
    softcap: float,
) -> None:
    """Takes a row's largest from `logits` [R, V] float32 in place, which are capped if softcap > 0.

    Fills `total` (the sum of their exponentials then), `coverage` (the draft vocabulary's mass, by
    `logsumexp` of the full one) and `best`, all [R].
    """
    rows, vocabulary = logits.shape
    if rows == 0:
        return
    with device_of(logits):
        _ttt_loss_teacher_kernel[(rows,)](
            logits,
            logsumexp,
            total,
            coverage,
            best,
            vocabulary,
            logits.stride(0),
            softcap,
            CAP=softcap > 0,
            **config(vocabulary),
        )


def rows(
    logits: torch.Tensor,
    teacher: torch.Tensor,
    place: torch.Tensor,
    total: torch.Tensor,
    coverage: torch.Tensor,
    best: torch.Tensor,
    weight: torch.Tensor,
    row_loss: torch.Tensor,
    hit: torch.Tensor,
    overlap: torch.Tensor,
    loss: str,
    eta: float,
    gradient: bool,
) -> None:
    """Losses of `logits` [P, V] float32 against rows `place` [P] of `teacher` [R, V].

    Fills `row_loss`, `hit` (bool) and `overlap` [P]; with a gradient wanted, that of
    sum(weight * row_loss) takes the place of the logits.
    """
    count, vocabulary = logits.shape
    if count == 0:
        return
    with device_of(logits):
        _ttt_loss_rows_kernel[(count,)](
            logits,
            teacher,
            place,
            total,
            coverage,
            best,
            weight,
            row_loss,
            hit.view(torch.uint8),
            overlap,
            vocabulary,
            logits.stride(0),
            teacher.stride(0),
            eta,
            LOSS=LOSSES[loss],
            GRADIENT=gradient,
            **config(vocabulary),
        )
