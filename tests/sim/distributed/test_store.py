"""Key-value stores of a simulated run against torch's own HashStore, and their order in time."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist

from leeboard import sim


def ran(program: Callable[..., Any], ranks: int = 3, **options: Any) -> list[Any]:
    platform = sim.Platform.star(ranks, bandwidth="1 Gbit/s", latency="100 us")
    return sim.launch(program, platform, compute="none", **options).values


def conversation(store: dist.Store, seed: int) -> list[Any]:
    """Random calls, and what they answer."""
    draw = random.Random(seed)
    keys = ["a", "b", "c/d"]
    said: list[Any] = []
    for _ in range(60):
        key, value = draw.choice(keys), draw.choice(["", "1", "long text"])
        call = draw.randrange(8)
        if call == 0:
            store.set(key, value)
        elif call == 1 and store.check([key]):
            said.append(store.get(key))
        elif call == 2:
            said.append(store.add(f"count {key}", draw.randrange(-2, 9)))
        elif call == 3:
            said.append(store.delete_key(key))
        elif call == 4:
            said.append(store.compare_set(key, draw.choice(["", "1", "2"]), value))
        elif call == 5:
            said.append(store.check([key, draw.choice(keys)]))
        elif call == 6 and store.check([key]):
            store.append(key, value)
        elif call == 7:
            store.multi_set(keys, [value] * 3)
            store.wait(keys, timedelta(seconds=1))
            said.append(store.multi_get(keys))
        said.append(store.num_keys())
    return said


@pytest.mark.parametrize("wrapped", [False, True])
def test_answers_are_those_of_torch(wrapped: bool) -> None:
    def wrap(store: dist.Store) -> dist.Store:
        return dist.PrefixStore("of/", dist.PrefixStore("ours", store)) if wrapped else store

    def program() -> list[list[Any]]:
        return [conversation(wrap(dist.HashStore()), seed) for seed in range(8)]

    expected = [conversation(wrap(dist.HashStore()), seed) for seed in range(8)]
    assert ran(program, 1) == [expected]


def test_a_value_is_there_from_the_time_when_it_was_set() -> None:
    def program() -> list[tuple[str, float]]:
        dist.init_process_group()
        rank = dist.get_rank()
        store = dist.TCPStore("host", 4000, dist.get_world_size(), rank == 0)
        seen = []
        if rank == 0:
            time.sleep(2)
            store.set("ready", "yes")
        elif rank == 1:
            seen.append((str(store.check(["ready"])), time.perf_counter()))
            seen.append((store.get("ready").decode(), time.perf_counter()))
        else:
            time.sleep(3)
            seen.append((store.get("ready").decode(), time.perf_counter()))
        return seen

    assert ran(program) == [[], [("False", 0.0), ("yes", 2.0)], [("yes", 3.0)]]


def test_waiting_for_a_value_is_in_the_trace() -> None:
    def program() -> None:
        dist.init_process_group()
        store = dist.FileStore("/no/such/file", dist.get_world_size())
        if dist.get_rank() == 0:
            time.sleep(1)
            store.set("go", "")
        store.wait(["go"])
        dist.barrier()

    platform = sim.Platform.star(3, bandwidth="1 Gbit/s", latency="100 us")
    launched = sim.launch(program, platform, compute="none")
    assert launched.result.makespan > 1
    assert sim.replay(launched.trace, platform).event_hash == launched.result.event_hash


def test_work_is_shared_in_the_order_of_time() -> None:
    def program() -> list[int]:
        dist.init_process_group()
        rank = dist.get_rank()
        store = dist.TCPStore("host", 4000, is_master=rank == 0, wait_for_workers=False)
        taken = []
        time.sleep(rank * 1e-3)
        # Rank r needs about r + 1 seconds a piece; whoever is free takes the next.
        while (piece := store.add("next", 1)) <= 11:
            taken.append(piece)
            time.sleep(rank * 1.01 + 1)
        return taken

    assert ran(program) == [[1, 4, 5, 7, 9, 11], [2, 6, 10], [3, 8]]


def test_which_ranks_share_a_store() -> None:
    def program() -> list[int]:
        dist.init_process_group()
        rank = dist.get_rank()
        stores = [
            dist.TCPStore("a", 1, is_master=rank == 0, wait_for_workers=False),
            dist.TCPStore("b", 1, is_master=rank == 0, wait_for_workers=False),
            dist.TCPStore("a", 2, is_master=rank == 0, wait_for_workers=False),
            dist.FileStore("file", 3),
            dist.HashStore(),
            dist.distributed_c10d._get_default_store(),
        ]
        for store in stores:
            store.add("count", 1)
        dist.barrier()
        return [store.add("count", 0) for store in stores]

    # One port is one store, whatever the host is called; a HashStore is nobody else's.
    assert ran(program) == [[6, 6, 3, 3, 1, 3]] * 3


def test_a_port_of_its_own() -> None:
    def program() -> tuple[str, int]:
        store = dist.TCPStore("here", 0, is_master=True, wait_for_workers=False)
        return store.host, store.port

    (host, first), (_, second), _ = ran(program)
    assert host == "here"
    assert first != second > 0

    def without() -> None:
        dist.TCPStore("here", 0, is_master=False)

    with pytest.raises(sim.SimulationError, match="rank 0 connects to port 0"):
        ran(without)


@pytest.mark.skipif(not hasattr(dist, "QueueEmptyError"), reason="torch before 2.8 has no queues")
def test_queues() -> None:
    def program() -> Any:
        dist.init_process_group()
        store = dist.TCPStore("h", 9, is_master=dist.get_rank() == 0, wait_for_workers=False)
        if dist.get_rank() == 0:
            for piece in range(2):
                time.sleep(1)
                store.queue_push("work", str(piece))
            return None
        if dist.get_rank() == 1:
            with pytest.raises(dist.QueueEmptyError):
                store.queue_pop("work", block=False)
        return store.queue_pop("work"), time.perf_counter()

    _, *popped = ran(program)
    assert sorted(popped) == [(b"0", 1.0), (b"1", 2.0)]
