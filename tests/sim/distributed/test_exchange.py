"""What ranks disagree on ends the run, before anything is moved, with both calls and both lines."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

from leeboard.sim import CollectiveMismatchError, Platform, SimulationError
from leeboard.sim.distributed.launch import launch


def run(ranks: int, program: Callable[[int], Any]) -> list[Any]:
    def main() -> Any:
        dist.init_process_group()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return program(dist.get_rank())

    platform = Platform.star(ranks, bandwidth="1 Gbit/s", latency="100 us")
    return launch(main, platform, compute="none", timeline=False, links=False).values


def refused(ranks: int, program: Callable[[int], Any], kind: type[Exception]) -> str:
    with pytest.raises(kind) as caught:
        run(ranks, program)
    return str(caught.value)


def test_other_shapes() -> None:
    def program(rank: int) -> None:
        dist.all_reduce(torch.zeros(2, 3 + rank))

    text = refused(2, program, CollectiveMismatchError)
    assert "rank 0 calls all_reduce of float32 [2, 3], SUM at " in text
    assert "rank 1 calls all_reduce of float32 [2, 4], SUM at " in text
    assert len(re.findall(r"test_exchange\.py:\d+", text)) == 2


def test_other_dtypes() -> None:
    def program(rank: int) -> None:
        dist.broadcast(torch.zeros(2, dtype=(torch.float32, torch.int32)[rank]), 1)

    text = refused(2, program, CollectiveMismatchError)
    assert "broadcast of float32 [2], root 1" in text
    assert "broadcast of int32 [2], root 1" in text


def test_other_collectives_and_groups_of_some_ranks() -> None:
    def program(rank: int) -> None:
        pair = dist.new_group([1, 3])
        if rank == 1:
            dist.all_reduce(torch.zeros(2), group=pair)
        if rank == 3:
            dist.all_gather([torch.zeros(2), torch.zeros(2)], torch.zeros(2), group=pair)

    text = refused(4, program, CollectiveMismatchError)
    assert "(ranks 1, 3)" in text
    assert "rank 1 calls all_reduce of float32 [2]" in text
    assert "rank 3 calls all_gather of float32 [2]" in text


def test_other_reductions_and_roots() -> None:
    def reductions(rank: int) -> None:
        dist.all_reduce(torch.zeros(2), (dist.ReduceOp.SUM, dist.ReduceOp.MAX)[rank])

    def roots(rank: int) -> None:
        dist.reduce(torch.zeros(2), rank)

    text = refused(2, reductions, CollectiveMismatchError)
    assert "SUM" in text
    assert "MAX" in text
    text = refused(2, roots, CollectiveMismatchError)
    assert "root 0" in text
    assert "root 1" in text


def test_a_mismatch_is_found_where_the_first_has_gone_on() -> None:
    """Asynchronous: the first rank is somewhere else by now."""

    def program(rank: int) -> None:
        if rank == 0:
            work = dist.all_reduce(torch.zeros(2), async_op=True)
            time.sleep(1.0)
            work.wait()
        else:
            time.sleep(0.5)
            dist.all_reduce(torch.zeros(3))

    text = refused(2, program, CollectiveMismatchError)
    assert "float32 [2]" in text
    assert "float32 [3]" in text


def test_uneven_exchanges_that_do_not_fit() -> None:
    def program(rank: int) -> None:
        gets = [1, 1] if rank == 0 else [2, 1]
        dist.all_to_all_single(torch.zeros(sum(gets)), torch.zeros(2), gets, [1, 1])

    # The engine knows of every rank's row and column before anything moves.
    refused(2, program, SimulationError)


@pytest.mark.parametrize(
    ("dtype", "count", "given"),
    [(torch.float32, 2, "float32 [2]"), (torch.int32, 4, "int32 [4]")],
    ids=["size", "dtype"],
)
def test_messages_that_do_not_fit_their_receive(dtype: torch.dtype, count: int, given: str) -> None:
    def program(rank: int) -> None:
        if rank == 0:
            dist.send(torch.zeros(count, dtype=dtype), 1, tag=5)
        else:
            dist.recv(torch.zeros(4), 0, tag=5)

    text = refused(2, program, SimulationError)
    assert f"rank 0 sends {given} to rank 1 (tag 5), which receives into float32 [4]" in text
    assert "test_exchange.py:" in text


def call(program: Callable[[], Any]) -> str:
    """What a call of all ranks is refused with, on the first."""
    return refused(2, lambda rank: program(), SimulationError)


def test_lists_of_the_wrong_length() -> None:
    two, three = [torch.zeros(1)] * 2, [torch.zeros(1)] * 3
    text = call(lambda: dist.all_gather(three, torch.zeros(1)))
    assert "output list: got 3 tensors, expected 2, one for each rank" in text
    assert "input list: got 3" in call(lambda: dist.reduce_scatter(torch.zeros(1), three))
    assert "input list: got 3" in call(lambda: dist.all_to_all(two, three))
    assert "gather_list: got 3" in call(
        lambda: dist.gather(torch.zeros(1), three if dist.get_rank() == 0 else None)
    )
    assert "scatter_list: got 3" in call(
        lambda: dist.scatter(torch.zeros(1), three if dist.get_rank() == 0 else None)
    )


def test_tensors_of_the_wrong_size() -> None:
    text = call(lambda: dist.all_gather_into_tensor(torch.zeros(3), torch.zeros(2)))
    assert "output is float32 [3], and input is float32 [2]" in text
    assert "2 times as many elements" in text
    assert "input is float32 [3]" in call(
        lambda: dist.reduce_scatter_tensor(torch.zeros(2), torch.zeros(3))
    )
    assert "output[1] is float32 [2], and the input is float32 [1]" in call(
        lambda: dist.all_gather([torch.zeros(1), torch.zeros(2)], torch.zeros(1))
    )
    assert "3 rows, which 2 ranks cannot share" in call(
        lambda: dist.all_to_all_single(torch.zeros(3), torch.zeros(3))
    )
    assert "input_split_sizes: got [1, 1], expected 3 in all" in call(
        lambda: dist.all_to_all_single(torch.zeros(3), torch.zeros(3), [2, 1], [1, 1])
    )


def test_what_cannot_be_reduced() -> None:
    assert "BXOR takes integer tensors, not torch.float32" in call(
        lambda: dist.all_reduce(torch.zeros(1), dist.ReduceOp.BXOR)
    )
    assert "MAX has no meaning for torch.complex64" in call(
        lambda: dist.group.WORLD.allreduce(
            [torch.zeros(1, dtype=torch.complex64)], dist.ReduceOp.MAX
        )
    )


def test_tensors_without_values() -> None:
    assert "is on the meta device and has no values" in call(
        lambda: dist.all_reduce(torch.zeros(1, device="meta"))
    )
    assert "only dense ones" in call(lambda: dist.all_reduce(torch.zeros(2).to_sparse()))
    assert "only dense ones" in call(lambda: dist.send(torch.zeros(2).to_sparse(), 1))


def test_ranks_that_are_none() -> None:
    text = call(lambda: dist.group.WORLD.send([torch.zeros(1)], 2, 0))
    assert "got rank 2 of the group, expected 0 to 1" in text
    assert "root: got rank 5" in call(lambda: dist.broadcast(torch.zeros(1), group_src=5))


def test_a_caught_refusal_leaves_the_run_alone() -> None:
    """Arguments are checked before the group counts the call."""

    def program(rank: int) -> float:
        if rank == 0:
            with pytest.raises(ValueError, match="output list"):
                dist.all_gather([], torch.zeros(1))
        value = torch.ones(1)
        dist.all_reduce(value)
        return value.item()

    assert run(2, program) == [2.0, 2.0]
