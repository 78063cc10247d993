"""Programs that run under gloo and in the simulator: what they return must be the same.

A case is a function of (rank, size) that returns tensors, numbers, text, or lists and dicts of them.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

Case = Callable[[int, int], Any]
CASES: dict[str, Case] = {}


def case(function: Case) -> Case:
    """Register a case under its name."""
    CASES[function.__name__] = function
    return function


def plain(value: Any) -> Any:
    """A result as ordinary tensors of its own, waited for."""
    if isinstance(value, torch.Tensor):
        value = getattr(value, "wait", lambda: value)() if hasattr(value, "elem") else value
        return value.detach().clone()
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value


def values(rank: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Random values of a rank, the same wherever it runs."""
    generator = torch.Generator().manual_seed(100 + rank)
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(0, 50, shape, generator=generator).to(dtype)


@case
def all_reduce_ops(rank: int, size: int) -> Any:
    out = {}
    for op in ("SUM", "PRODUCT", "MIN", "MAX"):
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64):
            x = values(rank, 3, 5, dtype=dtype)
            dist.all_reduce(x, op=getattr(dist.ReduceOp, op))
            out[f"{op} {dtype}"] = x
    for op in ("BAND", "BOR", "BXOR"):
        x = values(rank, 7, dtype=torch.int32)
        dist.all_reduce(x, op=getattr(dist.ReduceOp, op))
        out[op] = x
    return out


@case
def all_reduce_small_types(rank: int, size: int) -> Any:
    out = []
    for dtype in (torch.uint8, torch.int8, torch.int32):
        x = values(rank, 4, dtype=dtype)
        dist.all_reduce(x)
        out.append(x)
    flags = values(rank, 9, dtype=torch.bool)
    dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    return [*out, flags]


@case
def all_reduce_shapes(rank: int, size: int) -> Any:
    scalar = torch.tensor(float(rank + 1))
    empty = torch.empty(0, 3)
    complex_ = values(rank, 4, dtype=torch.complex64)
    for x in (scalar, empty, complex_):
        dist.all_reduce(x)
    return [scalar, empty, complex_]


@case
def all_reduce_async(rank: int, size: int) -> Any:
    tensors = [values(rank + 7 * i, 6) for i in range(4)]
    works = [dist.all_reduce(x, async_op=True) for x in tensors]
    for work in reversed(works):
        work.wait()
    return [tensors, [work.is_completed() for work in works]]


@case
def all_gathers(rank: int, size: int) -> Any:
    x = values(rank, 2, 3)
    parts = [torch.zeros(2, 3) for _ in range(size)]
    dist.all_gather(parts, x)
    flat = torch.zeros(2 * size, 3)
    dist.all_gather_into_tensor(flat, x)
    later = torch.zeros(2 * size, 3)
    work = dist.all_gather_into_tensor(later, x, async_op=True)
    work.wait()
    return [parts, flat, later]


@case
def all_gather_of_views(rank: int, size: int) -> Any:
    x = values(rank, 4, 6).t()
    parts = [torch.zeros(6, 4) for _ in range(size)]
    dist.all_gather(parts, x.contiguous())
    return parts


@case
def reduce_scatters(rank: int, size: int) -> Any:
    chunks = [values(rank + 10 * i, 3) for i in range(size)]
    out = torch.zeros(3)
    dist.reduce_scatter(out, chunks)
    flat = torch.zeros(2, 2)
    dist.reduce_scatter_tensor(flat, values(rank, 2 * size, 2))
    most = torch.zeros(2, 2)
    dist.reduce_scatter_tensor(most, values(rank, 2 * size, 2), op=dist.ReduceOp.MAX)
    return [out, flat, most]


@case
def all_to_alls(rank: int, size: int) -> Any:
    x = torch.arange(2 * size) + 100 * rank
    even = torch.zeros_like(x)
    dist.all_to_all_single(even, x)
    # Rank r sends r + c + 1 rows to rank c.
    sends = [rank + c + 1 for c in range(size)]
    rows = values(rank, sum(sends), 2)
    uneven = torch.zeros(sum(sends), 2)
    dist.all_to_all_single(uneven, rows, output_split_sizes=sends, input_split_sizes=sends)
    # Nobody sends anything to rank 0.
    sends = [0 if c == 0 else 2 for c in range(size)]
    received = [0 if rank == 0 else 2 for _ in range(size)]
    gaps = torch.zeros(sum(received))
    dist.all_to_all_single(gaps, values(rank, sum(sends)), received, sends)
    return [even, uneven, gaps]


@case
def broadcasts(rank: int, size: int) -> Any:
    out = []
    for root in range(size):
        x = values(rank, 5)
        dist.broadcast(x, src=root)
        out.append(x)
    x = values(rank, 2, dtype=torch.bfloat16)
    dist.broadcast(x, src=size - 1, async_op=True).wait()
    return [*out, x]


