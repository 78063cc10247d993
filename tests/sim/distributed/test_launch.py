"""Functions, scripts and modules on simulated ranks; and that a run leaves nothing behind."""

from __future__ import annotations

import os
import random
import selectors
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from leeboard import sim
from leeboard.sim.distributed.clock import EPOCH

LATENCY = 100e-6


def star(ranks: int) -> sim.Platform:
    return sim.Platform.star(ranks, bandwidth="1 Gbit/s", latency="100 us")


def ran(target: Any, ranks: int = 4, **options: Any) -> sim.Launched:
    return sim.launch(target, star(ranks), compute="none", **options)


def test_importing_sim_does_not_load_the_torch_part() -> None:
    lines = (
        "import sys, leeboard.sim, leeboard._cli.sim_commands",
        "assert 'leeboard.sim.distributed' not in sys.modules",
        "assert leeboard.sim.launch.__module__ == 'leeboard.sim.distributed.launch'",
    )
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, timeout=120)


def test_values_are_those_of_each_rank() -> None:
    def program(factor: int) -> tuple[float, int]:
        dist.init_process_group()
        x = torch.full((4,), float(dist.get_rank()))
        dist.all_reduce(x)
        return x[0].item() * factor, dist.get_rank()

    assert ran(program, args=(10,)).values == [(60.0, rank) for rank in range(4)]


@pytest.mark.parametrize(
    ("backend", "method"),
    [
        (None, None),
        ("gloo", "env://"),
        ("nccl", "tcp://10.0.0.1:23456"),
        ("mpi", None),
        ("cpu:gloo,cuda:nccl", "file:///nowhere/at/all"),
    ],
)
def test_any_backend_and_any_address_is_sim(backend: str | None, method: str | None) -> None:
    def program() -> tuple[str, str, int, float]:
        if method is None or method.startswith("env"):
            dist.init_process_group(backend, init_method=method)
        else:
            rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            dist.init_process_group(backend, init_method=method, rank=rank, world_size=size)
        group = dist.new_group([0, 2], backend=backend)
        x = torch.ones(1)
        dist.all_reduce(x, group=group if dist.get_rank() in (0, 2) else None)
        if dist.get_rank() in (0, 2):
            dist.all_reduce(torch.ones(1))
        else:
            dist.get_world_size()
        name = dist.get_backend()
        dist.destroy_process_group()
        return name, str(dist.is_initialized()), len(distributed_c10d._world.pg_map), x.item()

    # The odd ranks' sum is over all four, as is the even ranks' second.
    assert ran(program).values == [
        ("sim", "False", 0, 2.0 if rank % 2 == 0 else 4.0) for rank in range(4)
    ]


def test_what_torch_has_for_one_backend_alone() -> None:
    def program() -> tuple[Any, ...]:
        dist.init_process_group("nccl")
        dist.monitored_barrier(wait_all_ranks=True)
        group = dist.split_group(split_ranks=[[3, 1], [0]])
        if group is None:
            return (None,)
        x = torch.ones(1)
        dist.all_reduce(x, group=group)
        return dist.get_process_group_ranks(group), dist.get_backend(group), x.item()

    pair = ([1, 3], "sim", 2.0)
    assert ran(program).values == [([0], "sim", 1.0), pair, (None,), pair]
    with pytest.raises(sim.SimulationError, match="split_ranks: got None"):
        ran(lambda: (dist.init_process_group(), dist.split_group()))


def test_groups_can_be_made_again() -> None:
    def program() -> list[float]:
        sums = []
        for _ in range(3):
            dist.init_process_group()
            mine, every = dist.new_subgroups(2)
            assert len(every) == 2
            x = torch.full((1,), float(dist.get_rank()))
            dist.all_reduce(x, group=mine)
            sums.append(x.item())
            dist.destroy_process_group()
        return sums

    assert ran(program).values == [[1.0] * 3, [1.0] * 3, [5.0] * 3, [5.0] * 3]


def test_torchrun_variables() -> None:
    def program() -> tuple[str, ...]:
        names = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
        return (*(os.environ[name] for name in names), str(dist.is_torchelastic_launched()))

    assert ran(program, 6, per_node=4).values == [
        (str(rank), str(rank % 4), str(rank // 4), "6", "4" if rank < 4 else "2", "True")
        for rank in range(6)
    ]


def test_time_is_virtual_on_ranks_and_real_elsewhere() -> None:
    outside = {}

    def program() -> list[float]:
        began = time.time()
        if int(os.environ["RANK"]) == 0:
            thread = threading.Thread(target=lambda: outside.update(now=time.time()))
            thread.start()
            thread.join()
        time.sleep(3600)
        times = [time.perf_counter(), time.monotonic(), time.process_time(), time.time() - began]
        return [*times, time.perf_counter_ns() / 1e9, time.time_ns() / 1e9 - EPOCH]

    began = time.time()
    launched = ran(program, 2)
    assert time.time() - began < 60
    assert outside["now"] == pytest.approx(began, abs=60)
    assert launched.values == [[3600.0] * 6] * 2
    assert launched.result.makespan == 3600
    # Asleep is neither busy nor communicating.
    assert launched.result.shares()["idle"] == 1


def test_timers_of_asyncio_pass_in_virtual_time() -> None:
    import asyncio

    async def serve(rank: int) -> float:
        loop = asyncio.get_running_loop()
        first = asyncio.create_task(asyncio.sleep(10 + rank, "slow"))
        done = [await asyncio.sleep(4, "quick"), await first]
        assert done == ["quick", "slow"]
        assert await loop.run_in_executor(None, lambda: 3) == 3
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), timeout=5)
        return loop.time()

    def program() -> tuple[float, float]:
        return asyncio.run(serve(int(os.environ["RANK"]))), time.monotonic()

    began = time.monotonic()
    for rank, (loop_time, now) in enumerate(ran(program, 2).values):
        assert loop_time == pytest.approx(15 + rank, abs=1e-6)
        assert now == pytest.approx(15 + rank, abs=1e-6)
    assert time.monotonic() - began < 10


