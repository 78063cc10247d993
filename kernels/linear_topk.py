"""The largest logits of a language-model head and their indices; the logits are never written.

First kernel (`_heads.py`): every block of the vocabulary leaves its best keys a row. Then the best
of `REDUCE_BLOCK` keys at a time, held in registers, are taken one after another, until one block
holds all that is left, whose program writes the results.
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

# Keys that a program holds: 16 for each of its threads.
REDUCE_BLOCK = 2048


@triton.jit
def _linear_topk_reduce_kernel(keys, out, count, k, BLOCK: tl.constexpr):
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = block * BLOCK + tl.arange(0, BLOCK)
    found = tl.load(keys + row * count + at, at < count, other=-0x7FFFFFFFFFFFFFFF)
    out += (row * tl.num_programs(1) + block) * k
    for i in range(k):
        best = tl.max(found, 0)
        tl.store(out + i, best)
        found = tl.where(found == best, -0x7FFFFFFFFFFFFFFF, found)


@triton.jit
def _linear_topk_last_kernel(
    keys,
    peaks,
    totals,
    d2t,
    index,
    value,
    lse,
    count,
    blocks,
    k,
    BLOCK: tl.constexpr,
    SUMS_BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    found = tl.load(keys + row * count + at, at < count, other=-0x7FFFFFFFFFFFFFFF)
    for i in range(k):
        best = tl.max(found, 0)
        top, entry = decode(best)
        if d2t is not None:
            entry += tl.load(d2t + entry)
        tl.store(index + row * k + i, entry)
        tl.store(value + row * k + i, top)
        found = tl.where(found == best, -0x7FFFFFFFFFFFFFFF, found)
    if totals is not None:
        tl.store(lse + row, joined_sums(peaks, totals, row, blocks, SUMS_BLOCK))


config = weight_config


def forward(
    x: torch.Tensor,
    weight: Weight,
    index: torch.Tensor,
    value: torch.Tensor,
    d2t: torch.Tensor | None,
    lse: torch.Tensor | None,
) -> None:
    """The k largest of x [N, H] . weight [V, H]^T: index [N, k] int64 and value [N, k] float32.

    Largest first, equal values in the order of their index, NaN as the largest; k <= V < 2^32;
    `index` and `value` are contiguous. With `d2t` [V] int64 an index becomes v + d2t[v]; `lse` [N]
    float32 receives the log-sum-exp of the logits. `weight` is a matrix or a `QuantizedWeight`;
    rows of x and weight may have any stride.
    """
    best(x, stored(weight), index, value, d2t, lse, x.dtype)


def best(
    x: torch.Tensor,
    weight: Stored,
    index: torch.Tensor,
    value: torch.Tensor,
    d2t: torch.Tensor | None,
    lse: torch.Tensor | None,
    storage: torch.dtype,
    norm_weight: torch.Tensor | None = None,
    eps: float = 0.0,
) -> None:
    """`forward` of rms_norm(x, norm_weight); `storage` is the model's dtype."""
    N, k = index.shape
    if N == 0 or k == 0:
        return
    found = best_of_blocks(
        x, weight, k, storage, logsumexp=lse is not None, norm_weight=norm_weight, eps=eps
    )
    keys = found.keys
    # A pass leaves k of a block, so a block of less than 2 k would not come to an end.
    block = max(REDUCE_BLOCK, triton.next_power_of_2(2 * k))
    with device_of(x):
        while keys.shape[1] > block:
            parts = triton.cdiv(keys.shape[1], block)
            fewer = keys.new_empty(N, parts * k)
            _linear_topk_reduce_kernel[(N, parts)](
                keys, fewer, keys.shape[1], k, BLOCK=block, num_warps=4, **PINNED
            )
            keys = fewer
        _linear_topk_last_kernel[(N,)](
            keys,
            found.peaks,
            found.totals,
            d2t,
            index,
            value,
            lse,
            keys.shape[1],
            found.blocks,
            k,
            BLOCK=triton.next_power_of_2(keys.shape[1]),
            SUMS_BLOCK=min(REDUCE_BLOCK, triton.next_power_of_2(found.blocks)),
            num_warps=4,
            **PINNED,
        )
