"""Keys and values of the drafter's one attention layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class DrafterCache:
    """A growing store of keys and values, with a length of its own for every sequence.

    Row t of a sequence is position t, as long as rows are appended in order. Storage doubles when
    it is full and is reused after `crop`. What lies behind a sequence's length means nothing. For
    decoding only: it keeps no gradients.

    Args:
        capacity: Rows to allocate at first.
    """

    def __init__(self, capacity: int = 0) -> None:
        if capacity < 0:
            raise ValueError(f"capacity: got {capacity}, expected 0 or more rows")
        self._capacity = capacity
        self._store: tuple[Tensor, Tensor] | None = None
        self._rows: list[int] = []
        self._lengths: Tensor | None = None

    @property
    def keys(self) -> Tensor:
        """[B, Hkv, C, D], the store itself; C is at least `longest`."""
        return self._held()[0]

    @property
    def values(self) -> Tensor:
        """[B, Hkv, C, D], as `keys`."""
        return self._held()[1]

    @property
    def lengths(self) -> Tensor:
        """int64 [B], rows held per sequence, on the device of the store."""
        if self._lengths is None:
            self._lengths = torch.tensor(
                self._rows, dtype=torch.int64, device=self._held()[0].device
            )
        return self._lengths

    @property
    def longest(self) -> int:
        """Rows of the longest sequence; 0 when nothing is held."""
        return max(self._rows, default=0)

    @property
    def length(self) -> int:
        """Rows held by every sequence.

        Raises:
            ValueError: The sequences differ; `lengths` has them all.
        """
        if len(set(self._rows)) > 1:
            raise ValueError(f"length: the sequences hold {self._rows} rows, expected equal counts")
        return self.longest

    def reserve(self, keys: Tensor) -> None:
        """Make room for T more rows of every sequence; what is held stays as it is.

        Args:
            keys: [B, Hkv, T, D], of which only shape, dtype and device count.

        Raises:
            ValueError: Shape, dtype or device do not match the rows held.
        """
        batch, heads, rows, width = keys.shape
        store = self._store
        if store is None:
            self._store = self._empty(keys, max(rows, self._capacity))
            self._rows, self._lengths = [0] * batch, None
            return
        held = store[0]
        if (held.shape[0], held.shape[1], held.shape[3]) != (batch, heads, width):
            raise ValueError(
                f"keys: got {(batch, heads, 'T', width)}, expected "
                f"{(held.shape[0], held.shape[1], 'T', held.shape[3])} as in the rows held"
            )
        if (held.dtype, held.device) != (keys.dtype, keys.device):
            raise ValueError(
                f"keys: got {keys.dtype} on {keys.device}, expected {held.dtype} on {held.device} "
                "as in the rows held"
            )
        needed = self.longest + rows
        if held.shape[2] < needed:
            grown = self._empty(keys, max(needed, 2 * held.shape[2]))
            for new, old in zip(grown, store, strict=True):
                new[:, :, : self.longest] = old[:, :, : self.longest]
            self._store = grown

    def advance(self, rows: int, counts: Sequence[int] | None = None) -> None:
        """Count rows that were written behind the lengths: the first counts[b] of `rows`.

        Raises:
            ValueError: A count is out of range, or the rows do not fit.
        """
        lengths = self.lengths_after(rows, counts)
        if self._store is not None and max(lengths, default=0) > self._store[0].shape[2]:
            raise ValueError(f"rows: got {rows}, expected no more than were reserved")
        self._rows, self._lengths = lengths, None

    def lengths_after(self, rows: int, counts: Sequence[int] | None = None) -> list[int]:
        """What `advance` would make the lengths; it raises what that would."""
        taken = [rows] * len(self._rows) if counts is None else list(counts)
        if len(taken) != len(self._rows) or not all(0 <= count <= rows for count in taken):
            raise ValueError(
                f"counts: got {taken}, expected {len(self._rows)} integers from 0 to {rows}"
            )
        return [held + count for held, count in zip(self._rows, taken, strict=True)]

    def append(
        self, keys: Tensor, values: Tensor, counts: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Add rows and return all rows.

        Args:
            keys: [B, Hkv, T, D].
            values: [B, Hkv, T, D].
            counts: How many of the T rows each sequence keeps, the first ones; None for all.

        Returns:
            All keys and all values, [B, Hkv, longest, D], views of the store: read them before the
            next `append`.

        Raises:
            ValueError: Shapes do not match the rows held, a count is out of range, or the rows
                carry gradients. The rows held are as before then.
        """
        if keys.requires_grad or values.requires_grad:
            raise ValueError("keys carry gradients: a DrafterCache needs torch.no_grad()")
        if keys.shape != values.shape:
            raise ValueError(
                f"values: got {tuple(values.shape)}, expected keys' {tuple(keys.shape)}"
            )
        self.reserve(keys)
        before = list(self._rows)
        rows = keys.shape[2]
        self.advance(rows, counts)
        for b, start in enumerate(before):
            self.keys[b, :, start : start + rows] = keys[b]
            self.values[b, :, start : start + rows] = values[b]
        return self.keys[:, :, : self.longest], self.values[:, :, : self.longest]

    def crop(self, length: int | Sequence[int]) -> None:
        """Forget all rows from `length` on, the same for every sequence or one each.

        Raises:
            ValueError: A length is negative or more than the rows held.
        """
        each = [length] * len(self._rows) if isinstance(length, int) else list(length)
        if len(each) != len(self._rows):
            raise ValueError(f"length: got {len(each)} lengths, expected {len(self._rows)}")
        for wanted, held in zip(each, self._rows, strict=True):
            if not 0 <= wanted <= held:
                raise ValueError(f"length: got {wanted}, expected 0 to {held}, the rows held")
        self._rows, self._lengths = each, None

    def select(self, sequences: Sequence[int]) -> None:
        """Keep these sequences, in this order; the others' rows are lost.

        Raises:
            IndexError: There is no such sequence.
        """
        store = self._held()
        rows = [self._rows[b] for b in sequences]
        index = torch.tensor(list(sequences), device=store[0].device)
        self._store = store[0].index_select(0, index), store[1].index_select(0, index)
        self._rows, self._lengths = rows, None

    def _held(self) -> tuple[Tensor, Tensor]:
        if self._store is None:
            raise ValueError("cache: it is empty, expected rows")
        return self._store

    @staticmethod
    def _empty(like: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        batch, heads, _, width = like.shape
        shape = (batch, heads, rows, width)
        return like.new_empty(shape), like.new_empty(shape)

    def __repr__(self) -> str:
        return f"DrafterCache(lengths={self._rows})"
