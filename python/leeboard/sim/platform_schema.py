"""The JSON schema of platform files, for editors; `Platform.load` checks more than it can say."""

from __future__ import annotations

import inspect
from typing import Any

from leeboard.sim import library
from leeboard.sim.faults import Fault, RandomFaults
from leeboard.sim.ops import ALGORITHMS, COLLECTIVES
from leeboard.sim.parts import Device, Link, Points, Protocol, Quantity
from leeboard.sim.platform_file import KEYS, file_key, is_whole
from leeboard.sim.platform_parts import keys_of
from leeboard.sim.selector import TABLES, Rule
from leeboard.sim.topology import GENERATORS

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_QUANTITY: Schema = {"type": ["number", "string"]}
_WHOLE: Schema = {"type": "integer", "minimum": 0}
_NAME: Schema = {"type": ["string", "integer"]}
_NAMES: Schema = {"anyOf": [_NAME, {"type": "array", "items": _NAME}]}
_COUNTED: Schema = {"name": _TEXT, "count": {"type": "integer", "minimum": 1}}
_POINTS: Schema = {
    "type": "array",
    "items": {"type": "array", "items": _QUANTITY, "minItems": 2, "maxItems": 2},
}
_SPECIAL: dict[str, Schema] = {
    "dims": {"type": "array", "items": {"type": "integer", "minimum": 1}},
    "hub": {"type": "boolean"},
    "duplex": {"enum": ["full", "half"]},
    "handshake": {"enum": ["notify", "request"]},
    "device": _NAMES,
    "link": _NAMES,
    "seed": _WHOLE,
    "collective": {"enum": list(COLLECTIVES)},
    "algorithm": {"enum": list(ALGORITHMS[1:])},
    "min_ranks": _WHOLE,
    "max_ranks": _WHOLE,
}


def schema() -> Schema:
    """A JSON schema (2020-12) of platform files, as plain values."""
    whole = {key: _top(key) for key in KEYS}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "leeboard platform",
        **_mapping(whole, ()),
    }


def _mapping(properties: Schema, required: tuple[str, ...]) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _field(kind: Any, name: str) -> Schema:
    if name in _SPECIAL:
        return _SPECIAL[name]
    descriptor = vars(kind).get(name)
    if isinstance(descriptor, Quantity):
        return _QUANTITY
    return _POINTS if isinstance(descriptor, Points) else _TEXT


def _part(kind: type, also: Schema, required: tuple[str, ...] = ()) -> Schema:
    presets = {"preset": {"enum": ["none", *library.TABLES[kind]]}}
    own = {key: _field(kind, name) for key, name in keys_of(kind).items()}
    return _mapping(also | presets | own, required)


def _call(function: Any, **also: Schema) -> Schema:
    """What a function or class is called with."""
    own = {}
    for name in inspect.signature(function).parameters:
        whole = is_whole(name) and name not in _SPECIAL
        own[file_key(name)] = _WHOLE if whole else _SPECIAL.get(name, _QUANTITY)
    return _mapping(also | own, tuple(also))


def _top(key: str) -> Schema:
    device = _part(Device, _COUNTED, ("name",))
    ends: Schema = {"name": _TEXT, "from": _NAMES, "to": _NAMES}
    topologies = [_call(f, kind={"const": name}) for name, f in GENERATORS.items()]
    route: Schema = {"from": _NAME, "to": _NAME, "via": _list(_NAME), "both": {"type": "boolean"}}
    sections: dict[str, Schema] = {
        "name": _TEXT,
        "devices": _list({"anyOf": [_TEXT, device]}),
        "topology": {"anyOf": topologies},
        "switches": _list({"anyOf": [_TEXT, _mapping(_COUNTED, ("name",))]}),
        "links": _list(_part(Link, ends, tuple(ends))),
        "routes": _list(_mapping(route, ("from", "to", "via"))),
        "overrides": _list(
            {
                "anyOf": [
                    _part(Device, {"devices": _NAMES}, ("devices",)),
                    _part(Link, {"links": _NAMES}, ("links",)),
                ]
            }
        ),
        "protocol": {"anyOf": [{"enum": [*library.PROTOCOLS]}, _part(Protocol, {})]},
        "collectives": {"anyOf": [{"enum": [*TABLES]}, _list(_call(Rule))]},
        "stragglers": {"type": "object", "additionalProperties": _QUANTITY},
        "faults": _list({"anyOf": [_call(Fault), _call(RandomFaults)]}),
        "islands": {"anyOf": [{"const": "none"}, _WHOLE, _list(_NAMES)]},
        "placement": _NAMES,
    }
    return sections[key]
