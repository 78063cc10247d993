"""Graphs of devices, switches and links, as columns of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leeboard.sim.kinds import canonical
from leeboard.sim.names import Columns, Group, Index, Names, PlatformError, Selector, index, integer
from leeboard.sim.parts import Link

_MOST_LINKS = 1 << 25


@dataclass(frozen=True, eq=False)
class Graph(Columns):
    """Links between `devices` devices and the switches behind them.

    Attributes:
        devices: How many; nodes 0 to devices - 1.
        switches: Names of the nodes that follow.
        links: Names of the links.
        link_a, link_b: Ends of each link, [links].
        kinds: Distinct links.
        link_kind: Which of `kinds` each link is, [links].
        island: Number of each device's island, [devices]; empty: one.
    """

    devices: int
    switches: Names
    links: Names
    link_a: Index
    link_b: Index
    kinds: tuple[Link, ...]
    link_kind: Index
    island: Index = field(default_factory=lambda: index([]))

    def __post_init__(self) -> None:
        kinds, column = canonical(self.kinds, self.link_kind)
        object.__setattr__(self, "kinds", kinds)
        object.__setattr__(self, "link_kind", column)
        super().__post_init__()


class Builder:
    """Collects groups of links."""

    def __init__(self, devices: int) -> None:
        self.devices = integer("devices", devices)
        self.nodes = devices
        self.switch_groups: list[Group] = []
        self.link_groups: list[Group] = []
        self.ends: list[tuple[Any, Any]] = []
        self.kinds: list[Link] = []
        self.count = 0

    def switches(self, name: str, count: int) -> NDArray[np.int64]:
        """Add `count` switches and return their nodes."""
        self.switch_groups.append(Group(name, integer(f"number of {name} switches", count)))
        self.nodes += count
        return np.arange(self.nodes - count, self.nodes)

    def link(self, name: str, a: Any, b: Any, kind: Link) -> None:
        """Add links name.0, name.1, ... from a[i] to b[i]."""
        a, b = np.broadcast_arrays(a, b)
        if a.size == 0:
            return
        self.room(a.size)
        self.count += a.size
        self.link_groups.append(Group(name, a.size))
        self.ends.append((a.ravel(), b.ravel()))
        self.kinds.append(kind)

    def room(self, links: int) -> None:
        """Raise PlatformError where so many more links are too many."""
        if self.count + links > _MOST_LINKS:
            total = self.count + links
            raise PlatformError(f"topology: got {total} links or more, expected {_MOST_LINKS}")

    def graph(self, island: Any = ()) -> Graph:
        empty = np.zeros(0, np.int64)
        sizes = [len(group) for group in self.link_groups]
        return Graph(
            self.devices,
            Names("switch", tuple(self.switch_groups)),
            Names("link", tuple(self.link_groups)),
            index(np.concatenate([a for a, _ in self.ends] or [empty])),
            index(np.concatenate([b for _, b in self.ends] or [empty])),
            tuple(self.kinds),
            index(np.repeat(np.arange(len(sizes)), sizes)),
            index(island),
        )


End = int | str


def custom(
    devices: Names, switches: Names, links: Sequence[tuple[str, Selector, Selector, Link]]
) -> Graph:
    """A graph of given links: (name, a, b, link); see `Platform.custom`.

    Raises:
        PlatformError: Unknown names, names given twice, groups of different sizes, devices that
            cannot reach each other.
    """
    built = Builder(len(devices))
    built.switch_groups = list(switches.groups)
    both = [group.name for group in switches.groups if group.name in devices.starts]
    if both:
        raise PlatformError(f"switches: {both[0]!r} is a device's name, too")
    for name, one, other, kind in links:
        a, b = ends(devices, switches, name, one, other)
        built.link(name, a, b, kind)
        if len(a) == len(b) == 1:
            built.link_groups[-1] = Group(name)
    graph = built.graph()
    lost = unreachable(graph)
    if lost is not None:
        raise PlatformError(f"links: no way from device {devices[0]!r} to {devices[lost]!r}")
    return graph


def ends(
    devices: Names, switches: Names, name: str, one: Selector, other: Selector
) -> tuple[Index, Index]:
    """The nodes that links of a name join.

    Raises:
        PlatformError: Unknown names, sides of different sizes, a node joined to itself.
    """
    label = f"link {name!r}"
    a, b = (_nodes(devices, switches, end, label) for end in (one, other))
    if len(a) != len(b) and 1 not in (len(a), len(b)):
        raise PlatformError(
            f"{label}: {one!r} is {len(a)} nodes, {other!r} is {len(b)}, expected as many, or one"
        )
    if (a == b).any():
        raise PlatformError(f"{label} joins a node to itself")
    return a, b


def _nodes(devices: Names, switches: Names, end: Selector, label: str) -> Index:
    if isinstance(end, (list, tuple)):
        parts = [_nodes(devices, switches, one, label) for one in end]
        return index(np.concatenate(parts) if parts else [])
    if isinstance(end, str) and end.split(".")[0] in switches.starts:
        return index(switches.select(end, label) + np.uint32(len(devices)))
    return devices.select(end, label)


def unreachable(graph: Graph) -> int | None:
    """A device that device 0 does not reach; None if there is none."""
    label = np.arange(graph.devices + len(graph.switches))
    while True:
        before = label.copy()
        np.minimum.at(label, graph.link_a, before[graph.link_b])
        np.minimum.at(label, graph.link_b, label[graph.link_a])
        # Labels are nodes of the same part: those of labels spread twice as far.
        label = label[label]
        if np.array_equal(label, before):
            break
    lost = np.flatnonzero(label[: graph.devices])
    return int(lost[0]) if lost.size else None


@dataclass(frozen=True)
class Route:
    """A route that shortest path would not give: links by number, from `source` to `target`."""

    source: int
    target: int
    links: tuple[int, ...]


def route(devices: Names, graph: Graph, source: End, target: End, via: Selector) -> Route:
    """A given route.

    Raises:
        PlatformError: Unknown names, links that do not lead from `source` to `target`.
    """
    start, end = devices.one(source, "route"), devices.one(target, "route")
    links = [int(link) for link in graph.links.select(via, "route")]
    node = start
    for link in links:
        a, b = int(graph.link_a[link]), int(graph.link_b[link])
        if node not in (a, b):
            raise PlatformError(
                f"route from {source!r} to {target!r}: link {graph.links[link]!r} does not begin "
                "where the one before ends"
            )
        node = b if node == a else a
    if node != end or start == end:
        raise PlatformError(f"route from {source!r}: these links do not end at {target!r}")
    return Route(start, end, tuple(links))


def islands(devices: Names, given: int | Sequence[Selector] | None) -> Index:
    """The number of each device's island; see `Platform.with_islands`."""
    if given is None:
        return index([])
    count = len(devices)
    if isinstance(given, (int, np.integer)):
        size = integer("islands", given)
        if count % size:
            raise PlatformError(f"islands: got {size}, expected a divisor of {count}")
        return index(np.arange(count) // size)
    column = np.full(count, -1, np.int64)
    for number, members in enumerate(given):
        rows = devices.select(members, "islands")
        if len(np.unique(rows)) < len(rows) or (column[rows] >= 0).any():
            raise PlatformError(f"islands: island {number} takes a device for the second time")
        column[rows] = number
    if (column < 0).any():
        missing = devices[int(np.flatnonzero(column < 0)[0])]
        raise PlatformError(f"islands: {missing!r} is on none of them")
    return index(column)
