"""Pruning plans as an edge deployment sees them: sensors, accuracy, time, size."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

FORMAT = "leeboard.plan.edge.plans"
_COLUMNS = ("name", "sensors", "accuracy", "milliseconds")
_OPTIONAL = ("fusion", "bytes")

from leeboard.scenarios.given import given_json


@dataclass(frozen=True)
class Sensor:
    """A sensor.

    Attributes:
        name: Of the modality.
        raw: Bytes of a window.
        features: Bytes of what its encoder makes of a window.
    """

    name: str
    raw: float
    features: float


@dataclass(frozen=True)
class EdgeCandidate:
    """A pruning plan for a set of sensors.

    Attributes:
        name: Of the plan, such as "50%".
        sensors: That it uses, in the table's order.
        accuracy: 0 to 1.
        seconds: Of the whole model for a window, on a device of speed 1.
        encoders: Seconds of each sensor's encoder, or None where they are not known apart.
        bytes: Of the weights.
    """

    name: str
    sensors: tuple[str, ...]
    accuracy: float
    seconds: float
    encoders: Mapping[str, float] | None = None
    bytes: float = 0.0

    def __post_init__(self) -> None:
        where = f"plans: {self.name} of {self.set_name}"
        if not self.sensors:
            raise ValueError(f"plans: {self.name}: got no sensors, expected at least one")
        for name, value, most in (
            ("accuracy", self.accuracy, 1.0),
            ("milliseconds", self.seconds, math.inf),
            ("bytes", self.bytes, math.inf),
        ):
            if not (0.0 <= value <= most and math.isfinite(value)):
                ends = "from 0 to 1" if name == "accuracy" else "from 0 on"
                raise ValueError(f"{where}: {name}: got {value:g}, expected a number {ends}")
        if self.encoders is not None:
            spent = sum(self.encoders.values())
            if set(self.encoders) != set(self.sensors) or min(self.encoders.values()) < 0:
                raise ValueError(
                    f"{where}: encoders: got {sorted(self.encoders)}, expected a time from 0 on for "
                    "each of its sensors"
                )
            if spent > self.seconds * (1 + 1e-9):
                raise ValueError(
                    f"{where}: its encoders take {1e3 * spent:g} ms, more than the whole "
                    f"({1e3 * self.seconds:g} ms)"
                )

    @property
    def fusion(self) -> float:
        """Seconds of what follows the encoders."""
        return max(0.0, self.seconds - sum((self.encoders or {}).values()))

    @property
    def set_name(self) -> str:
        """Its sensors, joined."""
        return "+".join(self.sensors)


@dataclass(frozen=True)
class Plans:
    """Plans for sets of sensors.

    Attributes:
        sensors: All of them, by name.
        rows: The plans.
        source: Where the figures come from.
    """

    sensors: Mapping[str, Sensor]
    rows: tuple[EdgeCandidate, ...]
    source: str = "given"

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError("plans: got none, expected at least one")
        seen = set()
        for row in self.rows:
            for sensor in row.sensors:
                if sensor not in self.sensors:
                    raise ValueError(
                        f"plans: {row.name}: unknown sensor {sensor!r}; expected some of "
                        f"{', '.join(self.sensors)}"
                    )
            key = (row.name, frozenset(row.sensors))
            if key in seen:
                raise ValueError(f"plans: {row.name} of {row.set_name} is there twice")
            seen.add(key)

    def sized(self, raw: float | None = None, features: float | None = None) -> Plans:
        """The same with every sensor's bytes replaced."""
        changes: dict[str, Any] = {
            k: v for k, v in (("raw", raw), ("features", features)) if v is not None
        }
        for name, value in changes.items():
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}: got {value!r}, expected bytes from 0 on")
        if not changes:
            return self
        found = {n: replace(s, **changes) for n, s in self.sensors.items()}
        return replace(self, sensors=found)


def plans_of(given: Plans | str | Path | Mapping[str, Any]) -> Plans:
    """The plans that an argument means.

    Args:
        given: `Plans`; a JSON file as docs/plan.md describes it, or what it holds; or a CSV file with
            the columns name, sensors ("ACC+GYR"), accuracy, milliseconds and, if they are known,
            fusion (milliseconds after the encoders, which share the rest evenly) and bytes.

    Raises:
        ValueError: It is none of these, or a value is out of range; it says where.
        FileNotFoundError: There is no such file.
    """
    if isinstance(given, Plans):
        return given
    if isinstance(given, Mapping):
        return _parsed(given, "given")
    path = Path(given)
    if path.is_file() and path.suffix.lower() == ".csv":
        return _csv(path)
    return _parsed(given_json("plans", path, "; tables end in .csv"), path.name)


