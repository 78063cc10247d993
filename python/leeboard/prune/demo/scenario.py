"""The script of the stream: which sensors are there, and how much may be spent."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Phase:
    """A stretch of the stream.

    Attributes:
        title: What happens, for the reader.
        power: Where the budget stands between the lowest (0) and what the dense model needs with
            all sensors (1).
        missing: Sensors that are not there.
        loose: A sensor that comes and goes, or None.
    """

    title: str
    power: float
    missing: tuple[str, ...] = ()
    loose: str | None = None


PHASES = (
    Phase("mains power, all sensors", 1.0),
    Phase("on battery: the budget falls", 0.45),
    Phase("a loose strap: GYR comes and goes", 0.45, loose="GYR"),
    Phase("GYR is gone, the battery is low", 0.0, missing=("GYR",)),
    Phase("EDA is gone, too", 0.0, missing=("GYR", "EDA")),
    Phase("both are back, the battery is still low", 0.0),
    Phase("on the charger", 1.0),
)


@dataclass(frozen=True)
class Moment:
    """One window of the stream.

    Attributes:
        window: Its number.
        phase: Index of the phase.
        present: Sensors that are there, in order.
        row: Which held-out window is read.
    """

    window: int
    phase: int
    present: tuple[str, ...]
    row: int


def moments(sensors: tuple[str, ...], length: int, rows: int, seed: int) -> list[Moment]:
    """The stream: every phase for `length` windows, drawn from `rows` held-out ones without
    repeating one before all were read; the same seed gives the same stream."""
    rng = random.Random(seed)
    order: list[int] = []
    while len(order) < length * len(PHASES):
        order += rng.sample(range(rows), rows)
    found = []
    for index, phase in enumerate(PHASES):
        connected, until = True, rng.randint(3, 7)
        for step in range(length):
            if phase.loose is not None and step == until:
                connected, until = not connected, until + rng.randint(3, 7)
            gone = {*phase.missing, *(() if connected or phase.loose is None else (phase.loose,))}
            present = tuple(sensor for sensor in sensors if sensor not in gone)
            window = index * length + step
            found.append(Moment(window, index, present, order[window]))
    return found


def glyphs(sensors: tuple[str, ...], present: tuple[str, ...]) -> str:
    """A letter for each sensor that is there, a dot for one that is not: "A·PET"."""
    return "".join(sensor[0] if sensor in present else "·" for sensor in sensors)
