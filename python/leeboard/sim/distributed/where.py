"""The line of the program that a rank is at."""

from __future__ import annotations

import os
import sys
import sysconfig
from types import FrameType

import torch

_OURS = os.path.dirname(os.path.abspath(__file__)) + os.sep
_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
_LIBRARY = sysconfig.get_paths()["stdlib"] + os.sep
_PACKAGES = (f"{_LIBRARY}site-packages{os.sep}", f"{_LIBRARY}dist-packages{os.sep}")
_SITES = (
    tuple(os.path.join(sysconfig.get_paths()[kind], "") for kind in ("purelib", "platlib"))
    + _PACKAGES
)
# Has the decorator of torch's deprecated functions.
_TYPING = f"{os.sep}typing_extensions.py"


def line(frame: FrameType | None) -> str:
    """ "file.py:12" of the innermost frame that is neither ours, torch's nor Python's; empty: none is."""
    while frame is not None:
        path = frame.f_code.co_filename
        if not _between(path):
            return f"{os.path.relpath(path) if os.path.isabs(path) else path}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def _between(path: str) -> bool:
    if path.startswith(_LIBRARY) and not path.startswith(_PACKAGES):
        return True
    return path.startswith((_OURS, _TORCH, "<frozen")) or path.endswith(_TYPING)


def of_library(path: str) -> bool:
    """Whether a file is Python's, torch's, ours, or of another installed package."""
    return _between(path) or path.startswith(_SITES)


def here() -> str:
    """The line of the calling thread's program."""
    return line(sys._getframe(1))


def of_thread(thread: int) -> str:
    """The line at which a thread is held up."""
    return line(sys._current_frames().get(thread))
