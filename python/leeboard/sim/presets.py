"""Documented devices, links and protocols by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

from leeboard.sim.names import PlatformError
from leeboard.sim.parts import Device, Link, Protocol

DEVICES: dict[str, Device] = {"generic": Device("generic")}
LINKS: dict[str, Link] = {}

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        # Nothing but bandwidth and latency: what closed forms assume.
        Protocol("ideal"),
        # gloo over TCP: a message waits for the receiver's word. Of a full Ethernet frame of 1514
        # bytes 1448 are payload (TCP with timestamps); acknowledgements slow a busy way back by 9%
        # (both measured between network namespaces at 100 Mbit/s).
        Protocol("gloo", eager_limit=0, handshake="notify", goodput=0.956, cross_traffic=0.09),
        # MPI over TCP: eager up to 64 KiB, Open MPI's btl_tcp_eager_limit; then asks first.
        Protocol(
            "mpi",
            eager_limit="64 KiB",
            handshake="request",
            goodput=0.956,
            cross_traffic=0.09,
        ),
        # NCCL: receivers post buffers of NCCL_BUFFSIZE, 4 MiB, ahead. Packets of 4096 bytes carry
        # 82 bytes of Ethernet, IP, UDP and InfiniBand headers (RoCEv2); hardware acknowledges.
        Protocol("nccl", eager_limit="4 MiB", handshake="notify", goodput=0.98, packet=4096),
    )
}

Part = TypeVar("Part", Device, Link, Protocol)


TABLES: dict[type, Mapping[str, Any]] = {Device: DEVICES, Link: LINKS, Protocol: PROTOCOLS}


def find(kind: type[Part], given: Part | str) -> Part:
    """The preset of a name; what is no name is given back.

    Raises:
        PlatformError: An unknown name (the nearest one is suggested), or another type.
    """
    what, table = kind.__name__.lower(), TABLES[kind]
    if isinstance(given, kind):
        return given
    if not isinstance(given, str):
        raise PlatformError(f"{what}: got {given!r}, expected a {kind.__name__} or a preset's name")
    if given in table:
        preset: Part = table[given]
        return preset
    close = difflib.get_close_matches(given, table, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise PlatformError(f"{what}: unknown preset {given!r}{hint}; expected {', '.join(table)}")