def _parsed(content: Any, source: str) -> Plans:
    if not isinstance(content, Mapping):
        raise ValueError(f"plans: {source}: expected an object with 'sensors' and 'plans'")  # noqa: TRY004
    if "cells" in content and "masks" in content:
        raise ValueError(
            f"plans: {source}: is a record of `leeboard prune study`, which has no latencies; give it "
            "as --study, with --latency of `leeboard prune calibrate`"
        )
    if content.get("format") != FORMAT or content.get("version") != 1:
        raise ValueError(
            f"plans: {source}: format {content.get('format')!r}, version "
            f"{content.get('version')!r}, expected {FORMAT!r}, version 1"
        )
    for key, kind in (("sensors", Mapping), ("plans", Sequence)):
        if not isinstance(content.get(key), kind) or isinstance(content.get(key), str):
            raise ValueError(f"plans: {source}: {key!r} is missing, or no list or object")  # noqa: TRY004
    sensors = {}
    for name, entry in content["sensors"].items():
        _keys(entry, ("bytes", "features"), (), f"sensors.{name}")
        raw, features = (_number(entry[k], f"sensors.{name}.{k}") for k in ("bytes", "features"))
        sensors[name] = Sensor(name, raw, features)
    rows = tuple(
        _row(entry, f"plans[{i}]", tuple(sensors)) for i, entry in enumerate(content["plans"])
    )
    name = content.get("source")
    return Plans(sensors, rows, f"{source}: {name}" if isinstance(name, str) else source)


def _row(entry: Any, where: str, order: Sequence[str]) -> EdgeCandidate:
    _keys(entry, _COLUMNS, ("encoders", "bytes"), where)
    used = entry["sensors"]
    if not isinstance(used, list) or not all(isinstance(s, str) for s in used):
        raise ValueError(f"{where}.sensors: got {used!r}, expected a list of names")
    encoders = entry.get("encoders")
    if encoders is not None:
        if not isinstance(encoders, Mapping):
            raise ValueError(f"{where}.encoders: got {encoders!r}, expected milliseconds by sensor")
        encoders = {k: 1e-3 * _number(v, f"{where}.encoders.{k}") for k, v in encoders.items()}
    return EdgeCandidate(
        str(entry["name"]),
        _ordered(used, order, where),
        _number(entry["accuracy"], f"{where}.accuracy"),
        1e-3 * _number(entry["milliseconds"], f"{where}.milliseconds"),
        encoders,
        _number(entry.get("bytes", 0.0), f"{where}.bytes"),
    )


def _ordered(used: Sequence[str], order: Sequence[str], where: str) -> tuple[str, ...]:
    unknown = [name for name in used if name not in order]
    if unknown:
        raise ValueError(
            f"{where}.sensors: unknown sensor {unknown[0]!r}; expected some of {', '.join(order)}"
        )
    if len(set(used)) < len(used):
        raise ValueError(f"{where}.sensors: got {list(used)}, expected each once")
    return tuple(name for name in order if name in used)


def _keys(entry: Any, needed: Sequence[str], known: Sequence[str], where: str) -> None:
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where}: got {entry!r}, expected an object with {', '.join(needed)}")  # noqa: TRY004
    for key in needed:
        if key not in entry:
            raise ValueError(f"{where}: {key!r} is missing")
    for key in entry:
        if key not in (*needed, *known):
            raise ValueError(
                f"{where}: unknown key {key!r}; expected {', '.join([*needed, *known])}"
            )


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{where}: got {value!r}, expected a number")
    if value < 0:
        raise ValueError(f"{where}: got {value!r}, expected a number from 0 on")
    return float(value)


def _csv(path: Path) -> Plans:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        columns = tuple(reader.fieldnames or ())
        missing = [name for name in _COLUMNS if name not in columns]
        unknown = [name for name in columns if name not in (*_COLUMNS, *_OPTIONAL)]
        if missing or unknown:
            what = f"{missing[0]!r} is missing" if missing else f"unknown column {unknown[0]!r}"
            raise ValueError(
                f"plans: {path.name}: {what}; expected {', '.join(_COLUMNS)} and at will "
                f"{', '.join(_OPTIONAL)}"
            )
        lines = list(reader)
    sets = [[s.strip() for s in (line["sensors"] or "").split("+") if s.strip()] for line in lines]
    order = tuple(dict.fromkeys(name for names in sets for name in names))
    rows = []
    for number, (line, names) in enumerate(zip(lines, sets, strict=True), start=2):
        where = f"plans: {path.name}: line {number}"
        figures = {}
        for key in (*_COLUMNS[2:], *_OPTIONAL):
            text = (line.get(key) or "").strip()
            if not text and key in _OPTIONAL:
                continue
            try:
                figures[key] = _number(float(text), f"{where}: {key}")
            except ValueError:
                raise ValueError(f"{where}: {key}: got {text!r}, expected a number") from None
        total = 1e-3 * figures["milliseconds"]
        encoders = None
        if "fusion" in figures and names:
            each = (total - 1e-3 * figures["fusion"]) / len(names)
            if each < 0:
                raise ValueError(f"{where}: fusion: got more than milliseconds")
            encoders = dict.fromkeys(names, each)
        rows.append(
            EdgeCandidate(
                line["name"],
                _ordered(names, order, where),
                figures["accuracy"],
                total,
                encoders,
                figures.get("bytes", 0.0),
            )
        )
    # A table says nothing about sizes of messages.
    return Plans({name: Sensor(name, 1024.0, 256.0) for name in order}, tuple(rows), path.name)
