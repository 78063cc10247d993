"""Virtual time of programs: against static programs, closed forms, and arithmetic by hand."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from leeboard import sim
from leeboard.sim import Platform, Program

LATENCY = 1e-3
BYTES = 4 << 10


def star(ranks: int, protocol: str = "gloo") -> Platform:
    platform = Platform.star(ranks, bandwidth="1 Gbit/s", latency=LATENCY, protocol=protocol)
    return platform.with_collectives("gloo")


def launched(body: Callable[[int], Any], platform: Platform, **options: Any) -> Any:
    """Run `body(rank)` on every device, computing costs nothing."""

    def program() -> Any:
        dist.init_process_group("gloo")
        return body(dist.get_rank())

    return sim.launch(program, platform, compute="none", **options)


def static(build: Callable[[Program], None], platform: Platform) -> float:
    program = Program(len(platform.devices))
    build(program)
    return sim.run(program, platform).makespan


FLOATS = torch.ones(BYTES // 4)


def _parts(size: int) -> list[torch.Tensor]:
    return [torch.empty(BYTES // 4) for _ in range(size)]


COLLECTIVES: dict[str, tuple[Callable[[int, int], Any], int]] = {
    "all_reduce": (lambda r, n: dist.all_reduce(FLOATS.clone()), 1),
    "all_gather": (lambda r, n: dist.all_gather(_parts(n), FLOATS), 1),
    "reduce_scatter": (lambda r, n: dist.reduce_scatter(FLOATS.clone(), _parts(n)), 0),
    "broadcast": (lambda r, n: dist.broadcast(FLOATS.clone(), 0), 1),
    "reduce": (lambda r, n: dist.reduce(FLOATS.clone(), 0), 1),
    "gather": (lambda r, n: dist.gather(FLOATS, _parts(n) if r == 0 else None, 0), 1),
    "scatter": (lambda r, n: dist.scatter(FLOATS.clone(), _parts(n) if r == 0 else None, 0), 0),
    "all_to_all": (lambda r, n: dist.all_to_all(_parts(n), _parts(n)), 0),
    "barrier": (lambda r, n: dist.barrier(), 1),
}


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("name", COLLECTIVES)
def test_a_collective_takes_what_the_static_one_takes(name: str, size: int) -> None:
    call, whole = COLLECTIVES[name]
    platform = star(size)
    total = BYTES if whole else BYTES * size
    options = {} if name == "barrier" else {"bytes": total}
    expected = static(lambda program: getattr(program, name)(**options), platform)
    result = launched(lambda rank: call(rank, size), platform).result
    assert result.makespan == expected > 0


def test_a_message_takes_two_latencies_and_its_bytes() -> None:
    platform = star(2)

    def body(rank: int) -> float:
        if rank == 0:
            dist.send(FLOATS, 1)
        else:
            dist.recv(FLOATS.clone(), 0)
        return time.perf_counter()

    run = launched(body, platform)
    protocol = platform.protocol
    wire = BYTES / (125e6 * protocol.goodput)
    assert run.result.makespan == pytest.approx(2 * LATENCY + wire, rel=0.02)
    start = launched(lambda rank: time.perf_counter(), platform).values[0]
    assert run.values[1] - start == pytest.approx(run.result.makespan, abs=1e-9)


def test_sleep_takes_its_time_and_no_more() -> None:
    def body(rank: int) -> tuple[float, float]:
        before, wall = time.perf_counter(), time.time()
        time.sleep(3600.0 * (rank + 1))
        return time.perf_counter() - before, time.time() - wall

    run = launched(body, star(2))
    for rank, (counter, wall) in enumerate(run.values):
        assert counter == pytest.approx(3600.0 * (rank + 1))
        assert wall == pytest.approx(3600.0 * (rank + 1))
    assert run.result.makespan == pytest.approx(7200.0)


def test_an_all_reduce_runs_beside_the_rank() -> None:
    platform = star(3)
    alone = static(lambda program: program.all_reduce(bytes=BYTES), platform)

    def body(pause: float) -> Callable[[int], None]:
        def run(rank: int) -> None:
            work = dist.all_reduce(FLOATS.clone(), async_op=True)
            time.sleep(pause)
            work.wait()

        return run

    for pause in (alone / 4, alone * 3):
        makespan = launched(body(pause), platform).result.makespan
        assert makespan == pytest.approx(max(alone, pause), abs=1e-9)


def test_is_completed_tells_the_present() -> None:
    platform = star(2)
    alone = static(lambda program: program.all_reduce(bytes=BYTES), platform)

    def body(rank: int) -> list[bool]:
        work = dist.all_reduce(FLOATS.clone(), async_op=True)
        seen = [work.is_completed()]
        for _ in range(2):
            time.sleep(alone * 0.6)
            seen.append(work.is_completed())
        return seen

    assert launched(body, platform).values == [[False, False, True]] * 2


def test_a_program_that_only_asks_comes_to_an_end() -> None:
    platform = star(2)
    alone = static(lambda program: program.all_reduce(bytes=BYTES), platform)

    def body(rank: int) -> float:
        begin = time.perf_counter()
        work = dist.all_reduce(FLOATS.clone(), async_op=True)
        while not work.is_completed():
            pass
        return time.perf_counter() - begin

    for took in launched(body, platform).values:
        assert alone <= took <= alone + 2e-6


def test_groups_work_side_by_side() -> None:
    def body(pair: bool) -> Callable[[int], None]:
        def run(rank: int) -> None:
            first, second = dist.new_group([0, 1]), dist.new_group([2, 3])
            if rank < 2 or pair:
                dist.all_reduce(FLOATS.clone(), group=first if rank < 2 else second)

        return run

    one, two = (launched(body(pair), star(4)).result.makespan for pair in (False, True))
    assert one == two > 0


def test_the_slow_rank_is_waited_for() -> None:
    platform = star(4)
    alone = static(lambda program: program.barrier(), platform)

    def body(rank: int) -> None:
        time.sleep(0.05 if rank == 2 else 0.0)
        dist.barrier()

    makespan = launched(body, platform).result.makespan
    assert 0.05 < makespan <= 0.05 + alone


def test_two_runs_are_the_same_run() -> None:
    def body(rank: int) -> float:
        x = torch.rand(50)
        for step in range(5):
            work = dist.all_reduce(x, async_op=True)
            time.sleep(1e-4 * ((rank * 7 + step) % 3))
            work.wait()
        if rank == 0:
            for _ in range(2):
                dist.recv(x)
        elif rank < 3:
            dist.send(x, 0)
        return float(x.sum())

    runs = [launched(body, star(4), seed=5) for _ in range(2)]
    assert runs[0].result.event_hash == runs[1].result.event_hash
    assert runs[0].values == runs[1].values


class Slow(torch.autograd.Function):
    """The identity, which takes its time."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, forward: float, backward: float) -> torch.Tensor:
        ctx.backward_time = backward
        time.sleep(forward)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        time.sleep(ctx.backward_time)
        return grad, None, None


