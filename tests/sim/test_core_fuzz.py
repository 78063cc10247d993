"""Whatever reaches the core is refused with a reason or runs; it never crashes."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from leeboard import _C, sim

OPTIONS: dict[str, Any] = {"network": "alpha-beta", "seed": 1, "records": 1000, "bins": 8}


def program() -> dict[str, Any]:
    made = sim.Program(6)
    queue = made.arrivals(sim.Poisson(rate=1000.0, count=5), name="q")
    odd = made.group([1, 3, 5])
    with made[0].serve(queue):
        made[0].compute(seconds=sim.Exponential(1e-4))
        made[0].done(queue)
    with made.loop(3):
        made.compute(flops=1000, bytes=10)
        odd.all_reduce(bytes=100)
        handle = made[2].isend(4, bytes=500, tag=3)
        made[4].recv(tag=None)
        made[2].wait(handle)
        made.all_to_all(bytes=np.arange(36).reshape(6, 6).tolist())
    made[1].send(2, bytes=9, stream=1)
    made[2].recv(1)
    made[1].synchronize()
    made.alloc(100)
    made.mark("end")
    return made.trace().core()


def platform() -> dict[str, Any]:
    made = sim.Platform.star(
        6,
        bandwidth="1 MB/s",
        latency="1 us",
        device=sim.Device(flops_curve=((1.0, 0.5), (1e6, 1.0))),
        protocol=sim.Protocol(eager_limit=100, loss=0.01, jitter=0.1),
    )
    return made.with_faults(sim.Fault(device=1, at=0.001, duration=0.001, factor=0.5)).core()


def run(program: dict[str, Any], platform: dict[str, Any], network: str) -> str:
    try:
        return str(
            _C.sim_run(_C.SimProgram(program), platform, {**OPTIONS, "network": network})["status"]
        )
    except (ValueError, OverflowError):
        return "refused"


def mutate_array(rng: np.random.Generator, array: np.ndarray) -> np.ndarray:
    array = array.copy()
    kind = rng.integers(4)
    if kind == 0 and len(array):
        return array[: rng.integers(len(array))]
    if kind == 1:
        return array.astype(np.float32) if array.dtype.names is None else array[::-1]
    raw = array.reshape(-1).view(np.uint8)
    if len(raw):
        for _ in range(rng.integers(1, 4)):
            raw[rng.integers(len(raw))] = rng.choice([0, 1, 2, 127, 128, 255, rng.integers(256)])
    return array


def mutate(rng: np.random.Generator, core: dict[str, Any]) -> dict[str, Any]:
    core = copy.deepcopy(core)
    key = rng.choice(list(core))
    value = core[key]
    if isinstance(value, np.ndarray):
        core[key] = mutate_array(rng, value)
    elif isinstance(value, dict):
        inner = rng.choice(list(value))
        value[inner] = rng.choice([0, -1, 2**63, 1e300, float("nan"), float("inf"), 0.5])
    elif isinstance(value, tuple):
        place = rng.integers(len(value))
        core[key] = tuple(mutate_array(rng, v) if i == place else v for i, v in enumerate(value))
    elif isinstance(value, int):
        core[key] = int(rng.integers(0, 10))
    elif rng.integers(2):
        del core[key]
    return core


@pytest.mark.parametrize("network", ["flow", "alpha-beta"])
def test_the_unchanged_core_runs(network: str) -> None:
    assert run(program(), platform(), network) == "done"


@pytest.mark.parametrize("target", ["program", "platform"])
def test_mutated_cores_are_refused_or_run(target: str) -> None:
    rng = np.random.default_rng(0)
    good_program, good_platform = program(), platform()
    outcomes = set()
    for i in range(600):
        changed_program, changed_platform = good_program, good_platform
        if target == "program":
            changed_program = mutate(rng, good_program)
            # A loop that was made long would only take long.
            ops = changed_program.get("ops")
            if isinstance(ops, np.ndarray) and ops.dtype.names:
                loops = (ops["kind"] == 9) & (ops["a"] < 2**63)
                ops["a"][loops] = np.minimum(ops["a"][loops], 5)
                ops["a"][ops["kind"] == 9] = np.minimum(ops["a"][ops["kind"] == 9], 50)
        else:
            changed_platform = mutate(rng, good_platform)
        network = ("flow", "alpha-beta")[i % 2]
        outcomes.add(run(changed_program, changed_platform, network))
    assert {"refused", "done"} <= outcomes


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("peer", 6, "peer 6"),
        ("peer", -2, "peer -2"),
        ("tag", -1, "tag -1"),
        ("slot", 1 << 24, "slot"),
        ("a", 2**63, "bytes"),
        ("kind", 99, "unknown kind 99"),
        ("kind", 0, "unknown kind 0"),
    ],
)
def test_what_is_wrong_with_an_op_is_named(field: str, value: int, match: str) -> None:
    core = program()
    index = int(np.flatnonzero(core["ops"]["kind"] == 4)[0])
    core["ops"] = core["ops"].copy()
    core["ops"][field][index] = value
    with pytest.raises(ValueError, match=rf"ops\[{index}\].*{match}"):
        _C.SimProgram(core)


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("device_flops", np.array([np.nan] * 6), "device_flops: got nan"),
        ("link_bandwidth", np.array([0.0] * 6), "link_bandwidth: got 0"),
        ("link_a", np.array([99] * 6, np.uint32), "link_a: got 99"),
        ("placement", np.array([7], np.uint32), "placement: got 7"),
        ("link_latency", np.zeros(5, np.uint64), "link_latency: has 5 values, expected 6"),
    ],
)
def test_what_is_wrong_with_a_platform_is_named(key: str, value: np.ndarray, match: str) -> None:
    core = {**platform(), key: value}
    with pytest.raises(ValueError, match=match):
        _C.sim_run(_C.SimProgram(program()), core, OPTIONS)
