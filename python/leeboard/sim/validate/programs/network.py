"""Messages and collectives, each timed from a common beginning to the last rank's end.

The one argument is a JSON object: "cases" (a list of [what, bytes]), "repeats", "warm", "notice"
(seconds that news of the next beginning may take), and "open" (bytes sent between all ranks first).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import torch
import torch.distributed as dist

from leeboard.sim.validate.programs.timing import timed

Act = Callable[[], object]
_POSTED: list[dist.Work | None] = []


def _numbers(bytes_: int) -> torch.Tensor:
    return torch.zeros(max(bytes_ // 4, 1), dtype=torch.float32)


def message(bytes_: int) -> Act:
    """One message, from rank 0 to rank 1."""
    data = _numbers(bytes_)
    rank = dist.get_rank()

    def act() -> None:
        if rank == 0:
            dist.send(data, 1)
        elif rank == 1:
            dist.recv(data, 0)

    return act


def ping_pong(bytes_: int) -> Act:
    """There and back."""
    data = _numbers(bytes_)
    rank = dist.get_rank()

    def act() -> None:
        if rank == 0:
            dist.send(data, 1)
            dist.recv(data, 1)
        elif rank == 1:
            dist.recv(data, 0)
            dist.send(data, 0)

    return act


def crossing(bytes_: int) -> Act:
    """Two messages at a time, one each way between ranks 0 and 1."""
    return _pairs([(0, 1), (1, 0)], bytes_)


def call(bytes_: int) -> Act:
    """A collective of each rank alone: what the call takes without a message."""
    data = _numbers(bytes_)
    groups = [dist.new_group([rank]) for rank in range(dist.get_world_size())]
    mine = groups[dist.get_rank()]
    return lambda: dist.all_reduce(data, group=mine)


def post(bytes_: int) -> Act:
    """Giving a message to the library, and not waiting for it: it is through long before the next."""
    data = _numbers(bytes_)
    rank = dist.get_rank()

    def act() -> None:
        if rank < 2:
            # gloo's buffers must outlive the message.
            _POSTED.append((dist.irecv if rank else dist.isend)(data, 1 - rank))

    return act


def both_ways(bytes_: int) -> Act:
    """Ring: every rank sends to the next and receives from the one before."""
    ranks = dist.get_world_size()
    return _pairs([(r, (r + 1) % ranks) for r in range(ranks)], bytes_)


def incast(bytes_: int) -> Act:
    """All the others send to rank 0."""
    return _pairs([(r, 0) for r in range(1, dist.get_world_size())], bytes_)


def fan_out(bytes_: int) -> Act:
    """Rank 0 sends to all the others."""
    return _pairs([(0, r) for r in range(1, dist.get_world_size())], bytes_)


def two_in_a_row(bytes_: int) -> Act:
    """Two messages from rank 0 to rank 1, both under way."""
    return _pairs([(0, 1), (0, 1)], bytes_)


def _pairs(pairs: list[tuple[int, int]], bytes_: int) -> Act:
    rank = dist.get_rank()
    to = [b for a, b in pairs if a == rank]
    sources = [a for a, b in pairs if b == rank]
    data = _numbers(bytes_)
    received = [_numbers(bytes_) for _ in sources]

    def act() -> None:
        works = [dist.irecv(x, a) for x, a in zip(received, sources, strict=True)]
        works += [dist.isend(data, b) for b in to]
        for work in works:
            if work is not None:
                work.wait()

    return act


def all_reduce(bytes_: int) -> Act:
    """Of a tensor of so many bytes."""
    data = _numbers(bytes_)
    return lambda: dist.all_reduce(data)


def all_gather(bytes_: int) -> Act:
    """So many bytes from each rank."""
    data = _numbers(bytes_)
    out = [torch.zeros_like(data) for _ in range(dist.get_world_size())]
    return lambda: dist.all_gather(out, data)


def reduce_scatter(bytes_: int) -> Act:
    """Of a tensor of so many bytes, of which each rank keeps its part."""
    ranks = dist.get_world_size()
    part = _numbers(bytes_ // ranks)
    data = torch.zeros(len(part) * ranks)
    # torch 2.13 gave it another name.
    collective = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)
    return lambda: collective(part, data)


def broadcast(bytes_: int) -> Act:
    """From rank 0."""
    data = _numbers(bytes_)
    return lambda: dist.broadcast(data, 0)


def reduce(bytes_: int) -> Act:
    """To rank 0."""
    data = _numbers(bytes_)
    return lambda: dist.reduce(data, 0)


def gather(bytes_: int) -> Act:
    """So many bytes from each rank, to rank 0."""
    data = _numbers(bytes_)
    ranks = dist.get_world_size()
    out = [torch.zeros_like(data) for _ in range(ranks)] if dist.get_rank() == 0 else None
    return lambda: dist.gather(data, out, 0)


def scatter(bytes_: int) -> Act:
    """A tensor of so many bytes, from rank 0."""
    ranks = dist.get_world_size()
    part = _numbers(bytes_ // ranks)
    parts = [torch.zeros_like(part) for _ in range(ranks)] if dist.get_rank() == 0 else None
    return lambda: dist.scatter(part, parts, 0)


def all_to_all(bytes_: int) -> Act:
    """Of a tensor of so many bytes, a part to each rank."""
    ranks = dist.get_world_size()
    data = torch.zeros(max(bytes_ // 4 // ranks, 1) * ranks)
    out = torch.zeros_like(data)
    return lambda: dist.all_to_all_single(out, data)


def barrier(bytes_: int) -> Act:
    """No bytes."""
    return lambda: dist.barrier()


CASES: dict[str, Callable[[int], Act]] = {
    case.__name__: case
    for case in (
        message, ping_pong, crossing, call, post, both_ways, incast, fan_out, two_in_a_row, all_reduce,
        all_gather, reduce_scatter, broadcast, reduce, gather, scatter, all_to_all, barrier,
    )
}  # fmt: skip


def open_windows(bytes_: int) -> None:
    """Send so many bytes between all ranks, so that no connection is slow because it is new."""
    ranks = dist.get_world_size()
    out, back = _numbers(bytes_).repeat(ranks), _numbers(bytes_).repeat(ranks)
    for _ in range(3):
        dist.all_to_all_single(out, back)


def main() -> None:
    """Run the cases, in their order."""
    order = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    open_windows(order["open"])
    for what, bytes_ in order["cases"]:
        timed(
            f"{what} {bytes_}",
            CASES[what](bytes_),
            repeats=order["repeats"],
            warm=order["warm"],
            notice=order["notice"],
            kind="network",
        )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
