"""Devices, links and protocols of platform files, and names of what there is."""

from __future__ import annotations

import inspect
from typing import Any, TypeVar

from leeboard.sim import library
from leeboard.sim.kinds import replaced
from leeboard.sim.parts import Device, Link, Points, Protocol, Quantity
from leeboard.sim.yaml_nodes import At

Part = TypeVar("Part", Device, Link, Protocol)

# A device's own name is another key.
_RENAMED: dict[type, dict[str, str]] = {Device: {"name": "kind"}}


def part(at: At, kind: type[Part], *also: str, base: Part | None = None) -> Part:
    """A device, link or protocol: the name of a preset, or its fields on top of `preset:`.

    Args:
        at: Where it stands.
        kind: Device, Link or Protocol.
        also: Keys of the mapping that are not of the part.
        base: What the fields change where no preset is given; None: the defaults.
    """
    if isinstance(at.node.value, str) and not also:
        named: Part = at.call(library.find, kind, at.text())
        return named
    fields: dict[str, tuple[str, bool]] = _FIELDS[kind]
    keys = at.mapping((*also, "preset", *fields))
    if "preset" in keys:
        preset = keys["preset"].text()
        base = None
        if preset != "none":
            base = keys["preset"].call(library.find, kind, preset)
    given = {}
    for key, (name, _) in fields.items():
        if key in keys:
            given[name] = field(keys[key], kind, name)
    if base is None:
        for key, (_, needed) in fields.items():
            if needed and key not in keys:
                at.fail(f"{key} missing, or a preset")
        made: Part = at.call(kind, **given)
        return made
    changed: Part = at.call(replaced, base, given)
    return changed


def _fields(kind: type) -> dict[str, tuple[str, bool]]:
    """By key: the field, and whether it must be given."""
    renamed = _RENAMED.get(kind, {})
    return {
        renamed.get(name, name): (name, parameter.default is parameter.empty)
        for name, parameter in inspect.signature(kind).parameters.items()
    }


_FIELDS: dict[type, dict[str, tuple[str, bool]]] = {
    kind: _fields(kind) for kind in (Device, Link, Protocol)
}


def keys_of(kind: type) -> dict[str, str]:
    """The fields of a device, link or protocol, by their key in files."""
    return {key: name for key, (name, _) in _FIELDS[kind].items()}


def field(at: At, kind: type, name: str) -> Any:
    """The value of a field: a number, the points of a curve, or text."""
    descriptor = vars(kind).get(name)
    if isinstance(descriptor, Quantity):
        return at.call(descriptor.read, name, at.text())
    if isinstance(descriptor, Points):
        points: Any = [[value.text() for value in pair.items()] for pair in at.items()]
        return at.call(descriptor.read, name, points)
    return at.text()


def selector(at: At) -> Any:
    """A name, or a list of names."""
    if isinstance(at.node.value, str):
        return name_or_number(at)
    return [name_or_number(item) for item in at.items()]


def name_or_number(at: At) -> int | str:
    """A name, or a number from 0 on."""
    text = at.text()
    return at.integer(0, 1 << 24) if text.isascii() and text.isdecimal() else text
