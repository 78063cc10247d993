"""Chakra execution traces, written for tests as MLCommons' tools write them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leeboard.sim.chakra_node import COLLECTIVE, COMPUTE, METADATA, RECV, SEND
from leeboard.sim.chakra_schema import messages

ALL_REDUCE, REDUCE, ALL_GATHER, GATHER, SCATTER, BROADCAST, ALL_TO_ALL, REDUCE_SCATTER = range(8)
BARRIER = 9


def frame(message: Any) -> bytes:
    """A message behind its length."""
    content: bytes = message.SerializeToString()
    size, out = len(content), bytearray()
    while size >= 0x80:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    out.append(size)
    return bytes(out) + content


def node(
    number: int, kind: int, deps: Sequence[int] = (), *, micros: int = 0, **attributes: Any
) -> Any:
    """A node whose attributes have the types that MLCommons' generator gives them."""
    kinds = messages()
    made = kinds["Node"](id=number, name=f"n{number}", type=kind, duration_micros=micros)
    made.data_deps.extend(deps)
    for name, value in attributes.items():
        attr = made.attr.add(name=name)
        if isinstance(value, bool):
            attr.bool_val = value
        elif isinstance(value, list):
            attr.bool_list.values.extend(value)
        elif isinstance(value, str):
            attr.string_val = value
        elif isinstance(value, float):
            attr.double_val = value
        elif name == "comm_type":
            attr.int64_val = value
        else:
            attr.uint64_val = value
    return made


def compute(number: int, deps: Sequence[int] = (), *, micros: int = 0, **attributes: Any) -> Any:
    return node(number, COMPUTE, deps, micros=micros, is_cpu_op=False, **attributes)


def send(number: int, to: int, size: int, deps: Sequence[int] = (), tag: int = 0) -> Any:
    return node(number, SEND, deps, comm_dst=to, comm_size=size, comm_tag=tag)


def recv(number: int, source: int, size: int, deps: Sequence[int] = (), tag: int = 0) -> Any:
    return node(number, RECV, deps, comm_src=source, comm_size=size, comm_tag=tag)


def collective(
    number: int, kind: int, size: int, deps: Sequence[int] = (), **attributes: Any
) -> Any:
    return node(number, COLLECTIVE, deps, comm_type=kind, comm_size=size, **attributes)


def groups(number: int, text: str) -> Any:
    """What PyTorch's recorder notes about process groups."""
    made = node(number, METADATA)
    made.inputs.values = text
    return made


def content(nodes: Sequence[Any], version: str = "0.0.4") -> bytes:
    """The bytes of a rank's file."""
    header = messages()["GlobalMetadata"](version=version)
    return b"".join(frame(message) for message in (header, *nodes))


def write(folder: Path, *ranks: Sequence[Any], name: str = "trace") -> Path:
    """The files of all ranks; returns their prefix."""
    for rank, nodes in enumerate(ranks):
        (folder / f"{name}.{rank}.et").write_bytes(content(nodes))
    return folder / name
