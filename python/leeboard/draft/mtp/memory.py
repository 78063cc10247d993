"""What the head's decoder layer attends to: its own rows in the unroll, a cache in decoding.

The layer is transformers' own; its attention function is replaced through transformers' attention
interface by one that asks the memory given with the call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor, nn
from torch.nn import functional as F

from leeboard.draft.cache import DrafterCache
from leeboard.draft.protocol import Attended, Watch
from leeboard.ops import decode_attention_, ttt_attention

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
        # The same, keys and values of one width.
        self._wide: list[list[Tensor]] = []

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
        width = v.shape[-1]
        wide, *pair = _one_width(q, k, v)
        self._wide.append(pair)
        keys, values = zip(*self._wide, strict=True)
        out = ttt_attention(wide, keys, values, cu_seqlens=self._bounds, scale=scale)
        return out[..., :width]


class Cached:
    """A head's keys and values in decoding.

    Args:
        cache: Grows by the rows of every call.
        counts: How many of a call's rows each sequence keeps, the first ones; None for all.
    """

    def __init__(self, cache: DrafterCache, counts: Sequence[int] | None = None) -> None:
        self._cache, self._counts = cache, counts

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        width, cache = v.shape[-1], self._cache
        q, k, v = _one_width(q, k, v)
        cache.reserve(k)
        out = decode_attention_(q, k, v, cache.keys, cache.values, cache.lengths, scale=scale)
        cache.advance(k.shape[2], self._counts)
        return out[..., :width]


def _one_width(*tensors: Tensor) -> list[Tensor]:
    """The tensors [..., D], with zeros behind the narrower ones: scores and values stay the same."""
    widest = max(t.shape[-1] for t in tensors)
    return [t if t.shape[-1] == widest else F.pad(t, (0, widest - t.shape[-1])) for t in tensors]
