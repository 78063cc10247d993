"""A whole chain (or tree) of drafter steps, without a look at the device in between.

A step of a chain is `LAUNCHES_PER_STEP` launches: glue; queries, keys and values; attention to
chunks of keys, and their join; output projection with residual; norm, gate, up and SwiGLU; down
projection with residual; norm and head; the best entry, its token and the path's log-probability.
From step to step everything is float32, as in the reference; keys and values alone are rounded, to
the dtype of the cache. The rows of the draft lie in a workspace behind the cache, which is only
read: keys unrotated, rows in the order of their steps, within a step by node and then sequence.

A step of a tree takes as many (one more where the vocabulary's blocks leave more than 2048 keys)
and some twenty small ones of torch, which pick the rows of the next level.

On a GPU a call that repeats is replayed from a CUDA graph (`_graph.py`).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

import torch

from leeboard.kernels import (
    decode_attention,
    drafter_glue,
    linear_argmax,
    linear_topk,
    qlinear,
    swiglu_linear,
)
from leeboard.kernels import rms_norm as rms_norm_kernels
from leeboard.kernels._graph import ChainGraph
from leeboard.kernels._weights import Stored, stored

if TYPE_CHECKING:
    from leeboard.reference import DrafterWeights

# For `topk` 1, where queries, keys and values have one format.
LAUNCHES_PER_STEP = 9

_MATRICES = ("q", "k", "v", "o", "gate", "up", "down", "head")
_graphs = ChainGraph()


class _Layer:
    """The decoder layer over a workspace for all rows of a draft."""

    def __init__(
        self,
        weights: DrafterWeights,
        state: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        lengths: torch.Tensor,
        steps: int,
        topk: int,
    ) -> None:
        B, H = state.shape
        self.weights, self.storage, self.lengths = weights, state.dtype, lengths
        self.k_cache, self.v_cache = k_cache, v_cache
        self.matrices = {name: stored(getattr(weights, name)) for name in _MATRICES}
        self.topk, self.rows = topk, 1 + (steps - 1) * topk
        width, most = weights.head_dim, topk * B

        def wide(*shape: int) -> torch.Tensor:
            return torch.empty(shape, dtype=torch.float32, device=state.device)

        self.joined, self.fed, self.middle = wide(most, 2 * H), wide(most, H), wide(most, H)
        self.queries, self.attended = (wide(most, self.matrices["q"].rows) for _ in range(2))
        # Residual streams of all rows, from which the states follow at the end.
        self.streams = wide(self.rows, B, H)
        shape = (self.rows, B, k_cache.shape[1] * width)
        # Rows of later steps are masked, but read: they must be finite.
        self.keys = torch.zeros(shape, dtype=torch.float32, device=state.device)
        self.values = torch.zeros(shape, dtype=v_cache.dtype, device=state.device)

    def step(
        self,
        first: int,
        rows: int,
        x: torch.Tensor,
        token: torch.Tensor,
        positions: torch.Tensor | None,
        mask: torch.Tensor,
    ) -> torch.Tensor:
        """Residual stream [rows * B, H] of the layer for rows from `first` on.

        `x` [rows * B, H] are the residual streams that they come from, or the first state.
        """
        w, m = self.weights, self.matrices
        B, H = self.streams.shape[1:]
        n = rows * B
        joined, fed, middle = self.joined[:n], self.fed[:n], self.middle[:n]
        drafter_glue.forward(
            x,
            token,
            w.embedding,
            w.norm,
            w.hidden_norm,
            w.input_norm,
            joined,
            fed,
            w.eps,
            w.norm_output and first > 0,
        )
        own = slice(first, first + rows)
        self._project(
            joined,
            [m["q"], m["k"], m["v"]],
            [self.queries[:n], self.keys[own].view(n, -1), self.values[own].view(n, -1)],
        )

        def heads(t: torch.Tensor, count: int) -> torch.Tensor:
            return t.view(count, B, -1, w.head_dim).permute(1, 2, 0, 3)

        decode_attention.attend(
            heads(self.queries[:n], rows),
            heads(self.keys, self.rows),
            heads(self.values, self.rows),
            self.k_cache,
            self.v_cache,
            self.lengths,
            w.cos,
            w.sin,
            positions,
            mask,
            heads(self.attended[:n], rows),
            w.head_dim**-0.5,
            -1 if w.window is None else w.window,
            w.sinks,
            first=first,
        )
        residual = joined[:, H:] if w.norm_before_residual else fed
        qlinear.project(self.attended[:n], [m["o"]], [middle], None, w.eps, residual, self.storage)
        stream = self.streams[own].view(n, H)
        swiglu_linear.feed_forward(
            middle,
            m["gate"],
            m["up"],
            m["down"],
            stream,
            w.post_norm,
            w.eps,
            middle,
            self.storage,
        )
        return stream

    def _project(
        self, x: torch.Tensor, matrices: Sequence[Stored], outs: Sequence[torch.Tensor]
    ) -> None:
        if len({(m.format, m.data.dtype) for m in matrices}) == 1:
            qlinear.project(x, matrices, outs, None, 0.0, None, self.storage)
            return
        for matrix, out in zip(matrices, outs, strict=True):
            qlinear.project(x, [matrix], [out], None, 0.0, None, self.storage)

    def write_states(self, states: torch.Tensor) -> None:
        """The states [B, R, H] that the residual streams leave."""
        found = self.streams
        if self.weights.norm_output:
            found = torch.empty(found.shape, dtype=states.dtype, device=states.device)
            H = found.shape[2]
            rms_norm_kernels.forward(
                self.streams.view(-1, H),
                self.weights.norm,
                found.view(-1, H),
                self.weights.eps,
                0.0,
                "after_weight",
            )
        states.copy_(found.transpose(0, 1))


def _chain(
    layer: _Layer,
    state: torch.Tensor,
    token: torch.Tensor,
    tokens: torch.Tensor,
    scores: torch.Tensor,
) -> None:
    """Tokens and scores [B, steps] of a chain."""
    w, steps = layer.weights, tokens.shape[1]
    mask = torch.ones(steps, steps, dtype=torch.bool, device=state.device).tril()
    x = state
    for step in range(steps):
        x = layer.step(step, 1, x, token, None, mask)
        token = tokens[:, step]
        linear_argmax.greedy(
            x,
            layer.matrices["head"],
            w.d2t,
            token,
            layer.storage,
            norm_weight=w.norm,
            eps=w.eps,
            score=scores[:, step],
            prior=scores[:, step - 1] if step else None,
        )


def _tree(
    layer: _Layer, state: torch.Tensor, token: torch.Tensor, steps: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, parents and scores of all nodes, [B, topk + (steps - 1) topk^2]."""
    w, topk, rows = layer.weights, layer.topk, layer.rows
    B, device = state.shape[0], state.device
    each = torch.arange(B, device=device)[:, None]
    depth = (torch.arange(rows, device=device) + topk - 1) // topk
    positions = layer.lengths[:, None] + depth
    mask = torch.eye(rows, dtype=torch.bool, device=device).repeat(B, 1, 1)
    total = torch.zeros(B, 1, dtype=torch.float32, device=device)
    of_row = torch.full((B, 1), -1, device=device)
    found: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    x, first, count, made = state, 0, 1, 0
    for step in range(steps):
        x = layer.step(first, count, x, token, positions, mask)
        index = torch.empty(count * B, topk, dtype=torch.int64, device=device)
        value = torch.empty(count * B, topk, dtype=torch.float32, device=device)
        lse = torch.empty(count * B, dtype=torch.float32, device=device)
        linear_topk.best(
            x, layer.matrices["head"], index, value, w.d2t, lse, layer.storage, w.norm, w.eps
        )
        # [count, B, topk] -> [B, count * topk]
        log = (value - lse[:, None]).view(count, B, topk).transpose(0, 1)
        score = (total[..., None] + log).flatten(1)
        level = index.view(count, B, topk).transpose(0, 1).flatten(1)
        found.append((level, of_row[..., None].expand(-1, -1, topk).flatten(1), score))
        if step == steps - 1:
            break
        best = score.sort(dim=-1, descending=True, stable=True).indices[:, :topk]
        of_row, parent = made + best, first + best // topk
        made += score.shape[1]
        token, total = level[each, best].T.flatten(), score[each, best]
        x = layer.streams[parent.T, each.T].reshape(-1, state.shape[1])
        first, count = first + count, topk
        mask[:, first : first + topk] |= mask[each, parent]
    tokens, parents, scores = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
    return tokens, parents, scores


