"""The threads of simulated ranks, from the first that starts to the end of the run."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any

import torch

from leeboard import _C
from leeboard._progress import progress_line
from leeboard.sim.distributed import failures, where
from leeboard.sim.distributed.exits import Exits
from leeboard.sim.distributed.isolation import Spaces
from leeboard.sim.distributed.rank import Rank, Stuck
from leeboard.sim.distributed.script import Script
from leeboard.sim.distributed.session import Session
from leeboard.sim.distributed.watch import Watch
from leeboard.sim.errors import SimulationError
from leeboard.sim.table import text_of

# Address space of a rank's stack; only what is touched takes memory.
_STACK = 16 << 20
_POLL = 0.2
_PATIENCE, _HASTE = 5.0, 0.5
_LEFT = "it called sys.exit"


class Crew:
    """The ranks of a run, each with its thread.

    Attributes:
        values: What the program returned, by rank.
        error: What ended the run, if a rank raised.
        lines: If the run could not go on: what each rank was doing (`failures.lines`).
        exits: What ranks want called at their ends.
        modes: What every rank's thread stays within, besides its meter's modes.
    """

    def __init__(self, run: Session, script: Script) -> None:
        self.session = run
        self.script = script
        self.values: dict[int, Any] = {}
        self.error: BaseException | None = None
        self.lines: dict[int, str] = {}
        self._ranks: list[Rank] = []
        self._threads: list[threading.Thread] = []
        self._over = threading.Event()
        self._processor = _processor()
        self.exits = Exits()
        self.modes: Callable[[], Sequence[AbstractContextManager[Any]]] = tuple

    def add(self, rank: Rank, main: Any) -> None:
        """One rank more, and its `__main__`."""
        self._ranks.append(rank)
        thread = threading.Thread(
            target=self._thread, args=(rank, main), name=f"rank {rank.number}", daemon=True
        )
        self._threads.append(thread)

    def run(self, tell: Callable[[], None]) -> None:
        """Run all programs to their end; `tell` is called now and then meanwhile."""
        core = self.session.core
        try:
            self._start()
            core.leave(self._ranks[0].number)
            while not self._over.wait(_POLL):
                tell()
        except BaseException:
            self._stop()
            raise
        self._join(_PATIENCE)

    def check(self) -> None:
        """Raise what a rank raised, or what is wrong with a script that ended well."""
        if self.error is not None:
            raise self.error
        session = self.session
        # A script that was asked for its help leaves before it begins.
        left = all(how == _LEFT for how in session.ended.values())
        if len(self._ranks) > 1 and not session.joined and not self.script.plain and not left:
            raise SimulationError(
                f"{self.script.name}: no rank called torch.distributed.init_process_group(), so "
                f"that {session.size} copies ran on their own: call it (no arguments are needed), "
                "or run with --nproc-per-node 1; or, for a leeboard.sim.Program, define "
                "build(args) or program at top level"
            )

    def _start(self) -> None:
        before = threading.stack_size(_STACK)
        try:
            for thread in self._threads:
                thread.start()
        except RuntimeError as error:
            raise SimulationError(
                f"ranks: this host lets no more threads than {len(threading.enumerate())} run "
                f"({error}), expected room for {len(self._threads)}: see `ulimit -u`, or use fewer"
            ) from error
        finally:
            threading.stack_size(before)

    def _thread(self, rank: Rank, main: Any) -> None:
        # `_stop` may interrupt a thread that is about to end.
        with suppress(Stuck):
            self._live(rank, main)

    def _live(self, rank: Rank, main: Any) -> None:
        """A rank's program, its end, and who is next."""
        number, core = rank.number, rank.core
        rank.enter()
        if self._processor:
            os.sched_setaffinity(0, self._processor)
        try:
            core.enter(number)
            if rank.state is not None:
                rank.state.enter()
            self.values[number] = self._call(rank, main)
            following = core.finish(number)
            if following < 0:
                self._end()
            else:
                core.leave(following)
        except _C.SimAborted:
            pass
        except Stuck as error:
            self._end({number: where.line(_innermost(error))})
        except BaseException as error:  # noqa: BLE001
            self._fail(rank, error)

    def _fail(self, rank: Rank, error: BaseException) -> None:
        """A rank's program raised, unless another one did earlier in simulated time."""
        try:
            if not isinstance(error, SimulationError):
                rank.now()
        except _C.SimAborted:
            return
        except Stuck:
            pass
        self.error = failures.raised(self.session, rank.number, rank.core.clock(rank.number), error)
        self._end()

    def _call(self, rank: Rank, main: Any) -> Any:
        with ExitStack() as stack:
            # A backward pass stays on the rank's thread.
            stack.enter_context(torch.autograd.set_multithreading_enabled(False))
            for mode in (*self.modes(), *rank.meter.modes()):
                stack.enter_context(mode)
            rank.meter.resume(rank)
            value, how = None, "its program returned"
            try:
                value = self.script.call(main)
            except SystemExit as error:
                if error.code not in (None, 0):
                    raise
                how = _LEFT
            self.exits.run(rank)
            rank.flush()
        self.session.ended[rank.number] = how
        return value

    def _end(self, lines: dict[int, str] | None = None) -> None:
        """Nothing goes on from here; called by the rank that has the baton."""
        self.lines = {**failures.lines(self.session), **(lines or {})}
        self._over.set()
        self.session.core.abort()

    def _stop(self) -> None:
        """End everything at once: ranks that compute are interrupted, too."""
        self._over.set()
        self.session.core.abort()
        self._join(_HASTE / 5)
        for thread in self._threads:
            if thread.ident is not None and thread.is_alive():
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(thread.ident), ctypes.py_object(Stuck)
                )
        self._join(_HASTE)

    def _join(self, patience: float) -> None:
        until = monotonic() + patience
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, until - monotonic()))


def _processor() -> set[int]:
    """The processor that the caller runs on, for all ranks: they take turns, and a turn passes twice
    as fast to a thread of the same processor. Empty where threads cannot be kept in place."""
    if not hasattr(os, "sched_setaffinity"):
        return set()
    try:
        fields = Path("/proc/thread-self/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return set()
    return {int(fields[36])} & os.sched_getaffinity(0)


def _innermost(error: BaseException) -> FrameType | None:
    trace, frame = error.__traceback__, None
    while trace is not None:
        frame, trace = trace.tb_frame, trace.tb_next
    return frame


@contextmanager
def told(spaces: Spaces, progress: bool) -> Iterator[Callable[[], None]]:
    """What to call now and then: it notices ranks that stand still, and shows simulated time on a
    terminal."""
    watch = Watch(spaces)
    if not (progress and sys.stderr.isatty()):
        yield watch.look
        return
    with progress_line("simulating") as line:

        def tell() -> None:
            watch.look()
            line.set_postfix_str(f"{text_of(spaces.clock / 1e12, 's')} simulated", refresh=True)
            spaces.asked = True

        yield tell
