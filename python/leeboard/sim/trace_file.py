"""The file of a trace: a zip of numpy arrays and a JSON header (docs/sim/trace.md)."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from leeboard._version import __version__
from leeboard.sim.files import atomic
from leeboard.sim.trace import COLUMNS, Trace, TraceError
from leeboard.sim.trace_check import check

FORMAT = "leeboard.sim.trace"
VERSION = 1
HEADER = "header.json"
# Unpacked; files that claim more are refused unless the caller allows it.
MAX_BYTES = 8 * 2**30
_MOST_HEADER = 64 * 2**20
# Of one array: numpy's own preamble is 64 to 256 bytes for these types.
_PREAMBLE = 1024
_MOST = 2**40
# The same bytes for the same trace, whenever it is written.
_DATE = (1980, 1, 1, 0, 0, 0)
_ARRAYS = {**COLUMNS, "queue_times": np.dtype("<u8")}

# What reading a damaged zip or array raises.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    tokenize.TokenError,
    SyntaxError,
    EOFError,
    KeyError,
    TypeError,
    ValueError,
    OverflowError,
    RecursionError,
    # Encrypted, or packed in a way that this Python does not know.
    RuntimeError,
    NotImplementedError,
)


def save(trace: Trace, path: str | Path) -> None:
    """Write `trace`, whole or not at all."""
    arrays = {name: getattr(trace, name) for name in COLUMNS}
    times = [np.asarray(queue["times"], dtype=np.uint64) for queue in trace.queues]
    arrays["queue_times"] = np.concatenate([np.zeros(0, np.uint64), *times])
    header = {
        "format": FORMAT,
        "version": VERSION,
        "producer": f"leeboard {__version__}",
        "ranks": trace.ranks,
        "counts": {name: len(array) for name, array in arrays.items()},
        "sha256": _digest(arrays),
        "queues": [
            {key: len(value) if key == "times" else value for key, value in queue.items()}
            for queue in trace.queues
        ],
        "names": list(trace.names),
        "metadata": dict(trace.metadata),
    }
    with (
        atomic(path) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive,
    ):
        _write(archive, HEADER, json.dumps(header, indent=1, allow_nan=False).encode())
        for name, array in arrays.items():
            with archive.open(_entry(f"{name}.npy"), "w", force_zip64=True) as out:
                npy.write_array(out, array, allow_pickle=False)


def load(path: str | Path, *, max_bytes: int = MAX_BYTES) -> Trace:
    """Read a file of `save`.

    Args:
        path: Of the file.
        max_bytes: A file that holds more, unpacked, is refused.

    Raises:
        TraceError: It is no trace, cut off, damaged, of a newer version, or too large.
        OSError: It cannot be opened.
    """
    content = io.BytesIO(Path(path).read_bytes())
    try:
        with zipfile.ZipFile(content) as archive:
            trace = _read(archive, max_bytes)
        check(trace)
    except TraceError as error:
        raise TraceError(f"{path}: {error}") from None
    except zipfile.BadZipFile as error:
        raise TraceError(f"{path}: no trace, or cut off ({error})") from None
    except _DAMAGE as error:
        raise TraceError(f"{path}: a damaged trace ({_short(error)})") from None
    return trace


def _entry(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, _DATE)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = 0o644 << 16
    return info


def _write(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    archive.writestr(_entry(name), content)


def _digest(arrays: Mapping[str, np.ndarray[Any, Any]]) -> str:
    digest = hashlib.sha256()
    for name in _ARRAYS:
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()


def _short(error: Exception) -> str:
    text = f"no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."


def _read(archive: zipfile.ZipFile, max_bytes: int) -> Trace:
    entries = {info.filename: info for info in archive.infolist()}
    header = _header(archive, entries)
    counts = header["counts"]
    unknown = set(entries) - {f"{name}.npy" for name in _ARRAYS} - {HEADER}
    if unknown:
        raise TraceError(f"a damaged trace: it holds {min(unknown)!r}")
    total = 0
    for name, dtype in _ARRAYS.items():
        info, count = entries.get(f"{name}.npy"), _count(counts, name)
        if info is None:
            raise TraceError(f"a damaged trace: {name} is missing")
        size = count * dtype.itemsize
        if not size <= info.file_size <= size + _PREAMBLE:
            raise TraceError(
                f"a damaged trace: {name} takes {info.file_size} bytes, {count} were to take {size}"
            )
        total += size
    if total > max_bytes:
        raise TraceError(
            f"it holds {total} bytes, more than max_bytes ({max_bytes}); load(path, "
            "max_bytes=...) allows more"
        )
    arrays = {}
    for name, dtype in _ARRAYS.items():
        with archive.open(entries[f"{name}.npy"]) as file:
            arrays[name] = _array(file, name, dtype, counts[name])
    if _digest(arrays) != header.get("sha256"):
        raise TraceError("a damaged trace: its contents do not have the checksum it names")
    if len(arrays["begin"]) != _count(header, "ranks"):
        raise TraceError(f"a damaged trace: ranks is {header['ranks']}")
    times = arrays.pop("queue_times")
    return Trace(
        **arrays,
        queues=_queues(header["queues"], times),
        names=_texts(header["names"], "names"),
        metadata=_text_map(header["metadata"]),
    )


def _header(archive: zipfile.ZipFile, entries: Mapping[str, zipfile.ZipInfo]) -> dict[str, Any]:
    info = entries.get(HEADER)
    if info is None:
        raise TraceError(f"no trace: it has no {HEADER}")
    if info.file_size > _MOST_HEADER:
        raise TraceError(f"its header takes {info.file_size} bytes, more than {_MOST_HEADER}")
    header = json.loads(archive.read(info))
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise TraceError(f"no trace: its format is not {FORMAT!r}")
    version = header.get("version")
    if type(version) is not int or version < 1:
        raise TraceError(f"a damaged trace: version {version!r}")
    if version > VERSION:
        raise TraceError(
            f"version {version} is newer than {VERSION}, which this leeboard ({__version__}) reads"
        )
    return header


def _count(counts: Any, name: str) -> int:
    count = counts[name]
    if type(count) is not int or not 0 <= count <= _MOST:
        raise TraceError(f"a damaged trace: the count of {name} is {count!r}")
    return count


def _array(file: IO[bytes], name: str, dtype: np.dtype[Any], count: int) -> Any:
    version = npy.read_magic(file)
    if version != (1, 0):
        raise TraceError(f"a damaged trace: {name} is an array of version {version}")
    shape, fortran, found = npy.read_array_header_1_0(file)
    if found != dtype or shape != (count,) or fortran:
        raise TraceError(
            f"a damaged trace: {name} is {found} {list(shape)}, expected {dtype} [{count}]"
        )
    data = file.read(count * dtype.itemsize + 1)
    if len(data) != count * dtype.itemsize:
        raise TraceError(f"a damaged trace: {name} has {len(data)} bytes")
    return np.frombuffer(data, dtype=dtype)


def _queues(queues: Any, times: np.ndarray[Any, Any]) -> tuple[dict[str, Any], ...]:
    kinds = {"name": str, "kind": int, "count": int, "clients": int, "seed": int, "times": int}
    at = 0
    out = []
    for i, queue in enumerate(queues):
        if set(queue) != {*kinds, "mean"} or any(type(queue[k]) is not t for k, t in kinds.items()):
            raise TraceError(f"a damaged trace: queue {i} is {queue!r:.80}")
        length = queue["times"]
        if not 0 <= length <= len(times) - at:
            raise TraceError(f"a damaged trace: queue {i} has {length} times")
        span = tuple(times[at : at + length].tolist())
        out.append({**queue, "mean": float(queue["mean"]), "times": span})
        at += length
    if at != len(times):
        raise TraceError(f"a damaged trace: {len(times)} times of arrival, the queues have {at}")
    return tuple(out)


def _texts(values: Any, name: str) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TraceError(f"a damaged trace: {name} is no text")
    return tuple(values)


def _text_map(values: Any) -> dict[str, str]:
    if not isinstance(values, dict):
        raise TraceError("a damaged trace: metadata is no text")
    return dict(zip(values, _texts(list(values.values()), "metadata"), strict=True))
