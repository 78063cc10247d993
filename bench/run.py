"""Runs the benchmarks: measures, then memory, then the report, then the whole systems.

    python bench/run.py              everything; rewrites bench/RESULTS.md
    python bench/run.py --quick      a few cases in a few minutes; prints the report
    python bench/run.py -k rms_norm  times that match (as in pytest -k); prints the report
    python bench/run.py -k rms_norm --publish
                                     times and memory of one op; rewrites its section of
                                     bench/RESULTS.md, and its table of README.md if it has one
    python bench/run.py --sim        the simulator alone; rewrites its section of bench/RESULTS.md
    python bench/run.py --prune      pruned layers and models alone; likewise
    python bench/run.py --draft      the training of drafters alone; likewise

Needs the standard library alone: every step is a process of its own, so that the allocator's
settings are in force before torch loads.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

# Packages of bench/ that measure a whole system.
SYSTEMS = {"draft": "training drafters", "prune": "pruned models", "sim": "simulator"}

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"

# glibc returns every block above 32 MB to the system when it is freed. A fresh output then costs
# one page fault per 4 kB, several times the arithmetic, and the figures would be those faults.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
}
COMPILER = {
    # No pool of compiler processes beside the measurement; compiled graphs are kept between runs.
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
    "TORCHINDUCTOR_CACHE_DIR": str(ROOT / "bench" / "build" / "inductor"),
}


def _step(title: str, *command: str) -> None:
    print(f"\n== {title}", flush=True)
    start = time.monotonic()
    code = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env={**os.environ, **ALLOCATOR, **COMPILER},
        check=False,
    ).returncode
    if code:
        raise SystemExit(f"bench: {title} failed (exit status {code})")
    print(f"== {title}: {time.monotonic() - start:.0f} s", flush=True)


def _measured(run: Path) -> list[str]:
    """The ops of a run."""
    found = json.loads(run.read_text())["benchmarks"]
    return sorted({entry["extra_info"]["op"] for entry in found})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python bench/run.py", description="Run the benchmarks.")
    parser.add_argument("--quick", action="store_true", help="few cases, short measurements")
    parser.add_argument("-k", metavar="EXPR", help="only times that match, as in pytest -k")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory table out")
    parser.add_argument(
        "--publish", action="store_true", help="with --quick or -k: rewrite the report too"
    )
    parser.add_argument("--sim", action="store_true", help="the simulator alone")
    parser.add_argument("--prune", action="store_true", help="pruned layers and models alone")
    parser.add_argument("--draft", action="store_true", help="the training of drafters alone")
    options = parser.parse_args()

    quick = ["--quick"] if options.quick else []
    alone = [name for name in SYSTEMS if getattr(options, name)]
    if alone:
        show = [] if options.quick and not options.publish else ["--publish"]
        for name in alone:
            _step(SYSTEMS[name], f"bench.{name}", *quick, *show)
        return
    RESULTS.mkdir(parents=True, exist_ok=True)
    run, memory = RESULTS / "run.json", RESULTS / "memory.json"
    for stale in (run, memory):
        stale.unlink(missing_ok=True)
    measure = ["pytest", "bench", "--benchmark-enable", "--benchmark-disable-gc"]
    measure += ["--benchmark-quiet", "--bench-progress", f"--benchmark-json={run}"]
    measure += ["--quiet", "--no-header", "-p", "no:cacheprovider"]
    if options.quick:
        measure += ["--bench-quick"]
    if options.k:
        measure += ["-k", options.k]
    _step("measure", *measure)
    if options.k:
        if options.publish and not options.no_memory:
            _step("memory", "bench.memory", *quick, "--ops", *_measured(run))
        publishing = ["--part", *(["--publish"] if options.publish else [])]
    else:
        if not options.no_memory:
            _step("memory", "bench.memory", *quick)
        whole = not (options.quick or options.no_memory)
        publishing = ["--publish"] if whole or (options.quick and options.publish) else []
    _step("report", "bench.report", *publishing, *quick)
    if not options.k:
        for name, title in SYSTEMS.items():
            _step(title, f"bench.{name}", *publishing, *quick)


if __name__ == "__main__":
    main()
