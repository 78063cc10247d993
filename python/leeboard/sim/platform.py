"""Platforms: what programs run on. Immutable; columns of numbers, not an object a device."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from leeboard.sim import graph, library, platform_file, platform_save, units
from leeboard.sim.core import core, power
from leeboard.sim.describe import describe, summary
from leeboard.sim.faults import Fault, RandomFaults
from leeboard.sim.generators import Generators, Parts
from leeboard.sim.graph import Graph, Route
from leeboard.sim.kinds import canonical, changed, replaced
from leeboard.sim.names import Columns, Group, Index, Names, PlatformError, Selector, index, nearest
from leeboard.sim.parts import PEAKS, Device, Link, Protocol
from leeboard.sim.selector import Rule, Table, table

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

Value = units.Value


@dataclass(frozen=True, eq=False, repr=False)
class Platform(Columns, Generators):
    """Devices, the links between them, and how messages travel.

    Made by a generator (`Platform.star(8, bandwidth="1 Gbit/s")`), by `Platform.load(path)`, or by
    `Platform.custom`. The `with_...` methods return changed copies; the columns are read-only.

    Attributes:
        name: One line.
        devices: Names of the devices.
        kinds: Distinct devices.
        device_kind: Which of `kinds` each device is, [devices].
        device_factor: Times the speed of its kind (stragglers), [devices].
        graph: Links and switches.
        routes: Given routes; all others are shortest paths.
        protocol: How a message travels.
        collectives: Name or rules of the table that chooses collectives' algorithms; without a
            rule that fits, the core's own choice.
        faults: Failures and slow-downs.
        placement: Device of each rank, [ranks]; empty: rank r on device r.
        generator: Name and arguments of what made the graph, if a generator did.
    """

    name: str
    devices: Names
    kinds: tuple[Device, ...]
    device_kind: Index
    device_factor: NDArray[np.float64]
    graph: Graph
    routes: tuple[Route, ...] = ()
    protocol: Protocol = dataclasses.field(default_factory=lambda: library.PROTOCOLS["ideal"])
    collectives: Table = ()
    faults: tuple[Fault | RandomFaults, ...] = ()
    placement: Index = dataclasses.field(default_factory=lambda: index([]))
    generator: tuple[str, tuple[tuple[str, Any], ...]] | None = None

    def __post_init__(self) -> None:
        kinds, kind = canonical(self.kinds, self.device_kind)
        object.__setattr__(self, "kinds", kinds)
        object.__setattr__(self, "device_kind", kind)
        object.__setattr__(self, "collectives", table(self.collectives))
        super().__post_init__()

    @classmethod
    def on(
        cls,
        shape: Graph,
        devices: Names,
        *,
        generator: Any = None,
        **parts: Unpack[Parts],
    ) -> Self:
        """A platform of named devices on a graph.

        Raises:
            TypeError: An argument that there is not; the nearest one is suggested.
        """
        known = list(Parts.__annotations__)
        for name in parts:
            if name not in known:
                raise TypeError(
                    f"unknown argument {name!r}{nearest(name, known)}; beside the shape a platform "
                    f"takes {', '.join(known)}"
                )
        given = parts.get("device", "generic")
        chosen = given if isinstance(given, Mapping) else {"*": given}
        kinds, kind = [library.DEVICES["generic"]], np.zeros(len(devices), np.uint32)
        for selector in sorted(chosen, key=lambda key: key != "*"):
            kind[devices.select(selector, "device")] = len(kinds)
            kinds.append(library.find(Device, chosen[selector]))
        return cls(
            name=parts.get("name", ""),
            devices=devices,
            kinds=tuple(kinds),
            device_kind=index(kind),
            device_factor=np.ones(len(devices)),
            graph=shape,
            protocol=library.find(Protocol, parts.get("protocol", "ideal")),
            collectives=table(parts.get("collectives", ())),
            generator=generator,
        )

    @classmethod
    def custom(
        cls,
        devices: Mapping[str, int | None],
        links: Sequence[tuple[str, Selector, Selector, Link | str]],
        *,
        switches: Mapping[str, int | None] | None = None,
        **parts: Unpack[Parts],
    ) -> Self:
        """A platform of given links.

        Args:
            devices: Name of a device or, with a count, of a group: {"jetson": 4, "hub": None} are
                jetson.0 to jetson.3 and hub.
            links: (name, a, b, link): ends by name; a group's name stands for all its members, one
                link each, named name.0, name.1, ... `link` is a `Link` or a preset's name.
            switches: As `devices`.
            parts: device, protocol, collectives, name (see `Parts`).

        Raises:
            ValueError: Unknown names, names given twice, devices that cannot reach each other.
        """
        named = Names("device", tuple(Group(*item) for item in devices.items()))
        between = Names("switch", tuple(Group(*item) for item in (switches or {}).items()))
        found = [(name, a, b, library.find(Link, link)) for name, a, b, link in links]
        return cls.on(graph.custom(named, between, found), named, **parts)

    @classmethod
    def load(cls, path: str | Path) -> Platform:
        """Read a platform file (docs/sim/platforms.md); raises PlatformError, OSError, ImportError.

        Errors name file, line, column and key, what was given and what is expected.
        """
        return platform_file.load(cls, path)

    def save(self, path: str | Path) -> None:
        """Write a platform file, atomically; `load` gives an equal platform."""
        platform_save.save(self, path)

    def core(self) -> dict[str, Any]:
        """The columns that the C++ core takes: SI units, times in picoseconds."""
        return core(self)

    def power(self) -> NDArray[np.float64]:
        """Idle and active power of each device, watts, [devices, 2]."""
        return power(self.kinds, self.device_kind)

    def describe(self) -> str:
        """Several lines for people: devices, links, protocol, faults."""
        return describe(self)

    def __repr__(self) -> str:
        return summary(self)

    def __len__(self) -> int:
        """Devices."""
        return len(self.devices)

    @property
    def ranks(self) -> int:
        """Ranks that the placement has room for."""
        return len(self.placement) or len(self)

    def device(self, selector: int | str) -> Device:
        """The kind of one device."""
        return self.kinds[int(self.device_kind[self.devices.one(selector)])]

    def link(self, selector: int | str) -> Link:
        """One link."""
        return self.graph.kinds[int(self.graph.link_kind[self.graph.links.one(selector)])]

    def _copy(self, **changes: Any) -> Self:
        return dataclasses.replace(self, **changes)

    def with_name(self, name: str) -> Self:
        """A copy of another name."""
        return self._copy(name=name)

    def with_devices(
        self, select: Selector = "*", device: Device | str | None = None, **changes: Any
    ) -> Self:
        """A copy in which the selected devices differ.

        Args:
            select: Which (see `Selector`).
            device: Their new kind or its preset's name; None: as they are.
            changes: Fields of `Device` to change, such as flops="2 TFLOP/s".
        """
        rows = self.devices.select(select)
        base = None if device is None else library.find(Device, device)
        kinds, kind = changed(self.kinds, self.device_kind, rows, base, changes)
        return self._copy(kinds=kinds, device_kind=kind)

    def with_links(
        self, select: Selector = "*", link: Link | str | None = None, **changes: Any
    ) -> Self:
        """A copy in which the selected links differ: a `Link`, a preset, or some of its fields."""
        rows = self.graph.links.select(select)
        base = None if link is None else library.find(Link, link)
        kinds, kind = changed(self.graph.kinds, self.graph.link_kind, rows, base, changes)
        return self._copy(graph=dataclasses.replace(self.graph, kinds=kinds, link_kind=kind))

    def with_protocol(self, protocol: Protocol | str | None = None, **changes: Any) -> Self:
        """A copy with another protocol, or some of its fields changed."""
        base = self.protocol
        if protocol is not None:
            base = library.find(Protocol, protocol)
        return self._copy(protocol=replaced(base, changes))

    def with_collectives(self, collectives: str | Iterable[Rule]) -> Self:
        """A copy whose collectives' algorithms another table chooses: its name, or its rules."""
        return self._copy(collectives=table(collectives))

    def with_stragglers(self, factors: Mapping[Any, Value]) -> Self:
        """A copy whose selected devices run at a factor of their speed, such as {"gpu.3": 0.5}."""
        column = self.device_factor.copy()
        for selector, factor in factors.items():
            number = units.parse("factor", factor, units.RATIO)
            if not number:
                raise PlatformError(f"factor: got {factor!r}, expected more than 0")
            column[self.devices.select(selector)] = number
        return self._copy(device_factor=column)

    def with_faults(self, *faults: Fault | RandomFaults) -> Self:
        """A copy with these faults, and no others; their names must exist."""
        for fault in faults:
            self.check_fault(fault)
        return self._copy(faults=faults)

    def check_fault(self, fault: Fault | RandomFaults) -> None:
        """Raise PlatformError unless what the fault names exists, and it is not too frequent."""
        if fault.device is not None:
            rows = self.devices.select(fault.device, "device")
        else:
            rows = self.graph.links.select(() if fault.link is None else fault.link, "link")
        if isinstance(fault, RandomFaults):
            fault.check(len(rows))

    def with_placement(self, devices: Selector | None) -> Self:
        """A copy in which rank r runs on the r-th of these devices; None: on device r."""
        return self._copy(placement=index([]) if devices is None else self.devices.select(devices))

    def with_islands(self, islands: int | Sequence[Selector] | None) -> Self:
        """A copy whose hierarchical collectives work within these islands first.

        Args:
            islands: A number of devices each (that divides them all), or what each island holds
                (together every device once); None: one island.
        """
        island = graph.islands(self.devices, islands)
        return self._copy(graph=dataclasses.replace(self.graph, island=island))

    def with_routes(self, *routes: tuple[int | str, int | str, Selector]) -> Self:
        """A copy with these given routes: (source, target, links in order), and no others."""
        given = (graph.route(self.devices, self.graph, *route) for route in routes)
        return self._copy(routes=tuple(given))

    def scaled(
        self,
        *,
        compute: float = 1.0,
        memory_bandwidth: float = 1.0,
        bandwidth: float = 1.0,
        latency: float = 1.0,
    ) -> Self:
        """A copy for a what-if: every device's or link's figure times a factor.

        Args:
            compute: Of `flops`, and of the peaks by precision.
            memory_bandwidth: Of the devices' `memory_bandwidth`.
            bandwidth: Of the links.
            latency: Of the links.
        """
        kinds = tuple(
            dataclasses.replace(
                kind,
                **{name: getattr(kind, name) * compute for name in PEAKS},
                memory_bandwidth=kind.memory_bandwidth * memory_bandwidth,
            )
            for kind in self.kinds
        )
        links = tuple(
            dataclasses.replace(
                link, bandwidth=link.bandwidth * bandwidth, latency=link.latency * latency
            )
            for link in self.graph.kinds
        )
        return self._copy(kinds=kinds, graph=dataclasses.replace(self.graph, kinds=links))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Platform):
            return NotImplemented
        mine, theirs = self._columns(), other._columns()
        return all(
            np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b
            for a, b in zip(mine, theirs, strict=True)
        )

    __hash__ = None  # type: ignore[assignment]

    def _columns(self) -> tuple[Any, ...]:
        shape = self.graph
        return (
            *(self.name, self.devices, self.kinds, self.device_kind, self.device_factor),
            *(shape.switches, shape.links, shape.link_a, shape.link_b),
            *(shape.kinds, shape.link_kind, shape.island),
            *(self.routes, self.protocol, self.collectives, self.faults, self.placement),
        )
