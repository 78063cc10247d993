"""What every drafter offers to decoding, training and probing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leeboard.draft.capture import AuxStates
from leeboard.ops import QuantizedWeight, linear_argmax


class ChainConfig(Protocol):
    """What others read of a drafter's config."""

    @property
    def vocab_size(self) -> int:
        """V, the target's vocabulary."""

    @property
    def draft_vocab_size(self) -> int:
        """Vd, rows of the drafter's head."""

    @property
    def target_hidden_size(self) -> int:
        """Ht, width of the target's states."""

    @property
    def max_position_embeddings(self) -> int:
        """Longest sequence."""


class ChainCache(Protocol):
    """What `speculate` does with a drafter's cache."""

    @property
    def longest(self) -> int:
        """Rows of the longest sequence; 0 when nothing is held."""

    def select(self, sequences: Sequence[int]) -> None:
        """Keep these sequences, in this order."""


@dataclasses.dataclass(frozen=True)
class Attended:
    """One step's attention in the unroll, before it is computed. It is the drafter's own: read only.

    Row t sees step-0 keys c <= t of its document, with a window those with `t + step - c < window`
    or among the first `sinks` rows of the document, and its own keys of steps 1..step, all under
    one softmax of `scale * q . k`.

    Attributes:
        step: j, from 0.
        q: [B, Hq, T, D], rotated queries of step j.
        keys: j + 1 tensors [B, Hkv, T, D], rotated keys of steps 0..j.
        values: j + 1 tensors [B, Hkv, T, Dv].
        scale: Of the scores.
        window: None for every row before.
        sinks: First rows of a document that a window does not hide.
        cu_seqlens: int32 [documents + 1], where documents begin in the B T rows; None where every
            sequence is one.
    """

    step: int
    q: Tensor
    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    scale: float
    window: int | None
    sinks: int
    cu_seqlens: Tensor | None


Feed = Callable[[int, Tensor], Tensor]
Watch = Callable[[Attended], None]


