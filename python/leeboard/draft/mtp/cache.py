"""What MTP heads remember between the rounds of decoding."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from leeboard.draft.cache import DrafterCache


@dataclasses.dataclass(frozen=True)
class Entered:
    """The rows that a round runs: of every sequence the first `counts`, from place `starts` on."""

    tokens: Tensor
    states: Tensor
    starts: list[int]
    counts: list[int]


class MTPCache:
    """Keys and values of every head's rows, with a length of its own for every sequence.

    Head m's row t stands on token x_{t+1+m}, so its last m rows stand on drafted tokens until the
    target has said what comes there. The last `heads` - 1 rows of all heads are therefore run anew
    in every round; their tokens and target states are kept for that.

    Args:
        heads: Heads there are.
        capacity: Rows to allocate at first.
    """

    def __init__(self, heads: int, capacity: int = 0) -> None:
        self._capacity = capacity
        self.heads = [DrafterCache(capacity) for _ in range(heads)]
        # Per sequence: rows, and of the last ones their tokens and the states that entered.
        self._lengths: list[int] | None = None
        self._tokens: list[Tensor] = []
        self._states: list[Tensor] = []

    @property
    def lengths(self) -> list[int]:
        """Rows per sequence; none before the first round."""
        return list(self._lengths or ())

    @property
    def longest(self) -> int:
        """Rows of the longest sequence; 0 when nothing is held."""
        return max(self.lengths, default=0)

    def enter(self, tokens: Tensor, states: Tensor, counts: Sequence[int]) -> Entered:
        """Begin a round: the new rows, behind those that are to be run anew.

        Args:
            tokens: int64 [B, T], of the new rows.
            states: [B, T, H], the target's.
            counts: How many of them each sequence has.

        Raises:
            ValueError: The number of sequences is not the one held.
        """
        batch, new = len(counts), list(counts)
        if self._lengths is None:
            self.heads = [DrafterCache(self._capacity) for _ in self.heads]
            return Entered(tokens, states, [0] * batch, new)
        if len(self._lengths) != batch:
            raise ValueError(f"counts: got {batch}, expected {len(self._lengths)} as in the cache")
        again = [len(kept) for kept in self._tokens]
        starts = [length - n for length, n in zip(self._lengths, again, strict=True)]
        for cache in self.heads:
            cache.crop(starts)
        if not any(again):
            return Entered(tokens, states, starts, new)
        rows = [n + count for n, count in zip(again, new, strict=True)]
        joined = tokens.new_zeros(batch, max(rows))
        joined_states = states.new_zeros(batch, max(rows), states.shape[-1])
        for b, (first, end) in enumerate(zip(again, rows, strict=True)):
            joined[b, :first], joined_states[b, :first] = self._tokens[b], self._states[b]
            joined[b, first:end], joined_states[b, first:end] = (
                tokens[b, : new[b]],
                states[b, : new[b]],
            )
        return Entered(joined, joined_states, starts, rows)

    def keep(self, rows: Entered) -> None:
        """End a round whose rows all heads have run."""
        self._lengths = [a + n for a, n in zip(rows.starts, rows.counts, strict=True)]
        kept = len(self.heads) - 1
        lasts = [slice(max(n - kept, 0), n) if kept else slice(0) for n in rows.counts]
        self._tokens = [rows.tokens[b, last].clone() for b, last in enumerate(lasts)]
        self._states = [rows.states[b, last].clone() for b, last in enumerate(lasts)]

    def select(self, sequences: Sequence[int]) -> None:
        """Keep these sequences, in this order; the others' rows are lost."""
        if self._lengths is None:
            raise ValueError("cache: it is empty, expected rows")
        for cache in self.heads:
            cache.select(sequences)
        for name in ("_lengths", "_tokens", "_states"):
            held = getattr(self, name)
            setattr(self, name, [held[b] for b in sequences])

    def __repr__(self) -> str:
        return f"MTPCache(heads={len(self.heads)}, lengths={self.lengths})"


def valid_rows(rows: Entered) -> Tensor:
    """bool [B, T]: which of the rows count."""
    at = torch.arange(rows.tokens.shape[1], device=rows.tokens.device)
    return at < torch.tensor(rows.counts, device=at.device)[:, None]
