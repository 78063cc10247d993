"""The EAGLE-3 drafter: one decoder layer that continues the target's hidden states.

Architecture of Li et al., 2025 (EAGLE-3, arXiv:2503.01840), with the post-norm feedback and the
per-state norms of arXiv:2605.09992. Row t pairs the embedding of token x_{t+1} with the target's
state at position t and predicts x_{t+2}; its rotary position is t.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leeboard.draft.cache import DrafterCache
from leeboard.draft.capture import AuxStates, capture
from leeboard.draft.checks import finite_rows, positive_int
from leeboard.draft.config import DrafterConfig
from leeboard.draft.protocol import (
    Attended,
    Drafter,
    Feed,
    Watch,
    check_unroll,
    document_bounds,
    shifted,
)
from leeboard.draft.rope import inverse_frequencies, rope_table, rotation
from leeboard.nn import QuantizedLinear, RMSNorm
from leeboard.ops import (
    Draft,
    DrafterWeights,
    QuantizedWeight,
    add_rms_norm,
    aux_norm_linear,
    decode_attention_,
    draft_chain,
    feedback,
    qlinear,
    swiglu_linear,
)

# EAGLE-3 heads follow the Llama family, whose norms round before the weight.
_ROUNDING: Final = "before_weight"

# Up to here a linear layer costs what reading its weight costs, which the ops are made for; larger
# products, such as a prompt's, are torch's.
_FEW_ROWS: Final = 32

# Rows of the first rotary table; later ones double.
_FIRST_ROWS: Final = 128


class _Attention(nn.Module):
    """Projections of grouped-query attention over [embedding; state], width 2H in and H out."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.num_kv_heads = config.num_key_value_heads
        self.head_dim = config.head_dim
        # No buffer: `.to(bfloat16)` would round it.
        self._inverse, self._rope_factor = inverse_frequencies(config)
        width, d = 2 * config.hidden_size, config.head_dim
        self.q_proj = nn.Linear(width, self.num_heads * d, bias=False)
        self.k_proj = nn.Linear(width, self.num_kv_heads * d, bias=False)
        self.v_proj = nn.Linear(width, self.num_kv_heads * d, bias=False)
        self.o_proj = nn.Linear(self.num_heads * d, config.hidden_size, bias=False)

    def qkv(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q [B, Hq, T, D], k and v [B, Hkv, T, D] of x [B, T, 2H], rotated to `positions`."""
        q, k, v = (self.heads(p(x)) for p in (self.q_proj, self.k_proj, self.v_proj))
        cos, sin = self._rotation(positions, x)
        return _rotate(q, cos, sin), _rotate(k, cos, sin), v

    def heads(self, x: Tensor) -> Tensor:
        """[B, heads, T, D] of x [B, T, heads D]."""
        return x.view(*x.shape[:-1], x.shape[-1] // self.head_dim, self.head_dim).transpose(1, 2)

    def out(self, a: Tensor) -> Tensor:
        """[B, T, H] from the heads' outputs [B, Hq, T, D]."""
        return cast(Tensor, self.o_proj(a.transpose(1, 2).flatten(2)))

    def _rotation(self, positions: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = rotation(positions, self._inverse.to(like.device), self._rope_factor)
        cos, sin = (torch.cat((t, t), dim=-1).to(like.dtype) for t in (cos, sin))
        return (cos[:, None], sin[:, None]) if cos.ndim == 3 else (cos, sin)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # After a move; computed anew, since a meta tensor has no values to copy.
        device = self.q_proj.weight.device
        if self._inverse.device != device:
            self._inverse = inverse_frequencies(self.config)[0].to(device)
        return self


class _MLP(nn.Module):
    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x)))


