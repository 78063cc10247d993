"""Five synthetic sensors, for which it is known who tells what."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from leeboard.prune.data.dataset import SensorData

SENSORS = {"ACC": (32, 3), "GYR": (32, 3), "PPG": (32, 1), "EDA": (16, 1), "TEMP": (8, 1)}
"""Steps and channels of each sensor's windows."""

ACTIVITIES = ("sit", "walk", "run", "cycle")
STATES = ("calm", "alert", "stressed")

_EVENTS = ("bump", "swing", "burst")
# Cycles in a window that an activity shows in ACC and GYR.
_CYCLES = (1.0, 2.0, 3.5, 5.0)
# What calls for a trained small model at 85 to 95 %, found by trial; see the documentation.
_NOISE = {"mixed": 1.1, "xor": 0.7, "unique": 0.42}


def synthetic(
    preset: Literal["mixed", "unique"] = "mixed",
    *,
    subjects: int = 30,
    windows: int = 100,
    noise: float = 1.0,
    redundancy: float = 1.0,
    uniqueness: float = 0.5,
    xor: bool = False,
    seed: int = 0,
) -> SensorData:
    """Windows of ACC, GYR, PPG, EDA and TEMP with labels; see `SENSORS` for their shapes.

    Every subject has offsets, gains and sensor orientations of its own, so split by subject.

    "mixed": the label is an activity (4) times a state (3).
        *Redundancy*: ACC and GYR both swing with the activity's frequency, under noise of their
        own. *Uniqueness*: EDA has a level for the state and TEMP a slope; at uniqueness 1 EDA tells
        the last state from the others, TEMP the first, and each is needed; at 0 both tell all. PPG
        follows both weakly, by its frequency.
    "mixed" with `xor` (*synergy*): the state is one of two, the exclusive or of a bit in EDA and a
        bit in TEMP; either alone, or any other sensor, says nothing about it.
    "unique": the label is a sensor times an event (3): that sensor shows the event, the others show
        nothing. No sensor can replace another. Made so that conditioning on the modalities that are
        there must matter: what reads a missing sensor's events is worth nothing then, and what
        reads the others' is worth all of it. A result on it says that a ranking can use this where
        it exists, and nothing about how often it does.

    Args:
        preset: "mixed" or "unique".
        subjects: How many, >= 3.
        windows: Of each subject.
        noise: Standard deviation of the noise, in multiples of the preset's own.
        redundancy: Share of the activity's amplitude that GYR shows, 0 to 1.
        uniqueness: How the state is divided between EDA and TEMP, 0 to 1.
        xor: Whether the state is an exclusive or.
        seed: The same seed and sizes give the same data.

    Raises:
        ValueError: For a value out of its range.
    """
    if preset not in ("mixed", "unique"):
        raise ValueError(f"preset: got {preset!r}, expected 'mixed' or 'unique'")
    if subjects < 3 or windows < 1:
        raise ValueError(
            f"subjects, windows: got {subjects} and {windows}, expected at least 3 and 1"
        )
    for name, share in (("redundancy", redundancy), ("uniqueness", uniqueness)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name}: got {share}, expected 0 to 1")
    if not noise >= 0:
        raise ValueError(f"noise: got {noise}, expected at least 0")
    if xor and preset == "unique":
        raise ValueError("xor: got True with preset 'unique', expected 'mixed'")
    draw = _Draw(subjects, windows, seed)
    if preset == "unique":
        inputs, target = _unique(draw)
        classes: Sequence[str] = [f"{sensor} {event}" for sensor in SENSORS for event in _EVENTS]
    else:
        inputs, target = _mixed(draw, redundancy, uniqueness, xor)
        states = ("equal", "different") if xor else STATES
        classes = [f"{activity}, {state}" for activity in ACTIVITIES for state in states]
    sigma = noise * _NOISE["xor" if xor else preset]
    for x in inputs.values():
        x += sigma * draw.normal(*x.shape)
    settings = f"noise {noise}, seed {seed}"
    if preset == "mixed":
        settings += f", redundancy {redundancy}, uniqueness {uniqueness}, xor {xor}"
    return SensorData(
        f"synthetic-{preset}" + ("-xor" if xor else ""),
        tuple(SENSORS),
        inputs,
        target,
        draw.subject,
        tuple(classes),
        f"Synthetic sensors, {subjects} subjects with {windows} windows each; {settings}.",
    )


