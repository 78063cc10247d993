"""Reading a trace of whichever format."""

from __future__ import annotations

from pathlib import Path

from leeboard.sim.chakra import load_chakra
from leeboard.sim.simgrid import load_simgrid
from leeboard.sim.trace import Trace

_HEAD = 4096


def load_trace(path: str | Path) -> Trace:
    """Read a trace: leeboard's own, Chakra's or SimGrid's; its first bytes tell which.

    Args:
        path: A file of `Trace.save`; a Chakra trace (one of PREFIX.0.et, PREFIX.1.et, ..., or the
            PREFIX); or a SimGrid time-independent trace (one file of all ranks, or the list of its
            files).

    Raises:
        TraceError: It cannot be read; the file and what is wrong with it are named.
        OSError: It cannot be opened.
    """
    file = Path(path)
    if not file.exists():
        return load_chakra(file)
    with file.open("rb") as opened:
        head = opened.read(_HEAD)
    if head.startswith(b"PK"):
        return Trace.load(file)
    if ".et" not in file.suffixes and _is_text(head):
        return load_simgrid(file)
    return load_chakra(file)


def _is_text(head: bytes) -> bool:
    """Printable ASCII and white space; a protobuf message has other bytes in its header."""
    return all(32 <= byte < 127 or byte in b"\t\n\r" for byte in head)