def test_a_message_takes_what_the_platform_says() -> None:
    def program() -> float:
        dist.init_process_group()
        x = torch.zeros(250_000)
        if dist.get_rank() == 0:
            dist.send(x, 1)
        else:
            dist.recv(x, 0)
        return time.perf_counter()

    # 1 MB over 1 Gbit/s, there and through the switch.
    launched = ran(program, 2, network="alpha-beta")
    assert launched.values[1] == pytest.approx(8e-3 + LATENCY, rel=1e-3)
    assert launched.result.makespan == launched.values[1]


def test_ranks_run_in_the_order_of_their_clocks() -> None:
    order: list[tuple[int, float]] = []

    def program() -> None:
        rank = int(os.environ["RANK"])
        for _ in range(3):
            time.sleep((rank + 1) * 1e-3)
            order.append((rank, time.perf_counter()))

    ran(program, 3)
    assert [at for _, at in order] == sorted(at for _, at in order)


def busy(rounds: int) -> float:
    dist.init_process_group()
    rank, size = dist.get_rank(), dist.get_world_size()
    x = torch.rand(1000)
    for turn in range(rounds):
        time.sleep(random.random() * 1e-3)
        dist.all_reduce(x)
        if turn % 2:
            works = [dist.isend(x, (rank + 1) % size), dist.irecv(x.clone(), (rank - 1) % size)]
            for work in works:
                work.wait()
    return x.sum().item()


def test_two_runs_are_equal_and_so_is_the_replay() -> None:
    first, second, other = (ran(busy, args=(6,), seed=seed) for seed in (5, 5, 6))
    assert first.values == second.values
    assert first.trace == second.trace
    assert first.result.event_hash == second.result.event_hash
    assert first.values != other.values
    replayed = sim.replay(first.trace, star(4), seed=5)
    assert replayed.event_hash == first.result.event_hash
    assert replayed.makespan_ps == first.result.makespan_ps
    assert replayed.messages == first.result.messages > 0


def test_record_gives_a_trace_that_another_platform_replays_as_a_new_run(tmp_path: Path) -> None:
    slow = sim.Platform.star(4, bandwidth="100 Mbit/s", latency="1 ms")
    trace = sim.record(busy, star(4), args=(4,), compute="none")
    trace.save(tmp_path / "busy.trace")
    again = sim.replay(sim.Trace.load(tmp_path / "busy.trace"), slow)
    direct = sim.launch(busy, slow, args=(4,), compute="none")
    assert again.event_hash == direct.result.event_hash
    assert again.makespan_ps == direct.result.makespan_ps
    assert trace.metadata["program"] == "busy"
    assert trace.metadata["compute"] == "none"
    assert trace.metadata["torch"] == torch.__version__


