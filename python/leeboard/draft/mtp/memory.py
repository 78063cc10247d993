"""What the head's decoder layer attends to: its own rows in the unroll, a cache in decoding.

The layer is transformers' own; its attention function is replaced through transformers' attention
interface by one that asks the memory given with the call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leeboard.draft.cache import DrafterCache
from leeboard.draft.protocol import Attended, Watch
from leeboard.ops import decode_attention_

ATTENTION = "leeboard_mtp"


class Memory(Protocol):
    """Where keys and values of a layer's rows are kept."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """[B, Hq, T, Dv] of rotated q [B, Hq, T, D], k [B, Hkv, T, D] and v [B, Hkv, T, Dv]."""


def use_memory(layer: nn.Module) -> None:
    """Let a transformers decoder layer attend to the `memory` that each call gives it."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, _attention)
    for module in layer.modules():
        config = getattr(module, "config", None)
        if config is not None:
            config._attn_implementation = ATTENTION


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    memory: Memory | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: [B, T, Hq, Dv], and no weights."""
    if memory is None:
        raise RuntimeError(f"{type(module).__name__}: called outside of its MTPHead")
    for name in ("softcap", "s_aux", "position_bias"):
        if others.get(name) is not None:
            raise ValueError(
                f"{type(module).__name__}: its attention has a {name}, expected plain softmax "
                "attention in the decoder layer of an MTPHead"
            )
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    return memory.attend(query, key, value, scale).transpose(1, 2).contiguous(), None


class Unrolled:
    """A head's keys and values in the unroll, of the steps that it has taken so far.

    Row t sees the keys that rows c <= t of its document have at the head's first step, and its own
    keys of the head's later steps, under one softmax.

    Args:
        bounds: Where documents begin, as `Attended.cu_seqlens`.
        watch: Called once a step, before its attention.
    """

    def __init__(self, bounds: Tensor | None, watch: Watch | None) -> None:
        # The step of the chain that is on.
        self.step = 0
        self._bounds, self._watch = bounds, watch
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        self._keys.append(k)
        self._values.append(v)
        seen = Attended(
            step=self.step,
            q=q,
            keys=tuple(self._keys),
            values=tuple(self._values),
            scale=scale,
            window=None,
            sinks=0,
            cu_seqlens=self._bounds,
        )
        if self._watch is not None:
            self._watch(seen)
        return _unrolled_attention(seen)


class Cached:
    """A head's keys and values in decoding.

    Args:
        cache: Grows by the rows of every call.
        counts: How many of a call's rows each sequence keeps, the first ones; None for all.
    """

    def __init__(self, cache: DrafterCache, counts: Sequence[int] | None = None) -> None:
        self._cache, self._counts = cache, counts

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        # One width for the cache's two halves: what is added changes neither scores nor values.
        widest, width = max(k.shape[-1], v.shape[-1]), v.shape[-1]
        q, k, v = (F.pad(t, (0, widest - t.shape[-1])) for t in (q, k, v))
        cache = self._cache
        cache.reserve(k)
        out = decode_attention_(q, k, v, cache.keys, cache.values, cache.lengths, scale=scale)
        cache.advance(k.shape[2], self._counts)
        return out[..., :width]


def _unrolled_attention(seen: Attended) -> Tensor:
    """[B, Hq, T, Dv]: a causal T x T product and one row-wise dot product per later step."""
    q, keys, values = seen.q, seen.keys, seen.values
    heads, rows = q.shape[1:3]
    kv_heads = keys[0].shape[1]
    grouped = q.reshape(-1, kv_heads, heads // kv_heads, rows, q.shape[-1]) * seen.scale
    scores = grouped @ keys[0].transpose(-1, -2).unsqueeze(2)
    scores = scores.masked_fill(_out_of_sight(seen), float("-inf"))
    own = [(grouped * k.unsqueeze(2)).sum(-1, keepdim=True) for k in keys[1:]]
    exact = torch.promote_types(scores.dtype, torch.float32)
    weights = torch.cat((scores, *own), dim=-1).softmax(dim=-1, dtype=exact).to(values[0].dtype)
    out = weights[..., :rows] @ values[0].unsqueeze(2)
    for i, v in enumerate(values[1:], start=rows):
        out = out + weights[..., i : i + 1] * v.unsqueeze(2)
    return out.flatten(1, 2)


def _out_of_sight(seen: Attended) -> Tensor:
    """bool [.., T, T]: whether row t does not see row c's key of the head's first step."""
    batch, rows = seen.q.shape[0], seen.q.shape[2]
    t = torch.arange(rows, device=seen.q.device)
    hidden = t[None, :] > t[:, None]
    if seen.cu_seqlens is None:
        return hidden
    flat = torch.arange(batch * rows, device=t.device)
    document = torch.searchsorted(seen.cu_seqlens.long(), flat, right=True).view(batch, rows)
    return (hidden | (document[:, :, None] != document[:, None, :]))[:, None, None]
