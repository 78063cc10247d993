"""Traces and damaged files of them, for tests."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from leeboard.sim.program import Program
from leeboard.sim.trace import Trace
from leeboard.sim.trace_file import _ARRAYS, _digest
from leeboard.sim.workload import ArrivalTimes, Poisson

Arrays = dict[str, Any]


def every_kind() -> Trace:
    """A trace of 4 ranks with an op of every kind, groups, sizes and queues."""
    program = Program(4)
    chat = program.arrivals(Poisson(rate=100, count=20, seed=5), name="chat")
    bulk = program.arrivals(ArrivalTimes([0.1, "0.2 s"]), name="bulk")
    with program.loop(3):
        program.compute(flops="2 GFLOP", bytes="1 MiB")
        program[0].compute(seconds="1 ms", stream=1)
        handle = program.all_reduce("1 MiB", async_op=True)
        program[1].send(2, 100, tag=5)
        program[2].recv(1, tag=5)
        program.wait(handle)
    with program[3].loop(2):
        program[3].mark("request")
        program[3].take(bulk)
        program[3].done(bulk)
    with program[0].serve(chat):
        program[0].done(chat)
    program[0].synchronize()
    program[2].sleep("1 ms")
    program[2].signal(3, "1 us")
    program[3].await_signal()
    program.group([1, 3]).all_to_all([[0, 1], [2, 3]])
    program.alloc("1 GiB")
    program.free("1 GiB")
    program.wait_all()
    return program.trace()


def rewrite(source: Path, target: Path, change: Callable[[dict[str, Any], Arrays], object]) -> None:
    """Copy a trace's file with its header and arrays changed, checksum and counts made to fit."""
    with np.load(source) as file:
        header = json.loads(file["header.json"])
        arrays: Arrays = {name: file[name].copy() for name in _ARRAYS}
    checksum = header["sha256"]
    change(header, arrays)
    if header.get("sha256") == checksum:
        header["counts"] = {name: len(array) for name, array in arrays.items()}
        header["sha256"] = _digest(arrays)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.json", json.dumps(header))
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as out:
                np.lib.format.write_array(out, array)
