"""Sweeps: grids, the file that lets them go on, executors."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leeboard.sim import (
    Device,
    Exponential,
    Link,
    Platform,
    Poisson,
    Program,
    Protocol,
    Trace,
    run,
)
from leeboard.sim.sweep import Point, Sweep, grid, sweep
from leeboard.sim.sweep_file import SweepFile, fingerprint


def star(ranks: int = 2, **options: Any) -> Platform:
    return Platform.star(ranks, bandwidth="1 Gbit/s", latency="50 us", **options)


def served(count: int = 30) -> Trace:
    """Rank 0 serves requests and tells rank 1 of each."""
    program = Program(2)
    queue = program.arrivals(Poisson(rate=100.0, count=count))
    with program[0].serve(queue):
        program[0].compute(seconds=Exponential("2 ms"))
        program[0].send(1, bytes="10 KiB")
        program[0].done(queue)
    with program[1].loop(count):
        program[1].recv(0)
    return program.trace()


def assert_equal(a: Sweep, b: Sweep) -> None:
    assert a.columns == b.columns
    assert a.to_csv() == b.to_csv()


class TestGrid:
    def test_the_last_axis_runs_fastest(self) -> None:
        base = star(device=Device("box", flops="1 TFLOP/s"))
        points = grid(base, bandwidth=["1 Gbit/s", "10 Gbit/s"], flops=[1e12, 2e12, 3e12])
        assert [p.parameters["flops"] for p in points] == [1e12, 2e12, 3e12] * 2
        last = points[-1].platform
        assert last.link("link.1").bandwidth == 1.25e9
        assert last.device(0).flops == 3e12
        assert base.device(0).flops == 1e12

    def test_whole_parts(self) -> None:
        axes: dict[str, Any] = {
            "protocol": ["gloo", Protocol("mine", eager_limit="1 MiB")],
            "device": [Device("fast", flops="9 TFLOP/s")],
            "link": [Link(bandwidth="2 Gbit/s")],
        }
        made = grid(star(), **axes)[-1].platform
        assert made.protocol.name == "mine"
        assert made.device(1).name == "fast"
        assert made.link("link.0").bandwidth == 2.5e8

    def test_a_prefix_tells_parts_apart(self) -> None:
        made = grid(star(), device_jitter=[0.1], protocol_jitter=[0.2], link_overhead=["1 us"])
        assert made[0].platform.device(0).jitter == 0.1
        assert made[0].platform.protocol.jitter == 0.2
        assert made[0].platform.link("link.0").overhead == 1e-6
        assert set(made[0].parameters) == {"device_jitter", "protocol_jitter", "link_overhead"}

    def test_a_function_makes_what_no_field_gives(self) -> None:
        points = grid(lambda n: star(n), n=[2, 5])
        assert [len(p.platform) for p in points] == [2, 5]

    @pytest.mark.parametrize(
        ("axes", "message"),
        [
            (
                {"jitter": [0.1]},
                "device and protocol have it; say device_jitter or protocol_jitter",
            ),
            ({"bandwith": [1]}, "bandwith: no such parameter; expected one of active_power, bandw"),
            ({"latency": []}, "latency: got no values"),
        ],
    )
    def test_wrong_axes(self, axes: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            grid(star(), **axes)

    def test_a_function_of_other_parameters(self) -> None:
        with pytest.raises(ValueError, match="does not take m"):
            grid(lambda n: star(n), m=[1])


def test_rows_are_what_single_runs_give() -> None:
    trace = served()
    platforms = {"slow": star(), "fast": star().scaled(compute=1.0, bandwidth=10.0)}
    table = sweep(trace, platforms, network=["flow", "alpha-beta"], seeds=range(3))
    assert len(table) == 12
    assert table.row(7)["platform"] == "fast"
    assert [table.row(7)[name] for name in ("network", "seed")] == ["flow", 1]
    for row in table:
        one = run(trace, platforms[row["platform"]], network=row["network"], seed=row["seed"])
        latency = one.queues[0].latency
        assert row["makespan"] == one.makespan
        assert row["event_hash"] == one.event_hash
        assert row["p99"] == np.percentile(latency, 99)
        assert row["compute"] == one.shares()["compute"]
        assert (row["unanswered"], row["error"]) == (0, None)
    best = table.best()
    assert best["makespan"] == table["makespan"].min()
    assert table.best("events", largest=True)["events"] == table["events"].max()


@pytest.mark.parametrize("kind", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_any_executor_gives_the_same_table(kind: Callable[..., Executor]) -> None:
    trace = served()
    points = grid(star(), bandwidth=[f"{i} Gbit/s" for i in range(1, 10)])
    with kind(2) as executor:
        assert_equal(sweep(trace, points, executor=executor), sweep(trace, points))


def test_a_point_that_fails_is_a_row() -> None:
    """Rank 1 waits for a message that a one-device platform cannot even place."""
    table = sweep(served(), [star(2), star(1), star(2).with_name("again")])
    assert [error is None for error in table["error"]] == [True, False, True]
    assert np.isnan(table["makespan"][1])
    assert len(table.failures) == 1
    assert table.failures.row(0)["platform"] == "1"
    assert "ValueError" in str(table)
    assert table.best()["platform"] in ("0", "2")
    with pytest.raises(ValueError, match="no point has a makespan"):
        sweep(served(), star(1)).best()


def test_a_deadlock_is_a_row_of_one_line() -> None:
    program = Program(2)
    program[0].recv(1)
    row = sweep(program, star()).row(0)
    assert row["error"].startswith("DeadlockError: ")
    assert "\n" not in row["error"]


class Broken(Executor):
    """An executor whose workers died."""

    def submit(self, *_: Any, **__: Any) -> Any:
        future: Future[Any] = Future()
        future.set_exception(BrokenProcessPool("a worker died"))
        return future


def test_points_without_a_worker_are_run_again(tmp_path: Path) -> None:
    file = tmp_path / "sweep.jsonl"
    broken = sweep(served(), star(), executor=Broken(), resume=file)
    assert broken.row(0)["error"] == "BrokenProcessPool: a worker died"
    assert sweep(served(), star(), resume=file).row(0)["error"] is None


def count_runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    # `leeboard.sim.run` is the function.
    module = importlib.import_module("leeboard.sim.run")
    runs: list[int] = []
    real = module.run

    def counted(*args: Any, **options: Any) -> Any:
        runs.append(options["seed"])
        return real(*args, **options)

    monkeypatch.setattr(module, "run", counted)
    return runs


def test_what_is_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "sweep.jsonl"
    expected = sweep(served(), {"star": star()}, seeds=range(6))
    runs = count_runs(monkeypatch)
    sweep(served(), star(), seeds=range(4), resume=file)
    again = sweep(served(), {"renamed": star()}, seeds=range(6), resume=file)
    assert sorted(runs) == [0, 1, 2, 3, 4, 5]
    assert again.to_csv() == expected.to_csv().replace("star", "renamed")
    # Anything that changes the outcome is another point.
    runs.clear()
    sweep(served(31), star(), resume=file)
    sweep(served(), star(device=Device(active_power=3.0)), resume=file)
    sweep(served(), star(), network="alpha-beta", resume=file)
    assert len(runs) == 3


def test_every_cut_of_the_file_gives_the_same_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole.jsonl"
    expected = sweep(served(3), star(), seeds=range(3), resume=whole)
    content = whole.read_bytes()
    file = tmp_path / "cut.jsonl"
    for end in range(0, len(content) + 1, 7):
        file.write_bytes(content[:end])
        assert_equal(sweep(served(3), star(), seeds=range(3), resume=file), expected)
        assert sorted(file.read_bytes().splitlines()) == sorted(content.splitlines())
    runs = count_runs(monkeypatch)
    assert_equal(sweep(served(3), star(), seeds=range(3), resume=file), expected)
    assert runs == []


def test_a_row_that_lacks_something_is_run_again(tmp_path: Path) -> None:
    file = tmp_path / "sweep.jsonl"
    expected = sweep(served(3), star(), seeds=iter(range(2)), resume=file)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    del lines[1]["row"]["makespan"]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert_equal(sweep(served(3), star(), seeds=iter(range(2)), resume=file), expected)


_KILLED = """
import importlib, sys, time
sys.path.insert(0, {folder!r})
import test_sweep as t
module = importlib.import_module("leeboard.sim.run")
real = module.run
def slow(*args, **options):
    time.sleep(0.05)
    return real(*args, **options)
