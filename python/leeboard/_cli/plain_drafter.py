"""The drafter's chain step as one writes it in PyTorch: the peer of the benchmark."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from leeboard.ops import DrafterWeights


@dataclass(frozen=True)
class PlainStep:
    """A step on weights of one floating-point dtype, over caches that it writes to.

    Args:
        weights: Tensors, none of them quantised.
        keys: [B, Hkv, C, D], rotated.
        values: [B, Hkv, C, D].
        length: Rows of the caches in use before the chain.
        open_ended: Attend to slices of the caches, which eager PyTorch does best; else to all C rows
            under a mask, so that every step has the same shapes and is compiled once.
    """

    weights: DrafterWeights
    keys: Tensor
    values: Tensor
    length: int
    open_ended: bool

    def inputs(self, j: int) -> tuple[Tensor, Tensor | None]:
        """(row of the caches [1], mask [1, 1, 1, rows] or None) of step j, for `__call__`."""
        row = torch.tensor([self.length + j])
        rows = torch.arange(self.length + j + 1 if self.open_ended else self.keys.shape[2])
        seen = rows <= row
        if self.weights.window is not None:
            near = (row - rows < self.weights.window) | (rows >= self.length)
            seen &= near | (rows < self.weights.sinks)
        elif self.open_ended:
            return row, None
        return row, seen[None, None, None]

    def __call__(
        self, state: Tensor, token: Tensor, row: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(token [B], state [B, 1, H]) after the row of state [B, 1, H] and token [B]."""
        w, h = self.weights, (self.weights.hidden_size,)
        batch, d = token.shape[0], w.head_dim
        embedded = F.rms_norm(F.embedding(token[:, None], w.embedding), h, w.input_norm, w.eps)
        normed = F.rms_norm(state, h, w.hidden_norm, w.eps)
        x = torch.cat((embedded, normed), dim=-1)
        q, k, v = (
            F.linear(x, m).view(batch, 1, -1, d).transpose(1, 2)  # type: ignore[arg-type]
            for m in (w.q, w.k, w.v)
        )
        cos, sin = (torch.cat((t[row], t[row]), dim=-1).to(x.dtype) for t in (w.cos, w.sin))
        keys, values = self.keys, self.values
        keys.index_copy_(2, row, _rotate(k, cos, sin))
        values.index_copy_(2, row, v)
        if self.open_ended:
            end = int(row) + 1
            keys, values = keys[:, :, :end], values[:, :, :end]
        attended = F.scaled_dot_product_attention(
            _rotate(q, cos, sin), keys, values, attn_mask=mask, enable_gqa=True
        )
        residual = normed if w.norm_before_residual else state
        r = residual + F.linear(attended.transpose(1, 2).flatten(2), w.o)  # type: ignore[arg-type]
        n = F.rms_norm(r, h, w.post_norm, w.eps)
        gated = F.silu(F.linear(n, w.gate)) * F.linear(n, w.up)  # type: ignore[arg-type]
        out = r + F.linear(gated, w.down)  # type: ignore[arg-type]
        hidden = F.rms_norm(out, h, w.norm, w.eps)
        best = F.linear(hidden[:, 0], w.head).argmax(-1)  # type: ignore[arg-type]
        token = best if w.d2t is None else best + w.d2t[best]
        return token, hidden if w.norm_output else out


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin
