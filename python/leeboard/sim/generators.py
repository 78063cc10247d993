"""Platforms by their shape: what `Platform.star(...)` and its relatives take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from leeboard.sim import topology
from leeboard.sim.graph import Graph
from leeboard.sim.names import Group, Names, PlatformError
from leeboard.sim.parts import Device, Protocol
from leeboard.sim.selector import Rule
from leeboard.sim.units import Value

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack


class Parts(TypedDict, total=False):
    """What every generator takes beside the shape of its graph.

    `device`: the kind of all devices, a `Device` or a preset's name; or a mapping from devices (see
    `Selector`) to kinds, with "*" for all others. `protocol`: a `Protocol` or a preset's name.
    `collectives`: the name of a table of algorithms, or its rules. `name`: of the platform.
    """

    device: Device | str | Mapping[Any, Device | str]
    protocol: Protocol | str
    collectives: str | Iterable[Rule]
    name: str


class Generators:
    """The generators of `Platform`."""

    @classmethod
    def on(
        cls, shape: Graph, devices: Names, *, generator: Any = None, **parts: Unpack[Parts]
    ) -> Self:
        """A platform of named devices on a graph."""
        raise NotImplementedError

    @classmethod
    def generate(
        cls,
        kind: str,
        arguments: Mapping[str, Any],
        devices: Names | None = None,
        **parts: Unpack[Parts],
    ) -> Self:
        """A platform on the graph of a generator, by name.

        Args:
            kind: One of `topology.GENERATORS`.
            arguments: Of that function.
            devices: Their names; `device.0`, `device.1`, ... if not given.
            parts: See `Parts`.

        Raises:
            ValueError: An argument out of range, a unit, another number of names than of devices.
        """
        generators: Mapping[str, Callable[..., Graph]] = topology.GENERATORS
        shape = generators[kind](**arguments)
        if devices is None:
            devices = Names("device", (Group("device", shape.devices),))
        elif len(devices) != shape.devices:
            raise PlatformError(
                f"devices: got {len(devices)}, expected the {shape.devices} of this {kind}"
            )
        kept = tuple(
            (key, tuple(value) if key == "dims" else value)
            for key, value in arguments.items()
            if value is not None
        )
        return cls.on(shape, devices, generator=(kind, kept), **parts)

    @classmethod
    def star(
        cls,
        n: int,
        *,
        bandwidth: Value,
        latency: Value = 0.0,
        duplex: str = "full",
        **parts: Unpack[Parts],
    ) -> Self:
        """`n` devices around one switch.

        Args:
            n: Devices.
            bandwidth: Of each device's link, each way (half duplex: both ways together).
            latency: Device to device, one way: each of the two links carries half.
            duplex: "full" or "half".
            parts: device, protocol, collectives, name (see `Parts`).
        """
        arguments = {"n": n, "bandwidth": bandwidth, "latency": latency, "duplex": duplex}
        return cls.generate("star", arguments, **parts)

    @classmethod
    def ring(
        cls,
        n: int,
        *,
        bandwidth: Value,
        latency: Value = 0.0,
        duplex: str = "full",
        **parts: Unpack[Parts],
    ) -> Self:
        """`n` devices in a circle; `latency` is neighbour to neighbour, one way."""
        arguments = {"n": n, "bandwidth": bandwidth, "latency": latency, "duplex": duplex}
        return cls.generate("ring", arguments, **parts)

    @classmethod
    def full(
        cls,
        n: int,
        *,
        bandwidth: Value,
        latency: Value = 0.0,
        duplex: str = "full",
        **parts: Unpack[Parts],
    ) -> Self:
        """`n` devices, every pair linked directly (at most 4,096)."""
        arguments = {"n": n, "bandwidth": bandwidth, "latency": latency, "duplex": duplex}
        return cls.generate("full", arguments, **parts)

    @classmethod
    def mesh(
        cls,
        dims: Sequence[int],
        *,
        bandwidth: Value,
        latency: Value = 0.0,
        duplex: str = "full",
        **parts: Unpack[Parts],
    ) -> Self:
        """A grid of devices without wrap-around, such as dims=(4, 8); the last index runs first."""
        arguments = {"dims": dims, "bandwidth": bandwidth, "latency": latency, "duplex": duplex}
        return cls.generate("mesh", arguments, **parts)

    @classmethod
    def torus(
        cls,
        dims: Sequence[int],
        *,
        bandwidth: Value,
        latency: Value = 0.0,
        duplex: str = "full",
        **parts: Unpack[Parts],
    ) -> Self:
        """A grid of devices whose lines close to circles, such as dims=(4, 4, 4)."""
        arguments = {"dims": dims, "bandwidth": bandwidth, "latency": latency, "duplex": duplex}
        return cls.generate("torus", arguments, **parts)

    @classmethod
    def fat_tree(
        cls,
        k: int | None = None,
        *,
        bandwidth: Value,
        latency: Value = 0.0,
        levels: int = 3,
        radix: int | None = None,
        oversubscription: float = 1.0,
        uplink_bandwidth: Value | None = None,
        **parts: Unpack[Parts],
    ) -> Self:
        """A folded Clos network of switches with `k` ports: k^3 / 4 devices on three levels.

        Args:
            k: Ports of a switch (or `radix`).
            bandwidth: Of each device's link.
            latency: Device to device under one leaf, one way; every link carries half.
            levels: 3, or 2 (leaf and spine: k^2 / 2 devices).
            radix: Another name of `k`.
            oversubscription: Device ports of a leaf for each port up.
            uplink_bandwidth: Of the links between switches, if not `bandwidth`.
            parts: device, protocol, collectives, name (see `Parts`).
        """
        arguments = {
            "k": k,
            "bandwidth": bandwidth,
            "latency": latency,
            "levels": levels,
            "radix": radix,
            "oversubscription": oversubscription,
            "uplink_bandwidth": uplink_bandwidth,
        }
        return cls.generate("fat_tree", arguments, **parts)

    @classmethod
    def dragonfly(
        cls,
        groups: int,
        routers: int,
        hosts: int,
        *,
        bandwidth: Value,
        latency: Value = 0.0,
        local_bandwidth: Value | None = None,
        global_bandwidth: Value | None = None,
        global_latency: Value | None = None,
        **parts: Unpack[Parts],
    ) -> Self:
        """Groups of routers, fully linked within; one link between every two groups.

        Args:
            groups: Groups.
            routers: Of a group.
            hosts: Devices of a router.
            bandwidth: Of each device's link, and of the others where not given.
            latency: Device to device at one router, one way; every link carries half.
            local_bandwidth: Of the links within a group.
            global_bandwidth: Of the links between groups.
            global_latency: Of the links between groups.
            parts: device, protocol, collectives, name (see `Parts`).
        """
        arguments = {
            "groups": groups,
            "routers": routers,
            "hosts": hosts,
            "bandwidth": bandwidth,
            "latency": latency,
            "local_bandwidth": local_bandwidth,
            "global_bandwidth": global_bandwidth,
            "global_latency": global_latency,
        }
        return cls.generate("dragonfly", arguments, **parts)

    @classmethod
    def edge(
        cls,
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
        **parts: Unpack[Parts],
    ) -> Self:
        """Sites of devices behind a gateway each, joined by a slower uplink.

        Args:
            sites: Sites; each is an island.
            devices: Of a site.
            bandwidth: Of each device's link to its gateway.
            latency: Device to device within a site, one way.
            uplink_bandwidth: Of a gateway's link to the backbone.
            uplink_latency: Gateway to backbone, one way; between sites both uplinks count.
            duplex: Of the devices' links, "full" or "half".
            hub: Whether one more device, the last, hangs on the backbone.
            hub_bandwidth: Of its link, if not as the uplinks'.
            parts: device, protocol, collectives, name (see `Parts`).
        """
        arguments = {
            "sites": sites,
            "devices": devices,
            "bandwidth": bandwidth,
            "latency": latency,
            "uplink_bandwidth": uplink_bandwidth,
            "uplink_latency": uplink_latency,
            "duplex": duplex,
            "hub": hub,
            "hub_bandwidth": hub_bandwidth,
        }
        return cls.generate("edge", arguments, **parts)

    @classmethod
    def cluster(
        cls,
        nodes: int,
        devices: int,
        *,
        bandwidth: Value,
        latency: Value = 0.0,
        network_bandwidth: Value,
        network_latency: Value = 0.0,
        **parts: Unpack[Parts],
    ) -> Self:
        """Servers of accelerators: a fast switch in each, one network between them.

        Args:
            nodes: Servers; each is an island.
            devices: Of a server.
            bandwidth: Of each device's link within its node, such as NVLink's.
            latency: Device to device within a node, one way.
            network_bandwidth: Of a node's link to the network, all its adapters together.
            network_latency: What crossing the network adds, node to node, one way.
            parts: device, protocol, collectives, name (see `Parts`).
        """
        arguments = {
            "nodes": nodes,
            "devices": devices,
            "bandwidth": bandwidth,
            "latency": latency,
            "network_bandwidth": network_bandwidth,
            "network_latency": network_latency,
        }
        return cls.generate("cluster", arguments, **parts)
