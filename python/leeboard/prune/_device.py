"""What a latency table was measured on."""

from __future__ import annotations

import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

import torch

from leeboard.ops._state import ISA_LEVELS, state


class Device(NamedTuple):
    """A device as far as times depend on it, and when they were taken.

    Attributes:
        processor: Name of the CPU, or of the GPU.
        isa: Level of the CPU kernels, e.g. "avx512".
        threads: Of torch's pool.
        torch: Its version.
        system: Operating system and architecture.
        date: UTC, ISO 8601.
    """

    processor: str
    isa: str
    threads: int
    torch: str
    system: str
    date: str

    def difference(self, other: Device) -> str:
        """In what the other one differs so that times do not carry over; "" for nothing."""
        for name in ("processor", "isa", "threads"):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                return f"{name} {ours!r}, not {theirs!r}"
        return ""


def this_device(device: torch.device | None = None) -> Device:
    """This machine, as it is set now."""
    forced = state().level
    isa = next((name for name, level in ISA_LEVELS.items() if level == forced), None)
    return Device(
        _processor() if device is None or device.type == "cpu" else _gpu(device),
        isa or next(reversed(ISA_LEVELS)),
        torch.get_num_threads(),
        torch.__version__,
        f"{platform.system()} {platform.machine()}",
        datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def _gpu(device: torch.device) -> str:
    return str(torch.cuda.get_device_name(device)) if device.type == "cuda" else device.type


def _processor() -> str:
    # platform.processor() is empty on most Linux systems.
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Hardware", "Model"):
            return value.strip()
    return platform.processor() or platform.machine()
