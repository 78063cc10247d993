"""Attention from one sequence to another, on `leeboard.ops.sparse_gqa`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from leeboard.nn.sparse_gqa import SparseGQA
from leeboard.ops import sparse_gqa
from leeboard.ops.patterns import Dense


class CrossAttention(nn.Module):
    """Every token of x attends to all tokens of a memory: out_proj(concat_h(attention_h)).

    Queries are made of x, keys and values of the memory; query head h reads key-value head
    h // (num_heads / num_kv_heads). Heads are counted from the projections' outputs, so a module
    with fewer of them runs as it is.

    Args:
        embed_dim: Channels E of x and of the result.
        num_heads: Query heads.
        num_kv_heads: Key-value heads, a divisor of `num_heads`; as many by default.
        key_dim: Channels of the memory; `embed_dim` by default.
        head_dim: Channels of a head, 1 to 256; embed_dim / num_heads by default.
        bias: Whether the projections have biases.
        device: Of the parameters.
        dtype: Of the parameters.

    Attributes:
        active_heads: Query heads to compute, ascending, or None for all; a call may override it.
        pattern: Dense(): every query sees every key that is not padding.

    Raises:
        TypeError, ValueError: For an argument that does not fit; the message names it.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        *,
        key_dim: int | None = None,
        head_dim: int | None = None,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        key_dim = embed_dim if key_dim is None else key_dim
        if type(key_dim) is not int or key_dim < 1:
            raise ValueError(f"key_dim: got {key_dim!r}, expected a positive integer")
        # The same sizes, checks and projections as in self-attention, but for the memory's.
        like = SparseGQA(
            embed_dim, num_heads, num_kv_heads, head_dim=head_dim, bias=bias, device="meta"
        )
        self.embed_dim, self.key_dim = embed_dim, key_dim
        self.num_heads, self.num_kv_heads = like.num_heads, like.num_kv_heads
        self.head_dim = like.head_dim
        self.pattern = Dense()
        self.softcap: float | None = None
        self.scale: float | None = None
        self.active_heads: Sequence[int] | None = None
        inner, pairs = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        self.q_proj = nn.Linear(embed_dim, inner, bias=bias, device=device, dtype=dtype)
        self.k_proj = nn.Linear(key_dim, pairs, bias=bias, device=device, dtype=dtype)
        self.v_proj = nn.Linear(key_dim, pairs, bias=bias, device=device, dtype=dtype)
        self.out_proj = nn.Linear(inner, embed_dim, bias=bias, device=device, dtype=dtype)

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        *,
        key_padding: Tensor | None = None,
        active_heads: Sequence[int] | None = None,
    ) -> Tensor:
        """Attention of the tokens x over those of the memory.

        Args:
            x: [B, Lq, embed_dim].
            memory: [B, Lk, key_dim].
            key_padding: bool [B, Lk], true for tokens of the memory that nobody sees. What they
                hold must be finite.
            active_heads: In place of the module's.

        Returns:
            [B, Lq, embed_dim].

        Raises:
            TypeError, ValueError: For an argument that does not fit; the message names it.
        """
        for name, t, channels in (("x", x, self.embed_dim), ("memory", memory, self.key_dim)):
            if t.dim() != 3 or t.shape[2] != channels:
                raise ValueError(f"{name}: got shape {list(t.shape)}, expected [B, L, {channels}]")
        if x.shape[0] != memory.shape[0]:
            raise ValueError(
                f"memory: got {memory.shape[0]} sequences, expected {x.shape[0]}, as many as x"
            )
        out = sparse_gqa(
            self._heads(self.q_proj(x)),
            self._heads(self.k_proj(memory)),
            self._heads(self.v_proj(memory)),
            self.pattern,
            scale=self.scale,
            active_heads=self.active_heads if active_heads is None else active_heads,
            key_padding=key_padding,
            softcap=self.softcap,
        )
        y: Tensor = self.out_proj(out.transpose(1, 2).flatten(2))
        return y

    def _heads(self, t: Tensor) -> Tensor:
        return t.view(*t.shape[:2], -1, self.head_dim).transpose(1, 2)

    def extra_repr(self) -> str:
        """Sizes."""
        return (
            f"embed_dim={self.embed_dim}, key_dim={self.key_dim}, num_heads={self.num_heads}, "
            f"num_kv_heads={self.num_kv_heads}, head_dim={self.head_dim}"
        )
