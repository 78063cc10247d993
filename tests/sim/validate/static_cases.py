"""The network cases as programs of the simulator, written by hand: a check on the live ones."""

from __future__ import annotations

from collections.abc import Callable

from leeboard.sim.ops import COLLECTIVES
from leeboard.sim.program import Program


def program(what: str, size: int, ranks: int) -> Program:
    """What `programs.network` times under the name of `what`.

    Args:
        what: A case of `programs.network.CASES`.
        size: Bytes, as there.
        ranks: How many.
    """
    made = Program(ranks)
    size = max(size // 4, 1) * 4
    if what in PAIRS:
        _pairs(made, PAIRS[what](ranks), size)
    elif what == "ping_pong":
        made[0].send(1, bytes=size)
        made[1].recv(0)
        made[1].send(0, bytes=size)
        made[0].recv(1)
    elif what == "barrier":
        made.barrier()
    elif what in COLLECTIVES:
        getattr(made, what)(bytes=size)
    else:
        raise ValueError(f"case: got {what!r}, which has no program")
    return made


PAIRS: dict[str, Callable[[int], list[tuple[int, int]]]] = {
    "message": lambda ranks: [(0, 1)],
    "crossing": lambda ranks: [(0, 1), (1, 0)],
    "both_ways": lambda ranks: [(r, (r + 1) % ranks) for r in range(ranks)],
    "incast": lambda ranks: [(r, 0) for r in range(1, ranks)],
    "fan_out": lambda ranks: [(0, r) for r in range(1, ranks)],
    "two_in_a_row": lambda ranks: [(0, 1), (0, 1)],
}


def _pairs(made: Program, pairs: list[tuple[int, int]], size: int) -> None:
    handles = {
        rank: [made[rank].irecv(a) for a, b in pairs if b == rank] for rank in range(len(made))
    }
    for a, b in pairs:
        handles[a].append(made[a].isend(b, bytes=size))
    for rank, some in handles.items():
        if some:
            made[rank].wait(*some)