class _Layer(nn.Module):
    """The weights of the one decoder layer, under the names of EAGLE checkpoints."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        h, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = RMSNorm(h, eps, rounding=_ROUNDING)
        self.hidden_norm = RMSNorm(h, eps, rounding=_ROUNDING)
        self.self_attn = _Attention(config)
        self.post_attention_layernorm = RMSNorm(h, eps, rounding=_ROUNDING)
        self.mlp = _MLP(config)


class Eagle3Drafter(Drafter):
    """EAGLE-3 drafter, post-norm or pre-norm by its config.

    state_dict names are those of EAGLE and SpecForge checkpoints: `fc.weight`, `midlayer.*`,
    `norm.weight`, `lm_head.weight`, `embed_tokens.weight`, `fc_norm.{i}.weight` (`fc_norm`),
    `input_norm.weight` (`norm_before_fc`) and the buffers `d2t` (int64 [Vd], target id minus draft
    id) and `t2d` (bool [V], which target ids can be drafted).

    Shapes: B sequences, T rows, H hidden width, Ht target's hidden width, V and Vd target and
    draft vocabulary. Training (`unroll`) runs on plain modules; decoding (`step` with a cache,
    `chain`) on the fused ops, which round less.

    Args:
        config: The drafter's shape and conventions.
    """

    config: DrafterConfig
    fc: nn.Module

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        self.config = config
        self._rope: tuple[Tensor, Tensor] | None = None
        h, eps, n = config.hidden_size, config.rms_norm_eps, config.num_aux_hidden_states
        fused = n * config.target_hidden_size
        self.embed_tokens = nn.Embedding(config.vocab_size, h)
        if config.fc_norm:
            self.fc_norm = nn.ModuleList(RMSNorm(config.target_hidden_size, eps) for _ in range(n))
        if config.norm_before_fc:
            self.input_norm = RMSNorm(fused, eps, rounding=_ROUNDING)
        self.fc = nn.Linear(fused, h, bias=False)
        self.midlayer = _Layer(config)
        self.norm = RMSNorm(h, eps, rounding=_ROUNDING)
        self.lm_head = nn.Linear(h, config.draft_vocab_size, bias=False)
        self.register_buffer("d2t", torch.zeros(config.draft_vocab_size, dtype=torch.int64))
        self.register_buffer("t2d", torch.arange(config.vocab_size) < config.draft_vocab_size)

    @property
    def dtype(self) -> torch.dtype:
        """Of the states and, unless it is quantised, of the weights."""
        return self.norm.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the drafter is."""
        return self.norm.weight.device

    def step_nbytes(self) -> int:
        """Bytes of the weights that every chain step reads: the decoder layer, norm and head."""
        parts = (self.midlayer, self.norm, self.lm_head)
        return sum(t.nbytes for part in parts for t in (*part.parameters(), *part.buffers()))

    def fuse(self, hiddens: Sequence[Tensor]) -> Tensor:
        """Join the captured target states: fc of their concatenation, after the config's norms.

        Args:
            hiddens: `num_aux_hidden_states` tensors [B, T, Ht], in the order of `aux_layer_ids`;
                cast to the drafter's dtype.

        Returns:
            [B, T, H], the `state` of the first chain step.

        Raises:
            ValueError: Their number or width does not fit the config.
        """
        n, width = self.config.num_aux_hidden_states, self.config.target_hidden_size
        if len(hiddens) != n:
            raise ValueError(f"hiddens: got {len(hiddens)} tensors, expected {n}")
        for i, hidden in enumerate(hiddens):
            if hidden.shape != (*hiddens[0].shape[:-1], width):
                raise ValueError(
                    f"hiddens[{i}]: got shape {tuple(hidden.shape)}, expected "
                    f"{(*hiddens[0].shape[:-1], width)}"
                )
        states = [hidden.to(self.dtype) for hidden in hiddens]
        if self.config.fc_norm:
            if isinstance(self.fc, QuantizedLinear):
                pairs = zip(self.fc_norm, states, strict=True)
                return cast(Tensor, self.fc(torch.cat([norm(h) for norm, h in pairs], dim=-1)))
            gammas = [cast(Tensor, norm.weight) for norm in self.fc_norm]
            return aux_norm_linear(
                states, gammas, cast(Tensor, self.fc.weight), self.config.rms_norm_eps
            )
        joined = torch.cat(states, dim=-1)
        if self.config.norm_before_fc:
            joined = self.input_norm(joined)
        return cast(Tensor, self.fc(joined))

    def step(
        self,
        input_ids: Tensor,
        state: Tensor,
        position_ids: Tensor | None = None,
        cache: DrafterCache | None = None,
        *,
        counts: Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run T new rows; row t sees the cached rows and the new rows up to itself.

        With the config's window, a row sees those of them that are less than `sliding_window` rows
        away, and the first `attention_sinks` rows.

        Args:
            input_ids: [B, T] int64; of row t the token after its state's position.
            state: [B, T, H], `fuse`d target states or the `next_state` of an earlier step.
            position_ids: [T] or [B, T] int64, rotary positions of the rows; None for their places
                in the cache (0 to T - 1 without one).
            cache: Keys and values of earlier rows; the new rows are appended, or nothing changes
                when an error is raised. Needs `torch.no_grad()`.
            counts: With a cache: how many of the T rows each sequence keeps, the first ones; what
                the others hold and yield means nothing. None for all.

        Returns:
            (hidden, next_state), both [B, T, H]: what `logits` and `greedy` take, and what the
            next chain step takes as `state`. They are the same tensor if `norm_output`.

        Raises:
            ValueError: A shape or count does not fit, positions go beyond the config's
                `max_position_embeddings` (with a cache), or there is a cache in grad mode.
        """
        if cache is not None:
            return self._decode(input_ids, state, position_ids, cache, counts)
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)
        residual, q, k, v = self._enter(input_ids, state, position_ids)
        return self._leave(residual, _causal_attention(q, k, v, self.config))

    def iter_unroll(
        self,
        input_ids: Tensor,
        hiddens: Sequence[Tensor],
        steps: int,
        *,
        positions: Tensor | None = None,
        feed: Feed | None = None,
        watch: Watch | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """`unroll` one step at a time."""
        positive_int("steps", steps)
        state, config = self.fuse(hiddens), self.config
        check_unroll(input_ids, state.shape[:2], positions)
        bounds = None if positions is None else document_bounds(positions)
        if positions is None:
            positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        tokens = input_ids
        # One entry a step: keys and values [B, Hkv, T, D].
        keys: list[Tensor] = []
        values: list[Tensor] = []
        for j in range(steps):
            tokens = shifted(tokens)
            if j and feed is not None:
                state = feed(j, state)
            residual, q, k, v = self._enter(tokens, state, positions + j)
            keys.append(k)
            values.append(v)
            seen = Attended(
                step=j,
                q=q,
                keys=keys,
                values=values,
                scale=config.head_dim**-0.5,
                window=config.sliding_window,
                sinks=config.attention_sinks,
                cu_seqlens=bounds,
            )
            if watch is not None:
                watch(seen)
            if j == 0 and bounds is None:
                attended = _causal_attention(q, k, v, config)
            else:
                attended = _unrolled_attention(seen)
            hidden, state = self._leave(residual, attended)
            yield hidden, state

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores over the draft vocabulary, [..., Vd], of `hidden` [..., H]."""
        return cast(Tensor, self.lm_head(hidden))

    @property
    def head_weight(self) -> Tensor | QuantizedWeight:
        """[Vd, H], a parameter unless it is quantised."""
        return cast("Tensor | QuantizedWeight", self.lm_head.weight)

    def capture(self, target: nn.Module) -> AbstractContextManager[AuxStates]:
        """Catch the states that `fuse` joins; see `leeboard.draft.capture`."""
        return capture(target, self.config)

    def new_cache(self, capacity: int) -> DrafterCache:
        """An empty cache with room for `capacity` rows at first."""
        return DrafterCache(capacity)

    @torch.no_grad()
    def draft(
        self,
        hiddens: Sequence[Tensor],
        tokens: Tensor,
        counts: Sequence[int],
        cache: DrafterCache,
        depth: int,
    ) -> tuple[Tensor, Tensor]:
        """As `Drafter.draft`: `step` with the cache, then `chain`."""
        fused = self.fuse(hiddens)
        last = torch.tensor(counts, device=tokens.device) - 1
        finite_rows(fused, last)
        even = len(set(counts)) == 1 and counts[0] == tokens.shape[1]
        hidden, state = self.step(tokens, fused, cache=cache, counts=None if even else counts)
        each = torch.arange(len(counts), device=tokens.device)
        first, root = self.greedy(hidden[each, last]), state[each, last]
        drafts, fed = first[:, None], root[:, None]
        if depth > 1:
            rest = self.chain(root, first, cache, depth - 1)
            drafts, fed = torch.cat((drafts, rest.tokens), 1), torch.cat((fed, rest.states), 1)
        return drafts, fed

    @torch.no_grad()
    def chain(
        self,
        state: Tensor,
        token: Tensor,
        cache: DrafterCache,
        depth: int,
        *,
        topk: int = 1,
        nodes: int | None = None,
    ) -> Draft:
        """Draft a chain of `depth` tokens greedily, each from the one before, or a tree.

        The first step is the row made of `state` and `token`, in the place behind the cached rows.
        The cache is only read: the draft's rows stand on drafted states, not on the target's. One
        call of `leeboard.ops.draft_chain`.

        Args:
            state: [B, H], a fused target state or the last `next_state` of `step`.
            token: [B] int64, the token after that state's position.
            cache: The rows before.
            depth: Steps, at least 1.
            topk: Tokens to draft per step; more than 1 makes a tree.
            nodes: Nodes of the tree to keep; None for `depth * topk`.

        Returns:
            A `leeboard.ops.Draft`; of a chain `tokens` is int64 [B, depth] in the target's
            vocabulary and `states` [B, depth, H], the state fed back after every step.

        Raises:
            ValueError: `depth` is below 1, or the chain would go beyond the config's
                `max_position_embeddings`.
        """
        positive_int("depth", depth)
        weights = self.weights(cache.longest + depth)
        # A cache that nothing has entered yet takes its shape here.
        cache.reserve(state.new_empty(state.shape[0], *self._cache_row()))
        return draft_chain(
            weights,
            state,
            token,
            cache.keys,
            cache.values,
            cache.lengths,
            depth,
            topk=topk,
            nodes=nodes,
        )

    def weights(self, length: int) -> DrafterWeights:
        """What `leeboard.ops.draft_chain` computes with; shares the drafter's tensors.

        Args:
            length: Rotary positions to provide for, as for `rope_table`.

        Raises:
            ValueError: `length` is out of range.
        """
        cos, sin = self.rope_table(length)
        layer, config = self.midlayer, self.config
        attention, mlp = layer.self_attn, layer.mlp
        return DrafterWeights(
            embedding=self.embed_tokens.weight.detach(),
            input_norm=layer.input_layernorm.weight.detach(),
            hidden_norm=layer.hidden_norm.weight.detach(),
            post_norm=layer.post_attention_layernorm.weight.detach(),
            norm=self.norm.weight.detach(),
            q=_weight(attention.q_proj),
            k=_weight(attention.k_proj),
            v=_weight(attention.v_proj),
            o=_weight(attention.o_proj),
            gate=_weight(mlp.gate_proj),
            up=_weight(mlp.up_proj),
            down=_weight(mlp.down_proj),
            head=_weight(self.lm_head),
            cos=cos,
            sin=sin,
            d2t=self._offsets(),
            eps=config.rms_norm_eps,
            norm_output=config.norm_output,
            norm_before_residual=config.norm_before_residual,
            window=config.sliding_window,
            sinks=config.attention_sinks,
        )

    def rope_table(self, length: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine of the rotary angles of positions 0 to `length` - 1.

        The table behind it is kept, grows by doubling, follows the module's device, and is never
        part of the state_dict. Do not write to it.

        Args:
            length: Rows, at least 1 and at most the config's `max_position_embeddings`.

        Returns:
            (cos, sin), float32 [length, D/2] whatever the module's dtype: rows of
            `leeboard.draft.rope.rope_table`.

        Raises:
            ValueError: `length` is out of range.
        """
        positive_int("length", length)
        limit = self.config.max_position_embeddings
        if length > limit:
            raise ValueError(
                f"length: got {length} positions, expected at most max_position_embeddings = {limit}"
            )
        device = self.device
        kept = self._rope
        if kept is None or kept[0].device != device or kept[0].shape[0] < length:
            rows = _FIRST_ROWS if kept is None else kept[0].shape[0]
            while rows < length:
                rows *= 2
            # Ordinary tensors, so that training can use what decoding has built.
            with torch.inference_mode(False), torch.no_grad():
                cos, sin = rope_table(self.config, min(rows, limit))
                kept = self._rope = cos.to(device), sin.to(device)
        return kept[0][:length], kept[1][:length]

    @torch.no_grad()
    def copy_from_target(self, target: Any) -> tuple[str, ...]:
        """Start from the target's weights: embedding (frozen), head and final norm.

        The head's rows are those of the draft vocabulary, so call `set_draft_vocabulary` first.
        The final norm is copied where the target's acts as an RMSNorm, in which case an offset in
        its weight (Gemma) is accounted for.

        Args:
            target: A Hugging Face causal LM.

        Returns:
            Names of the parameters that were written.

        Raises:
            ValueError: Vocabulary or width differ, so the embedding does not fit.
        """
        source = target.get_input_embeddings().weight
        if source.shape != self.embed_tokens.weight.shape:
            raise ValueError(
                f"target: its embedding is {tuple(source.shape)}, expected "
                f"{tuple(self.embed_tokens.weight.shape)}: vocab_size and hidden_size of the "
                "drafter's config"
            )
        self.embed_tokens.weight.copy_(source).requires_grad_(False)
        copied = ["embed_tokens.weight"]
        head = target.get_output_embeddings()
        if head is not None and head.weight.shape == source.shape:
            self.lm_head.weight.copy_(head.weight[self.t2d.to(head.weight.device)])
            copied.append("lm_head.weight")
        gain = _rms_gain(_final_norm(target), self.config.hidden_size)
        if gain is not None:
            self.norm.weight.copy_(gain)
            copied.append("norm.weight")
        return tuple(copied)

    def _enter(
        self, input_ids: Tensor, state: Tensor, position_ids: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(residual, q, k, v) of new rows: everything before attention."""
        residual, joined = self._join(input_ids, state)
        return residual, *self.midlayer.self_attn.qkv(joined, position_ids)

    def _join(self, input_ids: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """(residual [B, T, H], attention's input [B, T, 2H])."""
        if state.shape != (*input_ids.shape, self.config.hidden_size):
            raise ValueError(
                f"state: got shape {tuple(state.shape)}, expected "
                f"{(*input_ids.shape, self.config.hidden_size)} for input_ids "
                f"{tuple(input_ids.shape)}"
            )
        layer = self.midlayer
        embedded = layer.input_layernorm(self.embed_tokens(input_ids))
        normed = layer.hidden_norm(state)
        residual = normed if self.config.norm_before_residual else state
        return residual, torch.cat((embedded, normed), dim=-1)

    def _decode(
        self,
        input_ids: Tensor,
        state: Tensor,
        position_ids: Tensor | None,
        cache: DrafterCache,
        counts: Sequence[int] | None,
    ) -> tuple[Tensor, Tensor]:
        """`step` with a cache."""
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
        residual, joined = self._join(input_ids, state)
        layer, config = self.midlayer, self.config
        attention, mlp = layer.self_attn, layer.mlp
        q, k, v = (
            attention.heads(_product(linear, joined))
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
        cos, sin = self.rope_table(max(last, 1))
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
                _weight(mlp.gate_proj),
                _weight(mlp.up_proj),
                _weight(mlp.down_proj),
                norm_weight=norm.weight,
                eps=config.rms_norm_eps,
                residual=r,
            )
        else:
            normed = norm(r)
            gated = F.silu(_product(mlp.gate_proj, normed)) * _product(mlp.up_proj, normed)
            x = _product(mlp.down_proj, gated, r)
        hidden = self.norm(x)
        cache.advance(rows, counts)
        return hidden, feedback(hidden, x, config.norm_output)

    def _cache_row(self) -> tuple[int, int, int]:
        return self.config.num_key_value_heads, 1, self.config.head_dim

    def _leave(self, residual: Tensor, attended: Tensor) -> tuple[Tensor, Tensor]:
        """(hidden, next_state) of attention's output [B, Hq, T, D]: everything after attention."""
        layer, eps = self.midlayer, self.config.rms_norm_eps
        normed, residual = add_rms_norm(
            layer.self_attn.out(attended),
            residual,
            layer.post_attention_layernorm.weight,
            eps,
            rounding=_ROUNDING,
        )
        hidden, x = add_rms_norm(
            layer.mlp(normed), residual, self.norm.weight, eps, rounding=_ROUNDING
        )
        return hidden, feedback(hidden, x, self.config.norm_output)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [B, heads, T, D], channel i paired with i + D/2 (Llama's layout)."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin


def _weight(linear: nn.Module) -> Tensor | QuantizedWeight:
    """The matrix of a linear layer, plain or quantised, without its gradient."""
    weight = linear.weight
    return weight.detach() if isinstance(weight, Tensor) else cast(QuantizedWeight, weight)


def _few(x: Tensor) -> bool:
    return x.shape[:-1].numel() <= _FEW_ROWS


def _product(linear: nn.Module, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """x weight^T, plus the residual, without gradients."""
    weight = _weight(linear)
    if _few(x):
        return qlinear(x, weight, residual=residual)
    if isinstance(weight, QuantizedWeight):
        weight = weight.dequantize().to(x.dtype)
    y = F.linear(x, weight)
    return y if residual is None else y.add_(residual)


def _out_of_sight(rows: int, config: DrafterConfig, ahead: int, device: torch.device) -> Tensor:
    """bool [T, T]: whether row t, `ahead` places further on, does not see the key of row c."""
    t = torch.arange(rows, device=device)
    hidden = t[None, :] > t[:, None]
    if config.sliding_window is not None:
        far = t[:, None] + ahead - t[None, :] >= config.sliding_window
        hidden = hidden | (far & (t >= config.attention_sinks))
    return hidden


def _out_of_documents(seen: Attended) -> Tensor:
    """bool [B, 1, 1, T, T]: whether row t of the unroll does not see the step-0 key of row c."""
    batch, rows = seen.q.shape[0], seen.q.shape[2]
    t = torch.arange(rows, device=seen.q.device)
    first = torch.zeros(batch, rows, dtype=torch.int64, device=t.device)
    if seen.cu_seqlens is not None:
        bounds = seen.cu_seqlens.long()
        flat = torch.arange(batch * rows, device=t.device)
        first = bounds[torch.searchsorted(bounds, flat, right=True) - 1].view(batch, rows)
        first = first - torch.arange(batch, device=t.device)[:, None] * rows
    hidden = (t[None, :] > t[:, None]) | (t < first[..., None])
    if seen.window is not None:
        far = t[:, None] + seen.step - t[None, :] >= seen.window
        hidden = hidden | (far & (t - first[:, None] >= seen.sinks))
    return hidden[:, None, None]


def _causal_attention(q: Tensor, k: Tensor, v: Tensor, config: DrafterConfig) -> Tensor:
    """Attention of T rows to all rows up to themselves, within the config's window.

    q [B, Hq, T, D]; k, v [B, Hkv, T, D]; out [B, Hq, T, D].
    """
    rows, window = q.shape[2], config.sliding_window
    mask = None
    if window is not None and window < rows:
        mask = ~_out_of_sight(rows, config, 0, q.device)
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        is_causal=mask is None and rows > 1,
        enable_gqa=q.shape[1] != k.shape[1],
    )


def _unrolled_attention(seen: Attended) -> Tensor:
    """Attention of the unroll, [B, Hq, T, D]: one softmax over T + j scores.

    A causal T x T product and j row-wise dot products.
    """
    q, keys, values = seen.q, seen.keys, seen.values
    heads, rows, width = q.shape[1:]
    kv_heads = keys[0].shape[1]
    grouped = q.view(-1, kv_heads, heads // kv_heads, rows, width) * seen.scale
    scores = grouped @ keys[0].transpose(-1, -2).unsqueeze(2)
    scores = scores.masked_fill(_out_of_documents(seen), float("-inf"))
    own = [(grouped * k.unsqueeze(2)).sum(-1, keepdim=True) for k in keys[1:]]
    weights = torch.cat((scores, *own), dim=-1).softmax(dim=-1, dtype=torch.float32).to(q.dtype)
    out = weights[..., :rows] @ values[0].unsqueeze(2)
    for i, v in enumerate(values[1:], start=rows):
        out = out + weights[..., i : i + 1] * v.unsqueeze(2)
    return out.flatten(1, 2)


def _final_norm(target: Any) -> nn.Module | None:
    """The norm before the target's head, under the names that Hugging Face models use."""
    body = getattr(target, "base_model", target)
    for name in ("norm", "final_layernorm", "final_layer_norm", "ln_f", "norm_f"):
        norm = getattr(body, name, None)
        if isinstance(norm, nn.Module):
            return norm
    return None


def _rms_gain(norm: nn.Module | None, width: int) -> Tensor | None:
    """The gain of a module that acts as an RMSNorm, else None.

    An RMSNorm maps any vector of signs s to s * gain (epsilon aside), which a LayerNorm does not.
    """
    weight = getattr(norm, "weight", None)
    if norm is None or weight is None or weight.shape != (width,):
        return None
    signs = torch.ones(2, width, device=weight.device, dtype=weight.dtype)
    signs[1, : width // 4] = -1
    up, mixed = norm(signs)
    tolerance = 1e-4 if weight.dtype in (torch.float32, torch.float64) else 2e-2
    for gain in (weight, 1 + weight):
        expected = signs * gain
        if torch.allclose(up, expected[0], rtol=tolerance) and torch.allclose(
            mixed, expected[1], rtol=tolerance
        ):
            return cast(Tensor, gain.detach())
    return None
