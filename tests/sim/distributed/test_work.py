"""Works and futures wait in virtual time, in the program and where C++ waits for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from leeboard.sim import Platform
from leeboard.sim.distributed.launch import launch

LATENCY = 100e-6
# A message of 1 MB over 1 Gbit/s, one way.
MEGABYTE = 8e-3 + LATENCY


def run(ranks: int, program: Callable[..., Any], *args: Any) -> list[Any]:
    def main() -> Any:
        dist.init_process_group()
        return program(*args)

    platform = Platform.star(ranks, bandwidth="1 Gbit/s", latency=LATENCY)
    return launch(main, platform, compute="none", timeline=False, links=False).values


def megabyte() -> Tensor:
    return torch.zeros(250_000)


def test_asynchronous_work_runs_beside_the_program() -> None:
    """A second of sleeping hides the message."""

    def program() -> tuple[float, bool, bool]:
        start = time.perf_counter()
        work = dist.broadcast(megabyte(), 0, async_op=True)
        early = work.is_completed()
        time.sleep(1.0)
        late = work.is_completed()
        work.wait()
        return time.perf_counter() - start, early, late

    for elapsed, early, late in run(2, program):
        assert elapsed == pytest.approx(1.0, abs=1e-9)
        assert not early
        assert late


def test_a_work_is_over_when_its_time_has_come() -> None:
    """Asking again and again finds the moment, as exactly as one asks."""

    def program() -> tuple[float, float]:
        if dist.get_rank() == 0:
            dist.send(megabyte(), 1)
            return 0.0, 0.0
        value = megabyte() + 1
        start = time.perf_counter()
        work = dist.irecv(value, 0)
        while not work.is_completed():
            assert value[0] == 1
            time.sleep(1e-3)
        assert work.is_success()
        return time.perf_counter() - start, value.abs().max().item()

    elapsed, largest = run(2, program)[1]
    assert MEGABYTE <= elapsed < MEGABYTE + 1.001e-3
    assert largest == 0


def test_waiting_takes_the_time_of_the_message() -> None:
    def program() -> float:
        start = time.perf_counter()
        if dist.get_rank() == 0:
            dist.isend(megabyte(), 1).wait()
        else:
            dist.irecv(megabyte(), 0).wait()
        return time.perf_counter() - start

    assert run(2, program)[1] == pytest.approx(MEGABYTE, rel=1e-9)


def test_futures_and_what_follows_them() -> None:
    def program() -> list[Any]:
        told: list[str] = []
        value = torch.ones(2) * (dist.get_rank() + 1)
        work = dist.all_reduce(value, async_op=True)
        future = work.get_future()
        assert future is work.get_future()
        doubled = future.then(lambda done: done.value()[0] * 2)
        again = doubled.then(lambda done: done.value() + 1)
        doubled.add_done_callback(lambda done: told.append("called"))
        assert not future.done()
        assert not again.done()
        result = again.wait()
        assert future.done()
        assert told == ["called"]
        assert work.is_completed()
        assert torch.equal(work.result()[0], value)
        assert torch.equal(future.value()[0], value)
        late = work.get_future().then(lambda done: "at once")
        assert late.done()
        return [result.tolist(), late.value()]

    assert run(2, program) == [[[7.0, 7.0], "at once"]] * 2


def test_a_future_keeps_the_error_of_its_callback() -> None:
    def program() -> str:
        def fail(done: Any) -> None:
            raise KeyError("no such thing")

        future = dist.all_reduce(torch.ones(1), async_op=True).get_future().then(fail)
        with pytest.raises(KeyError, match="no such thing"):
            future.wait()
        return "went on"

    assert run(2, program) == ["went on"] * 2


def test_a_future_of_a_batch() -> None:
    def program() -> list[float]:
        world, me = dist.group.WORLD, float(dist.get_rank())
        world._start_coalescing(torch.device("cpu"))
        values = [torch.full((1,), me), torch.full((1,), me + 1)]
        for value in values:
            dist.all_reduce(value, async_op=True)
        together = world._end_coalescing(torch.device("cpu"))
        assert not together.is_completed()
        future = together.get_future()
        future.wait()
        assert together.is_completed()
        assert [value.item() for value in future.value()] == [value.item() for value in values]
        return [value.item() for value in values]

    assert run(2, program) == [[1.0, 3.0]] * 2


def test_futures_that_torch_makes_of_ours() -> None:
    """`collect_all` and `wait_all` wait in C++ for a future that is no longer ours."""

    def program() -> list[float]:
        values = [torch.ones(1), torch.ones(1) * 2, torch.ones(1) * 3]
        futures = [dist.all_reduce(value, async_op=True).get_future() for value in values]
        torch.futures.wait_all(futures[:1])
        collected = torch.futures.collect_all(futures[1:]).wait()
        return [future.value()[0].item() for future in (futures[0], *collected)]

    assert run(2, program) == [[2.0, 4.0, 6.0]] * 2


def test_sent_tensors_may_change_after_the_wait() -> None:
    """The receiver sees what was there when the send was over, however late it looks."""

    def program() -> float:
        value = torch.ones(3)
        if dist.get_rank() == 0:
            dist.send(value, 1)
            value.fill_(7.0)
            dist.broadcast(value, 0)
            value.fill_(9.0)
        else:
            time.sleep(1.0)
            dist.recv(value, 0)
            assert value.tolist() == [1.0] * 3
            time.sleep(1.0)
            dist.broadcast(value, 0)
        return value[0].item()

    assert run(2, program) == [9.0, 7.0]


def test_a_root_that_is_early_may_change_its_tensors() -> None:
    def program() -> list[float]:
        me, ranks = dist.get_rank(), dist.get_world_size()
        value = torch.full((1,), float(me))
        out = torch.zeros(1)
        time.sleep(0.1 * me)
        lists = [torch.full((1,), 10.0 + rank) for rank in range(ranks)]
        dist.scatter(out, lists if me == 0 else None, 0)
        for entry in lists:
            entry.fill_(-1.0)
        gathered = [torch.zeros(1) for _ in range(ranks)]
        dist.gather(value, gathered if me == 2 else None, 2)
        value.fill_(-2.0)
        total = torch.full((1,), float(me))
        dist.reduce(total, 2)
        if me != 2:
            total.fill_(-3.0)
        return [out.item(), total.item(), *(entry.item() for entry in gathered)]

    values = run(3, program)
    assert [value[0] for value in values] == [10.0, 11.0, 12.0]
    assert values[2][1:] == [3.0, 0.0, 1.0, 2.0]


def test_only_the_ranks_own_thread_communicates() -> None:
    def program() -> str:
        found: list[str] = []
        group = dist.group.WORLD

        def other() -> None:
            try:
                group.allreduce([torch.ones(1)])
            except RuntimeError as error:
                found.append(str(error))

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        return found[0]

    assert "a thread that the program started" in run(1, program)[0]


def model() -> nn.Module:
    torch.manual_seed(5)
    layers = [nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2)]
    return nn.Sequential(*layers)


def batch(rank: int, step: int) -> Tensor:
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(100 * step + rank))


def trained(module: nn.Module, inputs: Callable[[int], Tensor], steps: int = 3) -> Tensor:
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    for step in range(steps):
        optimizer.zero_grad()
        module(inputs(step)).square().mean().backward()
        optimizer.step()
    values = [
        value.full_tensor() if hasattr(value, "full_tensor") else value
        for value in module.parameters()
    ]
    return torch.cat([value.detach().flatten() for value in values])


def alone(ranks: int) -> Tensor:
    """The same steps on one process with everybody's batches."""
    return trained(model(), lambda step: torch.cat([batch(rank, step) for rank in range(ranks)]))


