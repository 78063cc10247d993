"""Runs cases under gloo: one pool of processes for all of them."""

from __future__ import annotations

import os
import tempfile
import traceback
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing


def _work(rank: int, size: int, folder: str) -> None:
    import conformance_parallel
    from conformance_cases import CASES, plain

    assert conformance_parallel
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size))
    out: dict[str, Any] = {}
    store = dist.FileStore(f"{folder}/store", size)
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


@cache
def run_gloo(size: int) -> list[dict[str, Any]]:
    """What each case gives on each rank: [rank][name] -> {"value": ...} or {"error": text}."""
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("spawn")
        processes = [
            context.Process(target=_work, args=(rank, size, folder)) for rank in range(size)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(300)
        codes = [process.exitcode for process in processes]
        for process in processes:
            process.kill()
        assert codes == [0] * size, f"gloo's processes ended with {codes}"
        return [torch.load(Path(folder) / f"{r}.pt", weights_only=True) for r in range(size)]