@case
def reduces(rank: int, size: int) -> Any:
    x = values(rank, 4)
    dist.reduce(x, dst=size - 1, op=dist.ReduceOp.MAX)
    y = values(rank, 4)
    dist.reduce(y, dst=0)
    # What other ranks hold afterwards is not defined.
    return [x if rank == size - 1 else None, y if rank == 0 else None]


@case
def gathers_and_scatters(rank: int, size: int) -> Any:
    gathered = [torch.zeros(3) for _ in range(size)] if rank == 1 else None
    dist.gather(values(rank, 3), gathered, dst=1)
    out = torch.zeros(2, 2)
    chunks = [values(50 + i, 2, 2) for i in range(size)] if rank == 0 else None
    dist.scatter(out, chunks, src=0)
    return [gathered, out]


@case
def barriers(rank: int, size: int) -> Any:
    dist.barrier()
    work = dist.barrier(async_op=True)
    work.wait()
    return work.is_completed()


@case
def objects(rank: int, size: int) -> Any:
    everything: list[Any] = [None] * size
    dist.all_gather_object(everything, {"rank": rank, "text": "x" * rank})
    given = [f"from {rank}", rank] if rank == 0 else [None, None]
    dist.broadcast_object_list(given, src=0)
    gathered: list[Any] | None = [None] * size if rank == 0 else None
    dist.gather_object([rank] * (rank + 1), gathered, dst=0)
    got: list[Any] = [None]
    dist.scatter_object_list(got, [{"to": i} for i in range(size)] if rank == 0 else None, src=0)
    if rank == 0:
        dist.send_object_list(["hello", 3], dst=1)
        passed: list[Any] = []
    else:
        passed = [None, None]
        if rank == 1:
            dist.recv_object_list(passed, src=0)
    return [everything, given, gathered, got, passed]


@case
def point_to_point(rank: int, size: int) -> Any:
    right, left = (rank + 1) % size, (rank - 1) % size
    got = torch.zeros(4)
    if rank % 2 == 0:
        dist.send(values(rank, 4), right)
        dist.recv(got, left)
    else:
        dist.recv(got, left)
        dist.send(values(rank, 4), right)
    return got


@case
def point_to_point_async(rank: int, size: int) -> Any:
    right, left = (rank + 1) % size, (rank - 1) % size
    parts = [torch.zeros(3) for _ in range(3)]
    receives = [dist.irecv(part, left, tag=tag) for tag, part in enumerate(parts)]
    # The other way round: tags, not the order, decide.
    sends = [dist.isend(values(rank + 20 * tag, 3), right, tag=tag) for tag in (2, 0, 1)]
    for work in [*receives, *sends]:
        work.wait()
    return parts


@case
def any_source(rank: int, size: int) -> Any:
    if rank > 0:
        dist.send(torch.full((2,), float(rank)), 0)
        return None
    seen = {}
    for _ in range(size - 1):
        got = torch.zeros(2)
        source = dist.recv(got)
        seen[source] = got
    return [seen[source] for source in sorted(seen)]


@case
def batched(rank: int, size: int) -> Any:
    right, left = (rank + 1) % size, (rank - 1) % size
    got, back = torch.zeros(5), torch.zeros(2)
    ops = [
        dist.P2POp(dist.isend, values(rank, 5), right),
        dist.P2POp(dist.irecv, got, left),
        dist.P2POp(dist.isend, values(rank + 40, 2), left),
        dist.P2POp(dist.irecv, back, right),
    ]
    if size == 2:
        # One pair: the messages both ways meet by their order.
        ops = [ops[0], ops[1], ops[2], ops[3]]
    for work in dist.batch_isend_irecv(ops):
        work.wait()
    return [got, back]


