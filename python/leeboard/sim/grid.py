"""The points of a sweep: platforms with the parameters that they differ in."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from leeboard.sim.parts import Device, Link, Protocol
from leeboard.sim.platform import Platform

_PARTS = {"device": Device, "link": Link, "protocol": Protocol}
_WHOLE = ("device", "link", "protocol", "collectives")


@dataclass(frozen=True, eq=False)
class Point:
    """A platform of a sweep.

    Attributes:
        parameters: Name to value, as the table shows them.
        platform: What they make.
    """

    parameters: Mapping[str, Any]
    platform: Platform


def grid(base: Platform | Callable[..., Platform], **axes: Iterable[Any]) -> list[Point]:
    """Every combination of some parameters of a platform; the last axis runs fastest.

    Args:
        base: A platform to change, or a function that makes one out of a value of each axis.
        axes: Values of each parameter. On a platform these are fields of all its links
            (`bandwidth`, `latency`, ...), devices (`flops`, `memory`, ...) or of the protocol
            (`eager_limit`, ...), or `device`, `link`, `protocol`, `collectives` as a whole. Where
            two of them have a field of that name, say which: `link_overhead`, `device_jitter`.

    Raises:
        ValueError: An unknown parameter, or one that two parts have; no values.

    Example:
        `grid(platform, bandwidth=["1 Gbit/s", "10 Gbit/s"], device_jitter=[0, 0.1])`, or
        `grid(lambda n: Platform.ring(n, bandwidth="1 Gbit/s"), n=[4, 8, 16])`.
    """
    values = {name: list(axis) for name, axis in axes.items()}
    for name, given in values.items():
        if not given:
            raise ValueError(f"{name}: got no values, expected some")
    if isinstance(base, Platform):
        changes = {name: _changer(name) for name in values}
    else:
        _check_function(base, values)
    points = []
    for chosen in itertools.product(*values.values()):
        parameters = dict(zip(values, chosen, strict=True))
        if isinstance(base, Platform):
            platform = base
            for name, value in parameters.items():
                platform = changes[name](platform, value)
        else:
            platform = base(**parameters)
        points.append(Point(parameters, platform))
    return points


def points_of(
    platforms: Platform | Mapping[str, Platform] | Sequence[Platform | Point],
) -> list[Point]:
    """What `sweep` takes, as points; platforms without a grid go by name or number."""
    if isinstance(platforms, Platform):
        platforms = [platforms]
    if isinstance(platforms, Mapping):
        return [Point({"platform": name}, platform) for name, platform in platforms.items()]
    given = list(platforms)
    names = [item.name for item in given if isinstance(item, Platform)]
    distinct = len(set(names)) == len(names)
    points = []
    for number, item in enumerate(given):
        if isinstance(item, Platform):
            label = item.name if item.name and distinct else str(number)
            points.append(Point({"platform": label}, item))
        elif isinstance(item, Point):
            points.append(item)
        else:
            raise TypeError(f"platforms[{number}]: got {item!r}, expected a Platform or a Point")
    keys = {tuple(point.parameters) for point in points}
    if len(keys) > 1:
        raise ValueError("platforms: expected points with the same parameters")
    return points


def _fields(part: type) -> set[str]:
    return {field.name for field in dataclasses.fields(part)} - {"name"}


def _changer(name: str) -> Callable[[Platform, Any], Platform]:
    if name in _WHOLE:
        return _whole(name)
    owners = [part for part, kind in _PARTS.items() if name in _fields(kind)]
    prefix, _, field = name.partition("_")
    if prefix in _PARTS and field in _fields(_PARTS[prefix]):
        owners, name = [prefix], field
    if not owners:
        known = sorted(set().union(*map(_fields, _PARTS.values()), _WHOLE))
        raise ValueError(f"{name}: no such parameter; expected one of {', '.join(known)}")
    if len(owners) > 1:
        names = " or ".join(f"{owner}_{name}" for owner in owners)
        raise ValueError(f"{name}: {' and '.join(owners)} have it; say {names}")
    (owner,) = owners
    if owner == "device":
        return lambda platform, value: platform.with_devices(**{name: value})
    if owner == "link":
        return lambda platform, value: platform.with_links(**{name: value})
    return lambda platform, value: platform.with_protocol(**{name: value})


def _whole(name: str) -> Callable[[Platform, Any], Platform]:
    if name == "device":
        return lambda platform, value: platform.with_devices("*", value)
    if name == "link":
        return lambda platform, value: platform.with_links("*", value)
    if name == "protocol":
        return lambda platform, value: platform.with_protocol(value)
    return lambda platform, value: platform.with_collectives(value)


def _check_function(base: Callable[..., Platform], values: Mapping[str, Any]) -> None:
    try:
        inspect.signature(base).bind(**dict.fromkeys(values))
    except TypeError as error:
        raise ValueError(f"base: does not take {', '.join(values) or 'nothing'}: {error}") from None