class _Draw:
    """Random numbers for windows, and for subjects shared by their windows."""

    def __init__(self, subjects: int, windows: int, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.subjects = subjects
        self.subject = torch.arange(subjects).repeat_interleave(windows)

    @property
    def size(self) -> int:
        return len(self.subject)

    def normal(self, *size: int) -> Tensor:
        return torch.randn(size, generator=self.generator)

    def uniform(self, low: float, high: float) -> Tensor:
        """[N, 1]"""
        return low + (high - low) * torch.rand((self.size, 1), generator=self.generator)

    def integers(self, below: int) -> Tensor:
        """int64 [N]"""
        return torch.randint(below, (self.size,), generator=self.generator)

    def trait(self, channels: int, spread: float) -> Tensor:
        """[N, channels], equal for all windows of a subject."""
        return (spread * self.normal(self.subjects, channels))[self.subject]


def _time(sensor: str) -> Tensor:
    steps = SENSORS[sensor][0]
    return (torch.arange(steps) + 0.5) / steps


def _wave(cycles: Tensor, phase: Tensor, time: Tensor) -> Tensor:
    """[N, T] of sines; `cycles` [N, 1] in a window, `phase` [N, 1] in cycles."""
    return torch.sin(2 * math.pi * (cycles * time + phase))


def _orientation(draw: _Draw, channels: int) -> Tensor:
    """[N, 1, channels]: how a subject wears the sensor, a direction near to all ones."""
    direction = 1 + draw.trait(channels, 0.4)
    return (direction / direction.norm(dim=1, keepdim=True) * channels**0.5)[:, None]


def _mixed(
    draw: _Draw, redundancy: float, uniqueness: float, xor: bool
) -> tuple[dict[str, Tensor], Tensor]:
    activity = draw.integers(len(ACTIVITIES))
    cycles = torch.tensor(_CYCLES)[activity][:, None] * (1 + draw.trait(1, 0.04))
    phase = draw.uniform(0, 1)
    inputs = {}
    for sensor, share in (("ACC", 1.0), ("GYR", redundancy)):
        # A quarter of a cycle apart, as a position and its speed are.
        swing = _wave(cycles, phase + (0.25 if sensor == "GYR" else 0), _time(sensor))
        gain = share * (1 + draw.trait(1, 0.15))
        direction = _orientation(draw, SENSORS[sensor][1])
        inputs[sensor] = (gain * swing)[..., None] * direction + draw.trait(3, 0.3)[:, None]

    if xor:
        bits = draw.integers(2), draw.integers(2)
        state, count = bits[0] ^ bits[1], 2
        level, slope = (2.0 * bit - 1 for bit in bits)
        pulse = torch.zeros(draw.size)
    else:
        state, count = draw.integers(len(STATES)), len(STATES)
        pulse = state - 1.0
        level = (1 - uniqueness) * pulse + uniqueness * (2.0 * (state == 2) - 1)
        slope = (1 - uniqueness) * -pulse + uniqueness * (2.0 * (state == 0) - 1)
    rate = 3 + 0.5 * (activity[:, None] - 1.5) + 0.6 * pulse[:, None] + draw.trait(1, 0.15)
    inputs["PPG"] = _wave(rate, draw.uniform(0, 1), _time("PPG"))[..., None]
    inputs["PPG"] = inputs["PPG"] * (1 + draw.trait(1, 0.15))[:, None]
    drift = draw.trait(1, 0.3) + 0.3 * draw.normal(draw.size, 1) * (_time("EDA") - 0.5)
    inputs["EDA"] = (1.6 * level[:, None] + drift)[..., None]
    tilt = 4 * slope[:, None] * (1 + draw.trait(1, 0.15)) * (_time("TEMP") - 0.5)
    inputs["TEMP"] = (tilt + draw.trait(1, 0.5))[..., None]
    return inputs, activity * count + state


def _unique(draw: _Draw) -> tuple[dict[str, Tensor], Tensor]:
    shower = draw.integers(len(SENSORS))
    event = draw.integers(len(_EVENTS))
    inputs = {}
    for index, (sensor, (_, channels)) in enumerate(SENSORS.items()):
        away = (_time(sensor) - draw.uniform(0.35, 0.65)) / 0.15
        hill = torch.exp(-away.square() / 2)
        shapes = torch.stack((hill, 1.6 * away * hill, 1.3 * torch.cos(2.6 * away) * hill), 1)
        shown = shapes[torch.arange(draw.size), event] * (shower == index)[:, None]
        gain = 2.0 * (1 + draw.trait(1, 0.15)) / channels**0.5
        signal = (gain * shown)[..., None] * _orientation(draw, channels)
        inputs[sensor] = signal + draw.trait(channels, 0.3)[:, None]
    return inputs, shower * len(_EVENTS) + event
