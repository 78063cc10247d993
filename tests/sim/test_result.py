"""Results: what is counted, the critical path, the file."""

from __future__ import annotations

import contextlib
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leeboard.sim.records import NO_RECORD, RECORD, Kind
from leeboard.sim.result import Result
from leeboard.sim.result_file import ResultError
from sim_results import US, ping, record, result, served, star


@pytest.fixture
def pinged() -> Result:
    raw = ping()
    raw["requests"] = [served()]
    return result(raw, names=("forward",))


def test_times_are_seconds_and_add_up(pinged: Result) -> None:
    assert pinged.makespan == 31e-6
    ranks = pinged.ranks
    np.testing.assert_allclose(ranks["finish"], [31e-6, 28e-6])
    np.testing.assert_allclose(ranks["idle"], [0, 3e-6], atol=1e-18)
    total = ranks["compute"] + ranks["communication"] + ranks["idle"]
    np.testing.assert_allclose(total, pinged.makespan)
    assert sum(pinged.shares().values()) == pytest.approx(1)
    assert pinged.shares()["compute"] == pytest.approx(8 / 62)
    assert ranks.row(1)["device"] == "device.1"


def test_energy_is_idle_power_throughout_and_active_while_computing() -> None:
    made = result(ping(), star(2, idle=10.0, active=30.0))
    expected = [31e-6 * 10 + 5e-6 * 20, 31e-6 * 10 + 3e-6 * 20]
    np.testing.assert_allclose(made.ranks["energy"], expected)
    assert made.energy == pytest.approx(sum(expected))
    # A device that no rank runs on draws power too.
    wide = star(3, idle=10.0, active=30.0)
    raw = ping()
    raw["links"] = {key: np.append(raw["links"][key], [0, 0]) for key in raw["links"]}
    raw["utilisation"] = np.zeros((6, 8), np.float32)
    assert result(raw, wide).energy == pytest.approx(sum(expected) + 31e-6 * 10)


def test_ranks_of_one_device_share_its_idle_power() -> None:
    platform = star(2, idle=10.0, active=30.0).with_placement([1, 1])
    made = result(ping(), platform)
    expected = [31e-6 * 5 + 5e-6 * 20, 31e-6 * 5 + 3e-6 * 20]
    np.testing.assert_allclose(made.ranks["energy"], expected)
    assert list(made.ranks["device"]) == ["device.1", "device.1"]
    assert made.energy == pytest.approx(sum(expected) + 31e-6 * 10)


def test_links_have_a_row_for_each_way(pinged: Result) -> None:
    links = pinged.links
    ends = list(zip(links["source"], links["target"], strict=True))
    assert ends[:2] == [("device.0", "switch.0"), ("switch.0", "device.0")]
    np.testing.assert_allclose(links["utilisation"], 1000 / (125e6 * 31e-6))
    np.testing.assert_allclose(links["busy"], 8e-6)
    assert pinged.link_use.shape == (4, 8)
    assert pinged.bin == pytest.approx(31e-6 / 8)


def test_half_duplex_links_have_one_row() -> None:
    raw = ping()
    raw["links"]["bytes"] = np.array([2000.0, 0, 2000.0, 0])
    made = result(raw, star(2, duplex="half"))
    assert list(made.links["bytes"]) == [2000.0, 2000.0]
    np.testing.assert_array_equal(made.link_use, raw["utilisation"][[0, 2]])


def test_requests(pinged: Result) -> None:
    row = pinged.requests.row(0)
    latency = 1e-6 * (2 + np.arange(1, 100))
    assert (row["count"], row["unanswered"]) == (100, 1)
    assert row["waiting"] == pytest.approx(2e-6)
    assert row["service"] == pytest.approx(50e-6)
    assert row["mean"] == pytest.approx(52e-6)
    assert row["p90"] == pytest.approx(np.percentile(latency, 90))
    assert row["max"] == pytest.approx(101e-6)
    assert row["throughput"] == pytest.approx(99 / (980e-6 + 101e-6))


def test_a_queue_without_an_answer_has_no_latency() -> None:
    raw = ping()
    raw["requests"] = [{key: served()[key][-1:] for key in ("arrived", "taken", "done")}]
    row = result(raw).requests.row(0)
    assert (row["count"], row["unanswered"]) == (1, 1)
    assert np.isnan(row["p99"])
    assert "latency p50 -" in str(result(raw))


