"""Grouped-query attention of new tokens over a key-value cache, with rotary embedding.

Scaled dot-product attention: Vaswani et al., 2017, arXiv:1706.03762; grouped queries: Ainslie et
al., 2023, arXiv:2305.13245; rotary embedding: Su et al., 2021, arXiv:2104.09864, in the layout of
Llama's checkpoints; window with sink tokens: Xiao et al., 2023, arXiv:2309.17453; tree masks: Cai
et al., 2024, arXiv:2401.10774.
"""

from __future__ import annotations

import torch
from torch import Tensor


def decode_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    *,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    positions: Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
    sinks: int = 0,
    mask: Tensor | None = None,
) -> Tensor:
    """softmax(rotate(q) [k_cache; rotate(k)]^T * scale) [v_cache; v] over what each row sees.

    Rotated keys are rounded to the dtype of the cache, from where later calls read them; nothing
    else is rounded before the result.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    B, Hq, T, D = q.shape
    Hkv, C = k_cache.shape[1:3]
    at = lengths[:, None] + torch.arange(T, device=q.device)  # [B, T], indices of the new rows
    where = at if positions is None else positions
    queries = rotated(q, cos, sin, where)
    new_keys = rotated(k, cos, sin, where).to(k_cache.dtype)
    valid = torch.arange(C, device=q.device) < lengths[:, None]  # [B, C]
    old_values = v_cache.masked_fill(~valid[:, None, :, None], 0.0)
    keys = torch.cat([k_cache, new_keys], 2).to(wide)
    values = torch.cat([old_values, v], 2).to(wide)

    old = torch.arange(C, device=q.device)[None].expand(B, C)
    index = torch.cat([old, at], 1)[:, None, :]  # [B, 1, C + T]
    distance = at[:, :, None] - index
    seen = distance >= 0
    if window is not None:
        seen = seen & ((distance < window) | (index < sinks))
    seen = seen & torch.cat([valid, torch.ones_like(at, dtype=torch.bool)], 1)[:, None, :]
    if mask is not None:
        seen = torch.cat([seen[:, :, :C], mask.expand(B, T, T)], 2)

    grouped = queries.reshape(B, Hkv, Hq // Hkv, T, D)
    scores = grouped @ keys.mT[:, :, None] * (D**-0.5 if scale is None else scale)
    weights = scores.masked_fill(~seen[:, None, None], float("-inf")).softmax(-1)
    return (weights @ values[:, :, None]).reshape(B, Hq, T, D).to(q.dtype)


def decode_attention_(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    *,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    positions: Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
    sinks: int = 0,
    mask: Tensor | None = None,
) -> Tensor:
    """`decode_attention`, which then writes rotate(k) and v to rows lengths[b] + t of the caches."""
    out = decode_attention(
        q,
        k,
        v,
        k_cache,
        v_cache,
        lengths,
        cos=cos,
        sin=sin,
        positions=positions,
        scale=scale,
        window=window,
        sinks=sinks,
        mask=mask,
    )
    B, _, T, _ = k.shape
    at = lengths[:, None] + torch.arange(T, device=q.device)
    batch = torch.arange(B, device=q.device)[:, None]
    new_keys = rotated(k, cos, sin, at if positions is None else positions)
    k_cache[batch, :, at] = new_keys.to(k_cache.dtype).transpose(1, 2)
    v_cache[batch, :, at] = v.transpose(1, 2)
    return out


def rotated(x: Tensor, cos: Tensor | None, sin: Tensor | None, positions: Tensor) -> Tensor:
    """x [B, H, T, D] at positions [B, T], channel i paired with i + D / 2; not rounded."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if cos is None or sin is None:
        return x
    c, s = (table[positions][:, None].to(x.dtype) for table in (cos, sin))
    a, b = x.chunk(2, -1)
    return torch.cat([a * c - b * s, b * c + a * s], -1)
