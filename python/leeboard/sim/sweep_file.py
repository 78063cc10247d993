"""The file of a sweep: a line of JSON for each point that is done, so that it can go on later."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from leeboard._version import __version__

FORMAT = "leeboard.sim.sweep"
VERSION = 1


def fingerprint(*parts: Any) -> str:
    """SHA-256 of arrays, numbers, texts, and mappings and sequences of them."""
    digest = hashlib.sha256()
    _feed(digest, parts)
    return digest.hexdigest()


def _feed(digest: Any, part: Any) -> None:
    if isinstance(part, np.ndarray):
        digest.update(f"array {part.dtype.str} {part.dtype.descr} {part.shape} ".encode())
        digest.update(np.ascontiguousarray(part).tobytes())
    elif isinstance(part, Mapping):
        digest.update(f"map {len(part)} ".encode())
        for key in sorted(part):
            _feed(digest, key)
            _feed(digest, part[key])
    elif isinstance(part, list | tuple):
        digest.update(f"list {len(part)} ".encode())
        for item in part:
            _feed(digest, item)
    else:
        value = part.item() if isinstance(part, np.generic) else part
        if not isinstance(value, str | int | float | bool | None):
            raise TypeError(f"got {value!r}, expected numbers, texts, arrays")
        text = repr(value)
        digest.update(f"{type(value).__name__} {len(text)} {text} ".encode())


class SweepFile:
    """Rows that are done, by key. Opened for going on: what is there is read, new rows follow.

    Args:
        path: Of the file, made if it is not there. A last line that was cut off is dropped.

    Raises:
        ValueError: Another file, or one of a newer version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.rows: dict[str, dict[str, Any]] = {}
        if self.path.exists() and self.path.stat().st_size:
            self._read()
            self._file = self.path.open("ab")
        else:
            self._file = self.path.open("ab")
            self._write({"format": FORMAT, "version": VERSION})

    def _read(self) -> None:
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        lines = whole.splitlines()
        if not lines:
            self._refuse(content)
            # Killed within the first line.
            self.path.write_bytes(_line({"format": FORMAT, "version": VERSION}))
            return
        self._refuse(lines[0])
        self.rows = dict(self._row(number, line) for number, line in enumerate(lines[1:], start=2))
        if len(whole) < len(content):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))

    def _row(self, number: int, line: bytes) -> tuple[str, dict[str, Any]]:
        try:
            entry = json.loads(line)
            return entry["key"], dict(entry["row"])
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{self.path}, line {number}: not a row of a sweep") from None

    def _refuse(self, first: bytes) -> None:
        """Raise unless the file begins as a sweep does."""
        start = _line({"format": FORMAT, "version": VERSION}).rstrip()
        if first == start or (start.startswith(first) and b"\n" not in first):
            return
        try:
            entry = json.loads(first)
            newer = entry["format"] == FORMAT and entry["version"] > VERSION
        except (ValueError, KeyError, TypeError):
            newer = False
        if newer:
            raise ValueError(
                f"{self.path}: of a newer version than {VERSION}, which this leeboard "
                f"({__version__}) reads"
            )
        raise ValueError(f"{self.path}: not a sweep")

    def add(self, key: str, row: Mapping[str, Any]) -> None:
        """Write a row; it is there when this returns, whatever becomes of the process."""
        self.rows[key] = dict(row)
        self._write({"key": key, "row": row})

    def _write(self, entry: Mapping[str, Any]) -> None:
        self._file.write(_line(entry))
        self._file.flush()

    def close(self) -> None:
        """No more rows."""
        self._file.close()


def _line(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry).encode() + b"\n"
