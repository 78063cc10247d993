"""The processes of a training that share its steps, as `torchrun` starts them."""

from __future__ import annotations

import atexit
import inspect
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from leeboard.draft.checks import positive_int

# How long the others wait for what the first process does alone.
_PATIENCE = timedelta(days=30)


class Processes:
    """The default process group of torch.distributed, or this process alone.

    Attributes:
        rank: Number of this process, from 0.
        size: How many there are.
        device: Where numbers that go between them are kept.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.grouped = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if self.grouped else 0
        self.size = dist.get_world_size() if self.grouped else 1
        self.device = torch.device(device)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and draws."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """The mean of a tensor over all processes, the same bits in each."""
        return self.total(values) / self.size

    def total(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes, the same bits in each."""
        if self.size == 1:
            return values
        values = values.detach().to(self.device, copy=True).contiguous()
        dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in some process."""
        return bool(self.total(torch.tensor([float(flag)], device=self.device)) > 0)

    def first_does(self, work: Callable[[], object]) -> None:
        """Let the first process work, however long it takes, while the others wait.

        Raises:
            RuntimeError: It failed, elsewhere than in this process; there what `work` raised.
        """
        if self.size == 1:
            work()
            return
        # The default group would lose its patience.
        patient = dist.new_group(backend="gloo", timeout=_PATIENCE)
        failed = torch.tensor([float(self.first)])
        try:
            if self.first:
                work()
                failed.zero_()
        finally:
            dist.all_reduce(failed, group=patient)
            dist.destroy_process_group(patient)
        if bool(failed):
            raise RuntimeError("the first process has failed; it says why")

    def share(self, rows: list[int]) -> list[int]:
        """This process's part of rows whose number `size` divides; all of them, in turn."""
        part = len(rows) // self.size
        return rows[self.rank * part : (self.rank + 1) * part]

    def check_batch(self, batch: int, accumulate: int) -> None:
        """Raise ValueError unless a step's rows can be shared out in equal parts."""
        positive_int("batch", batch)
        if batch % (self.size * accumulate):
            raise ValueError(
                f"batch: got {batch}, expected a multiple of {self.size * accumulate}: "
                f"{self.size} process(es) times accumulate = {accumulate}"
            )


def launched() -> bool:
    """Whether `torchrun` (or the like) started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def local_device(kind: str | None = None) -> torch.device:
    """The device of this process: `kind`, or CUDA where there is any; of several its own one."""
    if kind is None:
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda":
        return torch.device(kind, int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device(kind)


def processes(device: torch.device) -> Processes:
    """The processes that train together; joined here if `torchrun` started them.

    The group that is there already is used. One that is made here talks by NCCL between CUDA
    devices and by gloo between CPUs, serves later calls too and is left when the program ends.
    """
    if launched() and dist.is_available() and not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(_leave)
    return Processes(device)


def in_parallel(module: nn.Module) -> DistributedDataParallel:
    """The module, its gradients averaged over the processes of a backward pass."""
    # Newer versions of torch have renamed the option.
    known = inspect.signature(DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    # Unless parameters may be unused, gradients are laid out anew after the first step: a resumed
    # run would add up in another order. And some may be: experts that no token was sent to.
    options: dict[str, Any] = {"find_unused_parameters": True, buffers: False}
    return DistributedDataParallel(module, **options)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