@pytest.mark.parametrize(
    ("options", "hook", "tolerance"),
    [
        ({}, None, 1e-6),
        ({"find_unused_parameters": True}, None, 1e-6),
        ({"static_graph": True}, None, 1e-6),
        ({"gradient_as_bucket_view": True}, default_hooks.allreduce_hook, 1e-6),
        # Gradients of 11 bits.
        ({}, default_hooks.fp16_compress_hook, 1e-3),
    ],
    ids=["plain", "unused", "static", "hook", "fp16"],
)
@pytest.mark.filterwarnings("ignore:find_unused_parameters")
def test_data_parallel_training(options: dict[str, Any], hook: Any, tolerance: float) -> None:
    """The reducer waits in C++ for futures that only virtual time can fill."""

    def program() -> Tensor:
        rank = dist.get_rank()
        parallel = DistributedDataParallel(model(), bucket_cap_mb=0.0005, **options)
        if hook is not None:
            parallel.register_comm_hook(None, hook)
        return trained(parallel, lambda step: batch(rank, step))

    values = run(2, program)
    assert torch.equal(values[0], values[1])
    torch.testing.assert_close(values[0], alone(2), rtol=tolerance, atol=tolerance)


def test_ranks_with_fewer_batches() -> None:
    """Who is through shadows the others' collectives, and waits for works that C++ keeps."""

    def program() -> Tensor:
        rank = dist.get_rank()
        parallel = DistributedDataParallel(model())
        with parallel.join():
            for step in range(2 + rank):
                parallel(batch(rank, step)).square().mean().backward()
        gradients = [value.grad for value in parallel.parameters() if value.grad is not None]
        return torch.cat([gradient.flatten() for gradient in gradients])

    def expected(rank: int) -> Tensor:
        # The mean over both for two steps. Then rank 0 gives zeros, and half of what rank 1 has
        # gathered is the mean.
        module = model()
        for step in range(2):
            for other in range(2):
                (module(batch(other, step)).square().mean() / 2).backward()
        if rank == 1:
            module(batch(1, 2)).square().mean().backward()
        gradients = [value.grad for value in module.parameters() if value.grad is not None]
        return torch.cat([gradient.flatten() for gradient in gradients]) / (1 + rank)

    for rank, value in enumerate(run(2, program)):
        torch.testing.assert_close(value, expected(rank))


