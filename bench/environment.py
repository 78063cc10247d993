"""The machine: what it is, what else runs on it, and how large its caches are."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

CPUS = len(os.sched_getaffinity(0))
# Others may use this many cores before a measurement is called disturbed.
QUIET = 0.2


def cpu_flags() -> frozenset[str]:
    """The processor's feature flags; empty where /proc does not list them."""
    return frozenset(_cpuinfo("flags").split())


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def cache_sizes() -> dict[str, int]:
    """Bytes of the data caches that the first core sees, by name: {"L1": ..., "L2": ...}."""
    sizes: dict[str, int] = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        if (index / "type").read_text().strip() == "Instruction":
            continue
        size = (index / "size").read_text().strip()
        unit = {"K": 1 << 10, "M": 1 << 20}.get(size[-1], 1)
        sizes["L" + (index / "level").read_text().strip()] = int(size.rstrip("KM")) * unit
    return sizes


def level_of(working_set: int, threads: int) -> str:
    """The level that holds a working set cut evenly among threads: "L1", "L2", "L3" or "DRAM"."""
    for name, size in cache_sizes().items():
        shared = name == "L3"
        if working_set <= size * (1 if shared else threads):
            return name
    return "DRAM"


def facts() -> dict[str, str]:
    """What a reader needs to judge the figures."""
    import leeboard

    found = leeboard.doctor()
    caches = ", ".join(f"{name} {size >> 10} kB" for name, size in cache_sizes().items())
    model = _cpuinfo("model name") or platform.processor() or platform.machine()
    family, number = _cpuinfo("cpu family"), _cpuinfo("model")
    return {
        "processor": model + (f" (family {family}, model {number})" if family else ""),
        "cores": str(CPUS),
        "caches": caches or "unknown",
        "kernels": f"leeboard {found.leeboard}, instruction set {found.isa}",
        "torch": f"{found.torch}, Python {found.python}",
        "system": f"{platform.system()} {platform.machine()}, {' '.join(platform.libc_ver())}",
        "huge pages": _huge_pages(),
    }


def _huge_pages() -> str:
    try:
        text = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return "unknown"
    return text[text.index("[") + 1 : text.index("]")]


@dataclass(frozen=True)
class Load:
    """A moment in the machine's accounts of processor time, in seconds."""

    wall: float
    all_busy: float
    own_busy: float

    @staticmethod
    def now() -> Load:
        fields = [int(f) for f in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        user, nice, system, _idle, _iowait, irq, softirq, steal = fields
        ticks = user + nice + system + irq + softirq + steal
        own = os.times()
        return Load(time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"), own.user + own.system)

    def others_since(self) -> float:
        """Cores that other processes, and neighbours of a virtual machine, used since then."""
        later = Load.now()
        busy = (later.all_busy - self.all_busy) - (later.own_busy - self.own_busy)
        return max(0.0, busy / (later.wall - self.wall))


class IdleGate:
    """Waits until the machine is quiet, with a bounded patience over its whole life."""

    def __init__(self, patience: float) -> None:
        self.patience = patience

    def wait(self) -> float:
        """Returns how many cores others used at the last look."""
        while True:
            before = Load.now()
            time.sleep(0.1)
            others = before.others_since()
            if others <= QUIET or self.patience <= 0:
                return others
            self.patience -= 0.1
