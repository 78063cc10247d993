"""What ordinary programs do now and then, and what a run then has to do."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import timeit
from concurrent.futures import ThreadPoolExecutor
from importlib import _bootstrap as bootstrap  # type: ignore[attr-defined]
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel

from leeboard import sim
from leeboard.sim.distributed import watch

REAL_SLEEP = time.sleep


def ran(target: Any, ranks: int = 4, **options: Any) -> sim.Launched:
    platform = sim.Platform.star(ranks, bandwidth="1 Gbit/s", latency="100 us")
    return sim.launch(target, platform, compute="none", **options)


def test_groups_after_a_new_start_may_have_other_ranks() -> None:
    def program() -> list[float]:
        sums = []
        for pair in ([0, 1], [0, 2], [1, 2]):
            dist.init_process_group()
            group = dist.new_group(pair)
            x = torch.tensor([float(dist.get_rank() + 1)])
            if dist.get_rank() in pair:
                dist.all_reduce(x, group=group)
            dist.all_reduce(torch.ones(1))
            sums.append(x.item())
            dist.destroy_process_group()
        return sums

    assert ran(program).values == [[3, 4, 1], [3, 2, 5], [3, 4, 5], [4, 4, 4]]


def test_an_all_to_all_in_which_most_give_nothing() -> None:
    def program() -> list[float]:
        dist.init_process_group()
        rank, size = dist.get_rank(), dist.get_world_size()
        time.sleep(0.01 * rank)
        sends = [int(other == (rank + 1) % size) for other in range(size)]
        receives = [int(other == (rank - 1) % size) for other in range(size)]
        out = torch.zeros(1, 2)
        dist.all_to_all_single(out, torch.full((1, 2), float(rank)), receives, sends)
        dist.all_to_all_single(torch.zeros(0), torch.zeros(0), [0] * size, [0] * size)
        return out[0].tolist()

    assert ran(program).values == [[3, 3], [0, 0], [1, 1], [2, 2]]


def test_a_reduction_of_no_elements() -> None:
    def program() -> tuple[int, ...]:
        dist.init_process_group()
        x = torch.zeros(3, 0)
        dist.reduce(x, 1)
        dist.all_reduce(x)
        return tuple(x.shape)

    assert ran(program).values == [(3, 0)] * 4


def test_futures_made_of_futures_wait_in_virtual_time() -> None:
    def program() -> tuple[float, float, bool]:
        dist.init_process_group()

        def begin() -> Any:
            work = dist.all_reduce(torch.ones(4), async_op=True)
            assert work is not None
            return work.get_future().then(lambda future: future.value()[0].sum())

        first = torch.futures.wait_all([begin(), begin()])
        second = torch.futures.collect_all([begin()])
        early = second.done()
        while not second.done():
            time.sleep(1e-4)
        return float(sum(first)), float(second.value()[0].value()), early

    assert ran(program).values == [(32, 16, False)] * 4


def test_ranks_with_fewer_batches_join() -> None:
    def program() -> list[list[float]]:
        dist.init_process_group()
        torch.manual_seed(0)
        model = DistributedDataParallel(torch.nn.Linear(4, 1))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with Join([model]):
            for _ in range(1 + dist.get_rank()):
                model(torch.ones(2, 4)).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
        return [parameter.flatten().tolist() for parameter in model.parameters()]

    torch.manual_seed(0)
    start = [parameter.flatten() for parameter in torch.nn.Linear(4, 1).parameters()]
    values = ran(program, 3).values
    # Each step divides by all three ranks, however many are still there.
    moved = 0.1 * 2 * (3 / 3 + 2 / 3 + 1 / 3)
    for got in values:
        for parameter, begun in zip(got, start, strict=True):
            torch.testing.assert_close(torch.tensor(parameter), (begun - moved).detach())


def test_two_ranks_that_profile_at_once_are_told() -> None:
    def program(both: bool) -> int:
        dist.init_process_group()
        if not both and dist.get_rank() > 0:
            dist.barrier()
            return 0
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities) as profile:
            torch.ones(2).exp()
            dist.barrier()
        return len(profile.key_averages())

    assert ran(program, 2, args=(False,)).values[0] > 0
    with pytest.raises(sim.SimulationError, match="rank 1 starts torch's profiler"):
        ran(program, 2, args=(True,))
    # The next run may.
    assert ran(program, 2, args=(False,)).values[0] > 0


def test_the_clock_of_timeit_is_simulated() -> None:
    real = timeit.default_timer

    def program() -> float:
        start = timeit.default_timer()
        dist.init_process_group()
        time.sleep(3)
        return timeit.default_timer() - start

    assert ran(program, 2).values == [3.0, 3.0]
    assert timeit.default_timer is real


def test_one_run_at_a_time() -> None:
    refused: list[str] = []

    def other() -> None:
        try:
            ran(lambda: None)
        except sim.SimulationError as error:
            refused.append(str(error))

    def program() -> None:
        if not refused:
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()

    ran(program, 1)
    assert "runs in this process already" in refused[0]


def test_a_script_has_its_own_modules(tmp_path: Path) -> None:
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "settings_of_it.py").write_text(f"number = {number}\n")
        (folder / "script.py").write_text(
            "import torch.distributed as dist, settings_of_it, os\n"
            "dist.init_process_group()\n"
            f"assert settings_of_it.number == {number}, settings_of_it\n"
        )
        ran(folder / "script.py", 2)


def test_a_thread_knows_the_ranks_groups_but_cannot_use_them() -> None:
    def program() -> tuple[int, bool]:
        dist.init_process_group()
        with ThreadPoolExecutor(1) as pool:
            rank = pool.submit(dist.get_rank).result()
            with pytest.raises(RuntimeError, match="a thread that the program started"):
                pool.submit(dist.barrier).result()
        return rank, dist.is_initialized()

    assert ran(program, 2).values == [(0, True), (1, True)]


def test_sparse_tensors_are_refused_with_a_way_out() -> None:
    def program() -> None:
        dist.init_process_group()
        dist.all_reduce(torch.eye(3).to_sparse())

    with pytest.raises(sim.SimulationError, match=r"call \.to_dense\(\) first"):
        ran(program, 2)


def test_lines_are_the_programs_own() -> None:
    def program() -> None:
        dist.init_process_group()
        if dist.get_rank() == 0:
            dist.reduce_scatter_tensor(torch.zeros(1), torch.zeros(2))

    with pytest.warns(FutureWarning), pytest.raises(sim.DeadlockError) as caught:
        ran(program, 2)
    line = program.__code__.co_firstlineno + 3
    assert f"test_habits.py:{line}" in caught.value.blocked[0].waits_for


def test_settings_that_ranks_share_are_put_back(tmp_path: Path) -> None:
    def settings() -> tuple[object, ...]:
        return (
            os.getcwd(),
            sys.getrecursionlimit(),
            threading.excepthook,
            torch.is_anomaly_enabled(),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_float32_matmul_precision(),
        )

    def program() -> None:
        os.chdir(tmp_path)
        sys.setrecursionlimit(sys.getrecursionlimit() + 1000)
        threading.excepthook = print
        torch.autograd.set_detect_anomaly(True, check_nan=False)
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.set_float32_matmul_precision("high")
        raise ValueError

    before = settings()
    with pytest.raises(sim.SimulationError, match="raised ValueError"):
        ran(program, 1)
    assert settings() == before


def test_a_slow_import_is_no_stuck_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "IMPORT", 0.1)

    def program() -> None:
        if os.environ["RANK"] == "0":
            # As a module that loads its library from a slow disk.
            bootstrap._call_with_frames_removed(REAL_SLEEP, 0.6)
        dist.init_process_group()

    ran(program, 2)


def test_what_a_rank_registers_at_exit_is_called_at_its_end(
    capfd: pytest.CaptureFixture[str],
) -> None:
    ends: list[tuple[int, bool]] = []

    def end(*, known: bool) -> None:
        ends.append((dist.get_rank(), known))
        dist.destroy_process_group()

    def fails() -> None:
        raise ValueError("at the end")

    def program() -> None:
        dist.init_process_group()
        atexit.register(end, known=True)
        atexit.register(fails)
        atexit.register(fails)
        if dist.get_rank() == 0:
            atexit.unregister(fails)
        raise SystemExit

    ran(program, 2)
    assert ends == [(0, True), (1, True)]
    assert capfd.readouterr().err.count("ValueError: at the end") == 2


def test_an_all_to_all_with_itself_must_agree() -> None:
    def program() -> None:
        dist.init_process_group()
        dist.all_to_all_single(torch.zeros(3), torch.zeros(2), [2, 1], [1, 1])

    with pytest.raises(sim.SimulationError, match=r"all_to_all_single at .*gives itself 4 bytes"):
        ran(program, 2)
