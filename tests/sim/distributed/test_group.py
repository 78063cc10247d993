"""The process group `sim`: every collective and message under the calls that programs make."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch import Tensor

from leeboard.sim import Platform, Rule, closed_form
from leeboard.sim.distributed.launch import launch

LATENCY = 100e-6
BETA = 8e-9
DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
    torch.complex64,
]


def star(ranks: int) -> Platform:
    return Platform.star(ranks, bandwidth="1 Gbit/s", latency=LATENCY)


def run(ranks: int, program: Callable[..., Any], *args: Any) -> list[Any]:
    """What `program` returns on each rank, within a process group of them all."""
    return launched(ranks, program, *args).values


def launched(ranks: int, program: Callable[..., Any], *args: Any) -> Any:
    def main() -> Any:
        dist.init_process_group("gloo")
        with warnings.catch_warnings():
            # Names that torch renames, and that programs use.
            warnings.simplefilter("ignore", FutureWarning)
            return program(*args)

    return launch(main, star(ranks), compute="none", timeline=False, links=False)


def mine(dtype: torch.dtype, *shape: int, rank: int | None = None) -> Tensor:
    """Small numbers, other ones on each rank; exact in every dtype."""
    me = dist.get_rank() if rank is None else rank
    count = torch.Size(shape).numel()
    numbers = (torch.arange(count) * 3 + me) % 5
    return (numbers % 2 == 0 if dtype == torch.bool else numbers).to(dtype).view(shape)


def everybodys(ranks: int, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.stack([mine(dtype, *shape, rank=rank) for rank in range(ranks)])


def folded(stacked: Tensor, step: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    result = stacked[0]
    for row in stacked[1:]:
        result = step(result, row)
    return result


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_collective_in_every_dtype(ranks: int, dtype: torch.dtype) -> None:
    def program() -> None:
        me = dist.get_rank()
        shape = (2, 3)
        own, all_own = mine(dtype, *shape), everybodys(ranks, dtype, *shape)
        total = folded(all_own, torch.add)
        root = ranks - 1

        value = own.clone()
        dist.all_reduce(value)
        assert torch.equal(value, total)
        value = own.clone()
        dist.broadcast(value, root)
        assert torch.equal(value, all_own[root])
        if not dtype.is_complex:
            value = own.clone()
            dist.reduce(value, root)
            assert torch.equal(value, total if me == root else own)
        outs = [torch.empty_like(own) for _ in range(ranks)]
        dist.all_gather(outs, own)
        assert torch.equal(torch.stack(outs), all_own)
        out = torch.empty(2 * ranks, 3, dtype=dtype)
        dist.all_gather_into_tensor(out, own)
        assert torch.equal(out, all_own.view(-1, 3))
        lists = [torch.empty_like(own) for _ in range(ranks)] if me == root else None
        dist.gather(own, lists, root)
        assert lists is None or torch.equal(torch.stack(lists), all_own)
        out = torch.empty_like(own)
        given = [own.roll(turn) for turn in range(ranks)]
        dist.scatter(out, given if me == root else None, root)
        assert torch.equal(out, all_own[root].roll(me))

        wide = mine(dtype, 2 * ranks, 3)
        all_wide = everybodys(ranks, dtype, 2 * ranks, 3)
        rows = slice(2 * me, 2 * me + 2)
        wide_total = folded(all_wide, torch.add)[rows]
        out = torch.empty(2, 3, dtype=dtype)
        dist.reduce_scatter_tensor(out, wide.clone())
        assert torch.equal(out, wide_total)
        if not dtype.is_complex:
            out = torch.empty(2, 3, dtype=dtype)
            dist.reduce_scatter(out, [part.contiguous() for part in wide.split(2)])
            assert torch.equal(out, wide_total)
        out = torch.empty_like(wide)
        dist.all_to_all_single(out, wide)
        assert torch.equal(out, torch.cat([row[rows] for row in all_wide]))
        outs = [torch.empty(2, 3, dtype=dtype) for _ in range(ranks)]
        dist.all_to_all(outs, list(wide.split(2)))
        assert torch.equal(torch.cat(outs), torch.cat([row[rows] for row in all_wide]))
        if ranks > 1:
            out = torch.empty_like(own)
            requests = [
                dist.isend(own, (me + 1) % ranks),
                dist.irecv(out, (me - 1) % ranks),
            ]
            for request in requests:
                request.wait()
            assert torch.equal(out, all_own[(me - 1) % ranks])

    run(ranks, program)


@pytest.mark.parametrize("dtype", [torch.int32, torch.float32, torch.bool], ids=str)
def test_every_reduction(dtype: torch.dtype) -> None:
    steps: dict[Any, Callable[[Tensor, Tensor], Tensor]] = {
        dist.ReduceOp.SUM: torch.add,
        dist.ReduceOp.PRODUCT: torch.mul,
        dist.ReduceOp.MIN: torch.minimum,
        dist.ReduceOp.MAX: torch.maximum,
    }
    if not dtype.is_floating_point:
        steps[dist.ReduceOp.BAND] = torch.bitwise_and
        steps[dist.ReduceOp.BOR] = torch.bitwise_or
        steps[dist.ReduceOp.BXOR] = torch.bitwise_xor

    def program() -> None:
        for op, step in steps.items():
            value = mine(dtype, 7)
            dist.all_reduce(value, op)
            assert torch.equal(value, folded(everybodys(3, dtype, 7), step)), op

    run(3, program)


def test_averages_and_scaled_sums() -> None:
    def program() -> tuple[list[float], list[int], list[float]]:
        real = torch.tensor([1.0, -2.0]) * (dist.get_rank() + 1)
        whole = torch.tensor([1, -2]) * (dist.get_rank() + 1)
        dist.all_reduce(real, dist.ReduceOp.AVG)
        dist.all_reduce(whole, dist.ReduceOp.AVG)
        scaled = torch.ones(2)
        factor = 0.5 * (dist.get_rank() + 1)
        dist.all_reduce(scaled, torch._C._distributed_c10d._make_nccl_premul_sum(factor))
        return real.tolist(), whole.tolist(), scaled.tolist()

    # (1 + 2 + 3 + 4) / 4 and twice that, towards zero; 0.5 + 1 + 1.5 + 2.
    assert run(4, program) == [([2.5, -5.0], [2, -5], [5.0, 5.0])] * 4


def test_layouts_and_empty_tensors() -> None:
    def program() -> None:
        me = dist.get_rank()
        base = torch.zeros(4, 6)
        value = base.t()[::2]
        value += me + 1
        dist.all_reduce(value)
        assert torch.equal(value, torch.full((3, 4), 3.0))
        assert base.sum() == 36

        wide = torch.zeros(2, 4)[:, ::2]
        dist.all_gather_into_tensor(wide, torch.tensor([float(me), 7.0]))
        assert wide.tolist() == [[0.0, 7.0], [1.0, 7.0]]
        # Other shapes of as many elements.
        value = torch.arange(6.0) if me else torch.zeros(2, 3)
        dist.broadcast(value, 1)
        assert value.flatten().tolist() == list(range(6))

        nothing = torch.empty(0)
        dist.all_reduce(nothing)
        dist.all_gather([torch.empty(0), torch.empty(0)], nothing)
        dist.all_to_all_single(torch.empty(0), nothing)
        dist.broadcast(nothing, 0)
        scalar = torch.tensor(float(me))
        dist.all_reduce(scalar)
        assert scalar.item() == 1.0

    run(2, program)


def test_what_is_written_leaves_autograd_alone() -> None:
    """gloo writes to memory that torch knows nothing of."""

    def program() -> None:
        weight = torch.ones(3, requires_grad=True)
        dist.broadcast(weight, 0)
        out = weight.sigmoid()
        dist.all_reduce(out)
        out.sum().backward()
        assert weight.grad is not None
        with torch.inference_mode():
            made = torch.ones(2)
        dist.all_reduce(made)
        assert made.tolist() == [2.0, 2.0]

    run(2, program)


def test_uneven_all_to_all() -> None:
    def program() -> None:
        me, ranks = dist.get_rank(), dist.get_world_size()
        # Rank r gives rank t r + 2 t numbers, which say from whom to whom.
        gives = [me + 2 * target for target in range(ranks)]
        gets = [source + 2 * me for source in range(ranks)]
        given = torch.cat([torch.full((n,), 10 * me + t) for t, n in enumerate(gives)])
        out = torch.empty(sum(gets), dtype=given.dtype)
        dist.all_to_all_single(out, given, gets, gives)
        expected = torch.cat([torch.full((n,), 10 * s + me) for s, n in enumerate(gets)])
        assert torch.equal(out, expected)
        outs = [torch.empty(n, dtype=given.dtype) for n in gets]
        dist.all_to_all(outs, list(given.split(gives)))
        assert torch.equal(torch.cat(outs), expected)

    run(3, program)


def test_coalesced_collectives() -> None:
    def program() -> None:
        me = dist.get_rank()
        group = dist.group.WORLD
        first, second = torch.ones(3) * me, torch.ones(2, 2) * (me + 1)
        with dist.distributed_c10d._coalescing_manager(async_ops=True) as manager:
            dist.all_reduce(first)
            dist.all_reduce(second)
        manager.wait()
        assert first.tolist() == [1.0] * 3
        assert second.tolist() == [[3.0, 3.0]] * 2
        tensors = [torch.ones(2) * me, torch.ones(3, dtype=torch.int64)]
        group.allreduce_coalesced(tensors).wait()
        assert [tensor.tolist() for tensor in tensors] == [[1.0] * 2, [2] * 3]

        outs = [torch.empty(4), torch.empty(2)]
        device = torch.device("cpu")
        with dist.distributed_c10d._coalescing_manager(group, device, async_ops=True) as manager:
            dist.all_gather_into_tensor(outs[0], torch.full((2,), float(me)))
            dist.all_gather_into_tensor(outs[1], torch.full((1,), float(me)))
        manager.wait()
        assert [out.tolist() for out in outs] == [[0.0, 0.0, 1.0, 1.0], [0.0, 1.0]]
        with dist.distributed_c10d._coalescing_manager(group):
            dist.reduce_scatter_tensor(outs[1][:1], torch.tensor([1.0, 2.0]))
        assert outs[1][0] == 2.0 * (me + 1)
        lists = [[torch.empty(1), torch.empty(2)] for _ in range(2)]
        dist.all_gather_coalesced(lists, [torch.full((1,), float(me)), torch.full((2,), 5.0 + me)])
        assert [[t.tolist() for t in row] for row in lists] == [
            [[0.0], [5.0, 5.0]],
            [[1.0], [6.0, 6.0]],
        ]

    run(2, program)


def test_functional_collectives() -> None:
    def program() -> None:
        me, ranks, world = dist.get_rank(), dist.get_world_size(), dist.group.WORLD
        value = torch.arange(2.0 * ranks) + me
        every = [torch.arange(2.0 * ranks) + rank for rank in range(ranks)]
        total = torch.stack(every).sum(0)
        part = slice(2 * me, 2 * me + 2)
        assert torch.equal(functional.all_reduce(value, "sum", world) + 0, total)
        assert torch.equal(functional.all_gather_tensor(value, 0, world) + 0, torch.cat(every))
        scattered = functional.reduce_scatter_tensor(value, "sum", 0, world)
        assert torch.equal(scattered + 0, total[part])
        assert torch.equal(functional.broadcast(value, 1, world) + 0, every[1])
        exchanged = functional.all_to_all_single(value, None, None, world)
        assert torch.equal(exchanged + 0, torch.cat([other[part] for other in every]))
        both = functional.all_reduce_coalesced([value, value * 2], "sum", world)
        assert torch.equal(both[0] + 0, total)
        assert torch.equal(both[1] + 0, total * 2)
        gathered = functional.all_gather_into_tensor_coalesced([value, value[:1]], world)
        assert torch.equal(gathered[0] + 0, torch.cat(every))
        assert (gathered[1] + 0).tolist() == [float(rank) for rank in range(ranks)]

    run(3, program)


def test_results_of_functional_collectives_as_arguments() -> None:
    """They are under way; only the rank that has one can wait for it."""

    def program() -> list[float]:
        me, world = dist.get_rank(), dist.group.WORLD
        total = functional.all_reduce(torch.full((1,), me + 1.0), "sum", world)
        dist.all_reduce(total)
        again = functional.all_reduce(torch.ones(1), "sum", world)
        outs = [torch.zeros(1), torch.zeros(1)]
        dist.all_gather(outs, again)
        last = functional.all_reduce(torch.full((1,), 5.0), "sum", world)
        value = torch.zeros(1)
        if me == 0:
            dist.send(last, 1)
        else:
            dist.recv(value, 0)
            value += last
        return [total.item(), outs[0].item(), outs[1].item(), value.item()]

    assert run(2, program) == [[6.0, 2.0, 2.0, 0.0], [6.0, 2.0, 2.0, 20.0]]


def test_objects() -> None:
    def program() -> None:
        me, ranks = dist.get_rank(), dist.get_world_size()
        got: list[Any] = [None] * ranks
        dist.all_gather_object(got, {"rank": me, "text": "x" * me})
        assert [entry["text"] for entry in got] == ["x" * rank for rank in range(ranks)]
        objects = [f"of {me}", me]
        dist.broadcast_object_list(objects, 2)
        assert objects == ["of 2", 2]
        out: list[Any] = [None]
        dist.scatter_object_list(out, [[0], [1], [2]] if me == 0 else None, 0)
        assert out == [[me]]
        if me == 0:
            dist.send_object_list(["hello", 7], 1)
        elif me == 1:
            received = [None, None]
            assert dist.recv_object_list(received, 0) == 0
            assert received == ["hello", 7]

    run(3, program)


def test_messages_are_told_apart_by_sender_tag_and_group() -> None:
    def program() -> None:
        me = dist.get_rank()
        pair = dist.new_group([0, 2])
        if me == 0:
            dist.send(torch.tensor([1.0]), 2, tag=1)
            dist.send(torch.tensor([2.0]), 2, tag=2)
            dist.send(torch.tensor([3.0]), 2, group=pair, tag=1)
        if me == 1:
            dist.send(torch.tensor([4.0]), 2, tag=1)
        if me == 2:
            values = [torch.zeros(1) for _ in range(4)]
            dist.recv(values[0], 0, group=pair, tag=1)
            dist.recv(values[1], 0, tag=2)
            dist.recv(values[2], 1, tag=1)
            dist.recv(values[3], 0, tag=1)
            assert [value.item() for value in values] == [3.0, 2.0, 4.0, 1.0]

    run(3, program)


def test_a_receive_of_anyone_names_the_sender() -> None:
    def program() -> list[int]:
        me = dist.get_rank()
        odd = dist.new_group([1, 2, 3])
        if me == 0:
            return []
        if me > 1:
            dist.send(torch.tensor([float(me)]), 1, group=odd)
            return []
        senders = []
        for _ in range(2):
            value = torch.zeros(1)
            sender = dist.recv(value, group=odd)
            assert value.item() == sender
            senders.append(sender)
        return senders

    assert sorted(run(4, program)[1]) == [2, 3]


def test_a_group_of_some_ranks_counts_its_own() -> None:
    def program() -> float:
        me = dist.get_rank()
        group = dist.new_group([3, 1])
        value = torch.tensor([float(me)])
        if me in (1, 3):
            assert dist.get_rank(group) == [1, 3].index(me)
            dist.all_reduce(value, group=group)
            dist.broadcast(value, 3, group=group)
        dist.barrier()
        return value.item()

    assert run(4, program) == [0.0, 4.0, 2.0, 4.0]


def test_batches_of_messages() -> None:
    def program() -> float:
        me, ranks = dist.get_rank(), dist.get_world_size()
        out = torch.zeros(1)
        ops = [
            dist.P2POp(dist.irecv, out, (me - 1) % ranks),
            dist.P2POp(dist.isend, torch.tensor([float(me)]), (me + 1) % ranks),
        ]
        for request in dist.batch_isend_irecv(ops):
            request.wait()
        return out.item()

    assert run(3, program) == [2.0, 0.0, 1.0]


def test_a_group_can_be_made_again() -> None:
    def program() -> float:
        value = torch.ones(1)
        dist.all_reduce(value)
        dist.destroy_process_group()
        dist.init_process_group()
        dist.all_reduce(value)
        return value.item()

    assert run(2, program) == [4.0, 4.0]


@pytest.mark.parametrize(
    ("name", "algorithm", "call"),
    [
        ("all_reduce", "ring", lambda t, n: dist.all_reduce(t)),
        ("broadcast", "binomial_tree", lambda t, n: dist.broadcast(t, 0)),
        ("all_gather", "ring", lambda t, n: dist.all_gather_into_tensor(t.repeat(n), t)),
        (
            "reduce_scatter",
            "ring",
            lambda t, n: dist.reduce_scatter_tensor(torch.empty(t.numel() // n), t),
        ),
        ("all_to_all", "pairwise", lambda t, n: dist.all_to_all_single(torch.empty_like(t), t)),
        ("barrier", "recursive_doubling", lambda t, n: dist.barrier()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_times_are_those_of_the_algorithm(
    name: str, algorithm: str, call: Callable[[Tensor, int], Any]
) -> None:
    """A rank's clock, read by the program, is the closed form of what it waited for."""
    ranks, size = 4, 1 << 20
    platform = star(ranks).with_collectives([Rule(name, algorithm)])

    def main() -> float:
        import time

        dist.init_process_group()
        value = torch.zeros(size // 4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            before = time.perf_counter()
            call(value, ranks)
            return time.perf_counter() - before

    done = launch(main, platform, compute="none", network="alpha-beta")
    nbytes = 0 if name == "barrier" else size
    expected = closed_form(name, algorithm, ranks, nbytes, alpha=LATENCY, beta=BETA)
    assert max(done.values) == pytest.approx(expected, rel=1e-6)
    assert done.result.makespan == pytest.approx(expected, rel=1e-6)
