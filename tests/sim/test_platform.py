"""Platforms: columns for the core, copies for what-ifs, faults, names."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import numpy as np
import pytest

from leeboard.sim import (
    Device,
    Fault,
    Link,
    Platform,
    PlatformError,
    Protocol,
    RandomFaults,
    Rule,
    UnitError,
)

FAST = Device(
    "fast",
    flops="100 TFLOP/s",
    memory_bandwidth="2 TB/s",
    memory="80 GiB",
    overhead="5 us",
    jitter=0.05,
    reduce_bandwidth="1 TB/s",
    flops_curve=[("1 MFLOP", 0.1), ("1 GFLOP", 0.9)],
    bytes_curve=[("4 KiB", "20 %"), ("1 MiB", 1)],
    idle_power="50 W",
    active_power="400 W",
)
STAR = Platform.star(4, bandwidth="1 Gbit/s", latency="100 us")


@pytest.fixture(scope="module")
def site() -> Platform:
    """Four boards on Wi-Fi, a hub behind a slow line."""
    return Platform.custom(
        {"jetson": 4, "hub": None},
        [
            ("wifi", "jetson", "ap", Link("300 Mbit/s", "1 ms", duplex="half")),
            ("wan", "ap", "hub", Link("50 Mbit/s", "10 ms", overhead="20 us")),
        ],
        switches={"ap": None},
    )


def columns(platform: Platform) -> list[Any]:
    parts = [*vars(platform).values(), *vars(platform.graph).values()]
    return [part for part in parts if isinstance(part, np.ndarray)]


def same_columns(one: Platform, other: Platform) -> bool:
    pairs = zip(columns(one), columns(other), strict=True)
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


def test_core_columns() -> None:
    platform = Platform.star(3, bandwidth="1 Gbit/s", latency="100 us", device={"device.1": FAST})
    core = platform.core()
    assert core["device_flops"].tolist() == [1e12, 1e14, 1e12]
    assert core["device_memory_bandwidth"].tolist() == [1e11, 2e12, 1e11]
    assert core["device_memory"].tolist() == [0, 80 << 30, 0]
    assert core["device_speed"].tolist() == [1, 1, 1]
    assert core["device_overhead"].tolist() == [0, 5_000_000, 0]
    assert core["device_jitter"].tolist() == [0, 0.05, 0]
    assert core["device_reduce_bandwidth"].tolist() == [0, 1e12, 0]
    assert core["device_flops_curve"].tolist() == [[0, 0], [0, 2], [0, 0]]
    assert core["device_bytes_curve"].tolist() == [[0, 0], [2, 4], [0, 0]]
    assert core["curve_work"].tolist() == [1e6, 1e9, 4096, 1 << 20]
    assert core["curve_efficiency"].tolist() == [0.1, 0.9, 0.2, 1]
    assert core["switches"] == 1
    assert core["link_a"].tolist() == [0, 1, 2]
    assert core["link_b"].tolist() == [3, 3, 3]
    assert core["link_bandwidth"].tolist() == [1.25e8] * 3
    # Host to host is 100 us: each of the two links carries half.
    assert core["link_latency"].tolist() == [50_000_000] * 3
    assert core["link_full_duplex"].tolist() == [1, 1, 1]
    assert core["placement"].size == core["island"].size == 0
    assert platform.power().tolist() == [[0, 0], [50, 400], [0, 0]]


def test_core_types() -> None:
    """As the binding takes them."""
    wanted = {
        **dict.fromkeys(("flops", "memory_bandwidth", "speed", "jitter"), np.float64),
        "reduce_bandwidth": np.float64,
        **dict.fromkeys(("memory", "overhead"), np.uint64),
        **dict.fromkeys(("flops_curve", "bytes_curve"), np.uint32),
    }
    core = STAR.with_faults(Fault(device=0)).core()
    for name, dtype in wanted.items():
        assert core[f"device_{name}"].dtype == dtype, name
    for name, dtype in {"a": np.uint32, "b": np.uint32, "latency": np.uint64}.items():
        assert core[f"link_{name}"].dtype == dtype
    assert core["link_full_duplex"].dtype == np.uint8
    for changes in (core["device_changes"], core["link_changes"]):
        assert [column.dtype for column in changes] == [np.uint32, np.uint64, np.float64]
    assert core["selector"].dtype == np.uint64
    assert core["selector"].shape[1] == 6
    assert core["placement"].dtype == core["island"].dtype == np.uint32


def test_core_protocol() -> None:
    protocol = Protocol(
        eager_limit="4 KiB", handshake="request", send_overhead="2 us", loopback_latency="1 us"
    )
    core = Platform.star(2, bandwidth=1, protocol=protocol).core()["protocol"]
    assert core["eager_limit"] == 4096
    assert core["handshake"] == 1
    assert core["send_overhead"] == 2_000_000
    assert core["loopback_latency"] == 1_000_000
    assert STAR.core()["protocol"]["eager_limit"] == 2**64 - 1
    # The fields of the C++ struct.
    assert sorted(core) == sorted(
        [
            "eager_limit",
            "handshake",
            "send_buffer",
            "send_overhead",
            "recv_overhead",
            "goodput",
            "cross_traffic",
            "rate_limit",
            "jitter",
            "loss",
            "packet",
            "loopback_bandwidth",
            "loopback_latency",
        ]
    )


def test_custom(site: Platform) -> None:
    core = site.core()
    assert core["link_a"].tolist() == [0, 1, 2, 3, 5]
    assert core["link_b"].tolist() == [5, 5, 5, 5, 4]
    assert core["link_full_duplex"].tolist() == [0, 0, 0, 0, 1]
    assert core["link_overhead"].tolist() == [0, 0, 0, 0, 20_000_000]
    assert [site.devices[row] for row in range(5)] == [
        "jetson.0",
        "jetson.1",
        "jetson.2",
        "jetson.3",
        "hub",
    ]
    assert site.link("wan").latency == 10e-3


def test_custom_joins_groups_pairwise() -> None:
    platform = Platform.custom(
        {"gpu": 3},
        [("pcie", "gpu", "port", Link("32 GB/s")), ("up", ["port.0-1", "port.2"], "root", Link(1))],
        switches={"port": 3, "root": None},
    )
    assert platform.core()["link_a"].tolist() == [0, 1, 2, 3, 4, 5]
    assert platform.core()["link_b"].tolist() == [3, 4, 5, 6, 6, 6]


def test_copies_leave_the_original_alone() -> None:
    changed = (
        STAR.with_devices("device.1-2", flops="2 TFLOP/s")
        .with_devices([3], FAST)
        .with_links("link.0", bandwidth="100 Mbit/s")
        .with_protocol("gloo", loss="1 %")
        .with_stragglers({"device.3": 0.5})
        .with_islands(2)
        .with_placement(["device.3", 0])
    )
    core = changed.core()
    assert core["device_flops"].tolist() == [1e12, 2e12, 2e12, 1e14]
    assert core["device_speed"].tolist() == [1, 1, 1, 0.5]
    assert core["link_bandwidth"].tolist() == [1.25e7, 1.25e8, 1.25e8, 1.25e8]
    assert core["link_latency"].tolist() == [50_000_000] * 4
    assert core["protocol"]["loss"] == 0.01
    assert core["protocol"]["eager_limit"] == 0
    assert core["island"].tolist() == [0, 0, 1, 1]
    assert core["placement"].tolist() == [3, 0]
    assert changed.ranks == 2
    assert Platform.star(4, bandwidth="1 Gbit/s", latency="100 us") == STAR
    assert changed != STAR


def test_changed_back_is_equal() -> None:
    changed = STAR.with_devices(flops=3).with_devices(1, memory="1 GiB").with_links(2, latency=1)
    back = changed.with_devices(flops="1 TFLOP/s", memory="unlimited").with_links(latency="50 us")
    assert back == STAR
    assert len(back.kinds) == len(back.graph.kinds) == 1


def test_scaled() -> None:
    core = STAR.scaled(compute=2, memory_bandwidth=0.5, bandwidth=10, latency=0).core()
    assert core["device_flops"].tolist() == [2e12] * 4
    assert core["device_memory_bandwidth"].tolist() == [5e10] * 4
    assert core["link_bandwidth"].tolist() == [1.25e9] * 4
    assert core["link_latency"].tolist() == [0] * 4


def test_nothing_can_be_written() -> None:
    for column in (STAR.device_kind, STAR.device_factor, STAR.graph.link_a, STAR.graph.link_kind):
        with pytest.raises(ValueError, match="read-only"):
            column[0] = 7
    for part, field in ((STAR, "name"), (STAR.graph, "kinds"), (FAST, "flops")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, field, 3)


def test_survives_pickling_to_another_process(site: Platform) -> None:
    copy = pickle.loads(pickle.dumps(site))
    assert copy == site
    assert same_columns(copy, site)
    assert not any(column.flags.writeable for column in columns(copy))


def test_rules_for_collectives() -> None:
    rules = [Rule("all_gather", "ring", min_bytes="1 MiB"), Rule("barrier", "direct", max_ranks=4)]
    platform = STAR.with_collectives(rules)
    assert platform.core()["selector"].tolist() == [
        [1, 1, 2**32 - 1, 1 << 20, 2**64 - 1, 1],
        [8, 1, 4, 0, 2**64 - 1, 4],
    ]
    assert Platform.star(4, bandwidth="1 Gbit/s", latency="100 us", collectives=rules) == platform
    assert platform != STAR


def test_routes(site: Platform) -> None:
    routed = site.with_routes(("jetson.0", "hub", ["wifi.0", "wan"]), (4, 0, ["wan", 0]))
    routes = routed.core()["routes"]
    assert [(a, b, links.tolist()) for a, b, links in routes] == [(0, 4, [0, 4]), (4, 0, [4, 0])]


def test_faults_overlap_and_end() -> None:
    platform = STAR.with_faults(
        Fault(device=[1, 0], at="1 s", duration="3 s", factor=0.5),
        Fault(device="device.0", at="2 s", duration="1 s", factor="50 %"),
        Fault(device=0, at="4 s"),
        Fault(device=2, at="1 s", duration="1 s", factor=1),
        Fault(link="link.3", at="1 s", duration="2 s", factor=0.1),
        Fault(link="link.3", at="3 s", duration="2 s", factor=0.1),
    )
    core = platform.core()
    second = 10**12
    assert list(zip(*(column.tolist() for column in core["device_changes"]), strict=True)) == [
        (0, 1 * second, 0.5),
        (1, 1 * second, 0.5),
        (0, 2 * second, 0.25),
        (0, 3 * second, 0.5),
        (0, 4 * second, 0.0),
        (1, 4 * second, 1.0),
    ]
    # One ends as the next begins: no change in between.
    assert [column.tolist() for column in core["link_changes"]] == [
        [3, 3],
        [second, 5 * second],
        [0.1, 1.0],
    ]


def test_random_faults() -> None:
    fault = RandomFaults(device="*", mtbf="100 s", mttr="10 s", factor=0.25, seed=7, horizon="1 h")
    platform = Platform.star(64, bandwidth=1).with_faults(fault)
    who, at, factor = platform.core()["device_changes"]
    assert (np.diff(at.astype(np.int64)) >= 0).all()
    # Each device alternates, down first.
    down = []
    for device in range(64):
        mine = factor[who == device]
        assert (mine[::2] == 0.25).all()
        assert (mine[1::2] == 1).all()
        times = at[who == device] / 1e12
        down.extend(np.diff(times)[::2])
        assert times[::2].max() < 3600
    # 64 hours of failures every 110 s: 2095, give or take a few times the square root.
    assert len(down) == pytest.approx(64 * 3600 / 110, rel=0.08)
    assert np.mean(down) == pytest.approx(10, rel=0.1)
    again = Platform.star(64, bandwidth=1).with_faults(fault).core()["device_changes"]
    assert all(np.array_equal(a, b) for a, b in zip(again, (who, at, factor), strict=True))
    other = platform.with_faults(dataclasses.replace(fault, seed=8)).core()["device_changes"]
    assert not np.array_equal(other[1], at)


def test_random_faults_of_equal_seeds_are_independent() -> None:
    one = RandomFaults(link=0, mtbf=10, mttr=1, horizon=1e5, factor=0.5)
    platform = Platform.star(2, bandwidth=1)
    alone = platform.with_faults(one).core()["link_changes"]
    both = platform.with_faults(one, dataclasses.replace(one, factor=0.25)).core()["link_changes"]
    # Mostly apart, sometimes together; the same draws would always multiply.
    factors, counts = np.unique(both[2], return_counts=True)
    assert factors.tolist() == [0.125, 0.25, 0.5, 1]
    assert counts[0] < 0.2 * counts.sum()
    # The first one's failures are those that it has alone.
    assert set(alone[1].tolist()) <= set(both[1].tolist())


def test_random_faults_do_not_depend_on_the_other_devices() -> None:
    def times(devices: int) -> Any:
        faults = RandomFaults(device="*", mtbf=10, mttr=1, seed=1, horizon=6000)
        who, at, _ = (
            Platform.star(devices, bandwidth=1).with_faults(faults).core()["device_changes"]
        )
        return at[who == 3].tolist()

    # So many that they are drawn in blocks of another size.
    few = times(4)
    assert len(few) > 900
    assert times(600) == few


def test_stragglers_of_many_speeds_stay_columns() -> None:
    factors = {row: 0.5 + row / 1e5 for row in range(1000)}
    platform = Platform.star(1000, bandwidth=1).with_stragglers(factors)
    assert len(platform.kinds) == 1
    assert platform.core()["device_speed"].tolist() == list(factors.values())


def test_words(site: Platform) -> None:
    assert repr(STAR) == "<Platform 'star': 4 devices, 1 switch, 4 links, ideal protocol>"
    text = site.with_faults(Fault(link="wan", at=1, factor=0.5)).with_name("site").describe()
    assert text.startswith("<Platform 'site': 5 devices")
    assert "4 x link bandwidth 300 Mbit/s, latency 1 ms, duplex half" in text
    assert "fault: link wan, at 1 s, factor 0.5" in text


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: p.with_devices("jetsn.0"), ["unknown device 'jetsn.0'", "'jetson.0'?"]),
        (lambda p: p.with_devices("jetson.4"), ["got 'jetson.4'", "jetson.0 to jetson.3"]),
        (lambda p: p.with_devices("jetson.3-1"), ["jetson.0 to jetson.3"]),
        (lambda p: p.with_devices("hub.0"), ["'hub' alone"]),
        (lambda p: p.with_devices(5), ["device: got 5, expected 0 to 4"]),
        (lambda p: p.with_devices(-1), ["device: got -1"]),
        (lambda p: p.with_devices(2.5), ["got 2.5"]),
        (lambda p: p.with_devices(np.array([0, 5])), ["device: got 5, expected 0 to 4"]),
        (lambda p: p.with_devices("hub", flop=1), ["'flop'", "did you mean 'flops'?"]),
        (lambda p: p.with_devices("hub", "jetson-oron"), ["unknown preset", "expected generic"]),
        (lambda p: p.with_links("wan", bandwith=1), ["did you mean 'bandwidth'?"]),
        (lambda p: p.with_links("lan", latency=1), ["unknown link 'lan'", "did you mean 'wan'?"]),
        (lambda p: p.with_protocol("glo"), ["did you mean 'gloo'?"]),
        (lambda p: p.with_protocol(3), ["expected a Protocol or a preset's name"]),
        (lambda p: p.with_protocol(handshake="wave"), ["'notify' or 'request'"]),
        (lambda p: Rule("all_reduce", "auto"), ["algorithm: got 'auto'", "expected one of ring"]),
        (lambda p: Rule("reduce", "ring", max_ranks=0), ["max_ranks: got 0"]),
        (lambda p: p.with_collectives(["ring"]), ["got 'ring', expected a Rule"]),
        (lambda p: p.with_stragglers({"hub": 0}), ["factor: got 0, expected more than 0"]),
        (lambda p: p.with_faults(Fault(device="hug")), ["did you mean 'hub'?"]),
        (lambda p: p.with_faults(Fault()), ["expected one of them"]),
        (lambda p: p.with_faults(Fault(device=0, link=0)), ["expected one of them"]),
        (
            lambda p: p.with_faults(RandomFaults(device="*", mtbf=1e-6, mttr=1e-6, horizon=1e6)),
            ["failures within the horizon"],
        ),
        (lambda p: RandomFaults(device=0, mtbf=1, mttr=1, horizon=1, seed=-1), ["seed: got -1"]),
        (lambda p: p.with_islands(2), ["expected a divisor of 5"]),
        (lambda p: p.with_islands([["jetson"]]), ["'hub' is on none"]),
        (lambda p: p.with_islands([["jetson"], ["*"]]), ["island 1 takes a device"]),
        (lambda p: p.with_placement("pi"), ["unknown device 'pi'"]),
        (lambda p: p.with_routes(("jetson.0", "hub", ["wan"])), ["'wan' does not begin"]),
        (lambda p: p.with_routes(("jetson.0", "hub", ["wifi.0"])), ["do not end at 'hub'"]),
        (lambda p: p.with_routes(("jetson", "hub", [])), ["selects 4 devices, expected one"]),
        (lambda p: p.scaled(bandwidth=0), ["bandwidth: got 0.0, expected more than 0"]),
        (lambda p: Platform.custom({"a": None, "b": None}, []), ["no way from device 'a' to 'b'"]),
        (lambda p: Platform.custom({"a": 2}, [("l", "a", "a", Link(1))]), ["to itself"]),
        (
            lambda p: Platform.custom({"a": 2}, [("l", 0, 1, Link(1)), ("l", 0, 1, Link(1))]),
            ["links: the name 'l' is given twice"],
        ),
        (
            lambda p: Platform.custom({"a": 3}, [("l", "a.0-1", ["a"], Link(1))]),
            ["is 2 nodes, ['a'] is 3"],
        ),
        (lambda p: Platform.custom({"a": 1}, [], switches={"a": 1}), ["a device's name, too"]),
        (lambda p: Platform.custom({"a b": 1}, []), ["name: got 'a b'"]),
        (lambda p: Platform.custom({}, []), ["devices: got 0"]),
        (lambda p: Platform.star(2, bandwidth=0), ["bandwidth: got 0, expected more than 0"]),
        (lambda p: Platform.star(2, bandwidth="1 Gb/s"), ["Gbit/s (bits) or GB/s (bytes)"]),
        (lambda p: Platform.star(2, bandwidth=1, latency="1 GB"), ["latency", "unknown unit"]),
        (lambda p: Platform.star(2, bandwidth=float("nan")), ["bandwidth: got nan"]),
        (lambda p: Device(flops="1 GB/s"), ["flops: got '1 GB/s'"]),
        (lambda p: Device(flops_curve=[("1 GFLOP", 2)]), ["efficiencies in (0, 1]"]),
        (lambda p: Device(flops_curve=[(2, 0.5), (1, 0.5)]), ["ascending work"]),
        (lambda p: Device(flops_curve=3), ["expected pairs"]),
        (lambda p: Device(idle_power="5 W"), ["expected at least idle_power"]),
        (lambda p: Protocol(goodput=1.5), ["goodput: got 1.5, expected at most 1"]),
        (lambda p: Protocol(goodput=1e-7), ["goodput: got 1e-07, expected at least 1e-06"]),
        (lambda p: Link(1, latency="1 h"), ["latency: got '1 h', expected at most 900"]),
        (lambda p: Protocol(loss=1), ["loss: got 1, expected at most 0.99"]),
    ],
)
def test_refused(site: Platform, make: Any, words: list[str]) -> None:
    with pytest.raises((PlatformError, UnitError)) as error:
        make(site)
    for word in words:
        assert word in str(error.value)


def test_an_argument_that_there_is_not_is_refused() -> None:
    with pytest.raises(TypeError, match=r"unknown argument 'protcol'.*protocol"):
        Platform.star(2, bandwidth=1e9, latency=0, protcol="gloo")  # type: ignore[call-arg]
