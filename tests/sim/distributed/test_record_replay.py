"""Replaying what a run was is rerunning it, on whatever platform."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from leeboard.cli import main
from leeboard.sim import Device, Platform, Trace, record, replay
from leeboard.sim.distributed.compute.profile import Profile
from leeboard.sim.distributed.launch import launch

RANKS = 4
HERE = Platform.star(RANKS, bandwidth="10 Gbit/s", latency="5 us", device=Device(flops="1 TFLOP/s"))
THERE = {
    "slower network": Platform.star(
        RANKS, bandwidth="100 Mbit/s", latency="2 ms", device=Device(flops="1 TFLOP/s")
    ),
    "faster devices": Platform.star(
        RANKS,
        bandwidth="10 Gbit/s",
        latency="5 us",
        device=Device(flops="30 TFLOP/s", overhead="4 us"),
    ),
    "a ring": Platform.ring(
        RANKS, bandwidth="1 Gbit/s", latency="50 us", device=Device(flops="1 TFLOP/s")
    ),
}


def _work(size: int) -> torch.Tensor:
    x = torch.ones(size, size)
    return x @ x


def messages() -> None:
    """Blocking and immediate ones, batches, in a ring."""
    dist.init_process_group()
    me = dist.get_rank()
    after, before = (me + 1) % RANKS, (me - 1) % RANKS
    for step in range(3):
        _work(32 * (1 + (me + step) % RANKS))
        sent = dist.isend(torch.ones(20_000), after, tag=step)
        dist.recv(torch.empty(20_000), before, tag=step)
        sent.wait()
        pair = [
            dist.P2POp(dist.isend, torch.ones(300), before),
            dist.P2POp(dist.irecv, torch.empty(300), after),
        ]
        for work in dist.batch_isend_irecv(pair):
            work.wait()
    if me:
        dist.recv(torch.empty(10), me - 1)
    if me < RANKS - 1:
        dist.send(torch.ones(10), me + 1)


def overlap() -> None:
    """Collectives under way while the rank computes, waited for out of order."""
    dist.init_process_group()
    me = dist.get_rank()
    works = []
    for step in range(4):
        works.append(dist.all_reduce(torch.ones(10_000 * (1 + step)), async_op=True))
        _work(64 * (1 + me))
    for work in reversed(works):
        work.wait()
    gathered = [torch.empty(100) for _ in range(RANKS)]
    dist.all_gather(gathered, torch.ones(100))
    dist.broadcast(gathered[0], 2)
    objects: list[object] = [None] * RANKS
    dist.all_gather_object(objects, {"rank": me, "text": "x" * 100 * me})


def wildcards() -> None:
    """A rank that takes messages as they come."""
    dist.init_process_group()
    me = dist.get_rank()
    if me == 0:
        for _ in range(3 * (RANKS - 1)):
            dist.recv(torch.empty(5000))
            _work(16)
    else:
        for step in range(3):
            _work(32 * (1 + (me * 7 + step) % 4))
            dist.send(torch.ones(5000), 0)


def groups() -> None:
    """Messages and collectives of groups side by side, and uneven all-to-alls."""
    dist.init_process_group()
    me = dist.get_rank()
    low, high, odd = (dist.new_group(ranks) for ranks in ([0, 1], [2, 3], [1, 3]))
    pair = low if me < 2 else high
    for step in range(3):
        _work(32 * (1 + me))
        dist.all_reduce(torch.ones(3000 * (1 + step)), group=pair)
        if me % 2:
            dist.broadcast(torch.ones(4000), 3, group=odd)
            dist.barrier(odd)
    sizes = [1000 * (1 + (me + k) % 3) for k in range(RANKS)]
    others = [1000 * (1 + (k + me) % 3) for k in range(RANKS)]
    dist.all_to_all_single(torch.empty(sum(others)), torch.ones(sum(sizes)), others, sizes)


def sleeps() -> None:
    """Ranks that wait by the clock."""
    dist.init_process_group()
    me = dist.get_rank()
    for step in range(3):
        time.sleep(1e-4 * (1 + (me + step) % 3))
        dist.all_reduce(torch.ones(100))
        if me == step:
            time.sleep(3e-4)


def replicas() -> None:
    """A training step of DistributedDataParallel."""
    dist.init_process_group()
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(
        nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)), bucket_cap_mb=0.01
    )
    for _ in range(2):
        model(torch.ones(8, 64)).sum().backward()


PROGRAMS: list[Callable[[], None]] = [messages, overlap, wildcards, groups, sleeps, replicas]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
@pytest.mark.parametrize("compute", ["none", "roofline"])
def test_a_replay_elsewhere_is_a_run_there(program: Callable[[], None], compute: str) -> None:
    recorded = launch(program, HERE, compute=compute)
    again = replay(recorded.trace, HERE)
    assert (again.makespan, again.event_hash) == (
        recorded.result.makespan,
        recorded.result.event_hash,
    )
    for name, platform in THERE.items():
        there = launch(program, platform, compute=compute).result
        replayed = replay(recorded.trace, platform)
        assert (replayed.makespan, replayed.event_hash) == (there.makespan, there.event_hash), name
        if name != "faster devices" or (compute == "roofline" and program is not sleeps):
            assert replayed.makespan != recorded.result.makespan


def test_a_profiled_replay_on_another_network_is_a_run_there() -> None:
    profile = Profile("generic", 1e9, 1e9)
    recorded = launch(overlap, HERE, compute="profiled", profile=profile)
    slow = THERE["slower network"]
    there = launch(overlap, slow, compute="profiled", profile=profile).result
    replayed = replay(recorded.trace, slow)
    assert (replayed.makespan, replayed.event_hash) == (there.makespan, there.event_hash)
    assert recorded.result.makespan < replayed.makespan


def test_measured_times_are_kept() -> None:
    recorded = launch(overlap, HERE, compute="measured")
    again = replay(recorded.trace, HERE)
    assert again.makespan == recorded.result.makespan
    assert again.event_hash == recorded.result.event_hash


def test_a_program_that_asks_the_clock_decides_anew() -> None:
    """What the documentation says of such programs: the replay keeps the decision."""

    def impatient() -> None:
        dist.init_process_group()
        began = time.perf_counter()
        dist.all_reduce(torch.ones(10_000))
        if time.perf_counter() - began > 1e-3:
            dist.all_reduce(torch.ones(10))

    recorded = launch(impatient, HERE, compute="none")
    slow = THERE["slower network"]
    assert (
        replay(recorded.trace, slow).makespan
        < launch(impatient, slow, compute="none").result.makespan
    )


SCRIPT = """
import torch, torch.distributed as dist
dist.init_process_group("gloo")
dist.all_reduce(torch.ones(1000))
"""


def test_the_command_line_records(tmp_path: Path) -> None:
    script, platform, trace = (tmp_path / name for name in ("step.py", "star.yaml", "step.npz"))
    script.write_text(SCRIPT)
    HERE.save(platform)
    options = ["--platform", str(platform), "--compute", "none", "--record", str(trace)]
    assert main(["sim", "run", *options, str(script)]) == 0
    loaded = Trace.load(trace)
    assert loaded == record(str(script), HERE, compute="none")
    assert loaded.metadata["compute"] == "none"
    assert loaded.stats().collectives == {"all_reduce": RANKS}