@case
def groups(rank: int, size: int) -> Any:
    low, high = list(range(size // 2)), list(range(size // 2, size))
    first, second = dist.new_group(low), dist.new_group(high)
    mine = first if rank in low else second
    x = values(rank, 3)
    dist.all_reduce(x, group=mine)
    reverse = dist.new_group(list(reversed(range(size))))
    y = [torch.zeros(2) for _ in range(size)]
    dist.all_gather(y, values(rank, 2), group=reverse)
    facts = [
        dist.get_rank(mine),
        dist.get_world_size(mine),
        dist.get_process_group_ranks(mine),
        dist.get_global_rank(mine, 0),
        dist.get_group_rank(mine, rank),
    ]
    local, _ = dist.new_subgroups(group_size=size // 2)
    z = values(rank, 2)
    dist.all_reduce(z, group=local)
    dist.barrier(group=mine)
    dist.destroy_process_group(reverse)
    return [x, y, facts, z]


@case
def groups_of_some(rank: int, size: int) -> Any:
    some = dist.new_group([0, size - 1], use_local_synchronization=True)
    if rank not in (0, size - 1):
        return None
    x = values(rank, 3)
    root = dist.get_global_rank(some, 1)
    dist.broadcast(x, src=root, group=some)
    out = [x]
    if rank == 0:
        dist.send(values(9, 2), group=some, group_dst=1)
    else:
        got = torch.zeros(2)
        dist.recv(got, group=some, group_src=0)
        out.append(got)
    return out


@case
def coalesced(rank: int, size: int) -> Any:
    import warnings

    tensors = [values(rank, 3), values(rank, 4)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        dist.all_reduce_coalesced(tensors)
    return tensors


@case
def futures(rank: int, size: int) -> Any:
    x = values(rank, 4)
    work = dist.all_reduce(x, async_op=True)
    doubled = work.get_future().then(lambda future: future.value()[0] * 2)
    tripled = doubled.then(lambda future: future.value() * 1.5)
    return [doubled.wait(), tripled.wait(), doubled.done()]


@case
def functional(rank: int, size: int) -> Any:
    import torch.distributed._functional_collectives as funcol

    group = list(range(size))
    x = values(rank, 2 * size, 3)
    out = {
        "all_reduce": funcol.all_reduce(x, "sum", group),
        "average": funcol.all_reduce(x, "max", group),
        "all_gather": funcol.all_gather_tensor(x, 0, group),
        "all_gather 1": funcol.all_gather_tensor(x, 1, group),
        "reduce_scatter": funcol.reduce_scatter_tensor(x, "sum", 0, group),
        "broadcast": funcol.broadcast(x, 1, group),
        "all_to_all": funcol.all_to_all_single(x, None, None, group),
    }
    many = funcol.all_reduce_coalesced([x, x * 2], "sum", group)
    gathered = funcol.all_gather_into_tensor_coalesced([x, x[:1]], group)
    out = {name: y + 0 for name, y in out.items()}
    return [out, [y + 0 for y in many], [y + 0 for y in gathered]]


@case
def functional_autograd(rank: int, size: int) -> Any:
    import torch.distributed._functional_collectives as funcol

    group = list(range(size))
    x = values(rank, size, 3).requires_grad_()
    gathered = funcol.all_gather_tensor_autograd(x, 0, group)
    scattered = funcol.reduce_scatter_tensor_autograd(gathered * (rank + 1), "sum", 0, group)
    (scattered * values(rank, size, 3)).sum().backward()
    return [scattered.detach(), x.grad]


@case
def differentiable(rank: int, size: int) -> Any:
    from torch.distributed.nn.functional import all_gather, all_reduce

    x = values(rank, 3).requires_grad_()
    world = dist.group.WORLD
    y = all_reduce(x * 2, group=world) + torch.stack(all_gather(x, group=world)).sum(0)
    y.sum().backward()
    return [y.detach(), x.grad]


def _refused(call: Callable[[], Any]) -> bool:
    try:
        call()
    except (RuntimeError, TypeError, ValueError):
        return True
    return False


@case
def refusals(rank: int, size: int) -> Any:
    """Calls that are refused by every backend."""
    calls: list[Callable[[], Any]] = [
        lambda: dist.all_reduce([1, 2]),  # type: ignore[arg-type]
        lambda: dist.broadcast(torch.zeros(2), src=size + 3),
        lambda: dist.send(torch.zeros(2), rank),
        lambda: dist.all_gather([torch.zeros(2)] * (size + 1), torch.zeros(2)),
        lambda: dist.scatter(torch.zeros(2), [torch.zeros(2)] * (size + 1), src=rank),
        lambda: dist.get_process_group_ranks(dist.new_group([size + 5])),
    ]
    return [_refused(call) for call in calls]


@case
def stores(rank: int, size: int) -> Any:
    store = dist.distributed_c10d._get_default_store()
    if rank == 0:
        store.set("word", "from rank 0")
    store.wait(["word"], timedelta(seconds=60))
    total = store.add("count", rank + 1)
    dist.barrier()
    return [store.get("word"), total > 0, store.add("count", 0), store.check(["nothing"])]


@case
def random_numbers(rank: int, size: int) -> Any:
    import random

    import numpy as np

    torch.manual_seed(rank)
    random.seed(rank)
    np.random.seed(rank)  # noqa: NPY002
    out = []
    for _ in range(3):
        out += [torch.rand(2), random.random(), float(np.random.rand())]  # noqa: NPY002
        dist.barrier()
    return out


@case
def modes(rank: int, size: int) -> Any:
    """What a rank switches off is off for that rank alone, across a hand-over."""
    out = []
    with torch.set_grad_enabled(rank % 2 == 0), torch.autocast("cpu", enabled=rank == 0):
        for _ in range(2):
            dist.barrier()
            out += [torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")]
    dist.barrier()
    return [*out, torch.is_grad_enabled()]
