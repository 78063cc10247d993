"""JSON files that the user names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from leeboard._files import read_json


def given_json(what: str, path: Path, hint: str = "") -> Any:
    """What a JSON file holds.

    Args:
        what: The argument that names it.
        path: Of the file.
        hint: Said of a file that is no JSON.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no JSON.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{what}: {path}: no such file")
    try:
        return read_json(path)
    except ValueError as error:
        raise ValueError(f"{what}: {path}: not JSON ({error}){hint}") from None
