"""Platforms in words."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from leeboard.sim.parts import Device, Points, Protocol, Quantity
from leeboard.sim.units import RATIO

if TYPE_CHECKING:
    from leeboard.sim.platform import Platform


def summary(platform: Platform) -> str:
    """One line."""
    graph = platform.graph
    shape = platform.generator[0] if platform.generator else "custom"
    counts = [
        f"{len(names)} {names.what if len(names) == 1 else names.plural}"
        for names in (platform.devices, graph.switches, graph.links)
        if len(names)
    ]
    protocol = platform.protocol.name or "custom"
    return f"<Platform {platform.name or shape!r}: {', '.join(counts)}, {protocol} protocol>"


def fields(part: Any, base: Any = None, digits: int | None = None) -> dict[str, Any]:
    """The fields of a part that differ from those of `base`, or else from their defaults, as text
    that gives them.
    """
    shown: dict[str, Any] = {}
    for field in dataclasses.fields(part):
        descriptor = vars(type(part)).get(field.name)
        value = getattr(part, field.name)
        if value == (field.default if base is None else getattr(base, field.name)):
            continue
        if isinstance(descriptor, Quantity) and descriptor.dimension is RATIO and digits is None:
            shown[field.name] = value
        elif isinstance(descriptor, Quantity):
            shown[field.name] = descriptor.show(value, digits)
        elif isinstance(descriptor, Points):
            shown[field.name] = descriptor.show(value)
        else:
            shown[field.name] = value
    return shown


def describe(platform: Platform) -> str:
    """Several lines: devices, links, protocol, collectives, faults."""
    graph = platform.graph
    lines = [summary(platform)]
    for number, kind in enumerate(platform.kinds):
        count = int((platform.device_kind == number).sum())
        lines.append(f"  {count} x device {_words(kind)}")
    slow = np.flatnonzero(platform.device_factor != 1)
    if slow.size:
        lines.append(
            f"  stragglers: {slow.size}, the slowest at {platform.device_factor.min():.3g}"
        )
    for number, link in enumerate(graph.kinds):
        count = int((graph.link_kind == number).sum())
        lines.append(f"  {count} x link {_words(link)}")
    lines.append(f"  protocol {_words(platform.protocol)}")
    if platform.routes:
        lines.append(f"  {len(platform.routes)} given routes")
    if platform.collectives:
        named = isinstance(platform.collectives, str)
        rows = platform.collectives if named else f"{len(platform.collectives)} rules"
        lines.append(f"  collectives: {rows}")
    lines.extend(f"  fault: {_words(fault)}" for fault in platform.faults)
    if graph.island.size:
        lines.append(f"  {int(graph.island.max()) + 1} islands")
    if platform.placement.size:
        lines.append(f"  {platform.ranks} ranks placed")
    return "\n".join(lines)


def _words(part: Any) -> str:
    shown = fields(part, digits=4)
    name = shown.pop("name", "") if isinstance(part, (Device, Protocol)) else ""
    words = [f"{key} {value}" for key, value in shown.items() if not isinstance(value, list)]
    words += [f"{key} of {len(v)} points" for key, v in shown.items() if isinstance(v, list)]
    return " ".join([name, ", ".join(words)]).strip()
