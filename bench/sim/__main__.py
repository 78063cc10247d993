"""Measures the simulator.

python -m bench.sim [--quick] [--publish] [--only PART ...]
"""

from __future__ import annotations

import importlib.metadata

from bench.environment import facts
from bench.sim import peer_simgrid, peer_simpy
from bench.systems import System


def _machine() -> dict[str, str]:
    found = facts()
    machine = {key: found[key] for key in ("processor", "cores", "system")}
    machine["cores"] += " cores"
    machine["simpy"] = (
        f"SimPy {importlib.metadata.version('simpy')}"
        if peer_simpy.installed()
        else "SimPy not installed"
    )
    machine["simgrid"] = (
        f"SimGrid {peer_simgrid.version()}" if peer_simgrid.installed() else "SimGrid not installed"
    )
    return machine


SYSTEM = System(
    "sim",
    "Simulator",
    (
        "hold",
        "messages",
        "contention",
        "scale",
        "whatif",
        "live",
        "decode",
        "fold",
        "record",
        "accuracy",
    ),
    _machine,
)

if __name__ == "__main__":
    SYSTEM.main()
