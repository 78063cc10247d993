"""Files and progress bars of the demo."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_FORMAT = "{desc:<12} {percentage:3.0f}% |{bar}| {elapsed} gone, {remaining} left{postfix}"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path that takes the place of `path` at the end, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Any]:
    """A tqdm bar on stderr with the time left; a log gets a line at times."""
    from tqdm import tqdm

    terminal = sys.stderr.isatty()
    bar = tqdm(
        total=total,
        desc=title,
        bar_format=_FORMAT,
        dynamic_ncols=terminal,
        ncols=None if terminal else 78,
        mininterval=0.3 if terminal else 20.0,
        maxinterval=1.0 if terminal else 20.0,
        leave=not terminal,
    )
    try:
        yield bar
    finally:
        bar.close()
