"""Making the meter of a rank."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from leeboard.sim.distributed.compute.calibrate import calibrate
from leeboard.sim.distributed.compute.meters import (
    MeasuredMeter,
    NoneMeter,
    ProfiledMeter,
    RooflineMeter,
)
from leeboard.sim.distributed.compute.profile import Profile, ProfileError
from leeboard.sim.distributed.compute.report import Report, Tally, report
from leeboard.sim.names import nearest
from leeboard.sim.ops import PRECISIONS
from leeboard.sim.parts import PEAKS, Device
from leeboard.sim.platform import Platform
from leeboard.sim.table import text_of

MODES = ("measured", "profiled", "roofline", "none")

Profiles = Profile | str | Path | Iterable[Profile | str | Path]


class Metered(Protocol):
    """A meter that counts."""

    tally: Tally


def meter(
    spec: str | Callable[[Platform, int], Any],
    platform: Platform,
    rank: int,
    *,
    scale: float | str = "auto",
    profile: Profiles | None = None,
    meta: bool = False,
    memory: bool = False,
) -> Any:
    """The meter of a rank.

    Args:
        spec: One of `MODES`, or a function of the platform and the rank that makes a meter.
        platform: What the ranks run on.
        rank: Number of the rank.
        scale: Of "measured": times the time measured on this host; "auto": 1 for a device of which
            neither `flops` nor `memory_bandwidth` is given, otherwise by `calibrate`.
        profile: Of "profiled": a profile or its file, or several; each device is charged by the one
            that bears the name of its kind, or by the only one.
        meta: Whether ops on torch's meta device count.
        memory: Whether to tell the engine what tensors take; "profiled" and "roofline" alone see
            tensors.

    Raises:
        ValueError: `spec`, `scale` or `profile` does not fit.
        ProfileError: A file cannot be read, or none is for the rank's device.
        OSError: A file cannot be opened.
    """
    if callable(spec):
        return spec(platform, rank)
    if spec not in MODES:
        hint = nearest(str(spec), MODES)
        raise ValueError(f"compute: got {spec!r}{hint}, expected {', '.join(MODES)}")
    if memory and spec not in ("profiled", "roofline"):
        raise ValueError(f"memory: given with compute {spec!r}, expected 'profiled' or 'roofline'")
    device = device_of(platform, rank)
    if spec == "profiled":
        table = _profile_of(device, profile)
        made: Any = ProfiledMeter(table, meta=meta, memory=memory)
        made.tally.note = f"{_name(device)}: by the profile of {table.device!r}"
    elif profile is not None:
        raise ValueError(f"profile: given with compute {spec!r}, expected compute 'profiled'")
    elif spec == "measured":
        factor, why = scale_of(device, scale)
        made = MeasuredMeter(factor)
        made.tally.note = f"{_name(device)}: {factor:.4g} times the time on this host ({why})"
    elif spec == "roofline":
        made = RooflineMeter(meta=meta, memory=memory)
        made.tally.note = f"{_name(device)}: {_speeds(device)}"
    else:
        made = NoneMeter()
    made.tally.device = device
    return made


def report_of(spec: str | Callable[..., Any], meters: Iterable[Any]) -> Report:
    """What the meters of a run counted, together."""
    tallies = [made.tally for made in meters if hasattr(made, "tally")]
    return report(spec if isinstance(spec, str) else "custom", tallies)


def device_of(platform: Platform, rank: int) -> Device:
    """The device that a rank runs on."""
    index = int(platform.placement[rank]) if platform.placement.size else rank
    return platform.kinds[int(platform.device_kind[index])]


def scale_of(device: Device, scale: float | str = "auto") -> tuple[float, str]:
    """Times a second on this host on a device of speed 1, and why.

    Raises:
        ValueError: `scale` is neither "auto" nor a number above 0.
    """
    if scale != "auto":
        number = isinstance(scale, int | float) and not isinstance(scale, bool)
        if not number or not 0 < float(scale) < 1e12:
            raise ValueError(f"scale: got {scale!r}, expected a number above 0, or 'auto'")
        return float(scale), "given"
    said = (*PEAKS, "memory_bandwidth", "flops_curve", "bytes_curve")
    if all(getattr(device, name) == getattr(_NOTHING_SAID, name) for name in said):
        return 1.0, "the platform says nothing of its speed"
    host = calibrate()
    why = (
        f"whose one thread does {host.flops / 1e9:.3g} GFLOP/s and {host.memory_bandwidth / 1e9:.3g}"
        " GB/s"
    )
    return host.scale(device), why


_NOTHING_SAID = Device()


def _speeds(device: Device) -> str:
    own = [
        f"{precision} {text_of(peak / 1e12)}"
        for precision, peak in zip(PRECISIONS, device.peaks, strict=True)
        if peak != device.flops
    ]
    shown = f" ({', '.join(own)})" if own else ""
    peak, memory = text_of(device.flops / 1e12), text_of(device.memory_bandwidth / 1e9)
    return f"at most {peak} TFLOP/s{shown} and {memory} GB/s"


def _name(device: Device) -> str:
    return device.name or "device"


def _profile_of(device: Device, given: Profiles | None) -> Profile:
    if given is None:
        raise ValueError(
            "profile: none given, expected a file of `leeboard sim profile` with compute 'profiled'"
        )
    single = isinstance(given, Profile | str | Path)
    files: Iterable[Any] = (given,) if single else given  # type: ignore[assignment]
    if isinstance(files, Mapping):
        files = files.values()
    profiles = [file if isinstance(file, Profile) else _loaded(file) for file in files]
    for one in profiles:
        if one.device == device.name:
            return one
    if len(profiles) == 1:
        return profiles[0]
    names = ", ".join(repr(one.device) for one in profiles) or "nothing"
    raise ProfileError(f"profile: {names} given, expected one of device {device.name!r}")


def _loaded(file: str | Path) -> Profile:
    path = Path(file)
    about = path.stat()
    return _load(path, about.st_mtime_ns, about.st_size)


@lru_cache(maxsize=16)
def _load(path: Path, modified: int, size: int) -> Profile:
    return Profile.load(path)
