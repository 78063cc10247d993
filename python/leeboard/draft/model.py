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

from leeboard.draft.cache import DrafterCache
from leeboard.draft.capture import AuxStates, capture
from leeboard.draft.checks import finite_rows, positive_int
from leeboard.draft.config import DrafterConfig
from leeboard.draft.decode import decode_rows
from leeboard.draft.layer import ROUNDING, DecoderLayer, plain_weight, rotate
from leeboard.draft.protocol import Drafter, Feed, Watch
from leeboard.draft.rope import rope_table
from leeboard.draft.start import copy_from_target
from leeboard.draft.unroll import unroll_rows
from leeboard.nn import QuantizedLinear, RMSNorm
from leeboard.ops import (
    Draft,
    DrafterWeights,
    QuantizedWeight,
    add_rms_norm,
    aux_norm_linear,
    draft_chain,
    feedback,
    ttt_attention,
)

# Rows of the first rotary table; later ones double.
_FIRST_ROWS: Final = 128


class Eagle3Drafter(Drafter):
    """EAGLE-3 drafter, post-norm or pre-norm by its config.

    state_dict names are those of EAGLE and SpecForge checkpoints: `fc.weight`, `midlayer.*`,
    `norm.weight`, `lm_head.weight`, `embed_tokens.weight`, `fc_norm.{i}.weight` (`fc_norm`),
    `input_norm.weight` (`norm_before_fc`) and the buffers `d2t` (int64 [Vd], target id minus draft
    id) and `t2d` (bool [V], which target ids can be drafted).

    Shapes: B sequences, T rows, H hidden width, Ht target's hidden width, V and Vd target and
    draft vocabulary. Training (`unroll`) rounds where the modules do; decoding (`step` with a
    cache, `chain`) runs on fused ops, which round less.

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
            self.input_norm = RMSNorm(fused, eps, rounding=ROUNDING)
        self.fc = nn.Linear(fused, h, bias=False)
        self.midlayer = DecoderLayer(config)
        self.norm = RMSNorm(h, eps, rounding=ROUNDING)
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
            if isinstance(self.fc, QuantizedLinear) or torch.is_autocast_enabled(self.device.type):
                pairs = zip(self.fc_norm, states, strict=True)
                joined = torch.cat([norm(h) for norm, h in pairs], dim=-1)
                return cast(Tensor, self.fc(joined)).to(self.dtype)
            gammas = [cast(Tensor, norm.weight) for norm in self.fc_norm]
            return aux_norm_linear(
                states, gammas, cast(Tensor, self.fc.weight), self.config.rms_norm_eps
            )
        joined = torch.cat(states, dim=-1)
        if self.config.norm_before_fc:
            joined = self.input_norm(joined)
        return cast(Tensor, self.fc(joined)).to(self.dtype)

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
            return decode_rows(self, input_ids, state, position_ids, cache, counts)
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)
        residual, joined = self.join(input_ids, state)
        attention, config = self.midlayer.self_attn, self.config
        turn = attention.turns(position_ids)
        q, k, v = (
            project(joined).view(*input_ids.shape, -1, config.head_dim)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        attended = ttt_attention(
            rotate(q, *turn).transpose(1, 2),
            [rotate(k, *turn).transpose(1, 2)],
            [v.transpose(1, 2)],
            window=config.sliding_window,
            sinks=config.attention_sinks,
        )
        return self.leave(residual, attended.transpose(1, 2).flatten(2))

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
        shape = input_ids.shape

        def flat(j: int, state: Tensor) -> Tensor:
            assert feed is not None
            return feed(j, state.view(*shape, -1)).reshape(state.shape)

        for hidden, state in unroll_rows(
            self,
            input_ids,
            hiddens,
            steps,
            positions=positions,
            feed=None if feed is None else flat,
            watch=watch,
        ):
            whole = hidden.view(*shape, -1)
            yield whole, whole if state is hidden else state.view(*shape, -1)

    def iter_rows(
        self,
        input_ids: Tensor,
        hiddens: Sequence[Tensor],
        steps: int,
        rows: Tensor,
        *,
        positions: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """As `Drafter.iter_rows`; other rows are not computed, but for their step-0 keys."""
        for hidden, _ in unroll_rows(
            self, input_ids, hiddens, steps, rows=rows, positions=positions
        ):
            yield hidden

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
            q=plain_weight(attention.q_proj),
            k=plain_weight(attention.k_proj),
            v=plain_weight(attention.v_proj),
            o=plain_weight(attention.o_proj),
            gate=plain_weight(mlp.gate_proj),
            up=plain_weight(mlp.up_proj),
            down=plain_weight(mlp.down_proj),
            head=plain_weight(self.lm_head),
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
        return copy_from_target(self, target)

    def join(self, input_ids: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
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

    def _cache_row(self) -> tuple[int, int, int]:
        return self.config.num_key_value_heads, 1, self.config.head_dim

    def leave(self, residual: Tensor, attended: Tensor) -> tuple[Tensor, Tensor]:
        """(hidden, next_state) of rows with attention's output [..., Hq D]: all after attention."""
        layer, eps = self.midlayer, self.config.rms_norm_eps
        normed, residual = add_rms_norm(
            layer.self_attn.o_proj(attended).to(residual.dtype),
            residual,
            layer.post_attention_layernorm.weight,
            eps,
            rounding=ROUNDING,
        )
        hidden, x = add_rms_norm(
            layer.mlp(normed).to(residual.dtype), residual, self.norm.weight, eps, rounding=ROUNDING
        )
        return hidden, feedback(hidden, x, self.config.norm_output)
