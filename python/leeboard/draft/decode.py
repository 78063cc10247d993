"""New rows of an EAGLE-3 drafter on its cache, by the fused ops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leeboard.draft.cache import DrafterCache
from leeboard.draft.layer import plain_weight
from leeboard.ops import QuantizedWeight, decode_attention_, feedback, qlinear, swiglu_linear

if TYPE_CHECKING:
    from leeboard.draft.model import Eagle3Drafter

# Up to here a linear layer costs what reading its weight costs, which the ops are made for; larger
# products, such as a prompt's, are torch's.
_FEW_ROWS = 32


def decode_rows(
    drafter: Eagle3Drafter,
    input_ids: Tensor,
    state: Tensor,
    position_ids: Tensor | None,
    cache: DrafterCache,
    counts: Sequence[int] | None,
) -> tuple[Tensor, Tensor]:
    """`Eagle3Drafter.step` with a cache."""
    if torch.is_grad_enabled():
        raise ValueError("cache: it keeps no gradients, expected a call in torch.no_grad()")
    if counts is not None and state.ndim == 3:
        if len(counts) != state.shape[0]:
            raise ValueError(
                f"counts: got {len(counts)}, expected one for each of {state.shape[0]}"
            )
        # NaN in a row that no sequence keeps would reach the others as 0 * NaN.
        kept = torch.tensor(list(counts), device=state.device)[:, None, None]
        beyond = torch.arange(state.shape[1], device=state.device)[:, None] >= kept
        state = state.masked_fill(beyond, 0.0)
    residual, joined = drafter.join(input_ids, state)
    layer, config = drafter.midlayer, drafter.config
    attention, mlp = layer.self_attn, layer.mlp
    q, k, v = (
        _heads(_product(linear, joined), config.head_dim)
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    cache.reserve(k)
    rows = input_ids.shape[1]
    last = max(cache.lengths_after(rows, counts), default=0)
    positions = position_ids
    if position_ids is not None:
        positions = position_ids.expand(input_ids.shape)
        last = int(position_ids.max()) + 1 if rows else 0
    elif counts is not None:
        # Rows that no sequence keeps may stick out of the table.
        at = cache.lengths[:, None] + torch.arange(rows, device=q.device)
        positions = at.clamp(max=max(last - 1, 0))
    cos, sin = drafter.rope_table(max(last, 1))
    attended = decode_attention_(
        q,
        k,
        v,
        cache.keys,
        cache.values,
        cache.lengths,
        cos=cos,
        sin=sin,
        positions=positions,
        window=config.sliding_window,
        sinks=config.attention_sinks,
    )
    r = _product(attention.o_proj, attended.transpose(1, 2).flatten(2), residual)
    norm = layer.post_attention_layernorm
    if _few(r):
        x = swiglu_linear(
            r,
            plain_weight(mlp.gate_proj),
            plain_weight(mlp.up_proj),
            plain_weight(mlp.down_proj),
            norm_weight=norm.weight,
            eps=config.rms_norm_eps,
            residual=r,
        )
    else:
        normed = norm(r)
        gated = F.silu(_product(mlp.gate_proj, normed)) * _product(mlp.up_proj, normed)
        x = _product(mlp.down_proj, gated, r)
    hidden = drafter.norm(x)
    cache.advance(rows, counts)
    return hidden, feedback(hidden, x, config.norm_output)


def _heads(x: Tensor, width: int) -> Tensor:
    """[B, heads, T, D] of x [B, T, heads D]."""
    return x.view(*x.shape[:-1], x.shape[-1] // width, width).transpose(1, 2)


def _few(x: Tensor) -> bool:
    return x.shape[:-1].numel() <= _FEW_ROWS


def _product(linear: nn.Module, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """x weight^T, plus the residual, without gradients."""
    weight = plain_weight(linear)
    if _few(x):
        return qlinear(x, weight, residual=residual)
    if isinstance(weight, QuantizedWeight):
        weight = weight.dequantize().to(x.dtype)
    y = F.linear(x, weight)
    return y if residual is None else y.add_(residual)
