"""What the computing of simulated ranks costs: measured, profiled, by roofline, or nothing.

docs/sim/compute.md says which is for what.
"""

from __future__ import annotations

from leeboard.sim.distributed.compute.calibrate import Host, calibrate
from leeboard.sim.distributed.compute.make import MODES, meter, report_of
from leeboard.sim.distributed.compute.meters import (
    MeasuredMeter,
    NoneMeter,
    OpMeter,
    ProfiledMeter,
    RooflineMeter,
)
from leeboard.sim.distributed.compute.profile import Profile, ProfileError
from leeboard.sim.distributed.compute.report import Report

__all__ = [
    "MODES",
    "Host",
    "MeasuredMeter",
    "NoneMeter",
    "OpMeter",
    "Profile",
    "ProfileError",
    "ProfiledMeter",
    "Report",
    "RooflineMeter",
    "calibrate",
    "meter",
    "report_of",
]
