"""Timelines for the Perfetto UI, in Chrome's JSON trace format.

https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU describes the format.
Perfetto counts in whole nanoseconds: starts and ends are rounded to them, so that what adjoins goes
on to do so; exact picoseconds are among a slice's arguments.
"""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np

from leeboard.sim.files import atomic
from leeboard.sim.records import NEVER, PICOSECONDS, Kind, kind_name
from leeboard.sim.tracks import Track, marks_in_force, tracks

if TYPE_CHECKING:
    from leeboard.sim.result import Result

Event = dict[str, Any]

_CATEGORIES: dict[int, str] = {
    Kind.COMPUTE: "compute",
    Kind.COLLECTIVE: "collective",
    Kind.TAKE: "requests",
}
_INSTANTS = {Kind.MARK: "mark", Kind.OUT_OF_MEMORY: "memory", Kind.STOPPED: "failure"}
# Rank r's process and its own thread; its streams' threads follow.
_STRIDE = 1024
_LINKS, _REQUESTS, _PATH = 1, 2, 3
_MOST_LINKS = 256
_BUFFERED = 4096


def write(result: Result, path: str | Path) -> None:
    """Write the timeline of a result: .json, or .json.gz. Atomic.

    A process per rank, a thread per stream (compute, send, recv, wait, collectives; compute goes by
    the name of the last mark); arrows from where a message leaves to where it arrives; instants for
    marks, failures and exhausted memory; the critical path as a process of its own; a counter for
    each of the 256 busiest links; requests as asynchronous slices.

    Args:
        result: Of a run that kept a timeline.
        path: Of the file; it is compressed if it ends in ".gz".
    """
    result.need_records("a Perfetto trace")
    with atomic(path) as file:
        if str(path).endswith(".gz"):
            with gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0) as packed:
                _stream(result, cast(BinaryIO, packed))
        else:
            _stream(result, file)


def _stream(result: Result, file: BinaryIO) -> None:
    file.write(b'{"displayTimeUnit":"ns","traceEvents":[\n')
    lines = _lines(result)
    separator = b""
    while chunk := list(itertools.islice(lines, _BUFFERED)):
        file.write(separator + ",\n".join(chunk).encode())
        separator = b",\n"
    about = {
        "makespan_ps": str(result.makespan_ps),
        "network": result.network,
        "seed": result.seed,
        "event_hash": result.event_hash,
    }
    file.write(b'\n],"otherData":' + json.dumps(about).encode() + b"}\n")


def _lines(result: Result) -> Iterator[str]:
    shown = tracks(result.records)
    yield from map(_json, _processes(result, shown))
    yield from _slices(result, shown)
    yield from map(_json, _instants(result))
    yield from _arrows(result)
    for events in (_critical(result), _counters(result), _request_slices(result)):
        yield from map(_json, events)


def _json(event: Event) -> str:
    return json.dumps(event, separators=(",", ":"))


def _ns(picoseconds: Any) -> Any:
    return (picoseconds + 500) // 1000


def _us(ns: int) -> float:
    """Microseconds of nanoseconds; exact in JSON up to 52 days."""
    return ns / 1000


def _tid(rank: int, stream: int, lane: int) -> int:
    return _STRIDE * (rank + 1) + min(stream * 4 + min(lane, 3), _STRIDE - 1)


def _name(kind: str, pid: int, tid: int, name: str) -> Event:
    return {"ph": "M", "pid": pid, "tid": tid, "name": kind, "args": {"name": name}}


def _process(pid: int, name: str, order: int) -> Iterator[Event]:
    yield _name("process_name", pid, pid, name)
    index = {"sort_index": order}
    yield {"ph": "M", "pid": pid, "tid": pid, "name": "process_sort_index", "args": index}


def _processes(result: Result, shown: list[Track]) -> Iterator[Event]:
    yield from _process(_PATH, "critical path", -3)
    yield _name("thread_name", _PATH, _PATH, "critical path")
    if len(result.queues):
        yield from _process(_REQUESTS, "requests", -2)
    if result.link_use.size:
        yield from _process(_LINKS, "links", -1)
    devices = result.ranks["device"]
    for rank in range(len(result.ranks)):
        pid = _tid(rank, 0, 0)
        yield from _process(pid, f"rank {rank} on {devices[rank]}", rank)
        yield _name("thread_name", pid, pid, f"rank {rank}")
    for track in shown:
        if track.stream or track.lane:
            tid = _tid(track.rank, track.stream, track.lane)
            name = f"stream {track.stream}" if track.stream else f"rank {track.rank}"
            more = f" ({track.lane + 1})" if track.lane else ""
            yield _name("thread_name", _tid(track.rank, 0, 0), tid, name + more)


def _slices(result: Result, shown: list[Track]) -> Iterator[str]:
    marks = marks_in_force(result.records).tolist()
    names = [json.dumps(name) for name in result.names]
    for track in shown:
        pid, tid = _tid(track.rank, 0, 0), _tid(track.rank, track.stream, track.lane)
        # Plain tuples and text: there are millions of these.
        rows = result.records[track.records].tolist()
        for row, values in zip(track.records.tolist(), rows, strict=True):
            start, end, size, _, _, _, peer, op, tag, kind, _, flags = values
            begun, mark = _ns(start), marks[row]
            named = kind == Kind.COMPUTE and 0 <= mark < len(names)
            name = names[mark] if named else f'"{kind_name(kind, flags)}"'
            # Exact times are text: JavaScript's numbers end at 2^53.
            args = f'"start_ps":"{start}","end_ps":"{end}","op":{op}'
            if size:
                args += f',"bytes":{size}'
            if kind in (Kind.SEND, Kind.RECV):
                args += f',"peer":{peer},"tag":{tag}'
            elif kind == Kind.TAKE:
                args += f',"queue":{tag}'
            yield (
                f'{{"ph":"X","pid":{pid},"tid":{tid},"name":{name},'
                f'"cat":"{_CATEGORIES.get(kind, "communication")}",'
                f'"ts":{_us(begun)},"dur":{_us(_ns(end) - begun)},"args":{{{args}}}}}'
            )


