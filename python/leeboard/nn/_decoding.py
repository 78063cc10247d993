"""Keys and values of the tokens so far, and attention over them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from leeboard.ops import decode_attention_, sparse_gqa
from leeboard.ops.patterns import And, Band, Causal, Or, Pattern

# New tokens up to which decode_attention_ serves; more of them share keys in sparse_gqa.
_DECODE_TOKENS = 16


@dataclass
class AttentionCache:
    """Keys and values of the tokens so far; `SparseGQA.cache` makes it, its forward fills it.

    Attributes:
        k: [B, Hkv, C, D], rotated where there is a rotation.
        v: [B, Hkv, C, D].
        lengths: int64 [B], rows in use.
    """

    k: Tensor
    v: Tensor
    lengths: Tensor

    def reset(self) -> None:
        """Forgets all tokens."""
        self.lengths.zero_()


def require_decodable(pattern: Pattern) -> None:
    """ValueError for a pattern under which a token sees later ones, or that knows its length."""
    if not _decodable(pattern):
        raise ValueError(
            f"pattern: {pattern} cannot be decoded token by token; expected Causal, a causal "
            "Band, or a composition of these"
        )


def decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: AttentionCache,
    pattern: Pattern,
    padding: Tensor | None,
    options: dict[str, Any],
    need_lse: bool,
) -> tuple[Tensor, Tensor]:
    """Attention over the cache and the new rows, which are appended; the log-sum-exp if needed."""
    require_decodable(pattern)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v)):
        raise RuntimeError("cache: it takes no gradients; use torch.no_grad()")
    batch, _, count, _ = q.shape
    capacity = cache.k.shape[2]
    if cache.lengths.shape[0] != batch:
        raise ValueError(f"cache: it is for {len(cache.lengths)} sequences, x has {batch}")
    lengths = cache.lengths.tolist()
    if max(lengths, default=0) + count > capacity:
        raise ValueError(
            f"cache: {max(lengths)} of {capacity} rows are in use, no room for {count} more"
        )
    fresh = _kept(padding, batch, count)
    plain = options["softcap"] is options["sink_logits"] is options["active_heads"] is None
    if plain and not need_lse and count <= _DECODE_TOKENS and isinstance(pattern, Causal | Band):
        window, sinks = (pattern.window, pattern.sinks) if isinstance(pattern, Band) else (None, 0)
        out = decode_attention_(
            q,
            k,
            v,
            cache.k,
            cache.v,
            cache.lengths,
            scale=options["scale"],
            window=window,
            sinks=sinks,
        )
        cache.lengths += fresh if fresh is not None else count
        return out, out
    for b, length in enumerate(lengths):
        cache.k[b, :, length : length + count] = k[b]
        cache.v[b, :, length : length + count] = v[b]
    if len(set(lengths)) == 1:
        end = lengths[0] + count
        out, lse = sparse_gqa(q, cache.k[:, :, :end], cache.v[:, :, :end], pattern, **options)
    else:
        out, lse = _ragged(q, cache, lengths, pattern, options)
    cache.lengths += fresh if fresh is not None else count
    return out, lse


def _decodable(pattern: Pattern) -> bool:
    if isinstance(pattern, And | Or):
        return all(_decodable(part) for part in pattern.parts)
    return isinstance(pattern, Causal) or (isinstance(pattern, Band) and pattern.causal)


def _kept(padding: Tensor | None, batch: int, count: int) -> Tensor | None:
    """How many of the new tokens of each sequence are kept, int64 [B]; None for all."""
    if padding is None:
        return None
    if padding.dtype != torch.bool or padding.shape != (batch, count):
        raise ValueError(
            f"key_padding: got {padding.dtype} {list(padding.shape)}, expected torch.bool "
            f"[{batch}, {count}]"
        )
    if (padding[:, :-1] & ~padding[:, 1:]).any():
        raise ValueError("key_padding: with a cache, padding comes after all tokens of a sequence")
    return (~padding).sum(1)


def _ragged(
    q: Tensor,
    cache: AttentionCache,
    lengths: list[int],
    pattern: Pattern,
    options: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """Sequences of different lengths: packed, one after the other."""
    batch, heads, count, _ = q.shape
    ends = [length + count for length in lengths]
    k, v = (
        torch.cat([t[b, :, :end] for b, end in enumerate(ends)], 1)[None]
        for t in (cache.k, cache.v)
    )
    packed = q.transpose(0, 1).flatten(1, 2)[None]
    bounds = torch.arange(batch + 1) * count
    bounds_k = torch.tensor([0, *ends]).cumsum(0)
    out, lse = sparse_gqa(
        packed, k, v, pattern, cu_seqlens=bounds, cu_seqlens_k=bounds_k, **options
    )
    return (
        out[0].reshape(heads, batch, count, q.shape[3]).transpose(0, 1),
        lse[0].reshape(heads, batch, count).transpose(0, 1),
    )
