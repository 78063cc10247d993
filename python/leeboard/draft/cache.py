"""Keys and values of the drafter's one attention layer."""

from __future__ import annotations

from torch import Tensor


class DrafterCache:
    """A growing store of keys and values, cut back after every drafted chain.

    Rows lie in arrival order, so row t is position t as long as rows are appended in order.
    Storage doubles when it is full and is reused after `crop`. For decoding only: it keeps no
    gradients.

    Args:
        capacity: Rows to allocate at the first `append`.
    """

    def __init__(self, capacity: int = 0) -> None:
        if capacity < 0:
            raise ValueError(f"capacity: got {capacity}, expected 0 or more rows")
        self._capacity = capacity
        self._length = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    @property
    def length(self) -> int:
        """Rows held."""
        return self._length

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add rows and return all rows.

        Args:
            keys: [B, Hkv, T, D].
            values: [B, Hkv, T, D].

        Returns:
            All keys and all values, [B, Hkv, length, D], views of the store: read them before the
            next `append`.

        Raises:
            ValueError: Shapes do not match the rows held, or the rows carry gradients.
        """
        if keys.requires_grad or values.requires_grad:
            raise ValueError("keys carry gradients: a DrafterCache needs torch.no_grad()")
        if keys.shape != values.shape:
            raise ValueError(
                f"values: got {tuple(values.shape)}, expected keys' {tuple(keys.shape)}"
            )
        batch, heads, rows, width = keys.shape
        held = self._keys
        if held is not None and (held.shape[0], held.shape[1], held.shape[3]) != (
            batch,
            heads,
            width,
        ):
            raise ValueError(
                f"keys: got {(batch, heads, 'T', width)}, expected "
                f"{(held.shape[0], held.shape[1], 'T', held.shape[3])} as in the rows held"
            )
        end = self._length + rows
        store_k = self._keys = self._grown(self._keys, keys, end)
        store_v = self._values = self._grown(self._values, values, end)
        store_k[:, :, self._length : end] = keys
        store_v[:, :, self._length : end] = values
        self._length = end
        return store_k[:, :, :end], store_v[:, :, :end]

    def crop(self, length: int) -> None:
        """Forget all rows from `length` on.

        Raises:
            ValueError: `length` is negative or more than the rows held.
        """
        if not 0 <= length <= self._length:
            raise ValueError(f"length: got {length}, expected 0 to {self._length}, the rows held")
        self._length = length

    def _grown(self, store: Tensor | None, like: Tensor, rows: int) -> Tensor:
        if store is not None and store.shape[2] >= rows:
            return store
        held = 0 if store is None else store.shape[2]
        batch, heads, _, width = like.shape
        grown = like.new_empty(batch, heads, max(rows, 2 * held, self._capacity), width)
        if store is not None:
            grown[:, :, : self._length] = store[:, :, : self._length]
        return grown

    def __repr__(self) -> str:
        return f"DrafterCache(length={self._length})"
