"""Noticing that the rank whose turn it is waits for something that only another rank could give."""

from __future__ import annotations

import sys
from time import monotonic, process_time
from types import FrameType

from leeboard.sim.distributed import where
from leeboard.sim.distributed.isolation import Spaces
from leeboard.sim.errors import SimulationError

_IMPORT = "<frozen importlib._bootstrap>"
# Seconds without work until an import counts as stuck, and until anything else is worth a line.
IMPORT, ANYTHING = 2.0, 10.0
# Share of a processor below which a process does nothing.
_IDLE = 0.05


class Watch:
    """Looks now and then at what the rank that has the baton does.

    Args:
        spaces: Of the run; it knows which rank that is.
    """

    def __init__(self, spaces: Spaces) -> None:
        self._spaces = spaces
        self._told = False
        self._restart()

    def look(self) -> None:
        """Tell of a rank that stands still.

        Raises:
            SimulationError: It imports a module that another rank, which waits for its turn, is
                importing, too: nothing can go on any more.
        """
        idle, cpu = monotonic() - self._since, process_time() - self._cpu
        if self._spaces.holder is not self._holder or cpu > _IDLE * idle + 0.01:
            self._restart()
            return
        rank = self._holder
        if rank is None or idle < IMPORT:
            return
        frames = sys._current_frames()
        frame = frames.get(rank.thread)
        line = where.line(frame)
        others = [other.thread for other in rank.run.ranks.values() if other is not rank]
        if _waits_to_import(frame) and any(_imports(frames.get(thread)) for thread in others):
            raise SimulationError(
                f"rank {rank.number} ({line}) imports a module that another rank is importing, and "
                "that one waits for its turn: no rank may communicate while it imports; do it in a "
                "function that the script calls"
            )
        if idle >= ANYTHING and not self._told:
            self._told = True
            print(
                f"leeboard sim: rank {rank.number} ({line}) has computed nothing for {idle:.0f} s; "
                "the simulation waits for it. Does it wait for a lock that another rank holds, for "
                "a thread, or for input?",
                file=sys.__stderr__,
                flush=True,
            )

    def _restart(self) -> None:
        self._holder = self._spaces.holder
        self._since, self._cpu = monotonic(), process_time()


def _waits_to_import(frame: FrameType | None) -> bool:
    """Whether a thread waits for a module that is being imported; reading files may be slow, too."""
    return (
        frame is not None
        and frame.f_code.co_filename == _IMPORT
        and frame.f_code.co_name == "acquire"
    )


def _imports(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == _IMPORT:
            return True
        frame = frame.f_back
    return False
