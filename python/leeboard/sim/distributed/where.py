"""The line of the program that a rank is at."""

from __future__ import annotations

import os
import sys
import sysconfig
from types import FrameType

import torch

_OURS = os.path.dirname(os.path.abspath(__file__)) + os.sep
_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
# Decorators of torch's functions, and what threads begin with.
_LIBRARY = sysconfig.get_paths()["stdlib"] + os.sep
_BETWEEN = tuple(_LIBRARY + name for name in ("threading.py", "contextlib.py", "warnings.py"))
_DEPRECATED = f"{os.sep}typing_extensions.py"


def line(frame: FrameType | None) -> str:
    """ "file.py:12" of the innermost frame that is neither ours nor torch's; empty: none is."""
    while frame is not None:
        path = frame.f_code.co_filename
        between = path.startswith((_OURS, _TORCH, "<frozen", *_BETWEEN))
        if not between and not path.endswith(_DEPRECATED):
            return f"{os.path.relpath(path) if os.path.isabs(path) else path}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def here() -> str:
    """The line of the calling thread's program."""
    return line(sys._getframe(1))


def of_thread(thread: int) -> str:
    """The line at which a thread is held up."""
    return line(sys._current_frames().get(thread))
