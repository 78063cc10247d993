"""The largest logit of a language-model head and its index; the logits are never written.

First kernel (`_heads.py`): every block of the vocabulary leaves one key a row. Second kernel: a
program per row takes the largest. Every weight is read once per block of rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from leeboard.kernels._common import PINNED, device_of
from leeboard.kernels._heads import best_of_blocks, decode, joined_sums
from leeboard.kernels._weights import Stored, stored, weight_config

if TYPE_CHECKING:
    from leeboard.reference import Weight

# Keys that the second kernel reads at once: 16 for each of its threads.
REDUCE_BLOCK = 4096


@triton.jit
def _linear_argmax_reduce_kernel(
    keys,
    peaks,
    totals,
    d2t,
    index,
    value,
    lse,
    score,
    prior,
    blocks,
    index_stride,
    score_stride,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    best = tl.full([BLOCK], -0x7FFFFFFFFFFFFFFF, tl.int64)
    for start in range(0, blocks, BLOCK):
        at = start + cols
        key = tl.load(keys + row * blocks + at, at < blocks, other=-0x7FFFFFFFFFFFFFFF)
        best = tl.maximum(best, key)
    top, entry = decode(tl.max(best, 0))
    if d2t is not None:
        entry += tl.load(d2t + entry)
    tl.store(index + row * index_stride, entry)
    if value is not None:
        tl.store(value + row, top)
    if totals is not None:
        sums = joined_sums(peaks, totals, row, blocks, BLOCK)
        if lse is not None:
            tl.store(lse + row, sums)
        if score is not None:
            path = top - sums
            if prior is not None:
                path += tl.load(prior + row * score_stride)
            tl.store(score + row * score_stride, path)


config = weight_config


def forward(
    x: torch.Tensor,
    weight: Weight,
    index: torch.Tensor,
    value: torch.Tensor,
    d2t: torch.Tensor | None,
    lse: torch.Tensor | None = None,
) -> None:
    """index [N] int64 and value [N] float32 of the largest of x [N, H] . weight [V, H]^T.

    Ties go to the lowest index; NaN counts as the largest value, as in `torch.max`. With `d2t`
    [V] int64 the index becomes v + d2t[v]; `lse` [N] float32 receives the log-sum-exp of the
    logits. `weight` is a matrix or a `QuantizedWeight`; rows may have any stride; V < 2^32.
    """
    greedy(x, stored(weight), d2t, index, x.dtype, value=value, lse=lse)


def greedy(
    x: torch.Tensor,
    weight: Stored,
    d2t: torch.Tensor | None,
    index: torch.Tensor,
    storage: torch.dtype,
    *,
    value: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
    norm_weight: torch.Tensor | None = None,
    eps: float = 0.0,
    score: torch.Tensor | None = None,
    prior: torch.Tensor | None = None,
) -> None:
    """`forward` of rms_norm(x, norm_weight), in two launches.

    `score` [N] float32 receives prior + value - lse, the log-probability of a path that the chosen
    entry extends; its stride is that of `prior`. `storage` is the model's dtype.
    """
    N = x.shape[0]
    if N == 0:
        return
    best = best_of_blocks(
        x,
        weight,
        1,
        storage,
        logsumexp=lse is not None or score is not None,
        norm_weight=norm_weight,
        eps=eps,
    )
    with device_of(x):
        _linear_argmax_reduce_kernel[(N,)](
            best.keys,
            best.peaks,
            best.totals,
            d2t,
            index,
            value,
            lse,
            score,
            prior,
            best.blocks,
            index.stride(0),
            0 if score is None else score.stride(0),
            BLOCK=min(REDUCE_BLOCK, triton.next_power_of_2(best.blocks)),
            num_warps=8,
            **PINNED,
        )
