"""Reading platform files: YAML with units, checked key by key (docs/sim/platforms.md)."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leeboard.sim import graph, library, topology, units, yaml_nodes
from leeboard.sim.faults import Fault, RandomFaults
from leeboard.sim.graph import Route
from leeboard.sim.names import Group, Index, Names, index, nearest
from leeboard.sim.parts import Device, Link, Protocol
from leeboard.sim.platform_parts import Part, field, name_or_number, part, selector
from leeboard.sim.selector import Rule
from leeboard.sim.yaml_nodes import At

if TYPE_CHECKING:
    from leeboard.sim.platform import Platform

KEYS = (
    *("name", "devices", "topology", "switches", "links", "routes", "overrides", "protocol"),
    *("collectives", "stragglers", "faults", "islands", "placement"),
)
_MOST = 1 << 24
_RANKS = ("min_ranks", "max_ranks")
_WHOLE = {"n", "k", "radix", "levels", "groups", "routers", "hosts", "sites", "devices", "nodes"}


def load(platform: type[Platform], path: str | Path) -> Platform:
    """Read a platform file.

    Args:
        platform: The class to make.
        path: Of the YAML file.

    Raises:
        PlatformError: Names file, line, column and key, what was given and what is expected.
        OSError: The file cannot be read.
        ImportError: PyYAML is missing.
    """
    file = Path(path)
    # One byte more tells that it is too large, without reading all of it.
    with file.open("rb") as stream:
        content = stream.read(yaml_nodes.MOST_BYTES + 1)
    return parse(platform, content, str(file))


def parse(platform: type[Platform], content: bytes, file: str) -> Platform:
    """The platform that the content of a file describes; see `load`."""
    root = yaml_nodes.read(content, file)
    keys = root.mapping(KEYS)
    made = _generated(platform, keys) if "topology" in keys else _custom(platform, root, keys)
    if "name" in keys:
        made = keys["name"].call(made.with_name, keys["name"].text())
    if "protocol" in keys:
        made = made.with_protocol(part(keys["protocol"], Protocol))
    if "overrides" in keys:
        made = _overridden(made, keys["overrides"].items())
    if "routes" in keys:
        made = dataclasses.replace(made, routes=tuple(_routes(made, keys["routes"].items())))
    if "stragglers" in keys:
        made = made.with_stragglers(_factors(made, keys["stragglers"]))
    if "faults" in keys:
        faults = tuple(_fault(made, at) for at in keys["faults"].items())
        made = dataclasses.replace(made, faults=faults)
    if "islands" in keys:
        made = _islands(made, keys["islands"])
    if "placement" in keys:
        made = keys["placement"].call(made.with_placement, selector(keys["placement"]))
    if "collectives" in keys:
        made = keys["collectives"].call(made.with_collectives, _table(keys["collectives"]))
    return made


def _generated(platform: type[Platform], keys: dict[str, At]) -> Platform:
    at = keys["topology"]
    for other in ("links", "switches"):
        if other in keys:
            keys[other].fail("given beside `topology`, expected one of them")
    raw = at.mapping()
    kinds = tuple(topology.GENERATORS)
    if "kind" not in raw:
        at.fail(f"kind missing, expected {', '.join(kinds)}")
    kind = raw["kind"].text()
    if kind not in kinds:
        raw["kind"].fail(f"got {kind!r}{nearest(kind, kinds)}, expected {', '.join(kinds)}")
    function: Callable[..., Any] = topology.GENERATORS[kind]
    parameters = inspect.signature(function).parameters
    given = at.mapping(("kind", *parameters))
    arguments = {name: _argument(given[name], name) for name in parameters if name in given}
    groups = _groups(keys["devices"], Device) if "devices" in keys else []
    if "n" in parameters and "n" not in arguments and groups:
        arguments["n"] = sum(len(group) for group, _ in groups)
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in arguments:
            at.fail(f"{name} missing")
    if not groups:
        return at.call(platform.generate, kind, arguments)
    names = keys["devices"].call(_names, "device", groups)
    return _with_kinds(at.call(platform.generate, kind, arguments, names), groups)


def _argument(at: At, name: str) -> Any:
    if name == "dims":
        return tuple(size.integer(1, _MOST) for size in at.items())
    if is_whole(name):
        return at.integer(1, _MOST)
    if name == "hub":
        return at.boolean()
    if name == "duplex":
        return at.text()
    dimension = units.RATIO
    if name.endswith("bandwidth"):
        dimension = units.BANDWIDTH
    elif name.endswith("latency"):
        dimension = units.TIME
    number = at.call(units.parse, name, at.text(), dimension)
    return at.text() if dimension is not units.RATIO else number


def is_whole(argument: str) -> bool:
    """Whether an argument of a generator is a whole number."""
    return argument in _WHOLE


def file_key(field: str) -> str:
    """What files call the field of a fault."""
    return "for" if field == "duration" else field


def _groups(at: At, kind: type[Device] | None) -> list[tuple[Group, Device]]:
    groups = []
    device = library.DEVICES["generic"]
    for item in at.items():
        if isinstance(item.node.value, str):
            groups.append((item.call(Group, item.text()), library.DEVICES["generic"]))
            continue
        keys = item.mapping(None if kind else ("name", "count"))
        if kind:
            device = part(item, kind, "name", "count")
        if "name" not in keys:
            item.fail("name missing")
        count = keys["count"].integer(1, _MOST) if "count" in keys else None
        name = keys["name"].text()
        groups.append((keys["name"].call(Group, name, count), device))
    if not groups:
        at.fail("got an empty list, expected at least one")
    return groups


def _with_kinds(made: Platform, groups: list[tuple[Group, Device]]) -> Platform:
    sizes = [len(group) for group, _ in groups]
    column = index(np.repeat(np.arange(len(groups)), sizes))
    return dataclasses.replace(
        made, kinds=tuple(device for _, device in groups), device_kind=column
    )


def _names(what: str, groups: Sequence[tuple[Group, Any]]) -> Names:
    return Names(what, tuple(group for group, _ in groups))


def _custom(platform: type[Platform], root: At, keys: dict[str, At]) -> Platform:
    if "devices" not in keys:
        root.fail("devices missing (or topology)")
    groups = _groups(keys["devices"], Device)
    switches = _groups(keys["switches"], None) if "switches" in keys else []
    devices = keys["devices"].call(_names, "device", groups)
    between = keys.get("switches", root).call(_names, "switch", switches)
    links = []
    for at in keys["links"].items() if "links" in keys else ():
        link = part(at, Link, "name", "from", "to")
        given = at.mapping()
        for name in ("name", "from", "to"):
            if name not in given:
                at.fail(f"{name} missing")
        name = given["name"].text()
        one, other = selector(given["from"]), selector(given["to"])
        at.call(graph.ends, devices, between, name, one, other)
        links.append((name, one, other, link))
    where = keys.get("links", keys["devices"])
    shape = where.call(graph.custom, devices, between, links)
    return _with_kinds(platform.on(shape, devices), groups)


def _overridden(made: Platform, items: list[At]) -> Platform:
    shape = made.graph
    devices, device_kind = list(made.kinds), made.device_kind.copy()
    links, link_kind = list(shape.kinds), shape.link_kind.copy()
    for at in items:
        keys = at.mapping()
        if ("devices" in keys) == ("links" in keys):
            at.fail("expected `devices` or `links`: what to change")
        if "devices" in keys:
            _change(at, keys["devices"], made.devices, Device, devices, device_kind)
        else:
            _change(at, keys["links"], shape.links, Link, links, link_kind)
    return dataclasses.replace(
        made,
        kinds=tuple(devices),
        device_kind=index(device_kind),
        graph=dataclasses.replace(shape, kinds=tuple(links), link_kind=index(link_kind)),
    )


def _change(
    at: At, select: At, names: Names, kind: type[Part], kinds: list[Part], column: Index
) -> None:
    """Give the selected rows kinds of their own, on top of what they have."""
    rows = select.call(names.select, selector(select))
    for number in np.unique(column[rows]):
        of_kind = rows[column[rows] == number]
        column[of_kind] = len(kinds)
        kinds.append(part(at, kind, names.plural, base=kinds[number]))


def _routes(made: Platform, items: list[At]) -> Iterator[Route]:
    for at in items:
        keys = at.mapping(("from", "to", "via", "both"))
        for name in ("from", "to", "via"):
            if name not in keys:
                at.fail(f"{name} missing")
        source, target = (name_or_number(keys[name]) for name in ("from", "to"))
        via = [name_or_number(item) for item in keys["via"].items()]
        yield at.call(graph.route, made.devices, made.graph, source, target, via)
        if "both" in keys and keys["both"].boolean():
            yield at.call(graph.route, made.devices, made.graph, target, source, via[::-1])


def _factors(made: Platform, at: At) -> dict[str, str]:
    factors = {}
    for select, factor in at.mapping().items():
        factor.call(made.devices.select, select)
        text = factor.text()
        if not factor.call(units.parse, "factor", text, units.RATIO):
            factor.fail(f"got {text!r}, expected more than 0")
        factors[select] = text
    return factors


def _fault(made: Platform, at: At) -> Fault | RandomFaults:
    kind: type[Any] = RandomFaults if "mtbf" in at.mapping() else Fault
    names = {file_key(name): name for name in inspect.signature(kind).parameters}
    keys = at.mapping(tuple(names))
    given: dict[str, Any] = {}
    for key, value in keys.items():
        name = names[key]
        if name in ("device", "link"):
            given[name] = selector(value)
        elif name == "seed":
            given[name] = value.integer(0, 2**63 - 1)
        else:
            given[name] = field(value, kind, name)
    if kind is RandomFaults:
        for name in ("mttr", "horizon"):
            if name not in given:
                at.fail(f"{name} missing")
    fault: Fault | RandomFaults = at.call(kind, **given)
    at.call(made.check_fault, fault)
    return fault


def _islands(made: Platform, at: At) -> Platform:
    if isinstance(at.node.value, str):
        size = None if at.text() == "none" else at.integer(1, _MOST)
        return at.call(made.with_islands, size)
    return at.call(made.with_islands, [selector(island) for island in at.items()])


def _table(at: At) -> Any:
    """The name of a table, or its rules."""
    if isinstance(at.node.value, str):
        return at.text()
    return [_rule(item) for item in at.items()]


def _rule(at: At) -> Rule:
    keys = at.mapping(tuple(inspect.signature(Rule).parameters))
    for name in ("collective", "algorithm"):
        if name not in keys:
            at.fail(f"{name} missing")
    ranks = {name: keys[name].integer(1, 2**32 - 1) for name in _RANKS if name in keys}
    given = {name: field(keys[name], Rule, name) for name in keys if name not in _RANKS}
    rule: Rule = at.call(Rule, **given, **ranks)
    return rule