def test_the_summary_says_what_matters(pinged: Result) -> None:
    text = str(pinged)
    for part in (
        "31 us",
        "idle",
        "contention 2 us",
        "0123456789abcdef",
        "seed 7",
        "1 unanswered, 91,582 a second",
        "rank 0 at 2 us: 96 B asked for with 3.906 KiB in use of 3.955 KiB",
        "rank 1 stopped at 30 us",
        "rank 0 on device.0",
    ):
        assert part in text, text
    assert len(text.splitlines()) < 20


def test_the_critical_path_covers_the_makespan(pinged: Result) -> None:
    path = pinged.critical_path
    assert [(s.what, s.rank) for s in path] == [
        ("compute", 0),
        ("message", 0),
        ("compute", 1),
        ("message", 1),
        ("recv", 0),
    ]
    assert path[0].start == 0
    assert path[-1].end == pinged.makespan
    assert all(a.end == b.start for a, b in itertools.pairwise(path))
    totals = path.totals()
    assert sum(totals.values()) == pytest.approx(pinged.makespan)
    expected = {"compute": 8e-6, "transfer": 20e-6, "contention": 2e-6, "other": 1e-6}
    assert {k: v for k, v in totals.items() if v} == pytest.approx(expected)
    assert path.top(1)[0].duration == pytest.approx(12e-6)
    assert path.by_rank() == pytest.approx({0: 18e-6, 1: 13e-6})
    assert path.table().row(1)["contention"] == pytest.approx(2e-6)


def raw_of(*records: tuple[Any, ...]) -> dict[str, Any]:
    raw = ping()
    raw["records"] = np.array([*records], RECORD)
    return raw


def test_what_no_record_explains_is_other() -> None:
    """A rank that began late, and one that went on after its predecessor had ended."""
    path = result(
        raw_of(
            record(Kind.COMPUTE, 0, 2, 5),
            record(Kind.COMPUTE, 0, 8, 10, prev=0),
        )
    ).critical_path
    assert [(s.what, s.start, s.end) for s in path] == [
        ("nothing recorded", 0, 2e-6),
        ("compute", 2e-6, 5e-6),
        ("nothing recorded", 5e-6, 8e-6),
        ("compute", 8e-6, 10e-6),
    ]
    assert path.totals()["other"] == pytest.approx(5e-6)


def test_what_comes_before_a_message_that_was_ready_is_a_handshake() -> None:
    path = result(
        raw_of(
            record(Kind.COMPUTE, 0, 0, 5),
            record(Kind.MESSAGE, 0, 7, 10, peer=1, ideal=3, prev=0),
        )
    ).critical_path
    assert [s.what for s in path] == ["compute", "handshake", "message"]
    totals = {kind: part for kind, part in path.totals().items() if part}
    assert totals == pytest.approx({"compute": 5e-6, "handshake": 2e-6, "transfer": 3e-6})


def test_a_predecessor_that_ends_later_counts_until_it_let_go() -> None:
    """A message leaves its sender before it arrives: the sender goes on meanwhile."""
    path = result(
        raw_of(
            record(Kind.MESSAGE, 0, 0, 10, peer=1, ideal=4),
            record(Kind.SEND, 0, 0, 6, prev=0),
            record(Kind.COMPUTE, 0, 6, 20, prev=1),
        )
    ).critical_path
    assert [s.what for s in path] == ["message", "compute"]
    assert [s.duration for s in path] == pytest.approx([6e-6, 14e-6])
    assert (path[0].ideal, path[0].contention) == (4e-6, 2e-6)


def test_repeats_are_shown_once() -> None:
    records, at = [], 0
    for turn in range(1000):
        prev = len(records) - 1 if records else NO_RECORD
        records.append(record(Kind.COMPUTE, turn % 4, at, at + 2, prev=prev))
        records.append(
            record(
                Kind.MESSAGE,
                turn % 4,
                at + 2,
                at + 5,
                peer=(turn + 1) % 4,
                bytes=64,
                ideal=2,
                prev=len(records) - 1,
            )
        )
        at += 5
    path = result(raw_of(*records)).critical_path
    (repeat,) = path.merged()
    assert (repeat.times, repeat.pattern) == (1000, 2)
    assert "(compute, message of 64 B) x 1,000, 1 ms of it contention" in str(path)
    assert "(8 places)" in str(path)


def test_a_circle_of_records_ends() -> None:
    """A file can say anything."""
    path = result(
        raw_of(record(Kind.WAIT, 0, 0, 5, prev=1), record(Kind.WAIT, 0, 0, 5, prev=0))
    ).critical_path
    assert len(path) <= 2


