"""Writing platform files that read back equal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leeboard.sim import library, units
from leeboard.sim.describe import fields
from leeboard.sim.faults import Fault, RandomFaults
from leeboard.sim.files import write_atomically
from leeboard.sim.graph import Graph
from leeboard.sim.names import Index
from leeboard.sim.parts import Device, Link
from leeboard.sim.topology import GENERATORS

if TYPE_CHECKING:
    from leeboard.sim.platform import Platform


def save(platform: Platform, path: str | Path) -> None:
    """Write a platform file, atomically.

    Raises:
        ImportError: PyYAML is missing.
        OSError: The file cannot be written.
    """
    try:
        import yaml
    except ImportError as error:
        raise ImportError("platform files need PyYAML: pip install 'leeboard[sim]'") from error

    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    text = yaml.dump(
        content(platform),
        Dumper=dumper,
        sort_keys=False,
        allow_unicode=True,
        width=100,
        default_flow_style=None,
    )
    write_atomically(path, text.encode())


def content(platform: Platform) -> dict[str, Any]:
    """The content of the file, as plain values."""
    shape = platform.graph
    generated: Graph | None = None
    written: dict[str, Any] = {}
    if platform.name:
        written["name"] = platform.name
    overrides: list[Any] = []
    written["devices"] = _devices(platform, overrides)
    if platform.generator is not None:
        kind, arguments = platform.generator
        written["topology"] = {"kind": kind, **{k: _argument(k, v) for k, v in arguments}}
        generated = GENERATORS[kind](**dict(arguments))
        overrides.extend(_changed_links(shape, generated))
    else:
        written |= _links(platform, overrides)
    if overrides:
        written["overrides"] = overrides
    if platform.routes:
        written["routes"] = [
            {
                "from": platform.devices[route.source],
                "to": platform.devices[route.target],
                "via": [shape.links[link] for link in route.links],
            }
            for route in platform.routes
        ]
    written["protocol"] = _part(platform.protocol, "name")
    if platform.collectives:
        table = platform.collectives
        written["collectives"] = table if isinstance(table, str) else [*map(fields, table)]
    slow = platform.device_factor
    if (slow != 1).any():
        written["stragglers"] = {
            selector: float(factor)
            for factor in np.unique(slow[slow != 1])
            for selector in platform.devices.runs(np.flatnonzero(slow == factor))
        }
    if platform.faults:
        written["faults"] = [_fault(fault) for fault in platform.faults]
    if not np.array_equal(shape.island, () if generated is None else generated.island):
        written["islands"] = _islands(platform)
    if platform.placement.size:
        written["placement"] = platform.devices.runs(platform.placement)
    return written


def _one_or_list(selectors: list[str]) -> Any:
    return selectors[0] if len(selectors) == 1 else selectors


def _part(part: Any, key: str) -> Any:
    """The name of a preset, or `preset:` or a free name, and what differs."""
    table = library.TABLES[type(part)]
    if part == table.get(part.name):
        return part.name
    shown = fields(part, table.get(part.name))
    shown.pop("name", None)
    name = {"preset" if part.name in table else key: part.name} if part.name else {}
    return {**name, **shown}


def _device(device: Device) -> dict[str, Any]:
    shown = _part(device, "kind")
    return {"preset": shown} if isinstance(shown, str) else shown


def _devices(platform: Platform, overrides: list[Any]) -> list[Any]:
    groups = []
    for start, group in platform.devices.starts.values():
        column = platform.device_kind[start : start + len(group)]
        used, counts = np.unique(column, return_counts=True)
        usual = used[np.argmax(counts)]
        count = {} if group.count is None else {"count": group.count}
        groups.append({"name": group.name, **count, **_device(platform.kinds[usual])})
        for other in used[used != usual]:
            rows = np.flatnonzero(column == other) + start
            changed = _device(platform.kinds[other])
            # From a preset on, so that nothing of the group's kind is left.
            base = {} if "preset" in changed else {"preset": "none"}
            select = {"devices": _one_or_list(platform.devices.runs(rows))}
            overrides.append({**select, **base, **changed})
    return groups


def _all_of_link(link: Link) -> dict[str, Any]:
    plain = {"latency": "0 s", "overhead": "0 s", "duplex": "full"}
    return {**plain, **fields(link)}


def _changed_links(shape: Graph, before: Graph) -> list[Any]:
    was = np.array([shape.kinds.index(k) if k in shape.kinds else -1 for k in before.kinds])
    differs = np.flatnonzero(was[before.link_kind] != shape.link_kind.astype(np.int64))
    return [
        {
            "links": _one_or_list(shape.links.runs(differs[shape.link_kind[differs] == kind])),
            **_all_of_link(shape.kinds[kind]),
        }
        for kind in np.unique(shape.link_kind[differs])
    ]


def _links(platform: Platform, overrides: list[Any]) -> dict[str, Any]:
    shape = platform.graph
    written: dict[str, Any] = {}
    if len(shape.switches):
        written["switches"] = [
            group.name if group.count is None else {"name": group.name, "count": group.count}
            for group in shape.switches.groups
        ]
    links = []
    for start, group in shape.links.starts.values():
        rows = slice(start, start + len(group))
        kinds = shape.link_kind[rows]
        ends = {
            "from": _end(platform, shape.link_a[rows]),
            "to": _end(platform, shape.link_b[rows]),
        }
        links.append({"name": group.name, **ends, **fields(shape.kinds[kinds[0]])})
        for other in np.unique(kinds[kinds != kinds[0]]):
            select = _one_or_list(shape.links.runs(np.flatnonzero(kinds == other) + start))
            overrides.append({"links": select, **_all_of_link(shape.kinds[other])})
    if links:
        written["links"] = links
    return written


def _end(platform: Platform, nodes: Index) -> Any:
    if (nodes == nodes[0]).all():
        nodes = nodes[:1]
    devices = len(platform.devices)
    kind = nodes < devices
    edges = np.flatnonzero(np.diff(kind)) + 1
    selectors: list[str] = []
    for part in np.split(nodes.astype(np.int64), edges):
        device = part[0] < devices
        names = platform.devices if device else platform.graph.switches
        selectors += names.runs(part if device else part - devices)
    return _one_or_list(selectors)


def _argument(name: str, value: Any) -> Any:
    if isinstance(value, str):
        return value
    if name == "dims":
        return [int(size) for size in value]
    if name.endswith("bandwidth"):
        return units.show(float(value), units.BANDWIDTH)
    if name.endswith("latency"):
        return units.show(float(value), units.TIME)
    if name == "oversubscription":
        return float(value)
    return bool(value) if name == "hub" else int(value)


def _fault(fault: Fault | RandomFaults) -> dict[str, Any]:
    shown = fields(fault)
    if "duration" in shown:
        shown["for"] = shown.pop("duration")
    return {key: list(v) if isinstance(v, tuple) else v for key, v in shown.items()}


def _islands(platform: Platform) -> Any:
    island = platform.graph.island
    if not island.size:
        return "none"
    size = int((island == island[0]).sum())
    if len(island) % size == 0 and np.array_equal(island, np.arange(len(island)) // size):
        return size
    return [
        platform.devices.runs(np.flatnonzero(island == number))
        for number in range(int(island.max()) + 1)
    ]