class Layer(nn.Module):
    def __init__(self, forward: float, backward: float, width: int = 64) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width, bias=False)
        self.times = forward, backward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # In the backward pass the pause comes before the gradient of the weight.
        y: torch.Tensor = Slow.apply(self.linear(x), *self.times)
        return y


def test_ddp_hides_its_buckets_behind_the_backward_pass() -> None:
    from torch.nn.parallel import DistributedDataParallel

    platform = star(2)
    pause = 0.02
    bucket = 64 * 64 * 4
    exchange = static(lambda program: program.all_reduce(bytes=bucket), platform)
    assert exchange < pause

    def body(rank: int) -> float:
        model = nn.Sequential(*[Layer(0.0, pause) for _ in range(3)])
        model = DistributedDataParallel(model, bucket_cap_mb=bucket / 2**20)
        # The first step finds the order of the buckets.
        model(torch.ones(2, 64)).sum().backward()
        dist.barrier()
        start = time.perf_counter()
        model(torch.ones(2, 64)).sum().backward()
        return time.perf_counter() - start

    for took in launched(body, platform).values:
        # Three pauses, and only the last bucket's exchange shows.
        assert 3 * pause + 0.5 * exchange < took < 3 * pause + 2 * exchange


@pytest.mark.parametrize("schedule", ["ScheduleGPipe", "Schedule1F1B"])
def test_a_pipeline_has_the_bubble_of_its_schedule(schedule: str) -> None:
    from torch.distributed import pipelining

    stages, batches, forward, backward = 3, 6, 0.01, 0.02
    platform = Platform.star(stages, bandwidth="100 Gbit/s", latency=1e-6, protocol="ideal")

    def body(rank: int) -> float:
        module = Layer(forward, backward, 8)
        stage = pipelining.PipelineStage(module, rank, stages, torch.device("cpu"))
        run = getattr(pipelining, schedule)(
            stage, n_microbatches=batches, loss_fn=nn.functional.mse_loss
        )
        took = 0.0
        for _ in range(2):
            dist.barrier()
            start = time.perf_counter()
            if rank == 0:
                run.step(torch.ones(batches, 8))
            elif rank == stages - 1:
                run.step(target=torch.ones(batches, 8))
            else:
                run.step()
            dist.barrier()
            took = time.perf_counter() - start
        return took

    expected = (batches + stages - 1) * (forward + backward)
    for took in launched(body, platform).values:
        assert took == pytest.approx(expected, rel=0.02)


def test_replay_of_the_trace_is_the_run() -> None:
    platform = star(4)

    def body(rank: int) -> None:
        group = dist.new_group([0, 1, 2])
        x = torch.ones(1000)
        for _ in range(3):
            work = dist.all_reduce(x, async_op=True)
            time.sleep(1e-4 * rank)
            work.wait()
            if rank < 3:
                dist.broadcast(x, 1, group=group)
        dist.barrier()

    run = launched(body, platform)
    again = sim.replay(run.trace, platform)
    assert again.makespan == run.result.makespan
    assert again.event_hash == run.result.event_hash
    faster = platform.with_links("*", bandwidth="10 Gbit/s")
    assert sim.replay(run.trace, faster).event_hash == launched(body, faster).result.event_hash
