"""Chakra execution traces as protobuf messages: the part of MLCommons' schema that we read.

The schema is mlcommons/chakra schema/protobuf/et_def.proto (0.0.4). It is built here from its field
numbers, so that no generated code is shipped; fields that are not named here are skipped.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import IO, Any

from leeboard.sim.trace import TraceError

# Of one message. Nodes are hundreds of bytes.
_MOST_MESSAGE = 64 * 2**20
# Of a gzip file, unpacked.
_MOST_UNPACKED = 8 * 2**30
_CHUNK = 2**20

_PACKAGE = "leeboard.chakra"
# Name, number, and type in descriptor.proto (1 double, 2 float, 3 int64, 4 uint64, 5 int32,
# 6 fixed64, 7 fixed32, 8 bool, 9 string, 11 message, 13 uint32, 15 sfixed32, 16 sfixed64, 17 sint32,
# 18 sint64).
_VALUES = (
    ("double_val", 3, 1),
    ("float_val", 5, 2),
    ("int32_val", 7, 5),
    ("int64_val", 9, 3),
    ("uint32_val", 11, 13),
    ("uint64_val", 13, 4),
    ("sint32_val", 15, 17),
    ("sint64_val", 17, 18),
    ("fixed32_val", 19, 7),
    ("fixed64_val", 21, 6),
    ("sfixed32_val", 23, 15),
    ("sfixed64_val", 25, 16),
    ("bool_val", 27, 8),
    ("string_val", 29, 9),
)
_REPEATED = 3


@cache
def messages() -> dict[str, Any]:
    """Classes of the messages: GlobalMetadata, Node, AttributeProto, BoolList, IOInfo."""
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    except ImportError:
        raise ImportError(
            "Chakra traces need the package protobuf: pip install 'leeboard[sim]' or protobuf"
        ) from None
    file = descriptor_pb2.FileDescriptorProto(
        name="leeboard/chakra.proto", package=_PACKAGE, syntax="proto3"
    )

    def message(name: str, *fields: tuple[str, int, int]) -> Any:
        made = file.message_type.add(name=name)
        for field, number, kind in fields:
            made.field.add(name=field, number=number, type=kind, label=1)
        return made

    bools = message("BoolList", ("values", 1, 8))
    bools.field[0].label = _REPEATED
    message("IOInfo", ("values", 1, 9))
    attribute = message("AttributeProto", ("name", 1, 9), *_VALUES, ("bool_list", 28, 11))
    attribute.oneof_decl.add(name="value")
    for field in attribute.field[1:]:
        field.oneof_index = 0
    attribute.field[-1].type_name = f".{_PACKAGE}.BoolList"
    metadata = message("GlobalMetadata", ("version", 1, 9), ("attr", 2, 11))
    # The type is an enum in the schema; as a number, unknown values are kept.
    node = message(
        "Node",
        *(("id", 1, 4), ("name", 2, 9), ("type", 3, 5), ("ctrl_deps", 4, 4), ("data_deps", 5, 4)),
        *(("start_time_micros", 6, 4), ("duration_micros", 7, 4)),
        *(("inputs", 8, 11), ("attr", 10, 11)),
    )
    for field in (metadata.field[1], node.field[8]):
        field.label = _REPEATED
        field.type_name = f".{_PACKAGE}.AttributeProto"
    for field in node.field[3:5]:
        field.label = _REPEATED
    node.field[7].type_name = f".{_PACKAGE}.IOInfo"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
        for name in ("GlobalMetadata", "Node", "AttributeProto", "BoolList", "IOInfo")
    }


def read_nodes(path: Path) -> Iterator[Any]:
    """The nodes of a file (gzip is seen and undone), each a Node message.

    Raises:
        TraceError: It is no Chakra trace, or cut off.
    """
    from google.protobuf.message import DecodeError

    kinds = messages()
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream: Any = gzip.GzipFile(fileobj=raw) if packed else raw
        count = 0
        for start, content in _frames(path, stream):
            kind = kinds["GlobalMetadata" if count == 0 else "Node"]
            try:
                message = kind.FromString(content)
            except (DecodeError, UnicodeDecodeError):
                what = "the header" if count == 0 else f"node number {count}"
                raise TraceError(
                    f"{path}: no Chakra trace, or damaged: {what}, at byte {start}, is not readable"
                ) from None
            if count > 0:
                yield message
            count += 1
    if count == 0:
        raise TraceError(f"{path}: no Chakra trace: an empty file")


def _frames(path: Path, stream: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Messages with their places: a varint of the length, then the message."""
    buffered = io.BufferedReader(_Counted(path, stream), _CHUNK)
    place = 0
    while True:
        start, size, shift = place, 0, 0
        while True:
            byte = buffered.read(1)
            if not byte:
                if shift:
                    raise TraceError(f"{path}: cut off at byte {place}, in the length of a message")
                return
            place += 1
            size |= (byte[0] & 0x7F) << shift
            shift += 7
            if byte[0] < 0x80:
                break
            if shift > 28:
                raise TraceError(f"{path}: no Chakra trace: byte {start} is no message's length")
        if size > _MOST_MESSAGE:
            raise TraceError(f"{path}: no Chakra trace: a message of {size} bytes at byte {start}")
        content = buffered.read(size)
        if len(content) < size:
            raise TraceError(
                f"{path}: cut off: {len(content)} of {size} bytes of the message at byte {start}"
            )
        place += size
        yield start, content


class _Counted(io.RawIOBase):
    """A stream whose damage is a TraceError and whose length is bounded."""

    def __init__(self, path: Path, stream: IO[bytes]) -> None:
        self._path = path
        self._stream = stream
        self._total = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Read up to the length of the buffer."""
        try:
            content = self._stream.read(len(buffer))
        except (EOFError, OSError, ValueError) as error:
            raise TraceError(f"{self._path}: damaged or cut off ({error})") from None
        self._total += len(content)
        if self._total > _MOST_UNPACKED:
            raise TraceError(f"{self._path}: more than {_MOST_UNPACKED} bytes, unpacked")
        buffer[: len(content)] = content
        return len(content)