def _instants(result: Result) -> Iterator[Event]:
    records = result.records
    for record in records[np.isin(records["kind"], np.asarray([*_INSTANTS], np.uint8))]:
        kind, tag = Kind(int(record["kind"])), int(record["tag"])
        known = kind == Kind.MARK and 0 <= tag < len(result.names)
        tid = _tid(int(record["rank"]), 0, 0)
        yield {
            "ph": "i",
            "s": "t",
            "pid": tid,
            "tid": tid,
            "name": result.names[tag] if known else kind_name(kind),
            "cat": _INSTANTS[kind],
            "ts": _us(_ns(int(record["start"]))),
        }


def _arrows(result: Result) -> Iterator[str]:
    """A nanosecond where a message leaves and one where it arrives, and the arrow between them.

    Perfetto draws an arrow from the slice that began first, which a recv often did.
    """
    records = result.records
    # Who went on because a message arrived.
    waited = np.full(len(records), -1)
    known = np.flatnonzero(records["prev"] < len(records))
    waited[records["prev"][known]] = known
    waiter_of = waited.tolist()
    ranks, streams = records["rank"].tolist(), records["stream"].tolist()
    messages = np.flatnonzero(records["kind"] == Kind.MESSAGE)
    for row, values in zip(messages.tolist(), records[messages].tolist(), strict=True):
        start, end, size, _, _, source, target, _, tag, _, stream, _ = values
        left, arrived = _ns(start), _ns(end) - 1
        if arrived < left:
            continue
        waiter = waiter_of[row]
        into = streams[waiter] if waiter >= 0 and ranks[waiter] == target else 0
        args = f'"args":{{"bytes":{size},"tag":{tag},"from":{source},"to":{target}}}'
        for phase, name, rank, lane, at in (
            ('"s"', "message out", source, stream, left),
            ('"f","bp":"e"', "message in", target, into, arrived),
        ):
            place = (
                f'"pid":{_tid(rank, 0, 0)},"tid":{_tid(rank, lane, 0)},"ts":{_us(at)},'
                f'"cat":"message"'
            )
            yield f'{{"ph":"X","name":"{name}","dur":0.001,{args},{place}}}'
            yield f'{{"ph":{phase},"name":"message","id":{row},{place}}}'


def _critical(result: Result) -> Iterator[Event]:
    for segment in result.critical_path:
        parts = [(segment.what, segment.start, segment.end)]
        if segment.what == "message":
            arrived = segment.start + segment.ideal
            parts = [("transfer", segment.start, arrived), ("contention", arrived, segment.end)]
        for name, start, end in parts:
            begun, over = (round(t * PICOSECONDS / 1000) for t in (start, end))
            if over > begun:
                yield {
                    "ph": "X",
                    "pid": _PATH,
                    "tid": _PATH,
                    "name": name,
                    "cat": "critical path",
                    "ts": _us(begun),
                    "dur": _us(over - begun),
                    "args": {"where": segment.where, "bytes": segment.bytes},
                }


def _counters(result: Result) -> Iterator[Event]:
    if not result.link_use.size:
        return
    links = result.links
    carried = np.flatnonzero(links["bytes"] > 0)
    busiest = carried[np.argsort(-links["utilisation"][carried], kind="stable")][:_MOST_LINKS]
    for link in np.sort(busiest).tolist():
        row = links.row(link)
        name = f"{row['link']}: {row['source']} to {row['target']}"
        percent = np.round(100 * result.link_use[link].astype(np.float64), 2)
        changed = np.flatnonzero(np.diff(percent, prepend=-1.0))
        for column in changed.tolist():
            at = round(column * result.bin * PICOSECONDS / 1000)
            args = {"%": float(percent[column])}
            yield {"ph": "C", "pid": _LINKS, "name": name, "ts": _us(at), "args": args}
        over = _ns(result.makespan_ps)
        yield {"ph": "C", "pid": _LINKS, "name": name, "ts": _us(over), "args": {"%": 0.0}}


def _request_slices(result: Result) -> Iterator[Event]:
    for queue, requests in enumerate(result.queues):
        columns = (requests.arrived, requests.taken, requests.done)
        times = zip(*(column.tolist() for column in columns), strict=True)
        for number, (arrived, taken, done) in enumerate(times):
            if arrived == NEVER:
                continue
            over = result.makespan_ps
            phases = [("request", arrived, min(done, over))]
            phases.append(("waiting", arrived, min(taken, over)))
            if taken != NEVER:
                phases.append(("service", taken, min(done, over)))
            common: Event = {"pid": _REQUESTS, "tid": _REQUESTS, "cat": "request"}
            common["id"] = f"{queue}.{number}"
            about = {"queue": requests.name, "number": number, "answered": done != NEVER}
            yield {"ph": "b", "name": "request", "ts": _us(_ns(arrived)), "args": about, **common}
            for name, start, end in phases[1:]:
                yield {"ph": "b", "name": name, "ts": _us(_ns(start)), **common}
                yield {"ph": "e", "name": name, "ts": _us(_ns(end)), **common}
            yield {"ph": "e", "name": "request", "ts": _us(_ns(phases[0][2])), **common}