def _keep(
    found: Sequence[torch.Tensor],
    tokens: torch.Tensor,
    parents: torch.Tensor,
    scores: torch.Tensor,
) -> None:
    """The best of all nodes, as many as the outputs hold, in the order in which they arose."""
    B, nodes = tokens.shape
    every = found[2].shape[1]
    kept = found[2].sort(dim=-1, descending=True, stable=True).indices
    kept = kept[:, :nodes].sort(dim=-1).values
    renamed = torch.full((B, every + 1), -1, device=tokens.device)
    renamed.scatter_(1, kept, torch.arange(nodes, device=tokens.device).expand_as(kept))
    old = found[1].gather(1, kept)
    tokens.copy_(found[0].gather(1, kept))
    parents.copy_(renamed.gather(1, torch.where(old < 0, every, old)))
    scores.copy_(found[2].gather(1, kept))


def _identity(value: object) -> Hashable:
    """What a graph remembers of an argument: where a tensor is, and how it is laid out."""
    if isinstance(value, torch.Tensor):
        return value.data_ptr(), value.dtype, tuple(value.shape), value.stride()
    if hasattr(value, "scales"):
        return _identity(value.data), _identity(value.scales), value.format, value.columns
    return value  # type: ignore[return-value]


def forward(
    weights: DrafterWeights,
    state: torch.Tensor,
    token: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    steps: int,
    topk: int,
    nodes: int,
    tokens: torch.Tensor,
    parents: torch.Tensor,
    scores: torch.Tensor,
    states: torch.Tensor,
) -> None:
    """Writes tokens, parents int64 and scores float32 [B, nodes], and states [B, R, H].

    `state` [B, H] and `token` [B] start the draft behind row lengths[b] of the caches
    [B, Hkv, C, D]; R = 1 + (steps - 1) topk. Norms, tables, `token`, `lengths` and `d2t` are
    contiguous, all others have contiguous rows; `gate` and `up` share a format.
    """
    if state.numel() == 0 or steps == 0:
        return

    def call(inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> None:
        start, root, rows = inputs
        to_tokens, to_parents, to_scores, to_states = outputs
        layer = _Layer(weights, start, k_cache, v_cache, rows, steps, topk)
        if topk == 1:
            ids = torch.empty(len(start), steps, dtype=torch.int64, device=start.device)
            values = torch.empty(len(start), steps, dtype=torch.float32, device=start.device)
            _chain(layer, start, root, ids, values)
            before = torch.arange(-1, steps - 1, device=start.device).expand_as(ids)
            found = (ids, before, values)
        else:
            found = _tree(layer, start, root, steps)
        if found[0].shape[1] == nodes:
            for to, source in zip((to_tokens, to_parents, to_scores), found, strict=True):
                to.copy_(source)
        else:
            _keep(found, to_tokens, to_parents, to_scores)
        layer.write_states(to_states)

    def key() -> Hashable:
        layout = tuple((t.dtype, tuple(t.shape), t.device) for t in (state, token, lengths))
        options = tuple(_identity(getattr(weights, f.name)) for f in fields(weights))
        caches = _identity(k_cache), _identity(v_cache)
        stream = torch.cuda.current_stream(state.device).cuda_stream
        return layout, options, caches, steps, topk, nodes, stream

    _graphs.run(key, call, (state, token, lengths), (tokens, parents, scores, states))