SCRIPT = """
import argparse, os, sys
import torch
import torch.distributed as dist
from beside import NAME

parser = argparse.ArgumentParser()
parser.add_argument("--times", type=int)
args = parser.parse_args()
mine = os.environ["RANK"]


def main():
    dist.init_process_group("gloo")
    assert sys.modules["__main__"].mine == mine, "another rank's __main__"
    names = [None] * dist.get_world_size()
    for _ in range(args.times):
        dist.all_gather_object(names, Named(mine))
    print(NAME, dist.get_rank(), [name.name for name in names])
    assert sys.modules["__main__"].mine == mine


class Named:
    def __init__(self, name):
        self.name = name


if __name__ == "__main__":
    main()
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "beside.py").write_text("NAME = 'rank'\n")
    path = tmp_path / "talking.py"
    path.write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    yield path
    for name in ("beside", "talking"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("module", [False, True])
def test_a_script_is_main_on_every_rank(
    script: Path, module: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    main, argv = sys.modules["__main__"], list(sys.argv)
    target = f"-m {script.stem}" if module else script
    launched = ran(target, 3, args=["--times", "2"])
    lines = sorted(capsys.readouterr().out.splitlines())
    assert lines == [f"rank {rank} ['0', '1', '2']" for rank in range(3)]
    assert launched.values == [None] * 3
    assert sys.modules["__main__"] is main
    assert sys.argv == argv
    assert launched.trace.metadata["arguments"] == "--times 2"


def test_prefix(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def program() -> None:
        print("one\ntwo", end="")

    ran(program, 2, prefix=True)
    assert sorted(capsys.readouterr().out.splitlines()) == [
        "[rank 0] one",
        "[rank 0] two",
        "[rank 1] one",
        "[rank 1] two",
    ]


def state() -> list[Any]:
    """What a run replaces."""
    return [
        [getattr(time, name) for name in ("time", "perf_counter", "sleep", "monotonic_ns")],
        [getattr(random, name) for name in ("random", "seed", "shuffle")],
        [getattr(np.random, name) for name in ("rand", "seed", "shuffle")],
        [getattr(distributed_c10d, name) for name in ("_world", "rendezvous")],
        distributed_c10d._new_process_group_helper,
        [
            dist.TCPStore,
            dist.HashStore,
            dist.monitored_barrier,
            dist.split_group,
            dist.ProcessGroupGloo,
        ],
        sorted(dist.Backend._plugins),
        list(dist.Backend.backend_list),
        hasattr(dist.Backend, "SIM"),
        [os.fork, os.putenv, os.environ._data, dict(os.environ)],  # type: ignore[attr-defined]
        [sys.stdout, sys.argv, sys.path, sys.excepthook, sys.modules["__main__"]],
        [list(sys.path), list(sys.argv), warnings.filters, list(warnings.filters)],
        torch.get_num_threads(),
        [torch.set_num_threads, selectors.DefaultSelector.select, signal.signal],
        torch.get_default_dtype(),
        torch.default_generator.get_state().tolist(),
        random.getstate(),
        np.random.get_state()[1].tolist(),  # noqa: NPY002
        torch._C._distributed_c10d._get_thread_isolation_mode()
        if hasattr(torch._C._distributed_c10d, "_get_thread_isolation_mode")
        else None,
        threading.active_count(),
    ]


def ends_well() -> None:
    dist.init_process_group()
    os.environ["LEFT"] = "behind"
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(3)
    torch.rand(3), random.random(), np.random.rand(2)  # noqa: NPY002
    sys.path.append("nowhere")
    warnings.simplefilter("ignore")
    torch.set_num_threads(3)


def ends_badly() -> None:
    ends_well()
    raise ValueError("as it must")


def ends_stuck() -> None:
    ends_well()
    if dist.get_rank():
        dist.barrier()


@pytest.mark.parametrize("program", [ends_well, ends_badly, ends_stuck])
def test_everything_is_put_back(program: Callable[[], None]) -> None:
    before = state()
    try:
        ran(program, 3)
    except sim.SimulationError:
        assert program is not ends_well
    else:
        assert program is ends_well
    assert state() == before
    # In the C library's environment, too.
    shown = subprocess.run(["env"], capture_output=True, text=True, check=True).stdout
    assert "LEFT=" not in shown


def test_many_ranks() -> None:
    def program() -> float:
        dist.init_process_group()
        x = torch.ones(1)
        dist.all_reduce(x)
        return x.item()

    assert set(ran(program, 200, network="alpha-beta", links=False).values) == {200.0}


def test_an_interrupted_run_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from leeboard.sim.distributed import crew

    def program() -> None:
        dist.init_process_group()
        if dist.get_rank():
            dist.barrier()
        while True:
            sum(range(1000))

    class Interrupted(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            if threading.current_thread() is not threading.main_thread():
                return super().wait(timeout)
            if not session_seen.wait(0.01):
                return False
            raise KeyboardInterrupt

    session_seen = threading.Event()
    original = crew.Crew._call

    def call(self: Any, rank: Any, main: Any) -> Any:
        session_seen.set()
        return original(self, rank, main)

    monkeypatch.setattr(crew.Crew, "_call", call)
    monkeypatch.setattr(crew.threading, "Event", Interrupted)
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        ran(program, 3)
    assert threading.active_count() == before
    assert not dist.is_initialized()


def test_arguments_are_checked() -> None:
    def program() -> None:
        raise AssertionError("must not run")

    for options, message in (
        ({"ranks": 3}, "got 3, but the platform has 2 devices: use 2"),
        ({"ranks": 0}, "ranks: got 0"),
        ({"compute": "guessed"}, "compute: got 'guessed', expected one of measured"),
        ({"network": "best"}, "network: got 'best'"),
        ({"per_node": 0}, "per_node: got 0"),
        ({"seed": -1}, "seed: got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            sim.launch(program, star(2), **{"compute": "none", **options})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="target: got 3"):
        ran(3)
    with pytest.raises(TypeError, match="args: got 4, expected text"):
        ran("script.py", args=[4])
    with pytest.raises(FileNotFoundError, match=r"nothing\.py: no such file"):
        ran("nothing.py")
    with pytest.raises(ModuleNotFoundError, match="-m no_such_module_here"):
        ran("-m no_such_module_here")


def test_fewer_ranks_than_devices() -> None:
    def program() -> int:
        dist.init_process_group()
        return dist.get_world_size()

    assert sim.launch(program, star(8), ranks=3, compute="none").values == [3] * 3
