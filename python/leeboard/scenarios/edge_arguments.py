"""Arguments of `plan_edge` as values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from leeboard.sim.units import POWER, parse


def joules(given: float | str) -> float:
    text = given.strip() if isinstance(given, str) else given
    scale = 1.0
    if isinstance(text, str):
        for unit, factor in (("mJ", 1e-3), ("uJ", 1e-6), ("kJ", 1e3), ("J", 1.0)):
            if text.endswith(unit):
                text, scale = text[: -len(unit)].strip(), factor
                break
        try:
            text = float(text)
        except ValueError:
            raise ValueError(
                f"energy: got {given!r}, expected joules such as '20 mJ' or 0.02"
            ) from None
    value = scale * float(text)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"energy: got {given!r}, expected more than 0 J")
    return value


def power(name: str, given: Any) -> tuple[float, float]:
    if given is None:
        return (0.0, 0.0)
    try:
        idle, active = given
    except (TypeError, ValueError):
        raise ValueError(f"{name}: got {given!r}, expected watts when idle and active") from None
    return (parse(f"{name} (idle)", idle, POWER), parse(f"{name} (active)", active, POWER))


def dropouts(given: float | Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    found = dict.fromkeys(names, 0.0)
    if isinstance(given, Mapping):
        for name in given:
            if name not in found:
                raise ValueError(
                    f"dropout: unknown sensor {name!r}; expected some of {', '.join(names)}"
                )
        found.update(given)
    else:
        found = dict.fromkeys(names, given)
    for name, chance in found.items():
        number: object = chance
        good = isinstance(number, int | float) and not isinstance(number, bool)
        if not good or not 0.0 <= chance <= 1.0:
            raise ValueError(f"dropout: got {chance!r} of {name}, expected a probability, 0 to 1")
    return found


def devices_of(given: Mapping[str, str] | None, names: Sequence[str]) -> dict[str, str]:
    found = {name: name for name in names}
    for name, device in (given or {}).items():
        if name not in found:
            raise ValueError(
                f"devices: unknown sensor {name!r}; expected some of {', '.join(names)}"
            )
        found[name] = device
    if "hub" in found.values():
        raise ValueError("devices: a sensor is on 'hub', which is the hub's name")
    return found
