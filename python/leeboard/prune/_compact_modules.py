"""Plain torch modules that stand in a compact model where torch or transformers has none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leeboard.nn import CrossAttention, FeedForward, RMSNorm, SparseGQA
from leeboard.nn.feed_forward import ACTIVATIONS
from leeboard.nn.sparse_gqa import _rotated
from leeboard.ops.patterns import Dense, Pattern
from leeboard.prune._mha import as_call, attend
from leeboard.prune._run import fill_cache


class Constant(nn.Module):
    """In place of a block that is dropped: zeros [..., out_features], or a constant."""

    def __init__(self, out_features: int, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features = out_features
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """x [..., any] to [..., out_features]."""
        shape = (*x.shape[:-1], self.out_features)
        return x.new_zeros(shape) if self.bias is None else self.bias.expand(shape)


class Nothing(nn.Module):
    """In place of a writer whose reader is a `Constant`: no channels."""

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """x [..., any] to [..., 0]."""
        return x[..., :0]


class Shift(nn.Module):
    """In place of a dropped block with a residual: x, or x plus a constant."""

    def __init__(self, bias: Tensor | None) -> None:
        super().__init__()
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """x [..., d] to [..., d]."""
        return x if self.bias is None else x + self.bias


class DroppedAttention(nn.Module):
    """In place of an attention of transformers; a cache still counts its tokens.

    Args:
        out: Makes what the attention gives.
        layer_idx: Of the attention in a cache.
    """

    def __init__(self, out: nn.Module, layer_idx: int | None) -> None:
        super().__init__()
        self.out, self.layer_idx = out, layer_idx

    def forward(self, hidden_states: Tensor, *_: Any, **kwargs: Any) -> tuple[Tensor, None]:
        """The constant, and no weights."""
        fill_cache(self, hidden_states, kwargs)
        return self.out(hidden_states), None


class CompactMultihead(nn.Module):
    """`nn.MultiheadAttention` with fewer heads than its channels fill; same call.

    Args:
        projections: Of queries, keys and values.
        out_proj: The output projection.
        heads: int64, the heads of the original that are here.
        like: The original: layout, dropout, number of heads, and a pattern if it has one.
    """

    heads: Tensor

    def __init__(
        self,
        projections: tuple[nn.Linear, nn.Linear, nn.Linear],
        out_proj: nn.Linear,
        heads: Tensor,
        like: nn.MultiheadAttention,
    ) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = projections
        self.out_proj = out_proj
        self.register_buffer("heads", heads, persistent=False)
        # Masks of each head come for the heads of the original.
        self.num_heads, self.head_dim = like.num_heads, like.head_dim
        self.embed_dim, self.dropout, self.batch_first = (
            like.embed_dim,
            like.dropout,
            like.batch_first,
        )
        self.pattern: Pattern | None = getattr(like, "pattern", None)
        # Torch's layers look at these before they take a fused path, which this bars.
        self.in_proj_bias = None
        self._qkv_same_embed_dim = False
        self.training = like.training

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention.forward`; weights are those of the heads that are here."""

        def project(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return self.q_proj(query), self.k_proj(key), self.v_proj(value)

        call = as_call(args, kwargs)
        if self.pattern is not None:
            call = call._replace(need_weights=False)
        return attend(self, call, project, plain=True, heads=self.heads)


class PlainFeedForward(nn.Module):
    """`leeboard.nn.FeedForward` in plain torch, on the same norm and linear layers."""

    def __init__(self, block: FeedForward) -> None:
        super().__init__()
        self.norm, self.up, self.gate, self.down = block.norm, block.up, block.gate, block.down
        self.activation, self.residual = block.activation, block.residual
        self.training = block.training

    def forward(self, x: Tensor) -> Tensor:
        """x [..., d] to [..., d]."""
        normed = x if self.norm is None else self.norm(x)
        act = ACTIVATIONS[self.activation]
        hidden = self.up(normed)
        hidden = act(hidden) if self.gate is None else act(self.gate(normed)) * hidden
        y: Tensor = self.down(hidden)
        return x + y if self.residual else y


class PlainNorm(nn.Module):
    """`leeboard.nn.RMSNorm` in plain torch, on the same weight."""

    weight: nn.Parameter | None

    def __init__(self, norm: RMSNorm) -> None:
        super().__init__()
        self.register_parameter("weight", norm._parameters["weight"])
        self.eps = norm.eps
        self.weight_offset, self.rounding = norm.weight_offset, norm.rounding

    def forward(self, x: Tensor) -> Tensor:
        """x [..., H] over its last dimension."""
        wide = torch.promote_types(x.dtype, torch.float32)
        eps = torch.finfo(wide).eps if self.eps is None else self.eps
        h = x.to(wide)
        y = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + eps)
        if self.weight is None:
            return y.to(x.dtype)
        gain = self.weight.to(wide) + self.weight_offset
        if self.rounding == "before_weight":
            return y.to(x.dtype) * gain.to(x.dtype)
        return (y * gain).to(x.dtype)