def test_no_timeline() -> None:
    raw = raw_of()
    with pytest.raises(ValueError, match="critical path needs the timeline"):
        _ = result(raw).critical_path
    assert "critical path" not in str(result(raw))
    raw["records_dropped"] = True
    with pytest.raises(ValueError, match="larger than"):
        _ = result(raw).critical_path
    assert "dropped" in str(result(raw))


def assert_same(a: Result, b: Result) -> None:
    for name in ("makespan_ps", "events", "messages", "event_hash", "network", "seed", "energy"):
        assert getattr(a, name) == getattr(b, name)
    for name in ("records_dropped", "names", "bin", "out_of_memory", "failures"):
        assert getattr(a, name) == getattr(b, name)
    for table in ("ranks", "links"):
        ours, theirs = getattr(a, table), getattr(b, table)
        assert ours.columns == theirs.columns
        for name in ours.columns:
            np.testing.assert_array_equal(ours[name], theirs[name])
            assert ours[name].dtype == theirs[name].dtype
    np.testing.assert_array_equal(a.records, b.records)
    np.testing.assert_array_equal(a.link_use, b.link_use)
    assert len(a.queues) == len(b.queues)
    for ours, theirs in zip(a.queues, b.queues, strict=True):
        assert ours.name == theirs.name
        for name in ("arrived", "taken", "done"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    assert str(a) == str(b)


def test_the_file_gives_back_what_was_saved(pinged: Result, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    pinged.to_json(file)
    assert_same(Result.load(file), pinged)
    content = json.loads(file.read_text())
    assert content["makespan"] == 31e-6
    assert content["requests"][0]["count"] == 100
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_a_file_that_cannot_be_written_leaves_the_old_one(
    pinged: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "result.json"
    file.write_text("old")
    monkeypatch.setattr(json, "dumps", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pinged.to_json(file)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]
    with pytest.raises(FileNotFoundError, match="no folder"):
        pinged.to_json(tmp_path / "missing" / "result.json")


def change(path: Path, **keys: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"version": 2}, "version 2 is newer than 1"),
        ({"version": "1"}, "newer"),
        ({"format": "leeboard.sim.trace"}, "not a result"),
        ({"makespan_ps": 1.5}, "makespan_ps: got 1.5, expected int"),
        ({"ranks": {}}, "no 'rank'"),
        ({"queues": [{"name": "a"}]}, "no 'arrived'"),
        ({"records": {"shape": [1 << 50], "zlib": ""}}, "shape"),
        ({"records": {"shape": [1], "zlib": "eJwDAAAAAAE="}}, "got 0 bytes, expected 56"),
        ({"records": {"shape": [1], "zlib": "%%"}}, "damaged"),
        ({"failures": [{"rank": 0, "when": 1}]}, "when"),
    ],
)
def test_a_file_that_is_no_result(
    pinged: Result, tmp_path: Path, keys: dict[str, Any], message: str
) -> None:
    file = tmp_path / "result.json"
    pinged.to_json(file)
    change(file, **keys)
    with pytest.raises(ResultError, match=message) as caught:
        Result.load(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_named(pinged: Result, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    pinged.to_json(file)
    content = json.loads(file.read_text())
    for key in ("events", "links", "records", "marks"):
        file.write_text(json.dumps({k: v for k, v in content.items() if k != key}))
        with pytest.raises(ResultError, match=f"no '{key}'"):
            Result.load(file)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_file_cut_or_changed_anywhere_is_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Only ResultError comes out of bytes, and a file cut short is never read."""
    file = tmp_path_factory.mktemp("cut") / "result.json"
    raw = ping()
    raw["requests"] = [served(3)]
    result(raw).to_json(file)
    content = bytearray(file.read_bytes())
    at = data.draw(st.integers(0, len(content) - 3))
    file.write_bytes(content[:at])
    with pytest.raises(ResultError):
        Result.load(file)
    content[at] = data.draw(st.integers(0, 255))
    file.write_bytes(content)
    with contextlib.suppress(ResultError):
        str(Result.load(file))


def test_times_beyond_a_double_survive(tmp_path: Path) -> None:
    raw = ping()
    raw["makespan"] = 2**62 + 1
    raw["ranks"]["sent"] = np.array([2**63 + 1, 0], np.uint64)
    file = tmp_path / "long.json"
    made = result(raw)
    made.to_json(file)
    loaded = Result.load(file)
    assert loaded.makespan_ps == 2**62 + 1
    assert loaded.ranks["sent"][0] == 2**63 + 1


def test_units_of_the_core(pinged: Result) -> None:
    assert pinged.records["end"].max() == 31 * US