class Drafter(nn.Module):
    """Base of all drafters.

    A drafter continues the target's states: row t pairs token x_{t+1} with the target's state of
    position t and predicts x_{t+2}; each further step of a chain takes the drafted token and the
    state that the step before fed back.

    Shapes: B sequences, T rows, H hidden width, Ht target's hidden width, V and Vd target and
    draft vocabulary. A subclass has a `config` and the buffers `d2t` (int64 [Vd], target id minus
    draft id) and `t2d` (bool [V], which target ids can be drafted).
    """

    config: ChainConfig
    d2t: Tensor
    t2d: Tensor

    @property
    def head_weight(self) -> Tensor | QuantizedWeight:
        """[Vd, H], what `logits` multiplies with; a parameter unless it is quantised."""
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        """Of the states and, unless it is quantised, of the weights."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where the drafter is."""
        return self.d2t.device

    def capture(self, target: nn.Module) -> AbstractContextManager[AuxStates]:
        """Catch the target's states that the drafter reads, as `leeboard.draft.capture` does."""
        raise NotImplementedError

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
        raise NotImplementedError

    def iter_rows(
        self,
        input_ids: Tensor,
        hiddens: Sequence[Tensor],
        steps: int,
        rows: Tensor,
        *,
        positions: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """What the head takes of some rows of the unroll, step by step: what training needs.

        Args:
            input_ids: As for `unroll`, and so are `hiddens`, `steps` and `positions`.
            rows: int64 [N], distinct places in the flattened [B, T].

        Returns:
            For every step `hidden` [N, H].
        """
        for hidden, _ in self.iter_unroll(input_ids, hiddens, steps, positions=positions):
            yield hidden.flatten(0, 1).index_select(0, rows)

    def new_cache(self, capacity: int) -> Any:
        """An empty `ChainCache` for `draft`, with room for `capacity` rows at first."""
        raise NotImplementedError

    def draft(
        self,
        hiddens: Sequence[Tensor],
        tokens: Tensor,
        counts: Sequence[int],
        cache: Any,
        depth: int,
    ) -> tuple[Tensor, Tensor]:
        """Enter rows that stand on target states, then draft a chain from the last of them.

        Args:
            hiddens: The captured states [B, T, Ht] of the new rows.
            tokens: int64 [B, T], of every row the token after its state's position.
            counts: How many of the T rows each sequence has, the first ones; at least 1. What
                stands behind them means nothing.
            cache: From `new_cache`; afterwards it holds the new rows, and none that was drafted.
            depth: Tokens to draft, at least 1.

        Returns:
            (drafts int64 [B, depth] in the target's vocabulary, states [B, depth, H], what each
            step feeds back).

        Raises:
            ValueError: The states are not finite.
        """
        raise NotImplementedError

    def unroll(
        self,
        input_ids: Tensor,
        hiddens: Sequence[Tensor],
        steps: int,
        *,
        positions: Tensor | None = None,
        feed: Feed | None = None,
        watch: Watch | None = None,
    ) -> list[tuple[Tensor, Tensor]]:
        """The train-time-test unroll: every row drafts a chain of `steps` steps, teacher-forced.

        Step j of row t takes token x_{t+1+j}, the row's own state of step j - 1 (the fused target
        state for j = 0) and rotary position t + j, attends to the step-0 keys of rows 0..t (of those
        that the config's window leaves in sight at t + j) and to its own keys of steps 1..j, and
        predicts x_{t+2+j}. Row by row that is what decoding does when it drafts the teacher's
        tokens. Differentiable.

        The last 1 + j rows of step j have no input token: their values mean nothing, mask them; so
        are those of every document's last rows. Sequences may be padded on the right only.

        Args:
            input_ids: [B, T] int64, the sequence x_0..x_{T-1}.
            hiddens: The target's captured states of the same positions, each [B, T, Ht].
            steps: Chain length, at least 1.
            positions: int64 [B, T], each token's place in its document, ascending by one; a 0
                begins the next document of the row. Rotary positions follow them and rows see
                their own document alone. None: every sequence is one document.
            feed: Called as `feed(j, state)` for j = 1, 2, ... with the state [B, T, H] that step j
                is about to take; what it returns is taken instead.
            watch: Called once a step, before its attention.

        Returns:
            For every step (hidden, next_state), both [B, T, H].

        Raises:
            ValueError: `steps` is below 1, or shapes do not fit.
        """
        return list(
            self.iter_unroll(input_ids, hiddens, steps, positions=positions, feed=feed, watch=watch)
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores over the draft vocabulary, [..., Vd], of `hidden` [..., H]."""
        raise NotImplementedError

    @torch.no_grad()
    def greedy(self, hidden: Tensor) -> Tensor:
        """The most likely next token, int64 [...] in the TARGET's vocabulary, of `hidden` [..., H].

        The logits are not kept. No gradient flows.
        """
        weight = self.head_weight
        if isinstance(weight, Tensor):
            weight = weight.detach()
        return linear_argmax(hidden, weight, d2t=self._offsets())[0]

    def _offsets(self) -> Tensor | None:
        """`d2t`, or None where target and draft vocabulary are the same."""
        return None if self.config.draft_vocab_size == self.config.vocab_size else self.d2t

    def nbytes(self) -> int:
        """Bytes of all weights and buffers, the embedding included."""
        return sum(tensor.nbytes for tensor in (*self.parameters(), *self.buffers()))

    def set_draft_vocabulary(self, token_ids: Tensor | Sequence[int]) -> None:
        """Choose which target ids the head's rows stand for; before, they are the first Vd.

        Args:
            token_ids: [Vd] distinct ascending ids of the target's vocabulary.

        Raises:
            ValueError: The ids are not `draft_vocab_size` distinct ascending ids within the
                target's vocabulary.
        """
        ids = torch.as_tensor(token_ids, dtype=torch.int64, device=self.d2t.device)
        v, vd = self.config.vocab_size, self.config.draft_vocab_size
        if ids.shape != (vd,):
            raise ValueError(f"token_ids: got shape {tuple(ids.shape)}, expected ({vd},)")
        if bool((ids.diff() <= 0).any()) or int(ids[0]) < 0 or int(ids[-1]) >= v:
            raise ValueError(f"token_ids: expected distinct ascending ids from 0 to {v - 1}")
        self.d2t.copy_(ids - torch.arange(vd, device=ids.device))
        self.t2d.zero_()
        self.t2d[ids] = True


def check_unroll(input_ids: Tensor, rows: Sequence[int], positions: Tensor | None) -> None:
    """Raise ValueError unless ids and positions are [B, T] = `rows`, as the states are."""
    for name, tensor in (("input_ids", input_ids), ("positions", positions)):
        if tensor is not None and tensor.shape != torch.Size(rows):
            raise ValueError(
                f"{name}: got shape {tuple(tensor.shape)}, expected {tuple(rows)} as in hiddens"
            )


def document_bounds(positions: Tensor) -> Tensor:
    """int32 [documents + 1]: where documents begin in the B T rows of positions [B, T], and B T.

    Every row of the batch begins one.
    """
    begins = positions == 0
    begins[:, :1] = True
    starts = begins.flatten().nonzero()[:, 0]
    return F.pad(starts, (0, 1), value=positions.numel()).int()


def shifted(tokens: Tensor) -> Tensor:
    """tokens [B, T], each row one place to the left; 0 comes in on the right."""
    return F.pad(tokens[:, 1:], (0, 1))
