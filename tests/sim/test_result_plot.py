"""Pictures of results, and the shares of time they are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leeboard.sim.records import NO_RECORD, RECORD, Kind
from leeboard.sim.result import Result
from leeboard.sim.shares import coverage, time_shares
from sim_results import US, ping, record, result, served

pytest.importorskip("matplotlib")


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_coverage_is_what_intervals_share_with_bins(data: st.DataObject) -> None:
    bins, rows = data.draw(st.integers(1, 6)), 3
    times = st.floats(0, bins)
    drawn = data.draw(st.lists(st.tuples(st.integers(0, rows - 1), times, times), max_size=8))
    spans = [(row, min(a, b), max(a, b)) for row, a, b in drawn]
    expected = np.zeros((rows, bins))
    for row, start, end in spans:
        for k in range(bins):
            expected[row, k] += max(min(end, k + 1) - max(start, k), 0.0)
    columns = np.array(spans, float).reshape(-1, 3).T
    found = coverage(columns[0].astype(int), columns[1], columns[2], rows, bins)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_shares_of_grouped_ranks() -> None:
    records = np.array(
        [
            record(Kind.COMPUTE, 0, 0, 5),
            record(Kind.RECV, 0, 5, 10),
            record(Kind.COMPUTE, 0, 5, 7.5, stream=1),
            record(Kind.COMPUTE, 1, 0, 10),
            record(Kind.TAKE, 2, 0, 10),
        ],
        RECORD,
    )
    compute, blocked = time_shares(records, 3, 10 * US, 2, group=2)
    # Rank 0 computes on a stream while its own thread waits: that is not waiting alone.
    np.testing.assert_allclose(compute, [[1.0, 0.75], [0, 0]])
    np.testing.assert_allclose(blocked, [[0, 0.25], [0, 0]])


def many(ranks: int) -> dict[str, Any]:
    """Each rank computes and hands on to the next."""
    raw = ping(bins=4)
    records = []
    for rank in range(ranks):
        before = len(records) - 1 if records else NO_RECORD
        records.append(record(Kind.RECV, rank, 0, rank, prev=before))
        records.append(record(Kind.COMPUTE, rank, rank, rank + 0.5, prev=len(records) - 1))
        after = {"peer": (rank + 1) % ranks, "ideal": 0.25, "prev": len(records) - 1}
        records.append(record(Kind.MESSAGE, rank, rank + 0.5, rank + 1, **after))
    times = np.arange(ranks, dtype=np.uint64) * US
    raw["makespan"] = ranks * US
    raw["records"] = np.array(records, RECORD)
    names = ("finish", "compute", "communication", "sent", "received", "peak_memory")
    raw["ranks"] = dict.fromkeys(names, times) | {"compute": np.full(ranks, US // 2, np.uint64)}
    raw["links"] = {"bytes": np.ones(2 * ranks), "busy": np.ones(2 * ranks, np.uint64)}
    raw["utilisation"] = np.full((2 * ranks, 4), 0.5, np.float32)
    raw["bin_ps"] = ranks * US // 4
    return raw


def titles(made: Result, path: Path | None = None) -> list[str]:
    return [axis.get_title(loc="left") for axis in made.plot(path).axes if axis.get_title("left")]


TIMELINE, IN_ALL = "What each rank does", "What each rank does, in all"
SHARES, MADE_OF = "How many ranks do it", "What the critical path is made of"
LINKS, LATENCY = "How full the links are", "How long requests take"


def test_a_few_ranks(tmp_path: Path) -> None:
    raw = ping()
    raw["requests"] = [served(), {key: served()[key][-1:] for key in served()}]
    made = result(raw)
    assert titles(made, tmp_path / "few.png") == [TIMELINE, LINKS, LATENCY]
    assert (tmp_path / "few.png").read_bytes().startswith(b"\x89PNG")
    figure = made.plot(tmp_path / "few.svg")
    assert b"</svg>" in (tmp_path / "few.svg").read_bytes()
    axis = figure.axes[0]
    # One rectangle for each record of compute or of communication.
    kinds = made.records["kind"]
    shown = sum(len(collection.get_paths()) for collection in axis.collections)
    assert shown == np.isin(kinds, [Kind.COMPUTE, Kind.SEND, Kind.RECV]).sum()
    events = {line.get_label(): line for line in axis.lines}
    path = events.pop("critical path")
    assert path.get_label() == "critical path"
    ends = [time for s in made.critical_path for time in (s.start, s.end)]
    np.testing.assert_allclose(path.get_xdata(), np.array(ends) * 1e6)
    assert set(events) == {"device stopped", "out of memory"}


def test_many_ranks_are_an_image(tmp_path: Path) -> None:
    made = result(many(300))
    assert titles(made, tmp_path / "many.png") == [TIMELINE, MADE_OF, SHARES, LINKS]
    (image,) = made.plot().axes[0].images
    # 300 ranks in pairs; in the middle of a pair's turn it computes, after it nobody does.
    assert image.get_array().shape[:2] == (150, 600)
    assert not made.plot().axes[0].collections
    line, *_ = made.plot().axes[0].lines
    assert line.get_label() == "critical path, mostly"
    # It goes through the ranks one by one.
    x, y = line.get_xdata(), line.get_ydata()
    np.testing.assert_allclose(y, 300 * x / x[-1], atol=3)


def test_without_a_timeline_there_are_totals(tmp_path: Path) -> None:
    for ranks in (2, 100):
        raw = many(ranks)
        raw["records"] = raw["records"][:0]
        raw["links"] = {"bytes": np.zeros(0), "busy": np.zeros(0, np.uint64)}
        raw["utilisation"] = np.zeros((0, 0), np.float32)
        assert titles(result(raw), tmp_path / "totals.png") == [IN_ALL]


@pytest.mark.parametrize(("factor", "unit"), [(1, "us"), (1000, "ms"), (10**6, "s")])
def test_times_are_in_a_unit_that_suits(factor: int, unit: str) -> None:
    raw = ping()
    raw["records"]["start"] *= factor
    raw["records"]["end"] *= factor
    raw["makespan"] *= factor
    axis = result(raw).plot().axes[0]
    assert axis.get_xlabel() == f"time ({unit})"
    assert axis.get_xlim() == (0, pytest.approx(31))


def test_matplotlib_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    real = builtins.__import__

    def missing(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'leeboard\[viz\]'"):
        result(ping()).plot()
