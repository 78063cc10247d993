"""Generators of graphs: who is linked to whom, as columns of numbers.

Devices come first, then switches. Devices on switches: `latency` is host to host, one way, through
one switch, so that each of the two links carries half. Devices linked directly: `latency` is that
of a link, neighbour to neighbour. Bandwidths are each way (half duplex: both ways together).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from leeboard.sim import units
from leeboard.sim.graph import Builder, Graph
from leeboard.sim.names import PlatformError, integer
from leeboard.sim.parts import Link

Value = units.Value


def _half(latency: Value, name: str = "latency") -> float:
    return units.parse(name, latency, units.TIME) / 2


def star(n: int, *, bandwidth: Value, latency: Value = 0.0, duplex: str = "full") -> Graph:
    """`n` devices around one switch: link.i is device i's."""
    built = Builder(n)
    (hub,) = built.switches("switch", 1)
    built.link("link", np.arange(n), hub, Link(bandwidth, _half(latency), duplex=duplex))
    return built.graph()


def ring(n: int, *, bandwidth: Value, latency: Value = 0.0, duplex: str = "full") -> Graph:
    """`n` devices in a circle: link.i joins i and i + 1. Two devices have one link."""
    return torus((n,), bandwidth=bandwidth, latency=latency, duplex=duplex)


def full(n: int, *, bandwidth: Value, latency: Value = 0.0, duplex: str = "full") -> Graph:
    """`n` devices, every pair linked directly (4,096 devices at most)."""
    integer("n", n, 1, 4096)
    built = Builder(n)
    built.link("link", *np.triu_indices(n, 1), Link(bandwidth, latency, duplex=duplex))
    return built.graph()


def mesh(
    dims: Sequence[int], *, bandwidth: Value, latency: Value = 0.0, duplex: str = "full"
) -> Graph:
    """A grid: dims=(4, 8) links device 8 * i + j to its neighbours, none around the edges."""
    return _grid(dims, Link(bandwidth, latency, duplex=duplex), wrap=False)


def torus(
    dims: Sequence[int], *, bandwidth: Value, latency: Value = 0.0, duplex: str = "full"
) -> Graph:
    """A grid whose lines close to circles; a line of two has one link."""
    return _grid(dims, Link(bandwidth, latency, duplex=duplex), wrap=True)


def _listed(values: object) -> bool:
    return isinstance(values, (list, tuple, np.ndarray)) and 1 <= len(values) <= 6


def _grid(dims: Sequence[int], kind: Link, *, wrap: bool) -> Graph:
    if not _listed(dims):
        raise PlatformError(f"dims: got {dims!r}, expected a list of 1 to 6 sizes")
    sizes = [integer("dims", size) for size in dims]
    built = Builder(math.prod(sizes))
    nodes = np.arange(built.devices).reshape(sizes)
    for axis, size in enumerate(sizes):
        last = size if wrap and size > 2 else size - 1
        following = np.roll(nodes, -1, axis)
        name = "link" if len(sizes) == 1 else f"link-{'xyzuvw'[axis]}"
        here = np.take(nodes, np.arange(last), axis)
        built.link(name, here, np.take(following, np.arange(last), axis), kind)
    return built.graph()


def fat_tree(
    k: int | None = None,
    *,
    bandwidth: Value,
    latency: Value = 0.0,
    levels: int = 3,
    radix: int | None = None,
    oversubscription: float = 1.0,
    uplink_bandwidth: Value | None = None,
) -> Graph:
    """A folded Clos network of equal switches.

    Three levels of `k` ports hold k^3 / 4 devices in k pods (Al-Fares et al., SIGCOMM 2008); two
    levels, leaf and spine, k^2 / 2. `radix` is another name of `k`. With `oversubscription` s, a
    leaf has s device ports for each port up. Islands are the leaves.
    """
    if (k is None) == (radix is None):
        raise PlatformError(f"k: got k={k}, radix={radix}, expected one of them")
    ports = integer("k" if radix is None else "radix", k if radix is None else radix, 2, 4096)
    ratio = units.parse("oversubscription", oversubscription, units.RATIO)
    up = round(ports / (1 + ratio))
    down = ports - up
    integer("levels", levels, 2, 3)
    if up < 1 or down < 1 or abs(down - ratio * up) > 1e-6 or (levels == 3 and ports % 2):
        raise PlatformError(
            f"oversubscription: got {oversubscription:g} with switches of {ports} ports, which do "
            "not divide into that ratio" + (" and into halves" if levels == 3 else "")
        )
    half = ports // 2
    per_pod = half if levels == 3 else 1
    pods, leaves = ports, ports * per_pod
    built = Builder(leaves * down)
    leaf = built.switches("leaf", leaves)
    host = Link(bandwidth, _half(latency))
    fabric = Link(bandwidth if uplink_bandwidth is None else uplink_bandwidth, _half(latency))
    island = np.repeat(np.arange(leaves), down)
    built.link("link", np.arange(built.devices), np.repeat(leaf, down), host)
    if levels == 2:
        spine = built.switches("spine", up)
        built.link("up", leaf[:, None], spine, fabric)
        return built.graph(island)
    aggregation = built.switches("aggregation", pods * up).reshape(pods, up)
    core = built.switches("core", up * half).reshape(up, half)
    of_leaf = np.repeat(aggregation, per_pod, 0)  # [leaves, up]
    built.link("up", leaf[:, None], of_leaf, fabric)
    built.link("core-up", aggregation[:, :, None], core, fabric)
    return built.graph(island)


