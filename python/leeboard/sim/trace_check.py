"""What a trace from outside must keep beyond what the core checks."""

from __future__ import annotations

import numpy as np

from leeboard.sim.op_ranges import ranges
from leeboard.sim.ops import OpKind
from leeboard.sim.trace import Trace, TraceError


def check(trace: Trace) -> None:
    """Raise TraceError unless the trace can be run, printed and summed up.

    Raises:
        TraceError: An op, a range, a group or a queue is out of bounds (as the core tells), a mark
            has no name, or a rank calls a collective of a group that it is not in.
    """
    try:
        trace.compiled()
    except (ValueError, TypeError, OverflowError) as error:
        raise TraceError(f"a damaged trace: {error}") from None
    kind = trace.ops["kind"]
    marks = np.flatnonzero((kind == OpKind.MARK) & (trace.ops["a"] >= len(trace.names)))
    if len(marks):
        raise TraceError(f"a damaged trace: ops[{marks[0]}]: a mark without a name")
    _check_membership(trace)


def _check_membership(trace: Trace) -> None:
    ops = trace.ops
    grouped = (ops["kind"] == OpKind.COLLECTIVE) & (ops["tag"] > 0)
    if not grouped.any():
        return
    before = np.concatenate([[0], np.cumsum(grouped)])
    members: dict[int, set[int]] = {}
    for (begin, end), ranks in ranges(trace).items():
        groups = set()
        for a, b in [(begin, end), *_calls(trace, begin, end)]:
            if before[b] > before[a]:
                groups |= set(ops["tag"][a:b][grouped[a:b]].tolist())
        for group in groups:
            if group not in members:
                a, b = (int(i) for i in trace.group_offsets[group : group + 2])
                members[group] = set(trace.group_members[a:b].tolist())
            outside = set(ranks) - members[group]
            if outside:
                raise TraceError(
                    f"rank {min(outside)} calls a collective of group {group}, which it is not in"
                )


def _calls(trace: Trace, begin: int, end: int) -> list[tuple[int, int]]:
    part = trace.ops[begin:end]
    calls = part[part["kind"] == OpKind.CALL]
    return list(zip(calls["a"].tolist(), calls["b"].tolist(), strict=True))
