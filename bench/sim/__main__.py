"""Measures the simulator.

python -m bench.sim [--quick] [--publish] [--only PART ...]
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import importlib.metadata
import json
import time
from typing import Any

from bench.environment import facts
from bench.run import RESULTS
from bench.sections import write
from bench.sim import peer_simgrid, peer_simpy, report
from bench.sim.part import Part, look

PARTS = ("hold", "messages", "contention", "scale", "whatif", "accuracy")


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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.sim")
    parser.add_argument("--quick", action="store_true", help="few cases, short measurements")
    parser.add_argument("--publish", action="store_true", help="rewrite bench/RESULTS.md's section")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART")
    options = parser.parse_args()
    if options.quick:
        look()
    parts: list[Part] = []
    results: dict[str, Any] = {}
    for name in PARTS:
        if name not in options.only:
            continue
        part: Part = importlib.import_module(f"bench.sim.{name}").PART
        start = time.monotonic()
        results[name] = part.measure(options.quick)
        parts.append(part)
        print(f"  {part.title}: {time.monotonic() - start:.0f} s", flush=True)
    machine, date = _machine(), datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    RESULTS.mkdir(parents=True, exist_ok=True)
    kept = {"date": date, "quick": options.quick, "machine": machine, "parts": results}
    write(RESULTS / "sim.json", json.dumps(kept, indent=1) + "\n")
    lines = report.compose(parts, results, machine, date, quick=options.quick)
    print("\n".join(["", *lines]))
    if options.publish:
        report.publish(lines)


if __name__ == "__main__":
    main()
