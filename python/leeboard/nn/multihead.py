"""`torch.nn.MultiheadAttention` for self-attention, on `leeboard.ops.sparse_gqa`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leeboard.ops import sparse_gqa
from leeboard.ops._numpy import np
from leeboard.ops.patterns import Causal, Pattern


class SparseMultiheadAttention(nn.MultiheadAttention):
    """Self-attention of a `torch.nn.MultiheadAttention` under a pattern; made by `replace`.

    Call, parameters and state_dict are those of the original; weights are never made, so the second
    result is None. Query, key and value must be the same tensor. A mask must say what the pattern
    says already; with `is_causal=True` it is taken to be causal, and the pattern takes away from
    that. Dropout of attention weights is an error in training: set `dropout` to 0.

    Attributes:
        pattern: Who sees whom.
        active_heads: Query heads to compute, ascending, or None for all.
    """

    pattern: Pattern
    active_heads: Sequence[int] | None

    @classmethod
    def sharing(cls, mha: nn.MultiheadAttention, pattern: Pattern) -> SparseMultiheadAttention:
        """One with the very parameters of `mha`: what is set or loaded in one is in the other."""
        new = cls.__new__(cls)
        new.__dict__.update(vars(mha))
        new.pattern = pattern
        new.active_heads = None
        # Torch's layers would read the weights and attend without us; this they check.
        new._qkv_same_embed_dim = False
        return new

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """The attended tokens, in the layout of `query`, and None for the weights.

        Args:
            query: [B, L, E] with `batch_first`, else [L, B, E]; or [L, E].
            key: `query`.
            value: `query`.
            key_padding_mask: [B, L], bool (true is ignored) or float of zeros and -inf.
            need_weights: Not used.
            attn_mask: [L, L], bool (true is hidden) or float of zeros and -inf: what `pattern`
                says. Not read with `is_causal`.
            average_attn_weights: Not used.
            is_causal: Whether `attn_mask` is the causal mask.

        Raises:
            ValueError: If keys are not the queries, a mask says something else, or there is
                dropout in training.
        """
        if query is not key or query is not value:
            raise ValueError("key: expected the query: leeboard replaces self-attention only")
        if self.training and self.dropout:
            raise ValueError(
                f"dropout: it is {self.dropout}, but no attention weights are dropped; set the "
                "module's dropout to 0"
            )
        if query.is_nested:
            raise ValueError(
                "query: got a nested tensor; set use_nested_tensor of the TransformerEncoder to "
                "False"
            )
        x = query if query.dim() == 3 else query[None]
        if query.dim() == 3 and not self.batch_first:
            x = x.transpose(0, 1)
        pattern = self.pattern
        if is_causal:
            pattern = pattern & Causal()
        elif attn_mask is not None:
            _require_same(attn_mask, pattern, x.shape[1])
        padding = (
            None if key_padding_mask is None else _hidden("key_padding_mask", key_padding_mask)
        )
        if padding is not None and padding.dim() == 1:
            padding = padding[None]
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.view(*x.shape[:2], 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        y = sparse_gqa(q, k, v, pattern, key_padding=padding, active_heads=self.active_heads)
        y = self.out_proj(y.transpose(1, 2).flatten(2))
        if query.dim() != 3:
            return y[0], None
        return (y if self.batch_first else y.transpose(0, 1)), None

    def extra_repr(self) -> str:
        """Sizes and pattern."""
        return f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, pattern={self.pattern}"


def _hidden(name: str, mask: Tensor) -> Tensor:
    """bool, true where a mask hides."""
    if mask.dtype == torch.bool:
        return mask
    hidden = mask == -torch.inf
    if not (hidden | (mask == 0)).all():
        raise ValueError(f"{name}: got other values than 0 and -inf; expected a mask, not a bias")
    return hidden


def _require_same(mask: Tensor, pattern: Pattern, length: int) -> None:
    if tuple(mask.shape) != (length, length):
        raise ValueError(
            f"attn_mask: got shape {list(mask.shape)}, expected [{length}, {length}]: the pattern "
            "is the same for all heads and sequences"
        )
    # Where runs of visible keys begin and end: the spans of a pattern have the same form.
    edges = F.pad((~_hidden("attn_mask", mask)).to(torch.int8), (1, 1)).diff(dim=1)
    begin, end = ((edges == sign).nonzero().cpu().numpy() for sign in (1, -1))
    offsets, spans = pattern.spans(length, length)
    found = np.stack((begin[:, 1], end[:, 1]), 1)
    counts: Any = np.bincount(begin[:, 0], minlength=length)
    if not (np.array_equal(counts, np.diff(offsets)) and np.array_equal(found, spans)):
        raise ValueError(f"attn_mask: it says something else than the pattern, {pattern}")
