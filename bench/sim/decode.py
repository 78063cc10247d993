"""What it takes to simulate one decode step of an 8B model over 8 devices, by compute mode."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.memory import status
from bench.part import Part, Row, in_fresh_process, number, say, wait_for_quiet

RANKS = 8
MODULE = "leeboard.sim.strategies.tensor_parallel"
WORDS = ("--model", "8b", "--dtype", "bfloat16", "--prompt", "1", "--no-sampling")
# Layers of the whole model, and of what is computed for real.
LAYERS, REAL_LAYERS = 32, 1
# Tokens of a short run, and how many more a long one has: their difference is that of the steps.
# Weights that are real take seconds to build, a step of one layer a fraction.
FEW, STEPS, REAL_STEPS = 2, 4, 60
clock = time.perf_counter

MODES: dict[str, tuple[int, int, dict[str, Any]]] = {
    "none": (LAYERS, STEPS, {"compute": "none", "fake": True}),
    "roofline": (LAYERS, STEPS, {"compute": "roofline", "fake": True}),
    "roofline, folded": (LAYERS, STEPS, {"compute": "roofline", "fold": f"tp={RANKS}"}),
    "profiled": (LAYERS, STEPS, {"compute": "profiled", "fake": True}),
    "measured": (REAL_LAYERS, REAL_STEPS, {"compute": "measured", "scale": 1.0}),
}


def _platform() -> Any:
    from leeboard.sim import Platform

    return Platform.star(
        RANKS, bandwidth="100 Gbit/s", latency="5 us", protocol="nccl", device="h100-sxm"
    )


def _words(layers: int, tokens: int) -> list[str]:
    return [*WORDS, "--layers", str(layers), "--tokens", str(tokens)]


def _profile(folder: str) -> str:
    """A table of this host for the operators of a layer, embedding and head."""
    platform, table = Path(folder) / "platform.yaml", Path(folder) / "host.json"
    _platform().save(platform)
    command = [sys.executable, "-m", "leeboard.cli", "sim", "profile", "--platform", platform]
    command += ["--out", table, "--device", "h100-sxm", "--seconds", "0.05", "-m", MODULE]
    subprocess.run(
        [*map(str, command), "--", *_words(REAL_LAYERS, FEW)], check=True, capture_output=True
    )
    return str(table)


def one(mode: str) -> Row:
    """Seconds of the host's clock for a decode step, and the simulated step."""
    import torch

    from leeboard import sim

    torch.set_num_threads(1)
    layers, steps, options = MODES[mode]
    with tempfile.TemporaryDirectory() as folder:
        if mode == "profiled":
            options = {**options, "profile": _profile(folder)}
        walls, simulated = [], []
        for tokens in (FEW, FEW + steps):
            start = clock()
            launched = sim.launch(
                f"-m {MODULE}", _platform(), args=_words(layers, tokens), timeline=False, **options
            )
            walls.append(clock() - start)
            simulated.append(launched.result.makespan)
    return {
        "layers": layers,
        "whole": walls[0],
        "step": (walls[1] - walls[0]) / steps,
        "simulated": (simulated[1] - simulated[0]) / steps,
        "bytes": status("VmHWM"),
    }


def measure(quick: bool) -> list[Row]:
    """Each mode in a process of its own."""
    rows: list[Row] = []
    for mode in MODES:
        if quick and mode in ("profiled", "measured"):
            continue
        wait_for_quiet()
        row = in_fresh_process("bench.sim.decode", mode)
        rows.append({"mode": mode, **row})
        say(f"a decode step of an 8B model, {mode}: {row['step']:.2f} s")
    return rows


def cells(row: Row) -> list[str]:
    return [
        row["mode"],
        str(row["layers"]),
        number(row["whole"]),
        number(row["step"]),
        number(row["simulated"] * 1e3),
        number(row["bytes"] / 2**20),
    ]


PART = Part(
    name="decode",
    title="A decode step",
    reading=(
        f"`leeboard.sim.strategies.tensor_parallel`, 8B in bfloat16, one sequence over {RANKS} "
        "devices: seconds of the host's clock for the whole run (the model built, a token read, a "
        "token decoded) and for each further decode step, the simulated step in ms, and the peak of "
        "resident memory. `measured` computes for real, on this host's one thread, which stands for "
        "the device: one layer of the 32, for eight ranks' weights are all in one memory. `profiled` "
        "looks up this host's own times; the other modes take the figures of an H100."
    ),
    head=("compute", "layers", "s in all", "s a step", "simulated ms a step", "MiB"),
    left=1,
    measure=measure,
    cells=cells,
)

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--one", nargs=1, metavar="MODE", required=True)
    # What the program prints is not the result.
    results, sys.stdout = sys.stdout, sys.stderr
    row = one(*parser.parse_args().one)
    print(json.dumps(row), file=results)
