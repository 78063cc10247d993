"""Rehearse a distributed deployment: platforms, programs, simulated time.

Quantities are numbers in plain SI units or text with a unit ("10 Gbit/s", "50 us").
"""

from __future__ import annotations

from leeboard.sim.faults import Fault, RandomFaults
from leeboard.sim.library import Preset, presets
from leeboard.sim.names import PlatformError
from leeboard.sim.parts import Device, Link, Protocol
from leeboard.sim.platform import Platform
from leeboard.sim.units import UnitError

__all__ = [
    "Device",
    "Fault",
    "Link",
    "Platform",
    "PlatformError",
    "Preset",
    "Protocol",
    "RandomFaults",
    "UnitError",
    "presets",
]
