"""`atexit` for ranks: what a program registers is called when its rank ends, in its own world."""

from __future__ import annotations

import atexit
import sys
import traceback
from collections.abc import Callable
from typing import Any

from leeboard.sim.distributed import where
from leeboard.sim.distributed.patches import Patches
from leeboard.sim.distributed.rank import Rank, find

_Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class Exits:
    """What the ranks of a run want called at their ends."""

    def __init__(self) -> None:
        self._calls: dict[int, list[_Call]] = {}

    def install(self, patches: Patches) -> None:
        """Take what programs register; what libraries do remains the process's."""
        register, unregister = atexit.register, atexit.unregister

        def kept(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[..., Any]:
            rank = find()
            if rank is None or where.of_library(sys._getframe(1).f_code.co_filename):
                return register(function, *args, **kwargs)
            self._calls.setdefault(rank.number, []).append((function, args, kwargs))
            return function

        def forgotten(function: Callable[..., Any]) -> None:
            rank = find()
            if rank is not None and rank.number in self._calls:
                calls = self._calls[rank.number]
                calls[:] = [call for call in calls if call[0] != function]
            unregister(function)

        patches.set(atexit, "register", kept)
        patches.set(atexit, "unregister", forgotten)

    def run(self, rank: Rank) -> None:
        """Call what a rank has registered, the last first; as in a process, what fails is told and
        holds up nothing."""
        calls = self._calls.get(rank.number, [])
        while calls:
            function, args, kwargs = calls.pop()
            try:
                function(*args, **kwargs)
            except Exception:  # noqa: BLE001
                print(f"rank {rank.number}: ignored in atexit:", file=sys.stderr)
                traceback.print_exc()
