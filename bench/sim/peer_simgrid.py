"""SimGrid on the logical workloads, where its C++ library is installed (Debian: libsimgrid-dev)."""

from __future__ import annotations

import functools
import hashlib
import subprocess
from pathlib import Path

from bench.sim.workloads import Outcome, Workload

SOURCE = Path(__file__).with_name("peer_simgrid.cpp")
BUILD = Path(__file__).parents[1] / "build"
# The plain fluid model: no factors, no acknowledgements, no window, and a solver as exact as ours.
MODEL = [
    "--cfg=network/model:CM02",
    "--cfg=network/crosstraffic:0",
    "--cfg=network/TCP-gamma:0",
    "--cfg=maxmin/precision:1e-9",
    # Its smallest and fastest stacks.
    "--cfg=contexts/stack-size:32",
    "--cfg=contexts/guard-size:0",
    "--log=root.threshold:error",
]


@functools.cache
def program() -> Path | None:
    """The compiled peer; None where SimGrid is not installed."""
    probe = ["g++", "-std=c++17", "-fsyntax-only", "-x", "c++", "-"]
    try:
        header = "#include <simgrid/s4u.hpp>\n"
        probed = subprocess.run(probe, input=header, text=True, capture_output=True, check=False)
    except FileNotFoundError:
        return None
    if probed.returncode:
        return None
    command = ["g++", "-std=c++17", "-O2", "-DNDEBUG"]
    key = hashlib.sha256(SOURCE.read_bytes() + " ".join(command).encode()).hexdigest()[:16]
    path = BUILD / f"peer_simgrid-{key}"
    if not path.exists():
        BUILD.mkdir(exist_ok=True)
        part = path.with_suffix(".part")
        subprocess.run([*command, str(SOURCE), "-o", str(part), "-lsimgrid"], check=True)
        part.replace(path)
    return path


def installed() -> bool:
    return program() is not None


def version() -> str:
    """Of the installed library."""
    found = program()
    if found is None:
        return ""
    done = subprocess.run([str(found), "--version"], text=True, capture_output=True, check=False)
    words = done.stdout.split()
    return (
        words[words.index("version") + 1].strip(",.") if "version" in words else "of some version"
    )


def run(workload: Workload) -> Outcome:
    """Simulate it in a process of its own; the seconds are those of the simulation alone."""
    found = program()
    if found is None:
        raise LookupError("SimGrid is not installed")
    numbers = (workload.rounds, workload.bytes, workload.latency, workload.bandwidth)
    sizes = ""
    if workload.kind == "all_to_all":
        sizes = " ".join(map(str, workload.sizes().ravel().tolist()))
    done = subprocess.run(
        [str(found), *MODEL, workload.kind, str(workload.ranks), *map(str, numbers)],
        input=sizes,
        text=True,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"SimGrid: exit status {done.returncode}\n{done.stderr}")
    end, seconds = done.stdout.split()
    return Outcome(float(end), float(seconds))