class PlainAttention(nn.Module):
    """`SparseGQA` or `CrossAttention` in plain torch: every score is made, a mask hides.

    It takes no packed sequences, no cache and no list of heads.
    """

    sink_logits: nn.Parameter | None

    def __init__(self, block: SparseGQA | CrossAttention) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = block.q_proj, block.k_proj, block.v_proj
        self.out_proj = block.out_proj
        self.head_dim, self.pattern = block.head_dim, block.pattern
        self.softcap = block.softcap
        self.scale = block.head_dim**-0.5 if block.scale is None else block.scale
        sinks = getattr(block, "sink_logits", None)
        self.register_parameter("sink_logits", sinks)
        self.training = block.training

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        *,
        key_padding: Tensor | None = None,
        pattern: Pattern | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """x [B, L, E], over itself or a memory, to [B, L, E]; as the original's forward."""
        source = x if memory is None else memory
        q, k, v = self._heads(self.q_proj(x)), self._heads(self.k_proj(source)), None
        v = self._heads(self.v_proj(source))
        if position_embeddings is not None:
            q, k = (_rotated(t, *position_embeddings) for t in (q, k))
        groups = q.shape[1] // k.shape[1]
        if groups > 1:
            k, v = (_repeated(t, groups) for t in (k, v))
        mask = self._mask(self.pattern if pattern is None else pattern, q, k, key_padding)
        if self.softcap is None and self.sink_logits is None:
            out = F.scaled_dot_product_attention(q, k, v, mask, scale=self.scale)
        else:
            out = self._explicit(q, k, v, mask)
        if mask is not None and key_padding is not None:
            # A query that sees no key gives zeros.
            out = out.masked_fill(~mask.any(-1, keepdim=True), 0.0)
        y: Tensor = self.out_proj(out.transpose(1, 2).flatten(2))
        return y

    def _heads(self, t: Tensor) -> Tensor:
        heads = t.shape[2] // self.head_dim
        return t.view(*t.shape[:2], heads, self.head_dim).transpose(1, 2)

    def _mask(
        self, pattern: Pattern, q: Tensor, k: Tensor, key_padding: Tensor | None
    ) -> Tensor | None:
        """bool [B or 1, 1, Lq, Lk], true for what is seen; None for all."""
        mask = None
        if pattern != Dense():
            mask = pattern.dense_mask(q.shape[2], k.shape[2], q.device)[None, None]
        if key_padding is not None:
            seen = ~key_padding[:, None, None]
            mask = seen.expand(-1, 1, q.shape[2], -1) if mask is None else mask & seen
        return mask

    def _explicit(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        scores = (q @ k.transpose(-2, -1)).float() * self.scale
        if self.softcap is not None:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        if self.sink_logits is not None:
            sinks = self.sink_logits.to(scores.dtype)[None, :, None, None]
            scores = torch.cat((scores, sinks.expand(*scores.shape[:-1], 1)), -1)
        weights = scores.softmax(-1)[..., : k.shape[2]].to(v.dtype)
        return weights @ v


class PresentOnly(nn.Module):
    """A model of several modalities that reads those of its plan.

    Attributes:
        modalities: Those that are present.
    """

    def __init__(self, model: nn.Module, present: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.modalities = present
        known: Any = model
        self._missing = frozenset(known.modalities) - set(present)
        self._columns = [tuple(known.modalities).index(name) for name in present]
        self._width = len(known.modalities)
        self.training = model.training

    def forward(self, inputs: Mapping[str, Tensor], present: Tensor | None = None) -> Any:
        """As of the model; its modalities that are not in `modalities` are not read.

        `present` is bool [B, M], with a column for each of `modalities`.
        """
        kept = {name: x for name, x in inputs.items() if name not in self._missing}
        if present is None:
            return self.model(kept)
        if present.dim() != 2 or present.shape[1] != len(self.modalities):
            raise ValueError(
                f"present: got shape {list(present.shape)}, expected [B, {len(self.modalities)}]: "
                f"{', '.join(self.modalities)}"
            )
        wide = present.new_zeros(present.shape[0], self._width)
        wide[:, self._columns] = present
        return self.model(kept, wide)


class Absent(nn.Module):
    """In place of a part that only a missing modality runs."""

    def __init__(self, modality: str) -> None:
        super().__init__()
        self.modality = modality

    def forward(self, *_: Any, **__: Any) -> Any:
        """Raises RuntimeError."""
        raise RuntimeError(f"the model was made compact for inputs without {self.modality!r}")


def _repeated(t: Tensor, groups: int) -> Tensor:
    """[B, Hkv, L, D] to [B, Hkv * groups, L, D], each head repeated."""
    batch, heads, length, width = t.shape
    return t[:, :, None].expand(batch, heads, groups, length, width).flatten(1, 2)
