"""Files that are there whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from leeboard._files import replacing


@contextmanager
def atomic(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write bytes to, which takes the place of `path` when the block ends well."""
    with replacing(Path(path)) as beside, beside.open("xb") as file:
        yield file


def write_atomically(path: str | Path, content: bytes) -> None:
    """Replace the file at `path` by one of this content."""
    with atomic(path) as file:
        file.write(content)
