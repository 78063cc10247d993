"""What forward and backward of train-time-test attention share: checks, documents, plans."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from leeboard import _C
from leeboard.ops import _check, _spans, patterns
from leeboard.ops._attention_plan import AttentionPlan, plan_for
from leeboard.ops._library import kernels
from leeboard.ops._numpy import np
from leeboard.ops._sparse_call import bounds
from leeboard.ops._sparse_checks import MOST_CHANNELS


@dataclass(frozen=True)
class Documents:
    """Which rows of all sequences, one after another, belong together.

    Attributes:
        cu: First row of each document and the end, or None where the sequences are the documents.
        rows: Of a sequence.
    """

    cu: list[int] | None
    rows: int

    def lengths(self) -> list[int]:
        """Rows of each document, or of the only kind there is."""
        if self.cu is None:
            return [self.rows]
        return [end - begin for begin, end in itertools.pairwise(self.cu)]

    def plans(self, step: int, window: int | None, sinks: int) -> list[AttentionPlan]:
        """The step-0 keys that each document's rows see in a step."""
        return [plan_of(length, step, window, sinks) for length in self.lengths()]

    def native(self, step: int, window: int | None, sinks: int) -> list[_C.AttentionPlan]:
        """The same for the CPU kernels."""
        if self.cu is None:
            return plan_of(self.rows, step, window, sinks).alone
        return [plan.native for plan in self.plans(step, window, sinks)]

    def tensor(self) -> Tensor | None:
        """The bounds as the CPU kernels take them."""
        return None if self.cu is None else torch.tensor(self.cu)


def documents_of(q: Tensor, cu_seqlens: Tensor | None) -> Documents:
    """Reads the bounds; on other devices than the CPU that waits for the queue.

    Raises:
        ValueError: If they are no bounds of documents within the sequences of q [..., B, Hq, T, D].
    """
    length = q.shape[-2]
    if cu_seqlens is None:
        return Documents(None, length)
    cu = bounds("cu_seqlens", cu_seqlens, q.shape[-4] * length, "q, B * T")
    for begin, end in itertools.pairwise(cu):
        if end > begin and begin // length != (end - 1) // length:
            raise ValueError(
                f"cu_seqlens: a document of the rows {begin} to {end} was given; expected it to "
                f"lie within a sequence of {length} rows: every multiple of {length} is a bound"
            )
    return Documents(cu, length)


def plan_of(length: int, step: int, window: int | None, sinks: int) -> AttentionPlan:
    """The step-0 keys that each row of a document sees in a step."""
    if window is None or window >= length + step:
        return plan_for(patterns.Causal().code, length, length)
    if window > step:
        return plan_for(_band(window - step, sinks), length, length)
    return _only_sinks(length, sinks)


@functools.lru_cache(256)
def _band(window: int, sinks: int) -> str:
    return patterns.Band(window, sinks=sinks).code


@functools.lru_cache(256)
def _only_sinks(length: int, sinks: int) -> AttentionPlan:
    """The steps have left the window: no step-0 key is in it."""
    ends = np.minimum(np.arange(length) + 1, min(sinks, length))[:, None]
    return AttentionPlan(length, length, _spans.from_columns(np.zeros_like(ends), ends))


def check_call(
    q: Tensor,
    k: Tensor | Sequence[Tensor],
    v: Tensor | Sequence[Tensor],
    window: int | None,
    sinks: int,
    cu_seqlens: Tensor | None,
    scale: float | None,
) -> tuple[list[Tensor], list[Tensor], int | None, float | None]:
    """Everything but the values of tensors; returns keys, values, window and scale.

    Raises:
        TypeError, ValueError: For an argument that does not fit; the message names it.
    """
    channels = _check.rows("q", q)
    if q.dim() not in (4, 5):
        raise ValueError(
            f"q: shape {list(q.shape)} was given; expected [B, Hq, T, D] or [S, B, Hq, T, D]"
        )
    if channels > MOST_CHANNELS:
        raise ValueError(
            f"q: a head dimension of {channels} was given; expected 1 to {MOST_CHANNELS}"
        )
    keys, values = _steps("k", k, q), _steps("v", v, q)
    if len(values) != len(keys):
        raise ValueError(f"v: {len(values)} steps were given; expected {len(keys)}, those of k")
    if q.dim() == 5 and q.shape[0] != len(keys):
        raise ValueError(f"k: {len(keys)} steps were given; expected {q.shape[0]}, those of q")
    batch, heads, length = q.shape[-4:-1]
    groups = keys[0].shape[1]
    if groups == 0 or heads == 0 or heads % groups:
        raise ValueError(
            f"k: {groups} heads were given; expected a divisor of the {heads} heads of q"
        )
    for name, steps in (("k", keys), ("v", values)):
        for s, t in enumerate(steps):
            expected = (batch, groups, length, channels)
            _check.shape(f"{name}[{s}]", t, expected, "as q, with the heads of k[0]")
    if window is not None:
        _check.integer("window", window, 1)
    _check.integer("sinks", sinks, 0)
    if scale is not None:
        _check.number("scale", scale)
        scale = float(scale)
        if not math.isfinite(scale):
            raise ValueError(f"scale: {scale} was given; expected a finite number")
    _check_bounds(cu_seqlens, q)
    return keys, values, window, scale


