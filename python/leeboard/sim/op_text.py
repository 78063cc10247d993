"""Traces as text for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from leeboard.sim.ops import (
    ALGORITHMS,
    COLLECTIVES,
    ENDLESS,
    PRECISIONS,
    ROOTED,
    UNKNOWN,
    Draw,
    OpKind,
    integer,
)
from leeboard.sim.units import FLOP, PICOSECONDS, SIZE, TIME, show

if TYPE_CHECKING:
    from leeboard.sim.trace import Trace


def _time(picoseconds: int) -> str:
    return show(picoseconds / PICOSECONDS, TIME, digits=4)


def _size(count: int) -> str:
    return show(count, SIZE, digits=4)


def describe_op(trace: Trace, index: int) -> str:
    """One op: what it does, to whom, how much."""
    op = trace.ops[index]
    return _text(trace, *(op[name].item() for name in op.dtype.names))


def _text(
    trace: Trace, kind: int, stream: int, flags: int, peer: int, tag: int, slot: int, a: int, b: int
) -> str:
    queue = trace.queues[tag]["name"] if kind in (OpKind.TAKE, OpKind.DONE) else ""
    match kind:
        case OpKind.COMPUTE:
            what = f" in {PRECISIONS[flags]}" if flags else ""
            text = f"compute {show(a, FLOP, digits=4)}{what}, {_size(b)} of memory traffic"
        case OpKind.DELAY:
            text = f"compute {_time(a)}"
        case OpKind.RANDOM:
            text = f"compute {_draw(flags, a, b)}"
        case OpKind.SEND:
            text = f"send {_size(a)} to rank {peer} (tag {tag})"
        case OpKind.RECV:
            most = "" if a == UNKNOWN else f" at most {_size(a)}"
            source = "any rank" if peer < 0 else f"rank {peer}"
            text = f"receive{most} from {source} ({'any tag' if tag < 0 else f'tag {tag}'})"
        case OpKind.WAIT:
            text = "wait for everything under way" if slot < 0 else f"wait for #{slot}"
        case OpKind.SYNC:
            text = "wait for all streams" if peer < 0 else f"wait for stream {peer}"
        case OpKind.COLLECTIVE:
            root = int(trace.group_members[int(trace.group_offsets[tag]) + max(peer, 0)])
            text = _collective(flags, root, tag, a, b)
        case OpKind.LOOP:
            text = "until the queue is empty" if a == ENDLESS else f"{a} times"
        case OpKind.LOOP_END:
            text = "end"
        case OpKind.MARK:
            text = f"mark {trace.names[a]!r}"
        case OpKind.CALL:
            text = f"ops {a} to {b} of all ranks"
        case OpKind.ALLOC:
            text = f"allocate {_size(a)}"
        case OpKind.FREE:
            text = f"free {_size(a)}"
        case OpKind.TAKE:
            text = f"take a request of {queue!r}"
        case OpKind.DONE:
            text = f"answer the request of {queue!r}"
        case OpKind.SLEEP:
            text = f"sleep {_time(a)}"
        case OpKind.SIGNAL:
            text = f"tell rank {peer}" + (f" (after {_time(a)})" if a else "")
        case OpKind.AWAIT:
            text = "wait to be told"
        case _:
            text = f"op of unknown kind {kind}"
    if slot >= 0 and kind != OpKind.WAIT:
        text += f", as #{slot}"
    return text + (f" [stream {stream}]" if stream else "")


def _draw(flags: int, a: int, b: int) -> str:
    if flags == Draw.EXPONENTIAL:
        return f"{_time(a)} (exponential)"
    if flags == Draw.LOGNORMAL:
        return f"{_time(a)} (lognormal, sigma {b / 1e6:g})"
    return f"{_time(a - b)} to {_time(a + b)} (uniform)"


def _collective(flags: int, root: int, tag: int, a: int, b: int) -> str:
    name, algorithm = COLLECTIVES[flags], b & 0xFFFFFFFF
    text = name if name == "barrier" else f"{name} {_size(a)}"
    if b >> 32:
        text = f"{name}, sizes of table {(b >> 32) - 1}"
    if name in ROOTED:
        text += f", root {root}"
    if tag > 0:
        text += f" (group {tag})"
    return text + (f" by {ALGORITHMS[algorithm]}" if algorithm else "")


def rank_ops(trace: Trace, rank: int) -> Iterator[tuple[int, Any]]:
    """A rank's ops with their indices, those of calls in their place; loops once."""
    for index in range(int(trace.begin[rank]), int(trace.end[rank])):
        op = trace.ops[index]
        if op["kind"] != OpKind.CALL:
            yield index, op
            continue
        for called in range(int(op["a"]), int(op["b"])):
            yield called, trace.ops[called]


def dump(trace: Trace, rank: int, most: int) -> str:
    """See `Trace.dump`."""
    rank = integer("rank", rank, 0, trace.ranks - 1)
    lines = [f"rank {rank}:"]
    depth = 1
    for index, op in rank_ops(trace, rank):
        if len(lines) > most:
            lines.append("  ...")
            break
        depth -= int(op["kind"] == OpKind.LOOP_END)
        if op["kind"] != OpKind.LOOP_END:
            colon = ":" if op["kind"] == OpKind.LOOP else ""
            lines.append("  " * depth + describe_op(trace, index) + colon)
        depth += int(op["kind"] == OpKind.LOOP)
    return "\n".join(lines)


def describe(trace: Trace) -> str:
    """See `Trace.describe`."""
    groups = len(trace.group_offsets) - 2
    distinct = len({*zip(trace.begin.tolist(), trace.end.tolist(), strict=True)})
    count = f"{trace.ranks} ranks, {distinct} of them different"
    total = trace.stats()
    collectives = ", ".join(f"{n} {name}" for name, n in total.collectives.items()) or "none"
    lines = [
        f"{count}; {len(trace.ops)} ops stored, {groups} groups",
        f"compute: {show(total.flops, FLOP, digits=4)}, {_size(total.memory_bytes)} of memory traffic",
        f"messages: {total.messages}, {_size(total.message_bytes)}",
        f"collectives (calls of all ranks): {collectives}",
    ]
    lines += [f"queue {queue['name']!r}: {queue['count']} requests" for queue in trace.queues]
    return "\n".join(lines)
