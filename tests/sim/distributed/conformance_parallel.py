"""Cases of conformance_cases on meshes, DTensor, pipelines and data-parallel training."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from conformance_cases import case, values


def net(width: int = 8, depth: int = 2) -> nn.Sequential:
    """The same on every rank."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 4))


def grads(model: nn.Module) -> list[torch.Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@case
def meshes(rank: int, size: int) -> Any:
    line = init_device_mesh("cpu", (size,))
    grid = init_device_mesh("cpu", (size // 2, 2), mesh_dim_names=("dp", "tp"))
    x, y = values(rank, 3), values(rank, 3)
    dist.all_reduce(x, group=line.get_group())
    dist.all_reduce(y, group=grid["tp"].get_group())
    dist.all_reduce(y, group=grid.get_group("dp"), op=dist.ReduceOp.MAX)
    return [x, y, grid.get_coordinate(), grid["dp"].get_local_rank(), grid["tp"].size()]


@case
def dtensors(rank: int, size: int) -> Any:
    from torch.distributed.tensor import (
        DTensor,
        Partial,
        Replicate,
        Shard,
        distribute_tensor,
    )

    mesh = init_device_mesh("cpu", (size,))
    whole = values(0, 4 * size, 6)
    rows = distribute_tensor(whole, mesh, [Shard(0)])
    columns = rows.redistribute(mesh, [Shard(1)])
    partial = DTensor.from_local(values(rank, 3, 3), mesh, [Partial()])
    product = rows @ distribute_tensor(values(1, 6, 5), mesh, [Replicate()])
    inner = columns @ distribute_tensor(values(1, 6, 5), mesh, [Shard(0)])
    uneven = distribute_tensor(values(2, size + 1, 2), mesh, [Shard(0)])
    return [
        rows.to_local(),
        columns.to_local(),
        partial.redistribute(mesh, [Replicate()]).to_local(),
        partial.redistribute(mesh, [Shard(0)]).to_local(),
        product.full_tensor(),
        inner.full_tensor(),
        uneven.to_local(),
        uneven.full_tensor(),
        rows.sum().full_tensor(),
    ]


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.up = nn.Linear(6, 16)
        self.down = nn.Linear(16, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.down(torch.relu(self.up(x)))
        return y


@case
def tensor_parallel(rank: int, size: int) -> Any:
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    mesh = init_device_mesh("cpu", (size,))
    model = parallelize_module(Mlp(), mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    x = values(3, 5, 6).requires_grad_()
    y = model(x)
    y.square().sum().backward()
    local = [
        p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad for p in model.parameters()
    ]
    return [y.detach(), x.grad, local]


@case
def sequence_parallel(rank: int, size: int) -> Any:
    from torch.distributed.tensor import Shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        PrepareModuleInput,
        RowwiseParallel,
        SequenceParallel,
        parallelize_module,
    )
    from torch.distributed.tensor.placement_types import Replicate

    mesh = init_device_mesh("cpu", (size,))
    torch.manual_seed(2)
    model = nn.ModuleDict({"norm": nn.LayerNorm(6), "mlp": Mlp()})
    parallelize_module(
        model,
        mesh,
        {
            "norm": SequenceParallel(sequence_dim=0),
            "mlp": PrepareModuleInput(input_layouts=Shard(0), desired_input_layouts=Replicate()),
            "mlp.up": ColwiseParallel(),
            "mlp.down": RowwiseParallel(output_layouts=Replicate()),
        },
    )
    y = model["mlp"](model["norm"](values(rank, 3, 6)))
    y.sum().backward()
    return y.detach()


def _stage(rank: int, size: int) -> Any:
    from torch.distributed.pipelining import PipelineStage

    torch.manual_seed(10 + rank)
    module = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
    return module, PipelineStage(module, rank, size, torch.device("cpu"))


def _pipeline(schedule: str, rank: int, size: int) -> Any:
    from torch.distributed import pipelining

    module, stage = _stage(rank, size)
    loss_fn = nn.functional.mse_loss
    run = getattr(pipelining, schedule)(stage, n_microbatches=4, loss_fn=loss_fn)
    x, target = values(0, 8, 6), values(1, 8, 6)
    losses: list[torch.Tensor] = []
    for _ in range(2):
        if rank == 0:
            run.step(x)
        elif rank == size - 1:
            run.step(target=target, losses=losses)
        else:
            run.step()
    return [grads(module), losses]


@case
def pipeline_gpipe(rank: int, size: int) -> Any:
    return _pipeline("ScheduleGPipe", rank, size)


@case
def pipeline_1f1b(rank: int, size: int) -> Any:
    return _pipeline("Schedule1F1B", rank, size)


def _steps(model: nn.Module, rank: int, steps: int = 2) -> list[Any]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    losses = []
    for step in range(steps):
        loss = model(values(rank + 10 * step, 5, 8)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        if step < steps - 1:
            optimizer.zero_grad()
    return losses


@case
def data_parallel(rank: int, size: int) -> Any:
    from torch.nn.parallel import DistributedDataParallel

    model = DistributedDataParallel(net(), bucket_cap_mb=0.0003)
    losses = _steps(model, rank)
    return [losses, grads(model), list(model.state_dict().values())]


@case
def data_parallel_accumulates(rank: int, size: int) -> Any:
    from torch.nn.parallel import DistributedDataParallel

    model = DistributedDataParallel(net())
    with model.no_sync():
        model(values(rank, 3, 8)).sum().backward()
    held = grads(model)
    model(values(rank + 5, 3, 8)).sum().backward()
    return [held, grads(model)]


@case
def data_parallel_unused(rank: int, size: int) -> Any:
    from torch.nn.parallel import DistributedDataParallel

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList([net(), net()])

        def forward(self, x: torch.Tensor, which: int) -> torch.Tensor:
            y: torch.Tensor = self.parts[which](x)
            return y

    model = DistributedDataParallel(Two(), find_unused_parameters=True)
    for step in range(2):
        model(values(rank, 3, 8), (rank + step) % 2).sum().backward()
    return grads(model)


@case
def data_parallel_hooks(rank: int, size: int) -> Any:
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
    from torch.nn.parallel import DistributedDataParallel

    out = []
    for hook in (default_hooks.allreduce_hook, default_hooks.fp16_compress_hook):
        model = DistributedDataParallel(net(), static_graph=True)
        model.register_comm_hook(None, hook)
        for _ in range(2):
            model.zero_grad()
            model(values(rank, 3, 8)).sum().backward()
        out.append(grads(model))
    return out


@case
def fully_sharded(rank: int, size: int) -> Any:
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (size,))
    model = net(depth=3)
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    losses = _steps(model, rank)
    state = {name: p.full_tensor() for name, p in model.state_dict().items()}
    return [losses, state]


@case
def zero_optimizer(rank: int, size: int) -> Any:
    from torch.distributed.optim import ZeroRedundancyOptimizer
    from torch.nn.parallel import DistributedDataParallel

    model = DistributedDataParallel(net())
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=0.1)
    model(values(rank, 3, 8)).sum().backward()
    optimizer.step()
    return [p.detach() for p in model.parameters()]


@case
def sync_batch_norm(rank: int, size: int) -> Any:
    """The averages of a module over all ranks, by hand (SyncBatchNorm needs a GPU)."""
    x = values(rank, 6, 4)
    moments = torch.cat([x.sum(0), x.square().sum(0)])
    dist.all_reduce(moments)
    mean, square = (moments / (6 * size)).chunk(2)
    return [mean, square - mean.square()]


@case
def compiled(rank: int, size: int) -> Any:
    model = torch.compile(net(), backend="eager")
    y = model(values(rank, 3, 8))
    dist.all_reduce(y)
    return y.detach()
