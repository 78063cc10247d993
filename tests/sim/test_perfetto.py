"""Timelines for Perfetto: the format, and what its trace processor makes of it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leeboard.sim.records import NO_RECORD, RECORD, Kind
from leeboard.sim.result import Result
from leeboard.sim.tracks import marks_in_force, tracks
from sim_results import US, ping, record, result, served
from trace_format import check, query, read


def everything() -> Result:
    """Streams, marks, failures, exhausted memory, requests, links."""
    raw = ping()
    more = [
        record(Kind.COMPUTE, 0, 6, 9, prev=1, stream=2),
        record(Kind.COLLECTIVE, 1, 30, 31, flags=0, bytes=64, prev=6),
        record(Kind.OUT_OF_MEMORY, 0, 2, 2, bytes=4096),
        record(Kind.STOPPED, 1, 30, 30),
        record(Kind.DONE, 1, 30, 30),
    ]
    raw["records"] = np.concatenate([raw["records"], np.array(more, RECORD)])
    raw["requests"] = [served(3), served(2)]
    return result(raw, names=("forward",))


@pytest.mark.parametrize("name", ["trace.json", "trace.json.gz"])
def test_it_keeps_to_the_format(tmp_path: Path, name: str) -> None:
    everything().to_perfetto(tmp_path / name)
    events = read(tmp_path / name)
    assert {e["ph"] for e in events} == set("MXisfCbe")
    # Rank 0 passed a mark, rank 1 did not.
    slices = [e for e in events if e["ph"] == "X" and e["cat"] == "compute"]
    assert [e["name"] for e in slices] == ["forward", "forward", "compute"]
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_the_checker_sees_what_is_wrong(tmp_path: Path) -> None:
    everything().to_perfetto(tmp_path / "trace.json")
    good = read(tmp_path / "trace.json")
    slices = [i for i, e in enumerate(good) if e["ph"] == "X"]
    changes: list[tuple[int, dict[str, Any]]] = [
        (slices[0], {"dur": 6.0}),
        (slices[0], {"ts": 0.0001}),
        (slices[0], {"tid": 7}),
        (next(i for i, e in enumerate(good) if e["ph"] == "f"), {"ts": 500.0}),
        (next(i for i, e in enumerate(good) if e["ph"] == "e"), {"name": "other"}),
        (next(i for i, e in enumerate(good) if e["ph"] == "s"), {"id": -1}),
    ]
    for index, change in changes:
        bad = [dict(event) for event in good]
        bad[index] |= change
        with pytest.raises((AssertionError, IndexError)):
            check(bad)


def test_perfetto_reads_all_of_it(tmp_path: Path) -> None:
    made = everything()
    made.to_perfetto(tmp_path / "trace.json")
    slices, flows, counters, lost, names, instants, requests = query(
        tmp_path / "trace.json",
        "select p.name, t.name, s.name, s.ts, s.dur from slice s join thread_track k "
        "on s.track_id = k.id join thread t using (utid) join process p using (upid) "
        "where s.dur > 1 order by p.name, s.ts, s.dur",
        "select a.name, pa.name, a.ts, b.name, pb.name, b.ts from flow f join slice a on f.slice_out = a.id "
        "join slice b on f.slice_in = b.id join thread_track ka on a.track_id = ka.id "
        "join thread ta on ka.utid = ta.utid join process pa on ta.upid = pa.upid "
        "join thread_track kb on b.track_id = kb.id join thread tb on kb.utid = tb.utid "
        "join process pb on tb.upid = pb.upid order by f.id",
        "select t.name, max(c.value), count(*) from counter c join counter_track t "
        "on c.track_id = t.id group by t.name order by t.name",
        "select name, value from stats where value > 0 and severity != 'info'",
        "select distinct name from process where name is not null order by name",
        "select s.name from slice s join thread_track k on s.track_id = k.id where dur = 0",
        "select name, count(*), min(dur), max(dur) from slice where category = 'request' "
        "group by name order by name",
    )
    assert lost == []
    ranks = [row for row in slices if row[0].startswith("rank")]
    assert [row[1:] for row in ranks] == [
        ["rank 0", "forward", 0, 5000],
        ["rank 0", "send", 5000, 8000],
        ["stream 2", "forward", 6000, 3000],
        ["rank 0", "recv", 13000, 18000],
        ["rank 1", "recv", 0, 17000],
        ["rank 1", "compute", 17000, 3000],
        ["rank 1", "send", 20000, 8000],
        ["rank 1", "all_reduce", 30000, 1000],
    ]
    one, two = "rank 0 on device.0", "rank 1 on device.1"
    assert flows == [
        ["message out", one, 5000, "message in", two, 16999],
        ["message out", two, 20000, "message in", one, 29999],
    ]
    path = [row[2:] for row in slices if row[0] == "critical path"]
    assert path == [
        ["compute", 0, 5000],
        ["transfer", 5000, 10000],
        ["contention", 15000, 2000],
        ["compute", 17000, 3000],
        ["transfer", 20000, 10000],
        ["recv", 30000, 1000],
    ]
    assert [row[:2] for row in counters] == [
        ["link.0: device.0 to switch.0 %", 75],
        ["link.0: switch.0 to device.0 %", 0],
        ["link.1: device.1 to switch.0 %", 0],
        ["link.1: switch.0 to device.1 %", 75],
    ]
    assert [row[0] for row in names] == ["critical path", "links", one, two, "requests"]
    assert sorted(row[0] for row in instants) == ["forward", "out of memory", "stopped"]
    # The last of each queue is answered never: it lasts to the end of the run.
    assert requests == [
        ["request", 5, 3000, 21000],
        ["service", 5, 1000, 19000],
        ["waiting", 5, 2000, 2000],
    ]


def test_picoseconds_are_rounded_so_that_neighbours_still_meet(tmp_path: Path) -> None:
    times = [0, 400, 1499, 1500, 2600, 2601, 10**15 + 499]
    records = [
        record(Kind.COMPUTE, 0, a / US, b / US, prev=NO_RECORD)
        for a, b in itertools.pairwise(times)
    ]
    raw = ping()
    raw["records"] = np.array(records, RECORD)
    result(raw).to_perfetto(tmp_path / "trace.json")
    events = [e for e in read(tmp_path / "trace.json") if e["ph"] == "X" and e["pid"] > 3]
    ends = [round(1000 * (e["ts"] + e["dur"])) for e in events]
    starts = [round(1000 * e["ts"]) for e in events]
    assert starts[1:] == ends[:-1]
    assert ends == [0, 1, 2, 3, 3, 10**12]
    assert events[-1]["args"]["end_ps"] == str(10**15 + 499)


def test_records_that_overlap_go_to_lanes() -> None:
    records = np.array(
        [
            record(Kind.WAIT, 0, 0, 5, stream=1),
            record(Kind.WAIT, 0, 3, 8, stream=1),
            record(Kind.WAIT, 0, 5, 9, stream=1),
            record(Kind.MESSAGE, 0, 0, 9, peer=1),
            record(Kind.COMPUTE, 0, 0, 2),
        ],
        RECORD,
    )
    found = [(t.rank, t.stream, t.lane, t.records.tolist()) for t in tracks(records)]
    assert found == [(0, 0, 0, [4]), (0, 1, 0, [0, 2]), (0, 1, 1, [1])]


def test_marks_are_of_their_rank_and_hold_from_their_time_on() -> None:
    records = np.array(
        [
            record(Kind.COMPUTE, 1, 0, 1),
            record(Kind.COMPUTE, 0, 2, 3),
            record(Kind.MARK, 0, 2, 2, tag=4),
            record(Kind.COMPUTE, 0, 0, 2),
            record(Kind.MARK, 0, 5, 5, tag=6),
            record(Kind.COMPUTE, 0, 6, 7, stream=3),
            record(Kind.MARK, 0, 6, 6, stream=3, tag=9),
            record(Kind.COMPUTE, 0, 7, 8, stream=3),
            record(Kind.COMPUTE, 0, 7, 8),
            record(Kind.COMPUTE, 0, 5, 6, stream=3),
        ],
        RECORD,
    )
    assert marks_in_force(records).tolist() == [-1, 4, 4, -1, 6, 9, 9, 9, 6, 6]
    assert marks_in_force(records[:0]).tolist() == []


def test_a_run_without_a_timeline_has_no_trace(tmp_path: Path) -> None:
    raw = ping()
    raw["records"] = raw["records"][:0]
    with pytest.raises(ValueError, match="a Perfetto trace needs the timeline"):
        result(raw).to_perfetto(tmp_path / "trace.json")
    assert list(tmp_path.iterdir()) == []


def test_a_file_cut_off_while_it_is_written_is_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json, "dumps", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        everything().to_perfetto(tmp_path / "trace.json.gz")
    assert list(tmp_path.iterdir()) == []