def _steps(name: str, given: object, q: Tensor) -> list[Tensor]:
    """The tensors [B, Hkv, T, D] of the steps."""
    if isinstance(given, Tensor):
        _check.companion(name, given, "q", q)
        if given.dim() != 5:
            raise ValueError(
                f"{name}: shape {list(given.shape)} was given; expected [S, B, Hkv, T, D], or a "
                "sequence of [B, Hkv, T, D]"
            )
        given = given.unbind()
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise TypeError(
            f"{name}: expected a tensor or a sequence of tensors, got {type(given).__name__}"
        )
    if len(given) == 0:
        raise ValueError(f"{name}: 0 steps were given; expected at least 1")
    for s, t in enumerate(given):
        _check.companion(f"{name}[{s}]", t, "q", q)
        if t.dim() != 4:
            raise ValueError(
                f"{name}[{s}]: shape {list(t.shape)} was given; expected [B, Hkv, T, D]"
            )
    return list(given)


def _check_bounds(cu_seqlens: object, q: Tensor) -> None:
    if cu_seqlens is None:
        return
    _check.tensor("cu_seqlens", cu_seqlens)
    assert isinstance(cu_seqlens, Tensor)
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"cu_seqlens: dtype {cu_seqlens.dtype} was given; expected torch.int32 or torch.int64"
        )
    if cu_seqlens.device.type not in ("cpu", q.device.type):
        raise ValueError(
            f"cu_seqlens: device {cu_seqlens.device} was given; expected {q.device} or cpu"
        )
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] == 0:
        raise ValueError(
            f"cu_seqlens: shape {list(cu_seqlens.shape)} was given; expected [documents + 1]"
        )


def forward_on_triton(
    q: Tensor,
    k: list[Tensor],
    v: list[Tensor],
    out: Tensor,
    lse: Tensor,
    documents: Documents,
    window: int | None,
    sinks: int,
    scale: float,
) -> None:
    """Runs the Triton kernels; across sequences they take documents of a single one."""
    plans = documents.plans(len(k) - 1, window, sinks)
    forward = kernels("ttt_attention").forward
    if documents.cu is None:
        forward(q, k, v, out, lse, plans, None, scale)
        return
    to, log = _flat(out), _flat(lse[..., None])[..., 0]
    forward(
        _flat(q),
        *([_flat(t) for t in each] for each in (k, v)),
        to,
        log,
        plans,
        documents.cu,
        scale,
    )
    _unflat(log[..., None], lse[..., None])
    _unflat(to, out)


def backward_on_triton(
    grad_out: Tensor,
    q: Tensor,
    k: list[Tensor],
    v: list[Tensor],
    out: Tensor,
    lse: Tensor,
    grads: tuple[Tensor, list[Tensor], list[Tensor]],
    documents: Documents,
    window: int | None,
    sinks: int,
    scale: float,
) -> None:
    """The same for the gradients."""
    plans = documents.plans(len(k) - 1, window, sinks)
    backward = kernels("ttt_attention").backward
    if documents.cu is None:
        backward(grad_out, q, k, v, out, lse, *grads, plans, None, scale)
        return
    keys, values = ([_flat(t) for t in each] for each in (k, v))
    to_q, to_k, to_v = _flat(grads[0]), *([_flat(t) for t in each] for each in grads[1:])
    log = _flat(lse[..., None])[..., 0].contiguous()
    backward(
        *(_flat(t) for t in (grad_out, q)),
        keys,
        values,
        _flat(out),
        log,
        to_q,
        to_k,
        to_v,
        plans,
        documents.cu,
        scale,
    )
    for flat, to in zip((to_q, *to_k, *to_v), (grads[0], *grads[1], *grads[2]), strict=True):
        _unflat(flat, to)


def _flat(t: Tensor) -> Tensor:
    """[B, H, T, D] as [1, H, B * T, D]; no copy where the heads of a row lie side by side."""
    batch, heads, length, channels = t.shape
    return t.transpose(0, 1).reshape(1, heads, batch * length, channels)


def _unflat(flat: Tensor, to: Tensor) -> None:
    """Copies [1, H, B * T, D] to [B, H, T, D], unless they are the same memory."""
    batch, heads, length, channels = to.shape
    if flat.data_ptr() != to.data_ptr():
        to.copy_(flat.view(heads, batch, length, channels).transpose(0, 1))
