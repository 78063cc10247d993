"""Programs on tensors without values: they take the same time as those with values."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from leeboard.sim import Device, Platform, Trace, replay
from leeboard.sim.distributed.fake import NoValueError, is_fake
from leeboard.sim.distributed.launch import Launched, launch
from leeboard.sim.ops import OpKind

PLATFORM = Platform.star(
    4, bandwidth="10 Gbit/s", latency="5 us", device=Device(flops="10 GFLOP/s", overhead="1 us")
)


# Names of torch 2.13, and those before.
_gather = getattr(functional, "all_gather_single", functional.all_gather_tensor)
_scatter = getattr(functional, "reduce_scatter_single", functional.reduce_scatter_tensor)

_gathers = getattr(
    functional, "all_gather_single_coalesced", functional.all_gather_into_tensor_coalesced
)
_scatters = getattr(
    functional, "reduce_scatter_single_coalesced", functional.reduce_scatter_tensor_coalesced
)


class Pair(nn.Module):
    """Two linear layers."""

    def __init__(self, size: int = 64) -> None:
        super().__init__()
        self.up = nn.Linear(size, 2 * size)
        self.down = nn.Linear(2 * size, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., size] -> [..., size]."""
        return x + self.down(torch.relu(self.up(x)))


def plain() -> None:
    """Collectives and messages as c10d calls them."""
    me = dist.get_rank()
    x = torch.randn(100, 100)
    work = dist.all_reduce(x, async_op=True)
    y = x @ x
    work.wait()
    parts = list(torch.empty(4, 100, 100).unbind())
    dist.all_gather(parts, y)
    dist.reduce_scatter(torch.empty(100, 100), parts)
    dist.all_to_all_single(torch.empty(100, 100), y)
    dist.broadcast(y, 1)
    if me == 0:
        dist.send(y, 3)
    elif me == 3:
        dist.recv(torch.empty(100, 100), 0)
    for op in dist.batch_isend_irecv(
        [
            dist.P2POp(dist.isend, y, (me + 1) % 4),
            dist.P2POp(dist.irecv, torch.empty(100, 100), (me - 1) % 4),
        ]
    ):
        op.wait()
    dist.barrier()


def functionals() -> None:
    """Functional collectives, which fake tensors would keep from any process group."""
    group = dist.group.WORLD
    x = torch.randn(64, 64)
    reduced = functional.all_reduce(x, "sum", group)
    x @ x
    y = reduced @ x
    gathered = _gather(y, 1, group)
    shared = _scatter(gathered, "avg", 1, group)
    several = functional.all_reduce_coalesced([shared, y], "sum", group)
    several = _gathers([several[0], several[1] + 1], group)
    several = _scatters(several, "sum", [0, 0], group)
    functional.broadcast(several[0] + 1, 2, group).sum()
    functional.all_to_all_single(several[1] @ x, None, None, group).sum()


