"""Files of traces: what was written is read, and nothing else is."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leeboard.sim.ops import ALGORITHMS, COLLECTIVES, OP, OpKind
from leeboard.sim.program import Program
from leeboard.sim.trace import Trace, TraceError
from trace_files import Arrays, every_kind, rewrite


@pytest.fixture(scope="module")
def trace() -> Trace:
    return every_kind()


@pytest.fixture(scope="module")
def saved(trace: Trace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("traces") / "trace.npz"
    trace.save(path)
    return path


def test_a_trace_comes_back_whole(trace: Trace, saved: Path) -> None:
    loaded = Trace.load(saved)
    assert loaded == trace
    assert loaded.queues[1]["times"] == (10**11, 2 * 10**11)
    assert loaded.names == ("request",)
    assert set(np.unique(loaded.ops["kind"])) == set(OpKind) - {OpKind.RANDOM}


def test_metadata_is_kept_and_does_not_count(trace: Trace, tmp_path: Path) -> None:
    told = Trace(
        **{name: getattr(trace, name) for name in ("ops", "begin", "end")},
        **{name: getattr(trace, name) for name in ("group_offsets", "group_members")},
        **{name: getattr(trace, name) for name in ("size_offsets", "sizes", "queues", "names")},
        metadata={"model": "llama", "µ": "ü"},
    )
    told.save(tmp_path / "t.npz")
    assert dict(Trace.load(tmp_path / "t.npz").metadata) == {"model": "llama", "µ": "ü"}
    assert told == trace


def test_equality_sees_every_field(trace: Trace) -> None:
    assert trace != Program(4).trace()
    assert trace != "trace"
    other = Program(4)
    other.mark("other")
    one = Program(4)
    one.mark("one")
    assert other.trace() != one.trace()


def test_a_trace_cannot_be_changed(trace: Trace) -> None:
    with pytest.raises(ValueError, match="read-only"):
        trace.ops["kind"][0] = 1
    with pytest.raises(AttributeError):
        trace.names = ()  # type: ignore[misc]
    with pytest.raises(TypeError):
        trace.queues[0]["count"] = 3  # type: ignore[index]


def test_a_trace_travels_to_other_processes(trace: Trace) -> None:
    assert pickle.loads(pickle.dumps(trace)) == trace


def test_the_file_is_plain_numpy_and_json(trace: Trace, saved: Path) -> None:
    with np.load(saved, allow_pickle=False) as file:
        assert file["ops"].dtype == OP
        assert (file["ops"] == trace.ops).all()
        header = json.loads(file["header.json"])
    assert header["format"] == "leeboard.sim.trace"
    assert header["version"] == 1
    assert header["ranks"] == 4
    assert header["counts"]["ops"] == len(trace.ops)


def test_equal_traces_have_equal_files(trace: Trace, saved: Path, tmp_path: Path) -> None:
    trace.save(tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == saved.read_bytes()


def test_a_file_that_cannot_be_written_leaves_the_old_one(
    trace: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.npz"
    path.write_text("old")

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("leeboard.sim.trace_file.npy.write_array", fail)
    with pytest.raises(OSError, match="disk full"):
        trace.save(path)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["t.npz"]


def test_stats_multiply_loops_out(trace: Trace) -> None:
    stats = trace.stats()
    assert stats.ops["compute"] == 12
    assert stats.ops["delay"] == 3
    assert (stats.messages, stats.message_bytes) == (3, 300)
    assert stats.collectives == {"all_reduce": 12, "all_to_all": 2}
    assert stats.collective_bytes == 12 * 2**20 + 2 * 5
    assert (stats.flops, stats.memory_bytes) == (12 * 2 * 10**9, 12 * 2**20)
    assert stats.ops["mark"] == 2
    assert "12 all_reduce, 2 all_to_all" in trace.describe()


def test_dumps_end(trace: Trace) -> None:
    assert trace.dump(3, most=2).splitlines()[-1] == "  ..."
    with pytest.raises(ValueError, match="rank: got 4"):
        trace.dump(4)


def column(name: str, value: Any) -> Callable[[dict[str, Any], Arrays], object]:
    return lambda header, arrays: arrays.update({name: value(arrays[name])})


def entry(key: str, value: Any) -> Callable[[dict[str, Any], Arrays], object]:
    return lambda header, arrays: header.update({key: value})


def first(of: OpKind, **fields: int) -> Callable[[dict[str, Any], Arrays], object]:
    """Change the first op of a kind."""

    def change(header: dict[str, Any], arrays: Arrays) -> None:
        at = int(np.flatnonzero(arrays["ops"]["kind"] == of)[0])
        for name, value in fields.items():
            arrays["ops"][name][at] = value

    return change


DAMAGE: list[tuple[Callable[[dict[str, Any], Arrays], object], str]] = [
    (entry("format", "x"), "no trace: its format is not 'leeboard.sim.trace'"),
    (entry("version", 2), "version 2 is newer than 1, which this leeboard"),
    (entry("version", "1"), "a damaged trace: version '1'"),
    (entry("ranks", 3), "a damaged trace: ranks is 3"),
    (entry("ranks", -1), "the count of ranks is -1"),
    (entry("names", [3]), "names is no text"),
    (entry("names", []), "a mark without a name"),
    (entry("metadata", {"a": 1}), "metadata is no text"),
    (entry("metadata", None), "a damaged trace"),
    (entry("queues", [{}]), "queue 0 is {}"),
    (entry("queues", []), "2 times of arrival, the queues have 0"),
    (entry("sha256", "0" * 64), "do not have the checksum"),
    (lambda h, a: h.pop("counts") and h.update(sha256=""), "no 'counts'"),
    (column("ops", lambda x: np.zeros(len(x), [*OP.descr, ("c", "u1", (64,))])), "ops takes"),
    (column("begin", lambda x: x.astype("<i8")), r"begin is int64 \[4\], expected uint64 \[4\]"),
    (column("begin", lambda x: x.reshape(2, 2)), "begin"),
    (column("sizes", lambda x: x.astype(">u8")), r"sizes is >u8 \[4\]"),
    (column("end", lambda x: x[:3]), "end: has 3 values, expected 4"),
    (column("end", lambda x: x + np.uint64(1000)), "rank 0 has ops"),
    (column("group_members", lambda x: x[::-1].copy()), "group_members"),
    (column("group_offsets", lambda x: x[:1]), "group_offsets"),
    (first(OpKind.SEND, peer=4), "peer 4"),
    (first(OpKind.SEND, tag=-1), "tag -1"),
    (first(OpKind.SEND, kind=99), "unknown kind 99"),
    (first(OpKind.LOOP, b=0), r"ops\[0\]"),
    (first(OpKind.CALL, b=2**40), "a call out of range"),
    (first(OpKind.COLLECTIVE, flags=9), "unknown collective"),
    (first(OpKind.COLLECTIVE, tag=7), "group 7"),
    (first(OpKind.COLLECTIVE, b=99), "algorithm"),
    (first(OpKind.TAKE, tag=9), "queue 9"),
    (first(OpKind.COLLECTIVE, tag=1), "rank 0 calls a collective of group 1, which it is not in"),
]


@pytest.mark.parametrize(("change", "message"), DAMAGE, ids=[m for _, m in DAMAGE])
def test_damage_is_named(
    saved: Path,
    tmp_path: Path,
    change: Callable[[dict[str, Any], Arrays], object],
    message: str,
) -> None:
    path = tmp_path / "bad.npz"
    rewrite(saved, path, change)
    with pytest.raises(TraceError, match=message) as error:
        Trace.load(path)
    assert str(error.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no trace, or cut off"),
        (b"hello", "no trace, or cut off"),
        (b"\x93NUMPY", "no trace, or cut off"),
    ],
)
def test_other_files_are_no_traces(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.npz"
    path.write_bytes(content)
    with pytest.raises(TraceError, match=message):
        Trace.load(path)


def test_a_missing_file_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Trace.load(tmp_path / "none.npz")


def test_every_cut_is_seen(saved: Path, tmp_path: Path) -> None:
    content, path = saved.read_bytes(), tmp_path / "cut.npz"
    for length in range(0, len(content), 37):
        path.write_bytes(content[:length])
        with pytest.raises(TraceError):
            Trace.load(path)


def test_an_archive_of_something_else(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(TraceError, match=r"it has no header\.json"):
        Trace.load(tmp_path / "other.npz")


def test_more_entries_than_there_should_be(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "more.npz"
    path.write_bytes(saved.read_bytes())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("more.npy", b"")
    with pytest.raises(TraceError, match=r"it holds 'more\.npy'"):
        Trace.load(path)


def test_a_file_that_unpacks_to_too_much_is_refused_unread(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    bomb = np.zeros(200_000, dtype=OP)
    rewrite(saved, path, column("ops", lambda x: np.concatenate([x, bomb])))
    assert path.stat().st_size < 40_000
    with pytest.raises(TraceError, match=r"more than max_bytes \(1000000\)"):
        Trace.load(path, max_bytes=1_000_000)
    rewrite(
        saved,
        path,
        lambda header, arrays: header.update(
            sha256="", counts={name: len(array) + 10**9 for name, array in arrays.items()}
        ),
    )
    with pytest.raises(TraceError, match=r"1000000\d* were to take"):
        Trace.load(path)


def test_nothing_is_unpickled(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "pickle.npz"
    with zipfile.ZipFile(saved) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            if name == "begin.npy":
                with archive.open("begin.npy", "w") as out:
                    np.lib.format.write_array(out, np.array([print] * 4, dtype=object))
                continue
            archive.writestr(name, content)
    with pytest.raises(TraceError, match="begin"):
        Trace.load(path)


def test_the_page_names_every_key_column_and_kind(saved: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "sim" / "trace.md").read_text()
    words = set(re.findall(r"`([\w.]+)`", text))
    with np.load(saved) as file:
        header = json.loads(file["header.json"])
        assert {name for name in file.files if name != "header.json"} <= words
    assert set(header) <= words
    assert set(header["queues"][0]) <= words
    assert set(OP.names or ()) <= words
    rows = re.findall(r"^\| ([\d, ]+) \| ([\w, ]+) \|", text, re.MULTILINE)
    kinds = {
        int(number): name.strip().replace(" ", "_").upper()
        for numbers, names in rows
        for number, name in zip(numbers.split(","), names.split(","), strict=True)
    }
    assert kinds == {int(kind): kind.name for kind in OpKind}
    assert ", ".join(COLLECTIVES) in text
    assert ", ".join(ALGORITHMS) in text
