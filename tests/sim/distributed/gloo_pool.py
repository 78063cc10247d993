"""Runs cases under gloo: one pool of processes for all of them."""

from __future__ import annotations

import os
import socket
import tempfile
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _work(rank: int, size: int, port: int, folder: str) -> None:
    import conformance_parallel
    from conformance_cases import CASES, plain

    assert conformance_parallel
    torch.set_num_threads(1)
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(size)
    )
    out: dict[str, Any] = {}
    store = dist.TCPStore("127.0.0.1", port, size, rank == 0)
    for name, run in CASES.items():
        # A group of its own for each case, as in the simulator; the store stays.
        dist.init_process_group(
            "gloo", store=dist.PrefixStore(name, store), rank=rank, world_size=size
        )
        torch.manual_seed(1234)
        try:
            out[name] = {"value": plain(run(rank, size))}
        except (RuntimeError, TypeError, ValueError, NotImplementedError):
            out[name] = {"error": traceback.format_exc()}
        dist.barrier()
        dist.destroy_process_group()
    torch.save(out, Path(folder) / f"{rank}.pt")
    store.add("saved", 1)
    if rank == 0:
        while store.add("saved", 0) < size:
            store.wait(["saved"])


def run_gloo(size: int) -> list[dict[str, Any]]:
    """What each case gives on each rank: [rank][name] -> {"value": ...} or {"error": text}."""
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("spawn")
        port = _free_port()
        processes = [
            context.Process(target=_work, args=(rank, size, port, folder)) for rank in range(size)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(180)
        for process in processes:
            process.kill()
        return [torch.load(Path(folder) / f"{r}.pt", weights_only=True) for r in range(size)]
