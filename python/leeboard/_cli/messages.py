"""How a command ends, and what it says of an error."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

# What a wrong file or option ends in; anything else is a defect and shows its traceback.
_WRONG = (ArithmeticError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError)


def status_of(
    command: str, run: Callable[[], int], wrong: tuple[type[Exception], ...] = _WRONG
) -> int:
    """The exit status of `run`; 2, and a line that says why, where a file or an option is wrong."""
    try:
        status = run()
        sys.stdout.flush()
    except BrokenPipeError:
        # `| head` has seen enough; nothing more may be written, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except wrong as error:
        print(f"leeboard {command}: {said(error)}", file=sys.stderr)
        return 2
    return status


def said(error: BaseException) -> str:
    """The error in words for people: of a file, its path before what is wrong with it."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        missing = isinstance(error, FileNotFoundError)
        return f"{error.filename}: {'no such file' if missing else error.strerror.lower()}"
    return str(error)
