"""Names of devices, switches and links: runs of numbered names, and what selects some of them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.uint32]
# A number, a name ("gpu.3"), a run ("gpu.0-3", both ends included), a whole group ("gpu"), all
# ("*"), or several of these.
Selector = int | str | Iterable[int | str]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,62}", re.ASCII)
_MEMBER = re.compile(r"(.+)\.(\d{1,9})(?:-(\d{1,9}))?", re.ASCII)


class PlatformError(ValueError):
    """A platform that cannot be built or read: what is wrong, and where."""


class Columns:
    """A frozen dataclass whose arrays nobody writes to, in copies in other processes neither."""

    def __post_init__(self) -> None:
        for value in vars(self).values():
            if isinstance(value, np.ndarray):
                value.setflags(write=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(vars(self).values())


def nearest(given: str, known: Iterable[str]) -> str:
    """ " (did you mean 'x'?)", where a known name is like the given one."""
    close = difflib.get_close_matches(given[:60], known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def index(values: Any) -> Index:
    """A column of unsigned 32-bit numbers that nobody writes to."""
    column = np.array(values, dtype=np.uint32)
    column.setflags(write=False)
    return column


def integer(name: str, value: object, least: int = 1, most: int = 1 << 24) -> int:
    """The integer `value`, if it is from `least` up to `most`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        number = least - 1
    else:
        number = int(value)
    if not least <= number <= most:
        raise PlatformError(f"{name}: got {value!r}, expected an integer from {least} to {most}")
    return number


@dataclass(frozen=True)
class Group:
    """`name`, or `name.0` to `name.{count - 1}`."""

    name: str
    count: int | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(str(self.name)):
            raise PlatformError(
                f"name: got {self.name!r}, expected a letter or _, then letters, digits, _ or - "
                "(63 at most)"
            )
        if self.count is not None:
            integer("count", self.count)

    def __len__(self) -> int:
        return 1 if self.count is None else self.count


@dataclass(frozen=True)
class Names:
    """Names of a column's rows, group after group."""

    what: str
    groups: tuple[Group, ...] = ()

    def __post_init__(self) -> None:
        names = [group.name for group in self.groups]
        if len(self.starts) != len(names):
            twice = next(name for i, name in enumerate(names) if name in names[:i])
            raise PlatformError(f"{self.plural}: the name {twice!r} is given twice")

    @property
    def plural(self) -> str:
        """What the rows are."""
        return self.what + ("es" if self.what.endswith("h") else "s")

    @cached_property
    def starts(self) -> dict[str, tuple[int, Group]]:
        """The first row of each group, by its name."""
        starts, start = {}, 0
        for group in self.groups:
            starts[group.name] = start, group
            start += len(group)
        return starts

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        return np.cumsum([len(group) for group in self.groups], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.groups else 0

    def __getitem__(self, row: int) -> str:
        if not 0 <= row < len(self):
            raise PlatformError(f"{self.what}: got {row}, expected 0 to {len(self) - 1}")
        group = self.groups[int(np.searchsorted(self._ends, row, side="right"))]
        start, _ = self.starts[group.name]
        return group.name if group.count is None else f"{group.name}.{row - start}"

    def runs(self, rows: Iterable[int]) -> list[str]:
        """Selectors that give these rows, in this order: whole groups and runs as one."""
        column = np.asarray(rows, np.int64)
        found = []
        edges = np.flatnonzero(np.diff(column) != 1) + 1
        for run in np.split(column, edges) if column.size else []:
            first, last = int(run[0]), int(run[-1])
            begin, end = np.searchsorted(self._ends, [first, last], side="right")
            for group in self.groups[begin : end + 1]:
                start, _ = self.starts[group.name]
                low, high = max(first - start, 0), min(last - start, len(group) - 1)
                if high - low + 1 == len(group):
                    found.append(group.name)
                else:
                    found.append(f"{group.name}.{low}" + (f"-{high}" if high > low else ""))
        return found

    def one(self, selector: int | str, what: str | None = None) -> int:
        """The row that a selector names, which must be one."""
        rows = self.select(selector, what)
        if len(rows) != 1:
            raise PlatformError(
                f"{what or self.what}: {selector!r} selects {len(rows)} {self.plural}, expected one"
            )
        return int(rows[0])

    def select(self, selector: Selector, what: str | None = None) -> Index:
        """The rows that a selector names, in its order.

        Args:
            selector: See `Selector`.
            what: The argument, for the error.

        Raises:
            PlatformError: Unknown names (the nearest one is suggested), rows beyond the end.
        """
        label = what or self.what
        if isinstance(selector, np.ndarray) and selector.dtype.kind in "iu":
            wrong = selector[(selector < 0) | (selector >= len(self))]
            if wrong.size:
                raise PlatformError(f"{label}: got {wrong[0]}, expected 0 to {len(self) - 1}")
            return index(selector.ravel())
        if isinstance(selector, str):
            return index(self._range(selector, label))
        if isinstance(selector, (int, np.integer)) and not isinstance(selector, bool):
            if 0 <= selector < len(self):
                return index([selector])
            raise PlatformError(f"{label}: got {selector}, expected 0 to {len(self) - 1}")
        if isinstance(selector, Iterable) and not isinstance(selector, (bytes, dict)):
            parts = [self.select(part, what) for part in selector]
            return index(np.concatenate(parts) if parts else [])
        raise PlatformError(
            f"{label}: got {selector!r}, expected a {self.what}'s number, name, or a list of these"
        )

    def _range(self, text: str, label: str) -> NDArray[Any]:
        if text == "*":
            return np.arange(len(self))
        if text in self.starts:
            start, group = self.starts[text]
            return np.arange(start, start + len(group))
        match = _MEMBER.fullmatch(text)
        if match and match[1] in self.starts:
            start, group = self.starts[match[1]]
            first, last = int(match[2]), int(match[3] or match[2])
            if group.count is None or not first <= last < group.count:
                range_ = f"{group.name}.0 to {group.name}.{len(group) - 1}"
                has = f"{group.name!r} alone" if group.count is None else range_
                raise PlatformError(f"{label}: got {text!r}, expected {has}")
            return np.arange(start + first, start + last + 1)
        raise PlatformError(f"{label}: unknown {self.what} {text!r}{self._hint(text)}")

    def _hint(self, text: str) -> str:
        _, dot, number = text.partition(".")
        hint = nearest(text, [name + dot + number for name in self.starts])
        if hint:
            return hint
        known = [str(self[row]) for row in range(min(len(self), 4))]
        more = ", ..." if len(self) > len(known) else ""
        return f"; there are {', '.join(known)}{more}" if known else f"; there are no {self.plural}"
