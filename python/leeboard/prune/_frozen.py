"""A mapping that cannot be changed, hashes and pickles."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Mapping
from typing import Any, TypeVar

V = TypeVar("V")


class Frozen(Mapping[str, V]):
    """Names to hashable values, in the order given; equal to any mapping of the same items."""

    __slots__ = ("_hash", "_items")

    def __init__(self, items: Mapping[str, V]) -> None:
        self._items = dict(items)
        self._hash = hash(frozenset(self._items.items()))

    def __getitem__(self, name: str) -> V:
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def items(self) -> ItemsView[str, V]:
        """Pairs of a name and its value."""
        return self._items.items()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Frozen):
            return self._hash == other._hash and self._items == other._items
        return self._items == other

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[Any, ...]:
        return Frozen, (dict(self._items),)

    def __repr__(self) -> str:
        return repr(self._items)
