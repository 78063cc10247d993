"""Columns of kinds: distinct values once, and for each row which one it has."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from leeboard.sim.names import Index, PlatformError, index, nearest
from leeboard.sim.parts import Device, Link, Protocol

Kind = TypeVar("Kind", Device, Link)
Part = TypeVar("Part", Device, Link, Protocol)


def canonical(kinds: tuple[Kind, ...], column: Index) -> tuple[tuple[Kind, ...], Index]:
    """Equal kinds merged, unused ones dropped, in the order in which they come first."""
    merged = {kind: number for number, kind in reversed(list(enumerate(kinds)))}
    if len(merged) < len(kinds):
        column = np.array([merged[kind] for kind in kinds], np.uint32)[column]
    used, first = np.unique(column, return_index=True)
    order = used[np.argsort(first)]
    if np.array_equal(order, np.arange(len(kinds))):
        return kinds, index(column)
    place = np.zeros(len(kinds), np.uint32)
    place[order] = np.arange(len(order))
    return tuple(kinds[number] for number in order), index(place[column])


def changed(
    kinds: tuple[Kind, ...],
    column: Index,
    rows: Index,
    base: Kind | None,
    fields: Mapping[str, Any],
) -> tuple[tuple[Kind, ...], Index]:
    """The columns with other kinds in some rows: `base`, or what they have, with changed fields."""
    after = column.copy()
    added = list(kinds)
    for number in np.unique(column[rows]):
        of_kind = rows[column[rows] == number]
        after[of_kind] = len(added)
        added.append(replaced(kinds[number] if base is None else base, fields))
    return tuple(added), index(after)


def replaced(part: Part, fields: Mapping[str, Any]) -> Part:
    """A copy with changed fields.

    Raises:
        PlatformError: An unknown field; the nearest one is suggested.
    """
    known = [field.name for field in dataclasses.fields(part)]
    for name in fields:
        if name not in known:
            what = f"unknown field {name!r}{nearest(name, known)}"
            raise PlatformError(f"{what}; a {type(part).__name__} has {', '.join(known)}")
    return dataclasses.replace(part, **fields)
