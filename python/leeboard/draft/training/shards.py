"""The files of a state cache: shards of rows, written whole or not at all, and a manifest at the end."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leeboard._files import only_holder, read_json, write_json, write_tensors

FORMAT = 1
MANIFEST = "manifest.json"
_LOCK = ".lock"
_FULL = (errno.ENOSPC, errno.EDQUOT)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class DiskFullError(OSError):
    """There is no room for the states. What was written before is whole."""

    def __str__(self) -> str:
        return str(self.args[1])


def shard_path(folder: Path, number: int) -> Path:
    """Where a shard lies."""
    return folder / f"states-{number:05d}.safetensors"


def write_shard(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a shard, atomically.

    Raises:
        OSError: With errno ENOSPC or EDQUOT where the disk is full; nothing is left of the shard.
    """
    write_tensors(path, tensors, metadata)


def disk_is_full(error: OSError) -> bool:
    """Whether this is why writing failed."""
    return error.errno in _FULL


def shard_metadata(path: Path) -> dict[str, Any] | None:
    """What `write_shard` was given as metadata, its values parsed; None for no whole shard."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as tensors:
            found = tensors.metadata() or {}
        return {name: json.loads(value) for name, value in found.items()}
    except (SafetensorError, FileNotFoundError, json.JSONDecodeError):
        return None


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished cache.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It cannot be read, or is of another version of the format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        begun = len(list(folder.glob("states-*.safetensors")))
        unfinished = (
            f"{begun} file(s) of a cache that is not finished: cache the states again to go on"
        )
        raise FileNotFoundError(f"{folder}: it holds {unfinished if begun else 'no cached states'}")
    try:
        manifest = read_json(path)
        version = manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: it is no manifest of cached states ({error})") from error
    if version != FORMAT:
        raise ValueError(f"{path}: its format is {version!r}, expected {FORMAT}")
    return manifest  # type: ignore[no-any-return]


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Say that the cache is finished."""
    write_json(folder / MANIFEST, {"format": FORMAT, **manifest})


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold the folder, and clear away what a killed writer left unfinished.

    Raises:
        RuntimeError: Another process writes to it.
    """
    message = f"{folder}: another process is caching states there: wait, or give another folder"
    with only_holder(folder / _LOCK, message):
        for leftover in folder.glob(".states-*.safetensors.*"):
            leftover.unlink(missing_ok=True)
        yield


def free_bytes(folder: Path) -> int:
    """Room on the folder's disk."""
    return shutil.disk_usage(folder).free


def readable(count: int) -> str:
    """A number of bytes for people, in powers of 1000."""
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
