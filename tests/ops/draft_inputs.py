"""Random drafters and caches for `draft_chain`."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from harness import Sample
from leeboard.ops import DrafterWeights, quantize_weight
from leeboard.reference._drafter import MATRICES, NORMS


def drafter(
    dtype: torch.dtype,
    *,
    hidden: int = 24,
    inner: int = 40,
    heads: int = 4,
    kv_heads: int = 2,
    width: int = 8,
    vocabulary: int = 61,
    draft_vocabulary: int | None = None,
    positions: int = 64,
    **options: Any,
) -> DrafterWeights:
    """Weights whose logits differ from token to token and from state to state."""

    def matrix(rows: int, columns: int, gain: float = 1.0) -> Tensor:
        values = torch.randn(rows, columns, dtype=torch.float64) * (gain * columns**-0.5)
        return values.to(dtype)

    def norm() -> Tensor:
        return (1.0 + 0.2 * torch.randn(hidden, dtype=torch.float64)).to(dtype)

    angles = torch.outer(
        torch.arange(positions, dtype=torch.float32),
        1e4 ** (-torch.arange(0, width, 2, dtype=torch.float32) / width),
    )
    head_rows, d2t = vocabulary, None
    if draft_vocabulary is not None:
        head_rows = draft_vocabulary
        chosen = torch.randperm(vocabulary)[:draft_vocabulary].sort().values
        d2t = chosen - torch.arange(draft_vocabulary)
    return DrafterWeights(
        embedding=matrix(vocabulary, hidden, hidden**0.5),
        input_norm=norm(),
        hidden_norm=norm(),
        post_norm=norm(),
        norm=norm(),
        q=matrix(heads * width, 2 * hidden, 2.0),
        k=matrix(kv_heads * width, 2 * hidden, 2.0),
        v=matrix(kv_heads * width, 2 * hidden),
        o=matrix(hidden, heads * width),
        gate=matrix(inner, hidden),
        up=matrix(inner, hidden),
        down=matrix(hidden, inner),
        head=matrix(head_rows, hidden, 3.0),
        cos=angles.cos(),
        sin=angles.sin(),
        d2t=d2t,
        **options,
    )


def quantised(
    weights: DrafterWeights, form: str, only: tuple[str, ...] = MATRICES
) -> DrafterWeights:
    """The same drafter with some matrices in few bits."""
    changed = {name: quantize_weight(getattr(weights, name), form) for name in only}
    return dataclasses.replace(weights, **changed)


def call(
    weights: DrafterWeights,
    *,
    batch: int = 3,
    steps: int = 4,
    lengths: tuple[int, ...] = (5, 0, 11),
    capacity: int = 16,
    **options: Any,
) -> Sample:
    """A call with these weights on random states and caches; rows behind a length hold NaN."""
    dtype = weights.input_norm.dtype
    kv_heads = weights.k.shape[0] // weights.head_dim
    used = torch.tensor(lengths[:batch], dtype=torch.int64)
    caches = []
    for _ in range(2):
        cache = torch.randn(batch, kv_heads, capacity, weights.head_dim, dtype=torch.float64)
        beyond = torch.arange(capacity) >= used[:, None]
        caches.append(cache.masked_fill(beyond[:, None, :, None], float("nan")).to(dtype))
    state = torch.randn(batch, weights.hidden_size, dtype=torch.float64).to(dtype)
    token = torch.randint(0, weights.embedding.shape[0], (batch,))
    return Sample((weights, state, token, *caches, used, steps), options)


__all__ = ["MATRICES", "NORMS", "call", "drafter", "quantised"]
