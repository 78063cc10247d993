"""Which ranges of ops the ranks of a trace execute, and how often each op."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from leeboard.sim.ops import COLLECTIVES, ENDLESS, OpKind

if TYPE_CHECKING:
    from leeboard.sim.trace import Trace


@dataclass(frozen=True)
class TraceStats:
    """What all ranks together do; a loop that serves a queue counts as one round.

    Attributes:
        ops: Executed ops by kind ("send": 12).
        collectives: Calls by name, one a rank.
        messages: Sends, without those of collectives.
        message_bytes: What they carry.
        collective_bytes: What ranks pass into collectives.
        flops: Floating-point operations.
        memory_bytes: Memory traffic of computing.
    """

    ops: dict[str, int]
    collectives: dict[str, int]
    messages: int
    message_bytes: int
    collective_bytes: int
    flops: int
    memory_bytes: int


def ranges(trace: Trace) -> dict[tuple[int, int], list[int]]:
    """The ranges of ops and the ranks whose they are."""
    out: dict[tuple[int, int], list[int]] = {}
    spans = zip(trace.begin.tolist(), trace.end.tolist(), strict=True)
    for rank, span in enumerate(spans):
        out.setdefault(span, []).append(rank)
    return out


def executions(trace: Trace) -> NDArray[np.float64]:
    """How often each op is executed by all ranks together, [ops]."""
    kind = trace.ops["kind"]
    times = np.zeros(len(kind))
    loops = np.flatnonzero((kind == OpKind.LOOP) | (kind == OpKind.LOOP_END))
    calls = np.flatnonzero(kind == OpKind.CALL)

    def add(begin: int, end: int, weight: float) -> None:
        inside = loops[np.searchsorted(loops, begin) : np.searchsorted(loops, end)]
        stack, position = [weight], begin
        for at in inside.tolist():
            times[position:at] += stack[-1]
            position = at
            if kind[at] == OpKind.LOOP:
                rounds = int(trace.ops["a"][at])
                stack.append(stack[-1] * (1 if rounds == ENDLESS else rounds))
            else:
                times[at] += stack.pop()
                position = at + 1
        times[position:end] += stack[-1]

    for (begin, end), ranks in ranges(trace).items():
        add(begin, end, float(len(ranks)))
    called: dict[tuple[int, int], float] = {}
    for at in calls.tolist():
        span = int(trace.ops["a"][at]), int(trace.ops["b"][at])
        called[span] = called.get(span, 0.0) + times[at]
    for (begin, end), weight in called.items():
        add(begin, end, weight)
    return times


def stats(trace: Trace) -> TraceStats:
    """Sum up what all ranks do; exact below 2^53."""
    times, ops = executions(trace), trace.ops
    kind = ops["kind"]

    def total(chosen: Any, column: str | None = None) -> int:
        values = times[chosen]
        if column is not None:
            values = values * ops[column][chosen].astype(np.float64)
        return round(float(values.sum()))

    send, collective = kind == OpKind.SEND, kind == OpKind.COLLECTIVE
    compute = kind == OpKind.COMPUTE
    by_kind = {k.name.lower(): total(kind == k) for k in OpKind if k is not OpKind.CALL}
    by_name = {name: total(collective & (ops["flags"] == i)) for i, name in enumerate(COLLECTIVES)}
    return TraceStats(
        ops={name: count for name, count in by_kind.items() if count},
        collectives={name: count for name, count in by_name.items() if count},
        messages=total(send),
        message_bytes=total(send, "a"),
        collective_bytes=total(collective, "a"),
        flops=total(compute, "a"),
        memory_bytes=total(compute, "b"),
    )
