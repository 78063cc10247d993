"""Progress bars of long work."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_FORMAT = "{desc:<12} {percentage:3.0f}% |{bar}| {elapsed} gone, {remaining} left{postfix}"


@contextmanager
def progress_bar(title: str, total: int, *, initial: int = 0, quiet: bool = False) -> Iterator[Any]:
    """A tqdm bar on stderr with a name and the time left; a log gets a line at times.

    Args:
        title: What is done.
        total: Steps.
        initial: Those that are done already.
        quiet: Whether nothing is drawn.
    """
    from tqdm import tqdm

    terminal = sys.stderr.isatty()
    bar = tqdm(
        total=total,
        initial=initial,
        disable=quiet,
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


@contextmanager
def progress_line(title: str) -> Iterator[Any]:
    """A tqdm line on stderr for work whose length nobody knows; `set_postfix_str` says how far it is.

    Args:
        title: What is done.
    """
    from tqdm import tqdm

    with tqdm(desc=title, bar_format="{desc:<12} {elapsed} gone{postfix}", leave=False) as line:
        yield line
