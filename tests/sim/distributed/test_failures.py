"""Programs that cannot run: every message says which rank, where, when and what to change."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch.utils.data import DataLoader

from leeboard import sim
from leeboard.sim.distributed import watch
from leeboard.sim.distributed.clock import EPOCH
from leeboard.sim.distributed.failures import RankError, hint, ranks

HERE = Path(__file__).name


def ran(program: Callable[[], Any], count: int = 3) -> list[Any]:
    platform = sim.Platform.star(count, bandwidth="1 Gbit/s", latency="100 us")
    return sim.launch(program, platform, compute="none").values


def error_of(program: Callable[[], Any]) -> str:
    """What is said about a rank that raised."""
    with pytest.raises(RankError) as caught:
        ran(program)
    return str(caught.value)


def line_of(function: Callable[..., Any], text: str) -> str:
    """Where `text` is in the source of `function`: "file.py:12"."""
    first = function.__code__.co_firstlineno
    lines = Path(__file__).read_text().splitlines()
    return f"{HERE}:{next(at for at in range(first, len(lines)) if text in lines[at - 1])}"


def test_deadlock_says_who_waits_where_for_what_since_when() -> None:
    def program() -> None:
        dist.init_process_group()
        time.sleep(0.5)
        if dist.get_rank() == 1:
            dist.recv(torch.ones(2), 0, tag=7)
        dist.barrier()

    with pytest.raises(sim.DeadlockError) as caught:
        ran(program)
    blocked = {entry.rank: entry for entry in caught.value.blocked}
    assert sorted(blocked) == [0, 1, 2]
    assert {entry.since for entry in blocked.values()} == {0.5}
    assert "a message of rank 0 (tag 7)" in blocked[1].waits_for
    assert line_of(program, "dist.recv") in blocked[1].waits_for
    assert "to which rank(s) 1 have not come" in blocked[2].waits_for
    assert line_of(program, "dist.barrier") in blocked[2].waits_for


def test_a_rank_that_ends_early_is_named() -> None:
    def program() -> None:
        if os.environ["RANK"] == "2":
            return
        dist.init_process_group()
        if dist.get_rank() == 0:
            sys.exit()
        dist.barrier()

    with pytest.raises(sim.DeadlockError) as caught:
        ran(program)
    assert [entry.rank for entry in caught.value.blocked] == [1]
    assert caught.value.notes == (
        "rank 0 had ended: it called sys.exit",
        "rank 2 had ended: its program returned",
        "rank 2 never called init_process_group",
    )
    assert "rank 2 never called init_process_group" in str(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).notes == caught.value.notes


def test_a_key_that_nobody_sets_is_named() -> None:
    def program() -> None:
        dist.init_process_group()
        store = dist.TCPStore("host", 5, is_master=dist.get_rank() == 0, wait_for_workers=False)
        if dist.get_rank() == 1:
            store.get("answer")

    with pytest.raises(sim.DeadlockError) as caught:
        ran(program)
    (entry,) = caught.value.blocked
    assert entry.rank == 1
    assert entry.waits_for.startswith("key 'answer' of the TCPStore of port 5")
    assert line_of(program, "store.get") in entry.waits_for


def test_a_program_that_catches_everything_cannot_hold_up_the_end() -> None:
    def program() -> None:
        dist.init_process_group()
        while True:
            with contextlib.suppress(Exception):
                dist.recv(torch.ones(1), (dist.get_rank() + 1) % 3)

    with pytest.raises(sim.DeadlockError):
        ran(program)


def test_mismatch_names_both_calls() -> None:
    def program() -> None:
        dist.init_process_group()
        x = torch.ones(3)
        if dist.get_rank() == 1:
            dist.broadcast(x, 0)
        else:
            dist.all_reduce(x)

    with pytest.raises(sim.CollectiveMismatchError) as caught:
        ran(program)
    text = str(caught.value)
    assert "rank 1 calls broadcast of float32 [3], root 0" in text
    assert "calls all_reduce of float32 [3]" in text
    assert line_of(program, "dist.broadcast") in text


def test_a_rank_that_raises() -> None:
    def inner() -> None:
        raise KeyError("weights")

    def program() -> None:
        dist.init_process_group()
        time.sleep(0.25 * (1 + dist.get_rank()))
        if dist.get_rank() == 1:
            inner()
        dist.barrier()

    with pytest.raises(RankError) as caught:
        ran(program)
    error, text = caught.value, str(caught.value)
    assert (error.rank, error.at) == (1, 0.5)
    assert text.startswith("rank 1, at 500 ms, raised KeyError: 'weights'\nTraceback")
    # The program's own lines, and none of those that started it.
    assert text.count(HERE) >= 2
    assert "leeboard/sim/distributed" not in text.replace(__file__, "")
    assert line_of(program, "dist.barrier") in error.others[0]
    assert line_of(program, "time.sleep") in error.others[2]
    assert isinstance(error.__cause__, KeyError)
    assert str(pickle.loads(pickle.dumps(error))) == text


def test_the_first_that_raises_in_virtual_time_is_told() -> None:
    def program() -> None:
        dist.init_process_group()
        time.sleep(3.0 - dist.get_rank())
        raise ValueError(f"of rank {dist.get_rank()}")

    with pytest.raises(RankError, match="rank 2, at 1 s, raised ValueError: of rank 2"):
        ran(program)


def test_a_rank_that_exits_with_an_error() -> None:
    def program() -> None:
        dist.init_process_group()
        if dist.get_rank() == 2:
            time.sleep(1)
            sys.exit(3)
        dist.barrier()

    with pytest.raises(RankError, match="rank 2, at 1 s, exited with status 3") as caught:
        ran(program)
    assert line_of(program, "dist.barrier") in caught.value.others[0]


def test_a_script_that_never_initialises(tmp_path: Path) -> None:
    script = tmp_path / "alone.py"
    script.write_text("print('alone')\n")
    platform = sim.Platform.star(2, bandwidth="1 Gbit/s", latency="100 us")
    with pytest.raises(sim.SimulationError, match=r"no rank called .*init_process_group"):
        sim.launch(script, platform, compute="none")
    assert sim.launch(script, platform, ranks=1, compute="none").result.makespan == 0


def test_a_script_that_is_asked_for_its_help(tmp_path: Path) -> None:
    path = tmp_path / "helps.py"
    path.write_text("import argparse\nargparse.ArgumentParser().parse_args()\n")
    star = sim.Platform.star(2, bandwidth="1 Gbit/s", latency="1 ms")
    assert sim.launch(path, star, args=["--help"], compute="none").result.makespan == 0


def test_a_group_that_was_never_made() -> None:
    assert "call torch.distributed.init_process_group() first" in error_of(lambda: dist.barrier())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"world_size": 2, "rank": 0}, "world_size is 2, but the number of simulated ranks is 3"),
        ({"rank": 2, "world_size": 3}, "rank is 2, but this is rank 0"),
        ({"init_method": "tcp://a:1"}, r"rank is missing; use env://"),
        ({"init_method": "zk://a"}, "expected env://, tcp://host:port or file://"),
    ],
)
def test_another_number_of_ranks(arguments: dict[str, Any], message: str) -> None:
    def program() -> None:
        dist.init_process_group(**arguments)

    with pytest.raises(RankError, match=message):
        ran(program)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this host has a GPU")
@pytest.mark.parametrize(
    "program",
    [
        lambda: torch.ones(2, device="cuda"),
        lambda: torch.nn.Linear(2, 2).cuda(),
        lambda: torch.cuda.set_device(0),
        lambda: dist.init_process_group("nccl", device_id=torch.device("cuda:0")),
        lambda: torch.cuda.synchronize(),
    ],
)
def test_cuda_without_a_gpu(program: Callable[[], Any]) -> None:
    text = error_of(program)
    assert "this host has no GPU that torch can use" in text
    assert "torch.cuda.is_available()" in text


def test_the_gpus_of_the_host_are_shared() -> None:
    error = RuntimeError("CUDA error: invalid device ordinal")
    assert "LOCAL_RANK modulo torch.cuda.device_count()" in hint(error)
    assert hint(RuntimeError("anything else")) == ""


@pytest.mark.parametrize(
    "program",
    [
        lambda: dist.ProcessGroupNCCL.Options(),
        lambda: dist.ProcessGroupGloo(dist.HashStore(), 0, 1),
    ],
)
def test_calls_of_one_backend_alone(program: Callable[[], Any]) -> None:
    text = error_of(program)
    assert "the backend of a simulated run is 'sim'" in text
    assert "dist.get_backend()" in text


def test_methods_of_one_backend_alone() -> None:
    def program() -> None:
        dist.init_process_group("nccl")
        group = dist.distributed_c10d._get_default_group()
        group._get_backend(torch.device("cuda"))._allocate_anything()

    assert "the backend of a simulated run is 'sim'" in error_of(program)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (lambda: os.fork(), "rank 0 starts a process, which would be no part of the simulation"),
        (lambda: multiprocessing.Process(target=print).start(), "rank 0 starts a process"),
        (
            lambda: torch.multiprocessing.spawn(print, nprocs=2),
            r"calls torch.multiprocessing.spawn: the ranks are there already",
        ),
        (lambda: list(DataLoader([1, 2], num_workers=1)), "pass num_workers=0"),
    ],
)
def test_processes_are_refused(program: Callable[[], Any], message: str) -> None:
    assert message in error_of(program)


def test_reading_the_clock_in_an_import_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "reads_the_clock.py").write_text(
        "import time\nBEGAN = time.time()\ntime.sleep(1)\nNOW = time.perf_counter()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def program() -> float:
        import reads_the_clock  # type: ignore[import-not-found]

        dist.init_process_group()
        assert reads_the_clock.BEGAN == EPOCH
        return time.perf_counter()

    # The module is imported once, by the rank that is first.
    assert sorted(ran(program)) == [0.0, 0.0, 1.0]


def test_communicating_in_an_import_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "communicates.py").write_text(
        "import torch.distributed as dist\ndist.init_process_group()\ndist.barrier()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(watch, "IMPORT", 0.3)

    def program() -> None:
        import communicates  # type: ignore[import-not-found]  # noqa: F401

    with pytest.raises(sim.SimulationError) as caught:
        ran(program)
    assert "no rank may communicate while it imports" in str(caught.value)
    assert line_of(program, "import communicates") in str(caught.value)


def test_a_rank_that_waits_for_a_lock_is_told(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watch, "IMPORT", 0.2)
    monkeypatch.setattr(watch, "ANYTHING", 0.3)
    lock = threading.Lock()

    def program() -> bool:
        dist.init_process_group()
        if dist.get_rank() == 0:
            with lock:
                dist.barrier()
            return True
        taken = lock.acquire(timeout=1.0)
        dist.barrier()
        return taken

    assert ran(program, 2) == [True, False]
    error = capfd.readouterr().err
    assert "rank 1" in error
    assert line_of(program, "lock.acquire") in error
    assert error.count("has computed nothing") == 1


def test_the_profiler_of_the_process_is_one_rank_s() -> None:
    def program(ranks_that_profile: int) -> int:
        dist.init_process_group()
        if dist.get_rank() >= ranks_that_profile:
            dist.barrier()
            return 0
        with torch.autograd.profiler.profile() as profile:
            dist.barrier()
            torch.ones(2).add_(1)
        return len(profile.function_events)

    counts = ran(lambda: program(1))
    assert counts[0] > 0
    assert counts[1:] == [0, 0]
    assert "rank 1 starts torch's profiler while that of rank 0 is on" in error_of(
        lambda: program(2)
    )
    # It is free again.
    with torch.autograd.profiler.profile() as profile:
        torch.ones(2).add_(1)
    assert len(profile.function_events) > 0


def test_rpc_is_refused() -> None:
    def program() -> None:
        from torch.distributed import rpc

        rpc.init_rpc("worker", rank=0, world_size=3)

    assert "torch.distributed.rpc is not simulated" in error_of(program)


def test_another_thread_cannot_communicate() -> None:
    def program() -> None:
        dist.init_process_group()
        group = dist.distributed_c10d._get_default_group()
        raised: list[BaseException] = []

        def talk(call: Callable[[], Any]) -> None:
            try:
                call()
            except Exception as error:  # noqa: BLE001
                raised.append(error)

        for call in (dist.barrier, lambda: group.barrier()):
            thread = threading.Thread(target=talk, args=(call,))
            thread.start()
            thread.join()
        assert "init_process_group" in str(raised[0])
        assert "thread" in str(raised[1])
        raise raised[0]

    assert "only the thread that runs the program may" in error_of(program)


def test_runs_do_not_overlap() -> None:
    with pytest.raises(sim.SimulationError, match="a simulation runs in this process already"):
        ran(lambda: ran(lambda: None))
    assert ran(lambda: 1) == [1, 1, 1]


def test_this_process_may_be_in_no_group() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(sim.SimulationError, match="destroy_process_group"):
            ran(lambda: None)
        assert dist.get_backend() == "gloo"
    finally:
        dist.destroy_process_group()


def test_a_torch_without_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(dist.distributed_c10d, "_store_based_barrier")
    with pytest.raises(sim.SimulationError, match=rf"torch {torch.__version__[:4]}.*lacks _store"):
        ran(lambda: None)


def test_lists_of_ranks_read_well() -> None:
    assert ranks([3]) == "rank 3"
    assert ranks([0, 1, 2, 5, 7, 8]) == "ranks 0-2, 5, 7-8"
