"""The train-time-test unroll of an EAGLE-3 drafter, on the rows whose output is wanted.

A row of step j reads the step-0 keys and values of the rows before it and, of later steps, its own
alone. So rows that nobody asks for (a prompt's, padding) need their step-0 keys and values and
nothing else. The half of q, k and v that stems from a token's embedding is the same whichever step
takes the token; it is computed once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leeboard.draft.checks import positive_int
from leeboard.draft.layer import dense_weight, rotate
from leeboard.draft.protocol import Attended, Feed, Watch, check_unroll, document_bounds
from leeboard.ops import ttt_attention

if TYPE_CHECKING:
    from leeboard.draft.model import Eagle3Drafter


def unroll_rows(
    drafter: Eagle3Drafter,
    input_ids: Tensor,
    hiddens: Sequence[Tensor],
    steps: int,
    *,
    rows: Tensor | None = None,
    positions: Tensor | None = None,
    feed: Feed | None = None,
    watch: Watch | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """(hidden, next_state) of every step, both [N, H]: `Drafter.unroll` on N of the B T rows.

    Args:
        drafter: Its weights and conventions.
        input_ids: int64 [B, T].
        hiddens: Each [B, T, Ht].
        steps: Chain length, at least 1.
        rows: int64 [N], distinct places in the flattened [B, T]; None for all of them.
        positions: int64 [B, T]; None where every sequence is one document.
        feed: Called with states [N, H].
        watch: As in `Drafter.unroll`; rows that are not wanted have zeros for queries, and for
            keys and values of later steps.
    """
    positive_int("steps", steps)
    config, layer = drafter.config, drafter.midlayer
    attention = layer.self_attn
    fused = drafter.fuse(hiddens)
    check_unroll(input_ids, fused.shape[:2], positions)
    state = fused.flatten(0, 1)
    every = torch.arange(state.shape[0], device=state.device)
    places, bounds = every % max(input_ids.shape[1], 1), None
    if positions is not None:
        places, bounds = positions.flatten(), document_bounds(positions)
    embedded = layer.input_layernorm(drafter.embed_tokens(input_ids)).flatten(0, 1)
    of_q, of_k, of_v = (
        _Projection(linear, embedded, config.head_dim)
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    wanted, wanted_places = every if rows is None else rows, _taken(places, rows)
    # One entry a step: keys and values [B, Hkv, T, D].
    keys: list[Tensor] = []
    values: list[Tensor] = []
    for j in range(steps):
        if j and feed is not None:
            state = feed(j, state)
        normed = layer.hidden_norm(state)
        residual = normed if config.norm_before_residual else state
        turn = attention.turns(wanted_places + j)
        if j == 0:
            # Here every row has a key and a value; in what follows only the wanted ones.
            all_turn = turn if rows is None else attention.turns(places)
            k, v = rotate(of_k(normed, every, j), *all_turn), of_v(normed, every, j)
            normed, residual = _taken(normed, rows), _taken(residual, rows)
        else:
            k, v = rotate(of_k(normed, wanted, j), *turn), of_v(normed, wanted, j)
        q = rotate(of_q(normed, wanted, j), *turn)
        keys.append(_placed(k, input_ids.shape, rows if j else None))
        values.append(_placed(v, input_ids.shape, rows if j else None))
        seen = Attended(
            step=j,
            q=_placed(q, input_ids.shape, rows),
            keys=tuple(keys),
            values=tuple(values),
            scale=config.head_dim**-0.5,
            window=config.sliding_window,
            sinks=config.attention_sinks,
            cu_seqlens=bounds,
        )
        if watch is not None:
            watch(seen)
        attended = attend(seen).transpose(1, 2).flatten(2).flatten(0, 1)
        hidden, state = drafter.leave(residual, _taken(attended, rows))
        yield hidden, state


def attend(seen: Attended) -> Tensor:
    """What the rows of a step attend to, like `seen.q`."""
    return ttt_attention(
        seen.q,
        seen.keys,
        seen.values,
        window=seen.window,
        sinks=seen.sinks,
        cu_seqlens=seen.cu_seqlens,
        scale=seen.scale,
    )


class _Projection:
    """q, k or v of [embedding; state]: the part of all tokens at once, that of a state when asked."""

    def __init__(self, linear: nn.Module, embedded: Tensor, head_dim: int) -> None:
        weight = dense_weight(linear, embedded.dtype)
        by_token, self._by_state = torch.split(weight, embedded.shape[-1], dim=1)
        self._of_tokens = F.linear(embedded, by_token)
        self._head_dim = head_dim

    def __call__(self, normed: Tensor, rows: Tensor, step: int) -> Tensor:
        """[N, heads, D] of normed states [N, H] in `rows`, which take the token 1 + step on."""
        # A row without such a token means nothing and may take any.
        tokens = (rows + 1 + step) % max(self._of_tokens.shape[0], 1)
        of_tokens = self._of_tokens.index_select(0, tokens)
        joined = torch.addmm(of_tokens, normed, self._by_state.t())
        return joined.view(*rows.shape, joined.shape[1] // self._head_dim, self._head_dim)


def _taken(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x.index_select(0, rows)


def _placed(x: Tensor, shape: Sequence[int], rows: Tensor | None) -> Tensor:
    """[B, heads, T, D] with x [N, heads, D] in these of the B T rows, and zeros elsewhere."""
    if rows is not None:
        x = x.new_zeros(shape[0] * shape[1], *x.shape[1:]).index_copy_(0, rows, x)
    return x.view(*shape, *x.shape[1:]).transpose(1, 2)