def tensor_parallel() -> None:
    """DTensor: forward and backward."""
    mesh = init_device_mesh("cpu", (4,))
    module = parallelize_module(Pair(), mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    module(torch.randn(8, 64)).sum().backward()
    spread = distribute_tensor(torch.randn(8, 8), mesh, [Shard(0)])
    (spread @ spread).redistribute(mesh, [Shard(1)]).redistribute(mesh, [Replicate()])


def two_meshes() -> None:
    """FSDP over one axis, tensor parallel over the other."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    assert tuple(mesh.get_coordinate() or ()) == tuple(divmod(dist.get_rank(), 2))
    assert mesh["tp"].mesh.tolist() == [2 * (dist.get_rank() // 2), 2 * (dist.get_rank() // 2) + 1]
    module = parallelize_module(
        Pair(), mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()}
    )
    fully_shard(module, mesh=mesh["dp"])
    module(torch.randn(8, 64)).sum().backward()


def fully_sharded() -> None:
    """FSDP2: two steps."""
    module = nn.Sequential(Pair(), Pair())
    mesh = init_device_mesh("cpu", (4,))
    for part in module:
        fully_shard(part, mesh=mesh)
    fully_shard(module, mesh=mesh)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(2):
        module(torch.randn(8, 64)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def replicas() -> None:
    """DDP: two steps, gradients reduced while the backward pass goes on."""
    module = nn.parallel.DistributedDataParallel(nn.Sequential(Pair(), Pair()), bucket_cap_mb=0.02)
    for _ in range(2):
        module(torch.randn(8, 64)).sum().backward()


def from_meta() -> None:
    """Weights that are made where they are needed, and converted."""
    mesh = init_device_mesh("cpu", (4,))
    with torch.device("meta"):
        module = Pair()
    parallelize_module(module, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    module.to_empty(device="cpu").to(torch.bfloat16)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.to_local().fill_(0.5)
    module(torch.randn(8, 64, dtype=torch.bfloat16)).sum().backward()


def pipeline(kind: Any, train: bool) -> Callable[[], None]:
    """A pipeline whose stages find out themselves what they pass on."""

    def run() -> None:
        me = dist.get_rank()
        stage = PipelineStage(Pair(), me, 4, torch.device("cpu"))
        loss = {"loss_fn": lambda y, target: (y - target).square().mean()} if train else {}
        schedule = kind(stage, 4, **loss)
        x = torch.randn(16, 64)
        given = [x] if me == 0 else []
        if train:
            schedule.step(*given, **({"target": x} if me == 3 else {}))
        else:
            with torch.no_grad():
                schedule.eval(*given)

    return run


PROGRAMS: dict[str, Callable[[], None]] = {
    "plain": plain,
    "functionals": functionals,
    "tensor_parallel": tensor_parallel,
    "two_meshes": two_meshes,
    "from_meta": from_meta,
    "fully_sharded": fully_sharded,
    "replicas": replicas,
    "gpipe": pipeline(ScheduleGPipe, train=False),
    "1f1b": pipeline(Schedule1F1B, train=True),
}


def _run(program: Callable[[], Any], *, fake: bool) -> Launched:
    def whole() -> Any:
        dist.init_process_group("gloo")
        torch.manual_seed(0)
        return program()

    return launch(whole, PLATFORM, compute="roofline", fake=fake)


def _work_alone(launched: Launched) -> Trace:
    """Without what torch computes on ranks of meshes and lengths of pickles: a few bytes each."""
    trace = launched.trace
    kept = (trace.ops["kind"] != OpKind.COMPUTE) | (trace.ops["b"] > 128)
    before = np.concatenate([[0], np.cumsum(kept)])
    return dataclasses.replace(
        trace, ops=trace.ops[kept], begin=before[trace.begin], end=before[trace.end]
    )


@pytest.mark.parametrize("name", PROGRAMS)
def test_it_takes_the_same_time_as_with_values(name: str) -> None:
    fake, real = (_work_alone(_run(PROGRAMS[name], fake=fake)) for fake in (True, False))
    assert fake.stats() == real.stats()
    ran, expected = replay(fake, PLATFORM), replay(real, PLATFORM)
    assert ran.makespan == expected.makespan
    assert ran.event_hash == expected.event_hash


def test_what_is_under_way_overlaps() -> None:
    def early() -> None:
        x = torch.randn(1000, 1000)
        reduced = functional.all_reduce(x, "sum", dist.group.WORLD)
        x @ x
        reduced.sum()

    def late() -> None:
        x = torch.randn(1000, 1000)
        functional.all_reduce(x, "sum", dist.group.WORLD).sum()
        x @ x

    assert _run(early, fake=True).result.makespan < _run(late, fake=True).result.makespan


def test_objects_and_meshes_keep_their_values() -> None:
    def program() -> Any:
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
        objects: list[Any] = [None] * 4
        dist.all_gather_object(objects, {"rank": dist.get_rank()})
        sent: list[Any] = [dist.get_rank()]
        dist.broadcast_object_list(sent, 2)
        assert is_fake(torch.ones(3))
        return mesh["a"].mesh.tolist(), objects[3], sent

    rows = [[0, 2], [1, 3], [0, 2], [1, 3]]
    values = _run(program, fake=True).values
    assert values == [(row, {"rank": 3}, [2]) for row in rows]


def test_a_loss_is_not_a_number_and_decisions_are_refused() -> None:
    def prints() -> float:
        return torch.randn(3).sum().item()

    assert all(value != value for value in _run(prints, fake=True).values)  # noqa: PLR0124

    def decides() -> int:
        return int(torch.randint(5, (3,)).max())

    with pytest.raises(NoValueError, match=r"value of an int64 tensor.*fake=False"):
        _run(decides, fake=True)

    def masks() -> torch.Tensor:
        x = torch.randn(3)
        return x[x > 0]

    with pytest.raises(NoValueError, match=r"shape depends on values.*fake=False"):
        _run(masks, fake=True)


def test_nothing_can_be_measured() -> None:
    with pytest.raises(ValueError, match="fake tensors compute nothing that could be measured"):
        launch(plain, PLATFORM, compute="measured", fake=True)


def test_a_large_model_is_not_there() -> None:
    def program() -> int:
        layers = nn.Sequential(*(nn.Linear(16384, 16384, bias=False) for _ in range(64)))
        began = time.perf_counter()
        layers(torch.empty(4096, 16384))
        return round(64 * 2 * 4096 * 16384**2 / 10e9 / (time.perf_counter() - began), 3)

    # 64 GiB of weights; the time is that of the products.
    assert _run(program, fake=True).values == [1.0] * 4