def dragonfly(
    groups: int,
    routers: int,
    hosts: int,
    *,
    bandwidth: Value,
    latency: Value = 0.0,
    local_bandwidth: Value | None = None,
    global_bandwidth: Value | None = None,
    global_latency: Value | None = None,
) -> Graph:
    """`groups` of `routers`, fully linked within, each with `hosts` devices (Kim et al., ISCA 2008).

    Every pair of groups has one global link; a group's are dealt to its routers in turn, so that
    each has the same number, give or take one. Islands are the groups.
    """
    for name, value in (("groups", groups), ("routers", routers), ("hosts", hosts)):
        integer(name, value, 1, 4096)
    built = Builder(groups * routers * hosts)
    built.room(groups * math.comb(routers, 2) + math.comb(groups, 2))
    router = built.switches("router", groups * routers).reshape(groups, routers)
    half = _half(latency)
    across = half if global_latency is None else global_latency
    local = Link(bandwidth if local_bandwidth is None else local_bandwidth, half)
    wide = Link(bandwidth if global_bandwidth is None else global_bandwidth, across)
    built.link("link", np.arange(built.devices), np.repeat(router, hosts), Link(bandwidth, half))
    first, second = np.triu_indices(routers, 1)
    built.link("local", router[:, first], router[:, second], local)
    first, second = np.triu_indices(groups, 1)
    # Link of group i to j is number (j - i - 1) mod groups of i.
    out = (second - first - 1) % routers
    back = ((first - second - 1) % groups) % routers
    built.link("global", router[first, out], router[second, back], wide)
    return built.graph(np.repeat(np.arange(groups), routers * hosts))


def edge(
    sites: int,
    devices: int,
    *,
    bandwidth: Value,
    latency: Value = 0.0,
    uplink_bandwidth: Value,
    uplink_latency: Value = 0.0,
    duplex: str = "full",
    hub: bool = False,
    hub_bandwidth: Value | None = None,
) -> Graph:
    """Sites of devices behind a gateway each, which an uplink joins to one backbone.

    `latency` is device to device within a site; an uplink carries `uplink_latency` one way, so
    site to site costs latency + 2 * uplink_latency. With `hub`, one more device, the last, hangs on
    the backbone by hub_bandwidth (as the uplink's where not given) without latency. Islands are
    the sites; the hub is its own.
    """
    integer("sites", sites)
    integer("devices", devices)
    inside = Link(bandwidth, _half(latency), duplex=duplex)
    uplink = Link(uplink_bandwidth, uplink_latency)
    return _two_tier(sites, devices, inside, uplink, hub_bandwidth, hub=hub)


def cluster(
    nodes: int,
    devices: int,
    *,
    bandwidth: Value,
    latency: Value = 0.0,
    network_bandwidth: Value,
    network_latency: Value = 0.0,
) -> Graph:
    """Servers of accelerators: a switch in each node, and one network between the nodes.

    `bandwidth` and `latency` are a device's within its node. A node meets the network with
    `network_bandwidth` in all; `network_latency` is what crossing it adds, node to node. Islands
    are the nodes.
    """
    integer("nodes", nodes)
    integer("devices", devices)
    inside = Link(bandwidth, _half(latency))
    outside = Link(network_bandwidth, _half(network_latency, "network_latency"))
    return _two_tier(nodes, devices, inside, outside, None, names=("node", "network"))


def _two_tier(
    sites: int,
    devices: int,
    inside: Link,
    uplink: Link,
    hub_bandwidth: Value | None,
    *,
    hub: bool = False,
    names: tuple[str, str] = ("gateway", "backbone"),
) -> Graph:
    built = Builder(sites * devices + bool(hub))
    gateway = built.switches(names[0], sites)
    (backbone,) = built.switches(names[1], 1)
    built.link("link", np.arange(sites * devices), np.repeat(gateway, devices), inside)
    built.link("uplink", gateway, backbone, uplink)
    island = np.repeat(np.arange(sites), devices)
    if not hub:
        return built.graph(island)
    hub_link = Link(uplink.bandwidth if hub_bandwidth is None else hub_bandwidth)
    built.link("hub", np.array([built.devices - 1]), backbone, hub_link)
    return built.graph(np.append(island, sites))


GENERATORS = {
    function.__name__: function
    for function in (star, ring, full, mesh, torus, fat_tree, dragonfly, edge, cluster)
}
