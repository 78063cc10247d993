"""What `nn.MultiheadAttention` computes, in steps that a plan can take a part of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leeboard.nn import SparseMultiheadAttention
from leeboard.ops import sparse_gqa
from leeboard.ops.patterns import Causal, Dense, Pattern

# A pattern is not made while a model is traced.
_DENSE, _CAUSAL = Dense(), Causal()


class Call(NamedTuple):
    """The arguments of `nn.MultiheadAttention.forward`."""

    query: Tensor
    key: Tensor
    value: Tensor
    key_padding_mask: Tensor | None = None
    need_weights: bool = True
    attn_mask: Tensor | None = None
    average_attn_weights: bool = True
    is_causal: bool = False


class Multihead(Protocol):
    """What `attend` reads of a module."""

    batch_first: bool
    dropout: float
    head_dim: int
    num_heads: int
    training: bool
    out_proj: Any


# (query, key, value), each [B, L, E], to the columns of q, k and v: [B, L, n * head_dim].
Project = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def project_all(module: nn.MultiheadAttention) -> Project:
    """The projections of all heads."""

    def project(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weight, bias = module.in_proj_weight, module._parameters["in_proj_bias"]
        if query is key and query is value:
            q, k, v = F.linear(query, weight, bias).chunk(3, -1)
            return q, k, v
        weights = weight.chunk(3)
        biases = (None,) * 3 if bias is None else bias.chunk(3)
        inputs = (query, key, value)
        q, k, v = (F.linear(x, w, b) for x, w, b in zip(inputs, weights, biases, strict=True))
        return q, k, v

    return project


def attend(
    module: Multihead,
    call: Call,
    project: Project,
    *,
    plain: bool,
    heads: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The module's result: project, attend, and the output projection, called as a module.

    Args:
        module: The attention.
        call: What its forward was given.
        project: Makes the columns of the heads that run.
        plain: Whether attention is made by torch alone, not by `leeboard.ops.sparse_gqa`.
        heads: int64, the heads that `project` makes; None for all.

    Returns:
        The attended tokens in the layout of the query; the weights of the heads that run, or their
        mean, if the call wants them.
    """
    if call.query.is_nested:
        raise ValueError("query: got a nested tensor, expected a padded one")
    batched = call.query.dim() == 3
    query, key, value = _batch_first(module, call)
    q, k, v = (
        t.view(*t.shape[:2], -1, module.head_dim).transpose(1, 2)
        for t in project(query, key, value)
    )
    weights = None
    dropout = module.dropout if module.training else 0.0
    own = _pattern(module, call, q.shape[2], k.shape[2])
    sparse = not plain and isinstance(module, SparseMultiheadAttention)
    padding = None if plain else _padding(call.key_padding_mask)
    if sparse and (dropout or padding is None):
        what = f"dropout is {dropout}" if dropout else "key_padding_mask is a bias"
        raise ValueError(f"{what}, which attention under a pattern does not serve")
    wants = call.need_weights and not sparse
    if own is not None and padding is not None and not (dropout or wants):
        out = sparse_gqa(q, k, v, own, key_padding=padding[0])
    else:
        mask = _mask(call, module.num_heads, heads, q, k, own)
        if wants:
            out, weights = _explicit(q, k, v, mask, dropout)
            weights = weights.mean(1) if call.average_attn_weights else weights
        else:
            out = F.scaled_dot_product_attention(q, k, v, mask, dropout)
    y: Tensor = module.out_proj(out.transpose(1, 2).flatten(2))
    if not batched:
        return y[0], None if weights is None else weights[0]
    return (y if module.batch_first else y.transpose(0, 1)), weights


def _batch_first(module: Multihead, call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """The inputs as [B, L, E]; the same tensor where they were."""
    done: dict[int, Tensor] = {}
    for t in (call.query, call.key, call.value):
        if id(t) not in done:
            if t.dim() == 3:
                done[id(t)] = t if module.batch_first else t.transpose(0, 1)
            else:
                done[id(t)] = t[None]
    return done[id(call.query)], done[id(call.key)], done[id(call.value)]


def _pattern(module: Multihead, call: Call, queries: int, keys: int) -> Pattern | None:
    """The pattern that says what the mask does, or None for a mask that has to be read."""
    pattern: Pattern | None = getattr(module, "pattern", None)
    if pattern is not None:
        return pattern & _CAUSAL if call.is_causal else pattern
    if call.attn_mask is None:
        return _DENSE
    # is_causal promises that the mask is the causal one.
    return _CAUSAL if call.is_causal and queries == keys else None


def _padding(mask: Tensor | None) -> tuple[Tensor | None] | None:
    """(bool [B, L] or None,) of what a padding mask hides; None where it is a bias."""
    if mask is None:
        return (None,)
    if mask.dtype != torch.bool:
        hidden = mask == -torch.inf
        if not (hidden | (mask == 0)).all():
            return None
        mask = hidden
    return (mask if mask.dim() == 2 else mask[None],)


def _mask(
    call: Call,
    all_heads: int,
    heads: Tensor | None,
    q: Tensor,
    k: Tensor,
    own: Pattern | None,
) -> Tensor | None:
    """One additive mask of all that hides, [B or 1, heads or 1, Lq, Lk]; None for nothing."""
    mask: Tensor | None = None
    if own is not None and not isinstance(own, Dense):
        mask = _additive(~own.dense_mask(q.shape[2], k.shape[2], q.device), q.dtype)[None, None]
    elif own is None and call.attn_mask is not None:
        mask = _additive(call.attn_mask, q.dtype)
        if mask.dim() == 3:
            mask = mask.view(-1, all_heads, *mask.shape[1:])
            mask = mask if heads is None else mask[:, heads]
        else:
            mask = mask[None, None]
    if call.key_padding_mask is not None:
        padding = _additive(call.key_padding_mask, q.dtype)
        padding = padding.view(-1, 1, 1, padding.shape[-1])
        mask = padding if mask is None else mask + padding
    return mask


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(
            mask, -torch.inf
        )
    return mask.to(dtype)


def _explicit(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float
) -> tuple[Tensor, Tensor]:
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    weights = (scores if mask is None else scores + mask).softmax(-1)
    if dropout:
        weights = F.dropout(weights, dropout)
    return weights @ v, weights


def as_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """The arguments by name."""
    return Call(*args, **kwargs)