module.run = slow
t.sweep(t.served(), t.star(), seeds=range(40), resume={file!r}, progress=False)
"""


def test_killed_and_resumed(tmp_path: Path) -> None:
    file = tmp_path / "sweep.jsonl"
    code = _KILLED.format(folder=str(Path(__file__).parent), file=str(file))
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if file.exists() and file.read_bytes().count(b"\n") >= 5:
            break
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = file.read_bytes().count(b"\n") - 1
    assert 4 <= done < 40
    table = sweep(served(), star(), seeds=range(40), resume=file)
    assert_equal(table, sweep(served(), star(), seeds=range(40)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("hello\n", "not a sweep"),
        ('{"format": "leeboard.sim.result", "version": 1}\n', "not a sweep"),
        ('{"format": "leeboard.sim.sweep", "version": 2}\n', "newer version than 1"),
        ('{"format": "leeboard.sim.sweep", "version": 1}\n{"key": 1}\n', "line 2: not a row"),
        ('{"format": "leeboard.sim.sweep", "version": 1}\n[]\n\n', "line 2: not a row"),
        ("a file of notes without an end of line", "not a sweep"),
    ],
)
def test_another_file_is_not_written_to(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "notes.txt"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        SweepFile(file)
    assert file.read_text() == content


def test_fingerprints_tell_apart_what_differs() -> None:
    things: list[Any] = [
        1,
        1.0,
        "1",
        True,
        None,
        [1],
        [[1]],
        [1, 2],
        [[1], 2],
        {"a": 1},
        {"a": [1]},
        np.arange(3),
        np.arange(3, dtype=np.uint64),
        np.arange(4).reshape(2, 2),
        np.arange(4),
    ]
    assert len({fingerprint(thing) for thing in things}) == len(things)
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    with pytest.raises(TypeError, match="expected numbers"):
        fingerprint(object())


def test_tables_go_to_csv_and_pandas(tmp_path: Path) -> None:
    table = sweep(served(), grid(star(), bandwidth=["1 Gbit/s", "2 Gbit/s"]))
    table.to_csv(tmp_path / "sweep.csv")
    lines = (tmp_path / "sweep.csv").read_text().splitlines()
    assert lines[0].startswith("bandwidth,network,seed,makespan,")
    assert lines[2].startswith(f"2 Gbit/s,flow,0,{float(table['makespan'][1])},")
    shown = str(table).splitlines()
    assert shown[0].split()[:4] == ["bandwidth", "makespan", "compute", "communication"]
    assert "error" not in shown[0]
    pandas = pytest.importorskip("pandas")
    frame = table.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == list(table.columns)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="network: got 'packets', expected one of flow"):
        sweep(served(), star(), network="packets")
    with pytest.raises(ValueError, match="seeds: got -1, expected an integer from 0"):
        sweep(served(), star(), seeds=[0, -1])
    with pytest.raises(TypeError, match=r"platforms\[1\]: got 3"):
        sweep(served(), [star(), 3])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="same parameters"):
        sweep(served(), [Point({"a": 1}, star()), Point({"b": 1}, star())])
    assert len(sweep(served(), [])) == 0


def test_dask() -> None:
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 1, "threads_per_worker": 2, "processes": False}
    trace = served()
    points = grid(star(), bandwidth=["1 Gbit/s", "2 Gbit/s", "3 Gbit/s"])
    with distributed.Client(dashboard_address=None, **options) as client:
        table = sweep(trace, points, executor=client.get_executor())
    assert_equal(table, sweep(trace, points))


def test_progress(capsys: pytest.CaptureFixture[str]) -> None:
    """No bar where nobody looks."""
    sweep(served(), star(), progress=True)
    assert capsys.readouterr().err == ""


def test_rows_are_json(tmp_path: Path) -> None:
    file = tmp_path / "sweep.jsonl"
    sweep(served(), [star(), star(1)], resume=file)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert {row["row"]["error"] is None for row in rows[1:]} == {True, False}
