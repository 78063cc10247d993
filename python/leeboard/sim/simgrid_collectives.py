"""Collectives of SimGrid's time-independent traces, each put together from all ranks' lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leeboard.sim.members import Rank
from leeboard.sim.simgrid_files import Action


@dataclass(frozen=True)
class Collective:
    """One collective, the same for all ranks.

    Attributes:
        method: Of a program's rank.
        arguments: What it is called with.
        flops: What each rank computes after it.
    """

    method: str
    arguments: dict[str, Any]
    flops: tuple[float, ...]

    def add(self, rank: Rank) -> None:
        """Let a rank take part."""
        getattr(rank, self.method)(**self.arguments)


Lines = Sequence[Action]
_Parts = tuple[str, dict[str, Any]]


def collectives(ranks: Sequence[Sequence[Action]]) -> list[Collective]:
    """All collectives in order; the k-th of every rank is the same one.

    Raises:
        TraceError: Ranks call different collectives, or their arguments are wrong.
    """
    calls = [[action for action in actions if action.name in READERS] for actions in ranks]
    counts = [len(of_rank) for of_rank in calls]
    if min(counts) != max(counts):
        fewest, most = counts.index(min(counts)), counts.index(max(counts))
        extra = calls[most][counts[fewest]]
        raise extra.error(
            f"rank {most} calls {extra.name}, after rank {fewest}'s last of {counts[fewest]} "
            "collectives"
        )
    return [_collective(lines) for lines in zip(*calls, strict=True)]


def _collective(lines: Lines) -> Collective:
    first = lines[0]
    for line in lines:
        if line.name != first.name:
            raise line.error(
                f"rank {line.rank} calls {line.name} where rank 0 calls {first.name} "
                f"({first.file}:{first.line})"
            )
    least, most, usage, read, flops = READERS[first.name]
    ranks = len(lines)
    for line in lines:
        line.expect(least(ranks), most(ranks), usage)
    method, arguments = read(lines)
    index = flops(ranks)
    cost = (0.0,) * ranks if index is None else tuple(line.number(index) for line in lines)
    return Collective(method, arguments, cost)


def _root(lines: Lines, index: int) -> int:
    roots = {line.integer(index) if index < len(line.arguments) else 0 for line in lines}
    if len(roots) > 1 or not 0 <= min(roots) < len(lines):
        raise lines[0].error(f"{lines[0].name}: got root {sorted(roots)}, expected one rank")
    return min(roots)


def _same(lines: Lines, index: int, type_index: int, times: int = 1) -> int:
    """A size that all ranks must agree on."""
    sizes = [line.size(index, line.type_size(type_index)) for line in lines]
    for line, size in zip(lines, sizes, strict=True):
        if size != sizes[0]:
            raise line.error(
                f"{line.name} of {size} bytes, where rank 0 has {sizes[0]} "
                f"({lines[0].file}:{lines[0].line})"
            )
    return sizes[0] * times


def _barrier(lines: Lines) -> _Parts:
    return "barrier", {}


def _bcast(lines: Lines) -> _Parts:
    root = _root(lines, 1)
    line = lines[root]
    return "broadcast", {"bytes": line.size(0, line.type_size(2)), "root": root}


def _reduce(lines: Lines) -> _Parts:
    return "reduce", {"bytes": _same(lines, 0, 3), "root": _root(lines, 2)}


def _allreduce(lines: Lines) -> _Parts:
    return "all_reduce", {"bytes": _same(lines, 0, 2)}


def _alltoall(lines: Lines) -> _Parts:
    return "all_to_all", {"bytes": _same(lines, 0, 2, times=len(lines))}


def _gather(lines: Lines) -> _Parts:
    return "gather", {"bytes": _same(lines, 0, 3), "root": _root(lines, 2)}


def _scatter(lines: Lines) -> _Parts:
    root = _root(lines, 2)
    size = lines[root].size(0, lines[root].type_size(3)) * len(lines)
    return "scatter", {"bytes": size, "root": root}


def _allgather(lines: Lines) -> _Parts:
    return "all_gather", {"bytes": _same(lines, 0, 2)}


def _uneven(rows: Any) -> _Parts:
    return "all_to_all", {"bytes": np.array(rows, dtype=np.int64)}


def _gatherv(lines: Lines) -> _Parts:
    ranks = len(lines)
    root = _root(lines, 1 + ranks)
    rows = np.zeros((ranks, ranks), dtype=np.int64)
    for rank, line in enumerate(lines):
        rows[rank, root] = line.size(0, line.type_size(2 + ranks))
    return _uneven(rows)


def _scatterv(lines: Lines) -> _Parts:
    ranks = len(lines)
    root = _root(lines, 1 + ranks)
    rows = np.zeros((ranks, ranks), dtype=np.int64)
    for rank, line in enumerate(lines):
        rows[root, rank] = line.size(ranks, line.type_size(3 + ranks))
    return _uneven(rows)


def _allgatherv(lines: Lines) -> _Parts:
    ranks = len(lines)
    return _uneven([[line.size(0, line.type_size(1 + ranks))] * ranks for line in lines])


def _reducescatter(lines: Lines) -> _Parts:
    ranks = len(lines)
    sizes = {sum(line.size(i, line.type_size(1 + ranks)) for i in range(ranks)) for line in lines}
    if len(sizes) > 1:
        raise lines[0].error(f"reducescatter: got {sorted(sizes)} bytes, expected the same of all")
    return "reduce_scatter", {"bytes": min(sizes)}


def _alltoallv(lines: Lines) -> _Parts:
    ranks = len(lines)
    return _uneven(
        [[line.size(1 + i, line.type_size(2 + 2 * ranks)) for i in range(ranks)] for line in lines]
    )


_Count = Callable[[int], int]
_Reader = tuple[_Count, _Count, str, Callable[[Lines], _Parts], Callable[[int], int | None]]


def _fixed(
    least: int, most: int, usage: str, read: Callable[[Lines], _Parts], flops: int | None = None
) -> _Reader:
    return lambda ranks: least, lambda ranks: most, usage, read, lambda ranks: flops


def _by_ranks(
    least: int,
    times: int,
    more: int,
    usage: str,
    read: Callable[[Lines], _Parts],
    *,
    flops: bool = False,
) -> _Reader:
    """Arguments grow with the number of ranks."""
    return (
        lambda ranks: least + times * ranks,
        lambda ranks: least + times * ranks + more,
        usage,
        read,
        lambda ranks: ranks if flops else None,
    )


# Of each action: fewest and most arguments, how it is written, what reads it, which argument
# counts flops.
READERS: dict[str, _Reader] = {
    "barrier": _fixed(0, 0, "barrier", _barrier),
    "bcast": _fixed(1, 3, "bcast SIZE [ROOT [TYPE]]", _bcast),
    "reduce": _fixed(2, 4, "reduce SIZE FLOPS [ROOT [TYPE]]", _reduce, flops=1),
    "allreduce": _fixed(2, 3, "allreduce SIZE FLOPS [TYPE]", _allreduce, flops=1),
    "alltoall": _fixed(2, 4, "alltoall SEND RECV [TYPE [TYPE]]", _alltoall),
    "gather": _fixed(2, 5, "gather SEND RECV [ROOT [TYPE [TYPE]]]", _gather),
    "scatter": _fixed(2, 5, "scatter SEND RECV [ROOT [TYPE [TYPE]]]", _scatter),
    "allgather": _fixed(2, 4, "allgather SEND RECV [TYPE [TYPE]]", _allgather),
    "gatherv": _by_ranks(1, 1, 3, "gatherv SEND COUNTS... [ROOT [TYPE [TYPE]]]", _gatherv),
    "scatterv": _by_ranks(1, 1, 3, "scatterv COUNTS... RECV [ROOT [TYPE [TYPE]]]", _scatterv),
    "allgatherv": _by_ranks(1, 1, 2, "allgatherv SEND COUNTS... [TYPE [TYPE]]", _allgatherv),
    "reducescatter": _by_ranks(
        1, 1, 1, "reducescatter COUNTS... FLOPS [TYPE]", _reducescatter, flops=True
    ),
    "alltoallv": _by_ranks(
        2, 2, 2, "alltoallv SEND COUNTS... RECV COUNTS... [TYPE [TYPE]]", _alltoallv
    ),
}
