"""Replacing attributes for the time of a run, and putting them back."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

_MISSING = object()


class Patches:
    """What was replaced, in order; leaving the context puts it back, also after an error."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], object]] = []

    def set(self, holder: Any, name: str, value: Any) -> Any:
        """Replace `holder.name` and return what it was."""
        old = getattr(holder, name, _MISSING)
        if old is _MISSING:
            self._undo.append(lambda: delattr(holder, name))
        else:
            self._undo.append(lambda: setattr(holder, name, old))
        setattr(holder, name, value)
        return old

    def after(self, undo: Callable[[], object]) -> None:
        """Call `undo` when it is the turn of what was done last."""
        self._undo.append(undo)

    def undo(self) -> None:
        """Put everything back, the last first."""
        while self._undo:
            self._undo.pop()()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.undo()