def test_gradients_travel_while_the_backward_pass_goes_on() -> None:
    """Two layers whose backward passes take 10 ms each, and 8 ms messages: the first hides."""

    class Slow(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: Tensor) -> Tensor:
            return value.view_as(value)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            time.sleep(10e-3)
            return grad

    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = (nn.Linear(500, 500, bias=False) for _ in range(2))

        def forward(self, value: Tensor) -> Tensor:
            return self.second(Slow.apply(self.first(Slow.apply(value))))

    def program() -> float:
        parallel = DistributedDataParallel(Layers(), bucket_cap_mb=0.5)
        value = torch.ones(1, 500, requires_grad=True)
        for _ in range(2):
            start = time.perf_counter()
            parallel(value).sum().backward()
            elapsed = time.perf_counter() - start
        return elapsed

    # Of the two megabytes, one travels (over both links, half each way) while Slow sleeps.
    elapsed = max(run(2, program))
    assert 20e-3 <= elapsed < 20e-3 + 1.5 * MEGABYTE


def test_fully_sharded_training() -> None:
    from torch.distributed.fsdp import fully_shard

    def program() -> Tensor:
        rank = dist.get_rank()
        sharded = model()
        for layer in sharded:
            if isinstance(layer, nn.Linear):
                fully_shard(layer)
        fully_shard(sharded)
        return trained(sharded, lambda step: batch(rank, step))

    values = run(2, program)
    assert torch.equal(values[0], values[1])
    torch.testing.assert_close(values[0], alone(2), rtol=1e-6, atol=1e-6)


def test_a_backward_pass_that_fails_leaves_the_next_one_alone() -> None:
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: Tensor) -> Tensor:
            return value.view_as(value)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            dist.all_reduce(grad, async_op=True).get_future()
            raise ValueError("on purpose")

    def program() -> Tensor:
        rank = dist.get_rank()
        with pytest.raises(ValueError, match="on purpose"):
            Fails.apply(torch.ones(1, requires_grad=True)).sum().backward()
        parallel = DistributedDataParallel(model())
        return trained(parallel, lambda step: batch(rank, step))

    torch.testing.assert_close(run(2, program)[0], alone(2), rtol=1e-6, atol=1e-6)
