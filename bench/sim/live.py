"""What a call of torch.distributed costs in the simulator, from 2 to 1,024 ranks, and over gloo."""

from __future__ import annotations

import argparse
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing

from bench.part import Part, Row, in_fresh_process, number, say, wait_for_quiet

RANKS = (2, 8, 32, 128, 512, 1024)
PROCESSES = (2, 4)
# Calls of all ranks together; a figure is the best of a few rounds of that many.
CALLS, ROUNDS = 20_000, 3
# Bound before the simulator gives ranks a clock of their own.
clock = time.perf_counter


def _all_reduce(rank: int, size: int, x: torch.Tensor) -> int:
    dist.all_reduce(x)
    return 1


def _pair(rank: int, size: int, x: torch.Tensor) -> int:
    if rank % 2 == 0:
        dist.send(x, rank + 1)
        dist.recv(x, rank + 1)
    else:
        dist.recv(x, rank - 1)
        dist.send(x, rank - 1)
    return 2


def _barrier(rank: int, size: int, x: torch.Tensor) -> int:
    dist.barrier()
    return 1


def _sleep(rank: int, size: int, x: torch.Tensor) -> int:
    time.sleep(1e-6)
    return 1


KINDS: dict[str, Callable[[int, int, torch.Tensor], int]] = {
    "all_reduce": _all_reduce,
    "send and recv": _pair,
    "barrier": _barrier,
    "time.sleep": _sleep,
}


def program(kind: str, calls: int, backend: str = "gloo") -> list[float]:
    """Microseconds that a call of one rank takes, round by round, on the host's clock."""
    dist.init_process_group(backend)
    rank, size = dist.get_rank(), dist.get_world_size()
    call = KINDS[kind]
    x = torch.ones(4)
    for _ in range(3):
        call(rank, size, x)
    found = []
    for _ in range(ROUNDS):
        dist.barrier()
        start, made = clock(), 0
        while made < calls:
            made += call(rank, size, x)
        dist.barrier()
        found.append((clock() - start) / made * 1e6)
    dist.destroy_process_group()
    return found


def _resident() -> int:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def one(kind: str, ranks: int, calls: int) -> Row:
    """The simulator: all ranks share one process, so that a call costs a share of a round."""
    from leeboard import sim

    def star(size: int) -> sim.Platform:
        platform = sim.Platform.star(size, bandwidth="10 Gbit/s", latency="10 us", protocol="gloo")
        # A ring of 1,024 ranks is 2,046 messages a call: its price is theirs.
        return platform.with_collectives("nccl")

    def idle() -> float:
        dist.init_process_group("gloo")
        return _resident() if dist.get_rank() == ranks - 1 else 0.0

    options: dict[str, Any] = {
        "compute": "none",
        "network": "alpha-beta",
        "timeline": False,
        "links": False,
    }
    sim.launch(lambda: dist.init_process_group("gloo"), star(2), **options)
    before, start = _resident(), clock()
    full = max(sim.launch(idle, star(ranks), **options).values)
    setup = clock() - start
    launched = sim.launch(program, star(ranks), args=(kind, max(calls // ranks, 4)), **options)
    return {
        "us": min(launched.values[0]) / ranks,
        "setup_ms": setup / ranks * 1e3,
        "bytes": max(full - before, 0) / ranks,
        "messages": launched.result.messages,
    }


def _real(rank: int, size: int, port: int, kind: str, calls: int, results: Any) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(size)
    )
    found = program(kind, calls)
    if rank == 0:
        results.put(min(found))


def over_gloo(kind: str, size: int, calls: int) -> float:
    """Microseconds of a call over gloo between processes on the loopback device."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [
        context.Process(target=_real, args=(rank, size, port, kind, calls, results))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    found = float(results.get(timeout=120))
    for process in processes:
        process.join()
    return found


def measure(quick: bool) -> list[Row]:
    """Each figure in a process of its own."""
    rows: list[Row] = []
    calls = CALLS // 10 if quick else CALLS
    for kind in KINDS:
        for size in PROCESSES if kind != "time.sleep" else ():
            wait_for_quiet()
            us = over_gloo(kind, size, calls // 10)
            rows.append({"kind": kind, "where": "gloo", "ranks": size, "us": us})
            say(f"{kind}, gloo, {size} processes: {us:.1f} us")
        for ranks in RANKS[:3] if quick else RANKS:
            wait_for_quiet()
            row = in_fresh_process("bench.sim.live", kind, ranks, calls)
            rows.append({"kind": kind, "where": "simulated", "ranks": ranks, **row})
            say(f"{kind}, {ranks} simulated ranks: {row['us']:.1f} us")
    return rows


def cells(row: Row) -> list[str]:
    simulated = row["where"] == "simulated"
    return [
        row["kind"],
        row["where"],
        f"{row['ranks']:,}",
        number(row["us"]),
        number(row["setup_ms"]) if simulated else "",
        number(row["bytes"] / 1024) if simulated else "",
    ]


def summary(rows: list[Row]) -> list[str]:
    """What others take, for comparison."""
    return [
        (
            "A `time.sleep` is a hand-over and no message. An all_reduce of so few bytes is a binomial "
            "tree here (table `nccl`): about two messages a rank; a ring of 1,024 would be 2,046."
        ),
        (
            "For comparison, figures of another day and not of this run: Uniference (commit 7186bf0, "
            "pairs that exchange 4 bytes) took 203 us a message at 2 devices, 648 at 32, 3,897 at 128 "
            "and 30,988 at 512; a prototype of this process group in Python 41, 43 and 53 us a call of "
            "a collective at 8, 128 and 1,024 ranks."
        ),
    ]


PART = Part(
    name="live",
    title="Calls through torch",
    reading=(
        "Microseconds of one rank's call of `torch.distributed` (4 float32 numbers), the wrappers "
        "of torch included, on the host's clock. Simulated ranks are threads of one process that "
        "take turns, and a call that blocks hands over once: the time of a round is divided by the "
        "ranks. Over gloo, ranks are processes side by side on the loopback device, and the time "
        "is that of a round. Set-up and memory are those of a rank that has called "
        "`init_process_group`."
    ),
    head=("call", "ranks are", "ranks", "us a call", "set-up, ms a rank", "KiB a rank"),
    left=2,
    measure=measure,
    cells=cells,
    summary=summary,
)

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--one", nargs=3, metavar=("KIND", "RANKS", "CALLS"), required=True)
    kind, ranks, calls = parser.parse_args().one
    print(json.dumps(one(kind, int(ranks), int(calls))))
