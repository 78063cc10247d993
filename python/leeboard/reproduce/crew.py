"""Trainings in worker processes: those that are not there yet, with one bar over all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

from leeboard._pool import run_all
from leeboard._progress import progress_bar
from leeboard.demo.stages import Stage
from leeboard.reproduce.arms import Task, progress_of
from leeboard.reproduce.settings import Arm

# Of the bar, for one training.
_UNITS = 1000


@dataclasses.dataclass(frozen=True)
class Failure:
    """A training that raised."""

    arm: Arm
    error: str


def run_tasks(
    tasks: Sequence[Task],
    stage: Callable[[Task], Stage],
    work: Callable[[Task], None],
    workers: int,
    title: str,
) -> tuple[dict[Arm, Stage], list[Failure]]:
    """Run the tasks whose stages are not there.

    Args:
        tasks: In the order in which they are begun.
        stage: Gives a task's stage, from the cache if `task.build` is False.
        work: The same for a worker process: a function at the top level of a module.
        workers: Processes; 0 runs them here, one after another.
        title: Shown in front of the progress bar.

    Returns:
        The stages that are there now, in the tasks' order, and the trainings that failed.
    """
    there: dict[Arm, Stage] = {}
    missing = []
    for task in tasks:
        found = None if task.redo else _cached(task, stage)
        if found is None:
            missing.append(task)
        else:
            there[task.arm] = found
    failures = []
    if missing:
        with progress_bar(title, _UNITS * len(tasks), initial=_UNITS * len(there)) as bar:
            for task, error in _ends(missing, work, workers, bar, len(there)):
                if error is not None:
                    failures.append(Failure(task.arm, error))
    for task in missing:
        found = _cached(dataclasses.replace(task, redo=False), stage)
        if found is not None:
            there[task.arm] = dataclasses.replace(found, reused=False)
    return {task.arm: there[task.arm] for task in tasks if task.arm in there}, failures


def _ends(
    missing: Sequence[Task], work: Callable[[Task], None], workers: int, bar: Any, before: int
) -> list[tuple[Task, str | None]]:
    """Run them, moving the bar; what each ended in."""
    ended: dict[int, str | None] = {}
    with closing(run_all(work, missing, workers)) as ends:
        for end in ends:
            if end is not None:
                ended[end.task] = end.error
                bar.set_postfix_str(missing[end.task].arm.title, refresh=False)
            done = sum(1.0 if i in ended else progress_of(task) for i, task in enumerate(missing))
            bar.update(max(0, round(_UNITS * (before + done)) - bar.n))
    return [(missing[i], error) for i, error in ended.items()]


def _cached(task: Task, stage: Callable[[Task], Stage]) -> Stage | None:
    try:
        return stage(dataclasses.replace(task, build=False))
    except FileNotFoundError:
        return None
