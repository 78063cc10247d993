"""Worker processes, a unit of work each; a worker that dies takes its unit with it, no other."""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple


class Finished(NamedTuple):
    """The end of a task.

    Attributes:
        task: Its index.
        error: What went wrong, as text, or None.
    """

    task: int
    error: str | None


def run_all(
    work: Callable[[Any], None], tasks: Sequence[Any], workers: int, *, poll: float = 1.0
) -> Generator[Finished | None, None, None]:
    """Run `work(task)` for all tasks; yields their ends as they come, None while nothing ends.

    With no worker they run in this process, one after another. Workers are spawned and ignore
    Ctrl-C; when the iterator is closed (by an exception of the caller, too) they are killed, so
    `work` must write its files atomically.

    Args:
        work: A function at the top level of a module.
        tasks: Arguments, which are sent to a process.
        workers: Processes; 0 for none.
        poll: Seconds between two ends after which None is yielded.
    """
    if workers == 0:
        for index, task in enumerate(tasks):
            yield Finished(index, _attempt(work, task))
        return
    waiting = deque(range(len(tasks)))
    busy: dict[Any, tuple[BaseProcess, int]] = {}
    idle: list[tuple[BaseProcess, Any]] = []
    try:
        while waiting or busy:
            while waiting and len(busy) < workers:
                process, pipe = idle.pop() if idle else _start(work)
                index = waiting.popleft()
                pipe.send(tasks[index])
                busy[pipe] = (process, index)
            ready = wait(list(busy), timeout=poll)
            if not ready:
                yield None
            for pipe in (pipe for pipe in list(busy) if pipe in ready):
                process, index = busy.pop(pipe)
                try:
                    error = pipe.recv()
                    idle.append((process, pipe))
                except EOFError:
                    process.join()
                    error = f"the worker process ended with status {process.exitcode}"
                yield Finished(index, error)
    finally:
        for pipe, (process, _) in busy.items():
            process.kill()
            pipe.close()
        for _, pipe in idle:
            pipe.close()
        for process in [p for p, _ in busy.values()] + [p for p, _ in idle]:
            process.join()


def _start(work: Callable[[Any], None]) -> tuple[BaseProcess, Any]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(work, theirs), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def _serve(work: Callable[[Any], None], pipe: Connection) -> None:
    # The parent decides what Ctrl-C means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(EOFError, BrokenPipeError):
        while True:
            pipe.send(_attempt(work, pipe.recv()))


def _attempt(work: Callable[[Any], None], task: Any) -> str | None:
    try:
        work(task)
    except Exception:  # noqa: BLE001 (whatever it is, it is the unit's)
        return traceback.format_exc()
    return None
