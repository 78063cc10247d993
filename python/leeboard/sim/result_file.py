"""The file of a result: JSON that a person can read, large arrays packed (docs/sim/results.md)."""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from leeboard._version import __version__
from leeboard.sim.files import atomic
from leeboard.sim.records import RECORD, Kind
from leeboard.sim.requests import TIMES, Requests
from leeboard.sim.result import Failure, OutOfMemory, Result
from leeboard.sim.result_tables import LINK_UNITS, RANK_UNITS
from leeboard.sim.table import Table

FORMAT = "leeboard.sim.result"
VERSION = 1

_RANKS = {
    "rank": "<i8",
    "device": "O",
    **dict.fromkeys(("finish", "compute", "communication", "idle"), "<f8"),
    **dict.fromkeys(("sent", "received", "peak_memory"), "<u8"),
    "energy": "<f8",
}
_LINKS = {
    **dict.fromkeys(("link", "source", "target"), "O"),
    **dict.fromkeys(("bandwidth", "bytes", "busy", "utilisation"), "<f8"),
}

T = TypeVar("T")


class ResultError(ValueError):
    """A file that holds no result that can be read."""


def readable(result: Result) -> dict[str, Any]:
    """What a person or another program reads: all but the timeline and what happened when."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "leeboard": __version__,
        "makespan": result.makespan,
        "makespan_ps": result.makespan_ps,
        "events": result.events,
        "messages": result.messages,
        "event_hash": result.event_hash,
        "network": result.network,
        "seed": result.seed,
        "energy": result.energy,
        "shares": result.shares(),
        "requests": [_finite(row) for row in result.requests],
        "out_of_memory": [vars(event) for event in result.out_of_memory],
        "failures": [vars(event) for event in result.failures],
        "ranks": _columns(result.ranks),
        "links": _columns(result.links),
    }


def save(result: Result, path: str | Path) -> None:
    """Write `result`, whole or not at all."""
    content = {
        **readable(result),
        "marks": list(result.names),
        "bin": result.bin,
        "link_use": _pack(result.link_use.astype("<f4")),
        "queues": [
            {"name": q.name, **{key: _pack(getattr(q, key)) for key in TIMES}}
            for q in result.queues
        ],
        "records_dropped": result.records_dropped,
        "unmatched": result.unmatched,
        "records": _pack(result.records),
    }
    with atomic(path) as file:
        # A key a line, so that the file can be looked at.
        for number, (key, value) in enumerate(content.items()):
            text = json.dumps(value, allow_nan=False)
            file.write(f"{',' if number else '{'}\n{json.dumps(key)}: {text}".encode())
        file.write(b"\n}\n")


def load(path: str | Path) -> Result:
    """Read a file of `save`."""
    try:
        content = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ResultError(f"{path}: not a result, or cut off ({_short(error)})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ResultError(f"{path}: not a result: its format is not {FORMAT!r}")
    version = content.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise ResultError(
            f"{path}: version {version!r} is newer than {VERSION}, which this leeboard "
            f"({__version__}) reads"
        )
    try:
        return _result(content)
    except (KeyError, TypeError, ValueError, OverflowError, zlib.error) as error:
        raise ResultError(f"{path}: a damaged result ({_short(error)})") from None


def _short(error: Exception) -> str:
    text = f"no {error}" if isinstance(error, KeyError) else str(error)
    return text if len(text) <= 120 else text[:117] + "..."


def _result(content: Mapping[str, Any]) -> Result:
    ranks = _table(content["ranks"], _RANKS, RANK_UNITS)
    links = _table(content["links"], _LINKS, LINK_UNITS)
    records = _unpack(content["records"], RECORD, 1)
    if len(records) and not set(np.unique(records["kind"]).tolist()) <= set(Kind):
        raise ValueError("records of an unknown kind")
    if len(records) and records["rank"].max() >= len(ranks):
        raise ValueError("records of a rank that does not exist")
    link_use = _unpack(content["link_use"], np.dtype("<f4"), 2)
    if len(link_use) not in (0, len(links)):
        raise ValueError(f"link_use: got {len(link_use)} rows, expected {len(links)}")
    return Result(
        makespan_ps=_of(int, content, "makespan_ps"),
        events=_of(int, content, "events"),
        messages=_of(int, content, "messages"),
        event_hash=_of(str, content, "event_hash"),
        network=_of(str, content, "network"),
        seed=_of(int, content, "seed"),
        ranks=ranks,
        links=links,
        energy=float(content["energy"]),
        queues=tuple(
            Requests(
                _of(str, queue, "name"),
                *(_unpack(queue[key], np.dtype("<u8"), 1) for key in TIMES),
            )
            for queue in content["queues"]
        ),
        records=records,
        records_dropped=_of(bool, content, "records_dropped"),
        unmatched=_of(int, content, "unmatched"),
        names=tuple(_strings(content["marks"])),
        link_use=link_use,
        bin=float(content["bin"]),
        out_of_memory=tuple(OutOfMemory(**event) for event in content["out_of_memory"]),
        failures=tuple(Failure(**event) for event in content["failures"]),
    )


def _of(kind: type[T], content: Mapping[str, Any], key: str) -> T:
    value = content[key]
    if type(value) is not kind:
        raise TypeError(f"{key}: got {value!r}, expected {kind.__name__}")
    return value


def _strings(values: Any) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError("expected a list of strings")
    return values


def _columns(table: Table) -> dict[str, list[Any]]:
    return {name: table[name].tolist() for name in table.columns}


def _table(columns: Mapping[str, Any], dtypes: Mapping[str, str], units: dict[str, str]) -> Table:
    read: dict[str, np.ndarray] = {}
    for name, dtype in dtypes.items():
        values = columns[name]
        read[name] = np.array(_strings(values) if dtype == "O" else values, dtype=dtype)
        if read[name].ndim != 1:
            raise ValueError(f"{name}: expected a list of numbers")
    return Table(read, units)


def _finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """NaN as null: JSON has no word for it."""
    return {
        key: None if isinstance(value, float) and np.isnan(value) else value
        for key, value in row.items()
    }


def _pack(array: np.ndarray) -> dict[str, Any]:
    data = zlib.compress(np.ascontiguousarray(array).tobytes(), 1)
    return {"shape": list(array.shape), "zlib": base64.b64encode(data).decode("ascii")}


def _unpack(packed: Mapping[str, Any], dtype: np.dtype[Any], dimensions: int) -> np.ndarray:
    shape = packed["shape"]
    if len(shape) != dimensions or not all(type(n) is int and 0 <= n < 1 << 40 for n in shape):
        raise ValueError(f"got the shape {shape!r}, expected {dimensions} lengths")
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    try:
        reader = zlib.decompressobj()
        data = reader.decompress(base64.b64decode(packed["zlib"], validate=True), size + 1)
    except binascii.Error as error:
        raise ValueError(str(error)) from None
    if len(data) != size or not reader.eof:
        raise ValueError(f"got {len(data)} bytes, expected {size}")
    return np.frombuffer(data, dtype).reshape(shape).copy()
