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
        if len(self._starts) != len(names):
            twice = next(name for i, name in enumerate(names) if name in names[:i])
            raise PlatformError(f"{self.plural}: the name {twice!r} is given twice")

    @property
    def plural(self) -> str:
        """What the rows are."""
        return self.what + ("es" if self.what.endswith("h") else "s")

    @cached_property
    def _starts(self) -> dict[str, tuple[int, Group]]:
        starts, start = {}, 0
        for group in self.groups:
            starts[group.name] = start, group
            start += len(group)
        return starts

    def __len__(self) -> int:
        return sum(len(group) for group in self.groups)

    def __getitem__(self, row: int) -> str:
        for start, group in self._starts.values():
            if start <= row < start + len(group):
                return group.name if group.count is None else f"{group.name}.{row - start}"
        raise PlatformError(f"{self.what}: got {row}, expected 0 to {len(self) - 1}")

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
        if text in self._starts:
            start, group = self._starts[text]
            return np.arange(start, start + len(group))
        match = _MEMBER.fullmatch(text)
        if match and match[1] in self._starts:
            start, group = self._starts[match[1]]
            first, last = int(match[2]), int(match[3] or match[2])
            if group.count is None or not first <= last < group.count:
                range_ = f"{group.name}.0 to {group.name}.{len(group) - 1}"
                has = f"{group.name!r} alone" if group.count is None else range_
                raise PlatformError(f"{label}: got {text!r}, expected {has}")
            return np.arange(start + first, start + last + 1)
        raise PlatformError(f"{label}: unknown {self.what} {text!r}{self._hint(text)}")

    def _hint(self, text: str) -> str:
        stem, dot, number = text.partition(".")
        close = difflib.get_close_matches(stem, self._starts, n=1)
        if close:
            return f" (did you mean {close[0] + dot + number!r}?)"
        known = [str(self[row]) for row in range(min(len(self), 4))]
        more = ", ..." if len(self) > len(known) else ""
        return f"; there are {', '.join(known)}{more}" if known else f"; there are no {self.plural}"
