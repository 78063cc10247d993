"""The devices of a scenario: a platform of the simulator, or named kinds and a link."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from leeboard.sim import Device, Link, Platform, PlatformError
from leeboard.sim.library import DEVICES
from leeboard.sim.names import nearest

# Short names of presets.
ALIASES = {"edge": "jetson-agx-orin", "server": "h100-sxm"}
# Share of a data sheet's peaks that decoding is taken to reach.
EFFICIENCY = 0.75


@dataclass(frozen=True, eq=False)
class Site:
    """A platform, and which of its devices plays which part.

    Attributes:
        platform: Ranks are placed on the devices of `roles`, in order.
        roles: Part ("edge", "server", a sensor) to device.
    """

    platform: Platform
    roles: Mapping[str, str]

    def faster(self, role: str, factor: float) -> Site:
        """The same with a part's device a factor faster."""
        device = self.roles[role]
        speed = self.platform.device(device).speed * factor
        return replace(self, platform=self.platform.with_devices(device, speed=speed))

    def scaled(self, *, bandwidth: float = 1.0, latency: float = 1.0) -> Site:
        """The same with every link's figures times a factor."""
        return replace(self, platform=self.platform.scaled(bandwidth=bandwidth, latency=latency))

    def device(self, role: str) -> Device:
        """The kind of a part's device."""
        return self.platform.device(self.roles[role])

    def draws(self, role: str) -> bool:
        """Whether the power of a part's device is known."""
        return self.device(role).active_power > 0


def kind_of(given: str | Device, efficiency: float) -> Device:
    """The device of a name; a preset's speed is the share of its peaks that is reached."""
    if isinstance(given, Device):
        return given
    name = ALIASES.get(given, given)
    if name not in DEVICES:
        known = ", ".join([*ALIASES, *DEVICES])
        raise PlatformError(
            f"device: unknown {given!r}{nearest(given, [*ALIASES, *DEVICES])}; expected {known}, or "
            "give a platform that has it"
        )
    return replace(DEVICES[name], speed=efficiency)


def site(
    platform: Platform | str | Path | None,
    roles: Mapping[str, str | Device],
    *,
    bandwidth: float | str,
    latency: float | str,
    protocol: str = "ideal",
    efficiency: float = EFFICIENCY,
) -> Site:
    """The devices of some parts.

    Args:
        platform: Of the simulator, or its file; its devices are taken as they are, and `roles` names
            them. None: the parts are joined by links of `bandwidth` and `latency`, each to the last
            one.
        roles: Part to a device of the platform, or to a preset's name, an alias or a `Device`.
        bandwidth: Of the links, each way.
        latency: One way.
        protocol: How messages travel.
        efficiency: Speed of presets, times their peaks.

    Raises:
        ValueError: Unknown devices, or two parts on one.
    """
    if platform is None:
        if not 0.0 < efficiency <= 1.0:
            raise ValueError(
                f"efficiency: got {efficiency!r}, expected a share of the peak, 0 to 1"
            )
        *ends, hub = roles
        link = Link(bandwidth, latency)
        made = Platform.custom(
            dict.fromkeys(roles),
            [(f"link-{end}", end, hub, link) for end in ends],
            device={part: kind_of(given, efficiency) for part, given in roles.items()},
            protocol=protocol,
        )
        return Site(made.with_placement(list(roles)), {part: part for part in roles})
    loaded = platform if isinstance(platform, Platform) else Platform.load(platform)
    chosen: dict[str, str] = {}
    for part, name in roles.items():
        if not isinstance(name, str):
            raise ValueError(f"{part}: got {name!r}, expected a device of the platform by name")  # noqa: TRY004
        try:
            row = loaded.devices.one(name)
        except PlatformError as error:
            shown = ", ".join(str(loaded.devices[i]) for i in range(min(len(loaded), 8)))
            more = ", ..." if len(loaded) > 8 else ""
            raise PlatformError(
                f"{part}: the platform has no device {name!r} (it has {shown}{more}); say which one "
                f"is the {part} ({error})"
            ) from None
        full = str(loaded.devices[row])
        if full in chosen.values():
            other = next(p for p, d in chosen.items() if d == full)
            raise PlatformError(f"{part}: got {name!r}, which is the {other}, expected another one")
        chosen[part] = full
    return Site(loaded.with_placement(list(chosen.values())), chosen)
