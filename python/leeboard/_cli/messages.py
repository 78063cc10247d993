"""What a command says of an error."""

from __future__ import annotations


def said(error: BaseException) -> str:
    """The error in words for people: of a file, its path before what is wrong with it."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        missing = isinstance(error, FileNotFoundError)
        return f"{error.filename}: {'no such file' if missing else error.strerror.lower()}"
    return str(error)
