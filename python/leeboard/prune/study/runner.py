"""Runs the units of a study that are missing from its folder."""

from __future__ import annotations

import dataclasses
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from leeboard._pool import run_all
from leeboard._progress import progress_bar
from leeboard.prune.study.settings import Study, Unit
from leeboard.prune.study.storage import RunFolder


class Failure(NamedTuple):
    """A unit that raised.

    Attributes:
        unit: Its name.
        error: The traceback.
    """

    unit: str
    error: str


def run_study(
    study: Study,
    run_dir: str | Path,
    *,
    workers: int = 2,
    keep_weights: bool = False,
    command: str = "",
    quiet: bool = False,
) -> list[Failure]:
    """Run what is missing; returns the units that failed, all others are finished.

    Args:
        study: What to run.
        run_dir: Where results are kept; finished units there are not run again.
        workers: Processes, one thread each; 0 runs in this process.
        keep_weights: Whether trained weights are stored, too (safetensors).
        command: How the study was started, for the report.
        quiet: Whether no progress is shown.

    Raises:
        ChangedStudyError: The folder holds results of other settings.
    """
    if workers < 0:
        raise ValueError(f"workers: got {workers}, expected 0 or more")
    folder = RunFolder(run_dir)
    missing = folder.open(study)
    if not missing:
        return []
    tasks = [
        {
            "study": study.to_dict(),
            "unit": dataclasses.asdict(unit),
            "run_dir": str(folder.path),
            "keep_weights": keep_weights,
        }
        for unit in missing
    ]
    failures: list[Failure] = []
    done, started = 0, time.monotonic()
    count = len(study.units())
    with progress_bar("units", count, initial=count - len(missing), quiet=quiet) as bar:
        try:
            with closing(run_all(run_unit, tasks, workers)) as ends:
                for end in ends:
                    if end is None:
                        # A log would get a line each time.
                        if sys.stderr.isatty():
                            bar.refresh()
                        continue
                    name = missing[end.task].name
                    if end.error is None:
                        done += 1
                    else:
                        failures.append(Failure(name, end.error))
                        last = end.error.strip().splitlines()[-1]
                        bar.write(f"{name} failed: {last}", file=sys.stderr)
                    bar.set_postfix_str(name, refresh=False)
                    bar.update()
        finally:
            if done:
                folder.add_session(
                    {
                        "command": command,
                        "workers": workers,
                        "units": done,
                        "seconds": round(time.monotonic() - started, 1),
                        "versions": versions(),
                    }
                )
    return failures


def run_unit(task: dict[str, Any]) -> None:
    """Train, rank, prune and count one unit, and store it; for a worker process."""
    import torch

    from leeboard.prune.study.measure import measure

    torch.set_num_threads(1)
    study = Study.from_dict(task["study"])
    unit = Unit(**task["unit"])
    folder = RunFolder(task["run_dir"])
    weights = None
    if task["keep_weights"]:
        weights = folder.path / "weights" / f"{unit.name}.safetensors"
    record = measure(study.case_of(unit), unit, weights=weights)
    folder.write(unit, {"settings": study.settings_of(unit), **record})


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    import platform
    from importlib.metadata import version

    from leeboard._version import __version__

    packages = {name: version(name) for name in ("torch", "numpy", "scikit-learn")}
    return {"leeboard": __version__, "python": platform.python_version(), **packages}
