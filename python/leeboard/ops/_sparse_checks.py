"""The checks of a call of sparse attention."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from leeboard.ops import _check, patterns

MOST_CHANNELS = 256
# A smaller cap is none in float32, in which the kernels compute.
LEAST_SOFTCAP = 2.0**-126


def check_call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: object,
    scale: float | None,
    active_heads: Sequence[int] | None,
    key_padding: Tensor | None,
    cu_seqlens: Tensor | None,
    cu_seqlens_k: Tensor | None,
    softcap: float | None,
    sink_logits: Tensor | None,
) -> tuple[float | None, tuple[int, ...] | None, float | None]:
    """Everything but the values of tensors; returns scale, heads and cap in their own types.

    Raises:
        TypeError, ValueError: For an argument that does not fit; the message names it.
    """
    _tensors(q, k, v, sink_logits)
    _pattern(pattern, q, k, cu_seqlens)
    heads = None if active_heads is None else heads_of(active_heads, q.shape[1])
    scale, softcap = _numbers(scale, softcap)
    _padding(key_padding, k)
    _bounds(q, k, cu_seqlens, cu_seqlens_k)
    return scale, heads, softcap


def _tensors(q: Tensor, k: Tensor, v: Tensor, sink_logits: Tensor | None) -> None:
    channels = _check.rows("q", q)
    if q.dim() != 4:
        raise ValueError(f"q: shape {list(q.shape)} was given; expected [B, Hq, Lq, D]")
    if channels > MOST_CHANNELS:
        raise ValueError(
            f"q: a head dimension of {channels} was given; expected 1 to {MOST_CHANNELS}"
        )
    for name, t in (("k", k), ("v", v)):
        _check.companion(name, t, "q", q)
        if t.dim() != 4:
            raise ValueError(f"{name}: shape {list(t.shape)} was given; expected 4 dimensions")
    batch, heads, _, _ = q.shape
    groups, keys = k.shape[1:3]
    if groups == 0 or heads == 0 or heads % groups:
        raise ValueError(
            f"k: {groups} heads were given; expected a divisor of the {heads} heads of q"
        )
    _check.shape("k", k, (batch, groups, keys, channels), "as q, but for heads and rows")
    _check.shape("v", v, k.shape, "the shape of k")
    if sink_logits is not None:
        _check.values("sink_logits", sink_logits, q)
        _check.shape("sink_logits", sink_logits, (heads,), "the heads of q")


def _pattern(pattern: object, q: Tensor, k: Tensor, cu_seqlens: object) -> None:
    if not isinstance(pattern, patterns.Pattern):
        raise TypeError(
            f"pattern: expected a Pattern of leeboard.ops.patterns, got {type(pattern).__name__}"
        )
    # Tracers would fix the lengths; then the kernel says it.
    if cu_seqlens is None and not torch.compiler.is_compiling():
        pattern.check(q.shape[2], k.shape[2])


def heads_of(active_heads: object, count: int) -> tuple[int, ...]:
    """The list of query heads to compute, as a tuple of ints.

    Raises:
        TypeError, ValueError: If it is none.
    """
    if isinstance(active_heads, str) or not isinstance(active_heads, Sequence):
        raise TypeError(
            f"active_heads: expected a list of integers, got {type(active_heads).__name__}"
        )
    before = -1
    for n, head in enumerate(active_heads):
        if isinstance(head, bool) or not hasattr(head, "__index__"):
            raise TypeError(f"active_heads[{n}]: expected an integer, got {type(head).__name__}")
        if not 0 <= head < count:
            raise ValueError(
                f"active_heads[{n}]: {head} was given; expected 0 to {count - 1}, a head of q"
            )
        if head <= before:
            raise ValueError(
                f"active_heads[{n}]: {head} was given after {before}; expected ascending heads"
            )
        before = head
    return tuple(operator.index(head) for head in active_heads)


def _numbers(scale: float | None, softcap: float | None) -> tuple[float | None, float | None]:
    if scale is not None:
        _check.number("scale", scale)
        scale = float(scale)
        if not math.isfinite(scale):
            raise ValueError(f"scale: {scale} was given; expected a finite number")
    if softcap is not None:
        _check.number("softcap", softcap)
        softcap = float(softcap)
        if not LEAST_SOFTCAP <= softcap < math.inf:
            raise ValueError(f"softcap: {softcap} was given; expected a finite number > 0")
    return scale, softcap


def _padding(key_padding: Tensor | None, k: Tensor) -> None:
    if key_padding is None:
        return
    _check.companion("key_padding", key_padding, "k", k, (torch.bool,))
    if key_padding.dtype != torch.bool:
        raise ValueError(f"key_padding: dtype {key_padding.dtype} was given; expected torch.bool")
    _check.shape("key_padding", key_padding, (k.shape[0], k.shape[2]), "batch and rows of k")


def _bounds(q: Tensor, k: Tensor, cu_seqlens: Tensor | None, cu_seqlens_k: Tensor | None) -> None:
    if cu_seqlens is None:
        if cu_seqlens_k is not None:
            raise ValueError("cu_seqlens_k: a tensor was given; expected cu_seqlens to go with it")
        return
    for name, cu in (("cu_seqlens", cu_seqlens), ("cu_seqlens_k", cu_seqlens_k)):
        if cu is None:
            continue
        _check.tensor(name, cu)
        if cu.dtype not in (torch.int32, torch.int64):
            raise ValueError(
                f"{name}: dtype {cu.dtype} was given; expected torch.int32 or torch.int64"
            )
        if cu.device.type not in ("cpu", q.device.type):
            raise ValueError(f"{name}: device {cu.device} was given; expected {q.device} or cpu")
        if cu.dim() != 1 or cu.shape[0] == 0:
            raise ValueError(f"{name}: shape {list(cu.shape)} was given; expected [segments + 1]")
    if q.shape[0] != 1:
        raise ValueError(
            f"cu_seqlens: q has a batch of {q.shape[0]}; expected 1, with the sequences in a row"
        )
    if cu_seqlens_k is not None:
        _check.shape("cu_seqlens_k", cu_seqlens_k, cu_seqlens.shape, "the shape of cu_seqlens")
