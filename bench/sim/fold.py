"""Folding: a 70B Llama on 1,024 devices, from one rank of each pipeline stage and a witness."""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter

from bench.memory import status
from bench.part import Part, Row, in_fresh_process, megabytes, number, say, wait_for_quiet
from bench.run import ROOT
from leeboard.sim import Device, Platform, Trace, replay
from leeboard.sim.op_ranges import executions
from leeboard.sim.ops import OpKind

# dp, pp, tp of each size.
AXES = {"64": (2, 8, 4), "1024": (8, 16, 8), "8192": (64, 16, 8)}
MICROBATCHES, TOKENS = 4, 2048
LAYERS, HIDDEN, GROUPED, INNER, VOCAB = 80, 8192, 1024, 28672, 128256
_LAYER = (
    HIDDEN * HIDDEN,
    HIDDEN * GROUPED,
    HIDDEN * GROUPED,
    HIDDEN * HIDDEN,
    *[HIDDEN * INNER] * 3,
)


def _platform(ranks: int) -> Platform:
    device = Device(flops="500 TFLOP/s", memory_bandwidth="3 TB/s", overhead="4 us")
    return Platform.star(ranks, bandwidth="400 Gbit/s", latency="5 us", device=device)


def linear_flops(trace: Trace, axes: tuple[int, int, int]) -> int:
    """Of all linear layers, after comparing how often each size is computed with the model."""
    dp, _, tp = axes
    expected: Counter[int] = Counter()
    for weights in _LAYER:
        expected[2 * weights * TOKENS // tp] += dp * tp * MICROBATCHES * LAYERS
    expected[2 * HIDDEN * VOCAB * TOKENS // tp] += dp * tp * MICROBATCHES
    times, compute = executions(trace), trace.ops["kind"] == OpKind.COMPUTE
    found: Counter[int] = Counter()
    for flops, count in zip(trace.ops["a"][compute], times[compute], strict=True):
        if int(flops) in expected:
            found[int(flops)] += round(float(count))
    assert found == expected, (found, expected)
    return sum(flops * count for flops, count in found.items())


def _one(devices: str) -> Row:
    """A size, measured in this process."""
    import torch

    from leeboard.sim.distributed.launch import launch

    torch.set_num_threads(1)
    axes = dp, pp, tp = AXES[devices]
    platform = _platform(int(devices))
    wall, cpu = time.perf_counter(), time.process_time()
    launched = launch(
        str(ROOT / "examples" / "sim" / "llama70b.py"),
        platform,
        args=["--model", "70b", "--tokens", str(TOKENS), "--microbatches", str(MICROBATCHES)]
        + [
            word
            for name, n in (("dp", dp), ("pp", pp), ("tp", tp))
            for word in (f"--{name}", str(n))
        ],
        fold=f"dp={dp} pp={pp}* tp={tp}",
        timeline=False,
        links=False,
    )
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    start = time.perf_counter()
    again = replay(launched.trace, platform, timeline=False, links=False)
    replayed = time.perf_counter() - start
    assert again.event_hash == launched.result.event_hash
    flops = linear_flops(launched.trace, axes)
    weights = LAYERS * sum(_LAYER) + HIDDEN * VOCAB
    assert flops == 2 * weights * dp * MICROBATCHES * TOKENS
    return {
        "devices": int(devices),
        "live": 2 * pp,
        "wall": wall,
        "cpu": cpu,
        "peak": status("VmHWM"),
        "ops": len(launched.trace.ops),
        "events": launched.result.events,
        "replay": replayed,
        "flops": flops,
        "makespan": launched.result.makespan,
    }


def measure(quick: bool) -> list[Row]:
    """Each size in a process of its own."""
    rows = []
    for devices in ("64",) if quick else AXES:
        wait_for_quiet()
        row = in_fresh_process("bench.sim.fold", devices)
        rows.append(row)
        say(f"{devices} devices: {row['wall']:.1f} s, {row['peak'] / 1e6:.0f} MB")
    return rows


def cells(row: Row) -> list[str]:
    return [
        f"{row['devices']:,}",
        f"{row['live']}",
        number(row["wall"]),
        number(row["cpu"]),
        megabytes(row["peak"]),
        f"{row['ops']:,}",
        f"{row['events']:,}",
        number(row["replay"]),
        number(row["flops"] / 1e15),
        number(row["makespan"] * 1e3),
    ]


PART = Part(
    name="fold",
    title="A 70B model on many devices",
    reading=(
        "`examples/sim/llama70b.py`, unchanged, on fake tensors: prefill of 4 microbatches of 2,048 "
        "tokens a replica, tensor x pipeline x data parallel as 4 x 8 x 2, 8 x 16 x 8 and "
        "8 x 16 x 64. One rank of each pipeline stage runs, and one more as its witness. Seconds "
        "and CPU seconds from the call of `launch` to the result of all devices, peak resident "
        "memory of the whole process, ops stored, seconds of one more replay, PFLOP of the linear "
        "layers (compared op by op with 2 P T), and the simulated milliseconds."
    ),
    head=(
        "devices",
        "run",
        "s",
        "CPU s",
        "peak MB",
        "ops",
        "events",
        "replay s",
        "PFLOP",
        "simulated ms",
    ),
    left=0,
    measure=measure,
    cells=cells,
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.sim.fold")
    parser.add_argument("--one", required=True, choices=AXES)
    print(json.dumps(_one(parser.parse_args().one)))


if __name__ == "__main__":
    main()
