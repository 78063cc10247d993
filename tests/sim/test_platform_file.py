"""Platform files: what they mean, that they read back, and what is said about wrong ones."""

from __future__ import annotations

import copy
import random
import re
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from leeboard.sim import Device, Fault, Link, Platform, PlatformError, Protocol, RandomFaults
from leeboard.sim.platform_file import KEYS, parse
from leeboard.sim.platform_save import content

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "sim").glob("*.yaml"))

SITE = b"""\
name: site
devices:
  - &board {name: jetson, count: 4, flops: 8 TFLOP/s, memory: 8 GiB, idle_power: 5 W,
            active_power: 15 W, flops_curve: [[1 MFLOP, 10 %], [1 GFLOP, 0.9]]}
  - {<<: *board, name: slow, count: 2, speed: 0.5}
  - hub
switches:
  - ap
  - {name: core, count: 1}
links:
  - {name: wifi, from: [jetson, slow], to: ap, bandwidth: 300 Mbit/s, latency: 1 ms, duplex: half}
  - {name: lan, from: ap, to: core, bandwidth: 1 Gbit/s}
  - {name: wan, from: core, to: hub, bandwidth: 50 Mbit/s, latency: 10 ms}
overrides:
  - {devices: [jetson.0, jetson.2-3], memory: 16 GiB}
  - {links: wifi.5, bandwidth: 100 Mbit/s}
routes:
  - {from: jetson.0, to: hub, via: [wifi.0, lan, wan], both: true}
protocol: {preset: gloo, jitter: 10 %}
collectives:
  - {collective: all_reduce, algorithm: recursive_doubling, max_bytes: 4 KiB, min_ranks: 3}
  - {collective: all_reduce, algorithm: ring}
stragglers: {jetson.1: 0.75}
faults:
  - {link: wan, at: 1 s, for: 500 ms, factor: 0.5}
  - {device: [jetson, hub], mtbf: 1 h, mttr: 1 min, seed: 3, horizon: 10 h}
islands: [[jetson, slow], [hub]]
placement: [hub, jetson, slow.1]
"""


def load(text: str | bytes) -> Platform:
    return parse(Platform, text.encode() if isinstance(text, str) else text, "p.yaml")


def reread(platform: Platform, folder: Path) -> Platform:
    path = folder / "platform.yaml"
    platform.save(path)
    return Platform.load(path)


def same_core(one: Platform, other: Platform) -> bool:
    def flat(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return value.dtype, value.tolist()
        if isinstance(value, (list, tuple)):
            return [flat(part) for part in value]
        return value

    mine, theirs = one.core(), other.core()
    return {k: flat(v) for k, v in mine.items()} == {k: flat(v) for k, v in theirs.items()}


def test_every_part_of_a_file() -> None:
    platform = load(SITE)
    core = platform.core()
    assert platform.name == "site"
    assert len(platform) == 7
    assert core["device_flops"].tolist() == [8e12] * 6 + [1e12]
    memory = np.array([16, 8, 16, 16, 8, 8, 0]) << 30
    assert core["device_memory"].tolist() == memory.tolist()
    assert core["device_speed"].tolist() == [1, 0.75, 1, 1, 0.5, 0.5, 1]
    assert core["curve_work"].tolist() == [1e6, 1e9]
    assert core["curve_efficiency"].tolist() == [0.1, 0.9]
    assert platform.power()[0].tolist() == [5, 15]
    assert core["switches"] == 2
    assert core["link_a"].tolist() == [0, 1, 2, 3, 4, 5, 7, 8]
    assert core["link_b"].tolist() == [7, 7, 7, 7, 7, 7, 8, 6]
    assert core["link_bandwidth"].tolist() == [37.5e6] * 5 + [12.5e6, 125e6, 6.25e6]
    assert core["link_full_duplex"].tolist() == [0] * 6 + [1, 1]
    routes = [(a, b, links.tolist()) for a, b, links in core["routes"]]
    assert routes == [(0, 6, [0, 6, 7]), (6, 0, [7, 6, 0])]
    assert core["protocol"]["jitter"] == 0.1
    assert core["protocol"]["goodput"] == 0.956
    assert core["link_changes"][1].tolist() == [10**12, 1_500_000_000_000]
    assert set(core["device_changes"][0].tolist()) <= {0, 1, 2, 3, 6}
    most = 2**64 - 1
    assert core["selector"].tolist() == [
        [0, 3, 2**32 - 1, 0, 4096, 2],
        [0, 1, 2**32 - 1, 0, most, 1],
    ]
    assert core["island"].tolist() == [0] * 6 + [1]
    assert core["placement"].tolist() == [6, 0, 1, 2, 3, 5]


def test_generators_from_files() -> None:
    made = load("topology: {kind: torus, dims: [4, 2], bandwidth: 1 GB/s, latency: 1 us}")
    assert made == Platform.torus((4, 2), bandwidth=1e9, latency=1e-6)
    made = load("topology: {kind: fat_tree, k: 4, bandwidth: 1 GB/s}\nislands: none")
    assert made == Platform.fat_tree(4, bandwidth=1e9).with_islands(None)
    made = load(
        "devices: [{name: pi, count: 3}, {name: server}]\ntopology: {kind: star, bandwidth: 1 GB/s}"
    )
    assert [made.devices[row] for row in range(4)] == ["pi.0", "pi.1", "pi.2", "server"]
    made = load(
        "topology: {kind: edge, sites: 2, devices: 3, hub: true, bandwidth: 1 GB/s, "
        "uplink_bandwidth: 1 MB/s}\nislands: 7"
    )
    assert len(made) == 7
    assert made.graph.island.tolist() == [0] * 7


PLATFORMS = {
    "site": load(SITE),
    "star": Platform.star(
        8, bandwidth="1 Gbit/s", latency="100 us", protocol="mpi", collectives="gloo"
    ),
    "unnamed parts": Platform.ring(5, bandwidth=1 / 3, protocol=Protocol(goodput=1 / 3))
    .with_devices("device.1-3", Device(flops=7, jitter=1e-5))
    .with_devices("device.2", memory=3)
    .with_stragglers({0: 1 / 3, "device.4": 1e-3}),
    "changed generator": Platform.fat_tree(4, bandwidth=1e9, latency="1 us", device="h100-sxm")
    .with_links(["up.3-9", "link"], latency="3 us", overhead=1e-9)
    .with_links("up.4", duplex="half")
    .with_devices([1, 5, 6, 7, 15], memory="unlimited", name="odd one")
    .with_islands(None),
    "hub": Platform.edge(3, 4, bandwidth=1e9, uplink_bandwidth=5, hub=True).with_islands(
        [["device.0-3", "device.12"], "device.4-11"]
    ),
    "islands": Platform.torus((4, 4), bandwidth=3).with_islands(4),
    "faults": Platform.star(4, bandwidth=1).with_faults(
        Fault(device=[3, "device.0-1"], at="3 us", duration="1 h", factor=0.3),
        Fault(link=0),
        RandomFaults(link="*", mtbf="1 d", mttr="1 min", factor=0.5, horizon="10 d", seed=2**62),
    ),
    "pairs": Platform.custom(
        {"gpu": 3, "a": 1},
        [
            ("pcie", "gpu", "port", Link("32 GB/s")),
            ("up", ["port", "a"], "root", Link(1)),
            ("x", "gpu.0", ["gpu.2", "port.1"], Link(5)),
        ],
        switches={"port": 3, "root": None},
    ),
    "names": Platform.custom({"null": None, "true": 2}, [("on", "null", "true", Link(1))])
    .with_name("~")
    .with_devices("true.0", Device("null")),
    "numpy": Platform.star(np.int64(5), bandwidth=np.float32(2), latency=Fraction(1, 4))  # type: ignore[arg-type]
    .with_devices(np.array([3, 1]), flops=np.float64(3))
    .with_faults(Fault(device=np.array([2, 4]), at=np.float64(1)), Fault(link=np.int64(3))),  # type: ignore[arg-type]
    "grid": Platform.mesh(np.array([2, 3]), bandwidth=1),  # type: ignore[arg-type]
    "large": Platform.fat_tree(64, bandwidth="400 Gbit/s").with_placement("device"),
}


@pytest.mark.parametrize("name", PLATFORMS)
def test_saved_ones_read_back_equal(name: str, tmp_path: Path) -> None:
    platform = PLATFORMS[name]
    again = reread(platform, tmp_path)
    assert again == platform
    assert again.describe() == platform.describe()
    if len(platform) < 100:
        assert same_core(again, platform)
    assert (tmp_path / "platform.yaml").stat().st_size < 3000
    # Any other reader of YAML sees the same values.
    assert yaml.safe_load((tmp_path / "platform.yaml").read_text()) == content(platform)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples(path: Path, tmp_path: Path) -> None:
    platform = Platform.load(path)
    assert platform.name
    assert reread(platform, tmp_path) == platform
    platform.core()


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 3


STAR = "topology: {kind: star, n: 2, bandwidth: 1}\n"
PAIR = "devices: [a, b]\nlinks: [{name: l, from: a, to: b, bandwidth: 1}]\n"

WRONG = [
    ("", "p.yaml: empty"),
    ("[]", "p.yaml:1:1: got a list, expected a mapping"),
    (
        "devices: [a]\nplacment: [a]",
        "p.yaml:2:1: unknown key 'placment' (did you mean 'placement'?",
    ),
    ("devices: [a]\nzzz: 1", f"allowed are {', '.join(KEYS)}"),
    ("devices: [a]\ndevices: [b]", "p.yaml:2:1: the key 'devices' is given twice"),
    ("devices: [{name: a, flops: 8 TFLOPS}]", "p.yaml:1:28: devices[0].flops: got '8 TFLOPS'"),
    ("devices:\n- name: a\n  flop: 3", "p.yaml:3:3: devices[0]: unknown key 'flop'"),
    ("devices:\n- name: a\n  flop: 3", "(did you mean 'flops'?)"),
    ("devices: [{name: a, memory: 5 GB/s}]", "devices[0].memory: got '5 GB/s': unknown unit"),
    ("devices: [{name: a, memory: .nan}]", "got '.nan', expected a size"),
    ("devices: [{name: a, speed: .inf}]", "got '.inf', expected a number"),
    ("devices: [{name: a, flops: -1}]", "got '-1', expected a rate of 0, or"),
    ("devices: [{name: a, flops: 0}]", "got '0', expected more than 0"),
    ("devices: [{name: a, flops: [1]}]", "got a list, expected a value"),
    ("devices: [{name: a, flops: }]", "got '', expected a value"),
    ("devices: [{name: a, idle_power: 5 W}]", "p.yaml:1:11: devices[0]: active_power: got 0 W"),
    ("devices: [{name: a, flops_curve: 3}]", "flops_curve: got '3', expected a list"),
    ("devices: [{name: a, flops_curve: [[1]]}]", "expected pairs of work and efficiency"),
    ("devices: [{name: a, count: 010}]", "got '010', expected a whole number"),
    ("devices: [{name: a, count: 0}]", "got '0', expected a whole number from 1"),
    ("devices: [{name: a, count: 1e3}]", "got '1e3', expected a whole number"),
    ("devices: [{name: a, count: 99999999999999999999999}]", "expected a whole number from 1"),
    ("devices: [{count: 2}]", "devices[0]: name missing"),
    ("devices: [{name: a, preset: h100}]", "unknown preset 'h100' (did you mean 'h100-sxm'?)"),
    ("devices: [{name: a.b}]", "p.yaml:1:18: devices[0].name: got 'a.b'"),
    ("devices: []", "got an empty list"),
    ("devices: {a: 1}", "devices: got a mapping, expected a list"),
    ("devices: [a, a]", "the name 'a' is given twice"),
    ("devices: [a, b]", "no way from device 'a' to 'b'"),
    ("links: []", "p.yaml:1:1: devices missing (or topology)"),
    ("name: x\ndevices: [a]\nswitches: [a]", "'a' is a device's name, too"),
    ("devices: [a]\nlinks: [{name: l, from: a, to: b, bandwidth: 1}]", "unknown device 'b'"),
    ("devices: [a]\nlinks: [{name: l, from: a, to: a, bandwidth: 1}]", "joins a node to itself"),
    ("devices: [a, b]\nlinks: [{name: l, from: a, to: b}]", "bandwidth missing, or a preset"),
    ("devices: [a, b]\nlinks: [{name: l, from: a, bandwidth: 1}]", "links[0]: to missing"),
    ("devices: [a, b]\nlinks: [{from: a, to: b, bandwidth: 1}]", "links[0]: name missing"),
    (PAIR.replace("bandwidth: 1", "bandwidth: 1 Gb/s"), "Gbit/s (bits) or GB/s (bytes)"),
    (
        "topology: {kind: stra, n: 2}",
        "p.yaml:1:18: topology.kind: got 'stra' (did you mean 'star'?), expected star,",
    ),
    ("topology: {n: 2}", "topology: kind missing"),
    ("topology: {kind: star, n: 2}", "topology: bandwidth missing"),
    ("topology: {kind: star, bandwidth: 1}", "topology: n missing"),
    ("topology: {kind: star, n: 2, dims: [2], bandwidth: 1}", "unknown key 'dims'"),
    ("topology: {kind: fat_tree, k: 5, bandwidth: 1}", "do not divide"),
    ("topology: {kind: fat_tree, k: 4, levels: 9, bandwidth: 1}", "p.yaml:1:42: topology.levels"),
    ("topology: {kind: star, n: 2, bandwidth: 1, duplex: x}", "topology.duplex: got 'x'"),
    ("topology: {kind: torus, dims: [99999, 99999], bandwidth: 1}", "devices: got 9999800001"),
    ("topology: {kind: edge, hub: yes}", "topology.hub: got 'yes', expected true or false"),
    (STAR + "links: []", "links: given beside `topology`"),
    (STAR + "devices: [a, b, c]", "devices: got 3, expected the 2 of this star"),
    (STAR + "protocol: glo", "p.yaml:2:11: protocol: unknown preset 'glo' (did you mean 'gloo'?"),
    (STAR + "protocol: {handshake: hello}", "protocol.handshake: got 'hello'"),
    (STAR + "protocol: {loss: 1}", "protocol.loss: got '1', expected at most 0.99"),
    (STAR + "protocol: {eager: 1}", "(did you mean 'eager_limit'?)"),
    (STAR + "overrides: [{flops: 3}]", "overrides[0]: expected `devices` or `links`"),
    (STAR + "overrides: [{devices: device.2, flops: 3}]", "expected device.0 to device.1"),
    (STAR + "overrides: [{links: '*', flops: 3}]", "overrides[0]: unknown key 'flops'"),
    (STAR + "routes: [{from: device.0, to: device.1}]", "routes[0]: via missing"),
    (STAR + "routes: [{from: 0, to: 1, via: [link.1, link.0]}]", "does not begin where"),
    (STAR + "routes: [{from: 0, to: 1, via: [link.0]}]", "do not end at 1"),
    (STAR + "stragglers: {device.7: 2}", "p.yaml:2:24: stragglers.device.7: "),
    (STAR + "stragglers: {device.0: 0}", "got '0', expected more than 0"),
    (STAR + "faults: [{at: 1}]", "faults[0]: fault: got device=None, link=None"),
    (STAR + "faults: [{device: devise}]", "unknown device 'devise' (did you mean 'device'?)"),
    (STAR + "faults: [{device: 0, at: 1 B}]", "faults[0].at: got '1 B': unknown unit"),
    (STAR + "faults: [{device: 0, until: 1}]", "unknown key 'until'"),
    (STAR + "faults: [{device: 0, mtbf: 1}]", "faults[0]: mttr missing"),
    (
        STAR + "faults: [{device: 0, mtbf: 1 us, mttr: 1 us, horizon: 1 d}]",
        "faults[0].mtbf: about 4.3e+10 failures",
    ),
    (STAR + "collectives: goo", "p.yaml:2:14: collectives: got 'goo'"),
    (
        STAR + "collectives: [{collective: barrier, algorithm: ring}]",
        "p.yaml:2:48: collectives[0].algorithm: barrier has none named 'ring'",
    ),
    (STAR + "collectives: [ring]", "collectives[0]: got 'ring', expected a mapping"),
    (STAR + "collectives: [{collective: all_reduce}]", "collectives[0]: algorithm missing"),
    (
        STAR + "collectives: [{collective: allreduce, algorithm: ring}]",
        "p.yaml:2:28: collectives[0].collective: got 'allreduce' (did you mean 'all_reduce'?)",
    ),
    (
        STAR + "collectives: [{collective: barrier, algorithm: rng}]",
        "collectives[0].algorithm: got 'rng' (did you mean 'ring'?)",
    ),
    (
        STAR + "collectives: [{collective: reduce, algorithm: ring, min_bytes: 1.5 B}]",
        "collectives[0].min_bytes: got '1.5 B'",
    ),
    (
        STAR + "collectives: [{collective: reduce, algorithm: ring, min_ranks: 5, max_ranks: 3}]",
        "the least is more than the most",
    ),
    (STAR + "islands: 3", "expected a divisor of 2"),
    (STAR + "islands: [[device.0]]", "'device.1' is on none of them"),
    (STAR + "placement: [device, x]", "unknown device 'x'"),
    ("name: [", "not YAML"),
    ("name: a: b", "p.yaml:1:8: not YAML"),
    ("name: \x00", "p.yaml: not YAML"),
    ("name: !!python/name:os.system x", "p.yaml:1:7: tags are not allowed"),
    ("name: *x", "unknown alias *x"),
    ("name: &x [*x]", "unknown alias *x"),
    ("devices: [a]\n---\ndevices: [b]", "a second document"),
    ("? [a]\n: b", "expected a name as the key"),
    ("name: " + "[" * 40 + "]" * 40, "nested more than 32 deep"),
    ("devices: [{<<: [a], name: b}]", "<<: expected a mapping"),
]


@pytest.mark.parametrize("pure", [False, True], ids=["libyaml", "pure"])
@pytest.mark.parametrize(("text", "message"), WRONG, ids=[text[:40] for text, _ in WRONG])
def test_wrong_files(text: str, message: str, pure: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if pure:
        monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    with pytest.raises(PlatformError) as error:
        load(text)
    assert str(error.value).startswith("p.yaml")
    assert message in str(error.value)


def test_not_utf8() -> None:
    with pytest.raises(PlatformError, match="not UTF-8"):
        load(b"name: \xff")


def test_aliases_cannot_explode() -> None:
    lines = ["name: &l0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"k{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]" for i in range(1, 12)]
    with pytest.raises(PlatformError, match="more than 500000 values, aliases counted in full"):
        load("\n".join(lines))


def test_a_million_lines_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    path.write_bytes(b"devices:\n" + b"- {name: some_board}\n" * 1_000_000)
    with pytest.raises(PlatformError, match=r"expected at most 16777216; describe large platforms"):
        Platform.load(path)


def test_without_pyyaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ImportError, match=r"pip install 'leeboard\[sim\]'"):
        load(STAR)
    with pytest.raises(ImportError, match=r"pip install 'leeboard\[sim\]'"):
        PLATFORMS["star"].save(tmp_path / "x.yaml")
    assert not list(tmp_path.iterdir())


def test_saving_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "platform.yaml"
    PLATFORMS["star"].save(path)
    before = path.read_bytes()
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        PLATFORMS["site"].save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["platform.yaml"]


SEEDS = [SITE, *(path.read_bytes() for path in EXAMPLES)]
SEEDS += [
    yaml.safe_dump(content(PLATFORMS[name])).encode() for name in PLATFORMS if name != "large"
]
TOKENS = [
    *(part for seed in SEEDS for part in seed.split()),
    b"*",
    b"&x",
    b"*x",
    b"<<:",
    b"~",
    b"-1",
]
TOKENS += [
    b"!!int",
    b"'",
    b'"',
    b"[",
    b"]",
    b"{",
    b"}",
    b"\t",
    b"\xc3\xa9",
    b"\xff",
    b"\\ud800",
    b".nan",
]


def mutated(seed: int) -> bytes:
    """A valid file with a few things wrong, or not."""
    choose = random.Random(seed)
    text = choose.choice(SEEDS)
    for _ in range(choose.randint(1, 4)):
        start = choose.randrange(len(text))
        match choose.randrange(5):
            case 0:
                text = text[:start] + choose.choice(TOKENS) + text[start:]
            case 1:
                text = text[:start] + text[start + choose.randint(1, 12) :]
            case 2:
                text = text[:start] + bytes([choose.randrange(256)]) + text[start + 1 :]
            case 3:
                words = text.split(b" ")
                words[choose.randrange(len(words))] = choose.choice(TOKENS)
                text = b" ".join(words)
            case _:
                lines = text.split(b"\n")
                lines.insert(choose.randrange(len(lines)), choose.choice(lines))
                text = b"\n".join(lines)
        text = text or b"-"
    return text


def survives(text: bytes) -> None:
    """Reads, or says why not; what reads reads back equal."""
    try:
        platform = load(text)
    except PlatformError:
        return
    written = yaml.safe_dump(content(platform), sort_keys=False).encode()
    assert load(written) == platform


@settings(max_examples=300)
@given(st.integers(0, 2**32))
def test_fuzz_mutated_files(seed: int) -> None:
    survives(mutated(seed))


@settings(max_examples=150)
@given(st.binary(max_size=200) | st.lists(st.sampled_from(TOKENS), max_size=30).map(b" ".join))
def test_fuzz_noise(text: bytes) -> None:
    survives(text)


VALUES = [*("device", "device.0", "device.0-1", "*", "jetson", "jetson.3", "hub", "link", "wan")]
VALUES += [*("up.3", "gpu", "port", "ap", "none", "full", "half", "gloo", "h100-sxm", "wifi-6", "")]
VALUES += [*("1 Gbit/s", "3 MB/s", "5 us", "1 h", "2 GiB", "7 TFLOP/s", "9 W", "50 %", "unlimited")]
VALUES += [0, 1, 2, 3, 4, 7, 8, 16, -1, 0.5, 1e-5, 1e30, 2**63, True, None, [], {}, [0, 1], ["a"]]
VALUES += [
    {"name": "a"},
    {"name": "x", "count": 2},
    {"preset": "none"},
    [["device"]],
    "star",
    "torus",
]


def restructured(seed: int) -> bytes:
    """A valid file of which values, keys and items were exchanged, left out or doubled."""
    choose = random.Random(seed)
    root = copy.deepcopy(choose.choice(CONTENTS))
    for _ in range(choose.randint(1, 3)):
        here, places = root, [(root, key) for key in root]
        while choose.random() < 0.8:
            here, key = choose.choice(places)
            inner = here[key]
            if not isinstance(inner, (dict, list)) or not inner:
                break
            keys = list(inner) if isinstance(inner, dict) else range(len(inner))
            places = [(inner, key) for key in keys]
        into, key = choose.choice(places)
        match choose.randrange(4):
            case 0:
                del into[key]
            case 1 if isinstance(into, list):
                into.append(copy.deepcopy(into[key]))
            case 1:
                into[choose.choice(KEYS_OF_FILES)] = into[key]
            case _:
                into[key] = copy.deepcopy(choose.choice(VALUES))
        root = root or {"devices": ["a"]}
    return yaml.safe_dump(root, sort_keys=False).encode()


CONTENTS = [yaml.safe_load(path.read_text()) for path in EXAMPLES]
CONTENTS += [content(PLATFORMS[name]) for name in PLATFORMS if name != "large"]
KEYS_OF_FILES = sorted(set(re.findall(r"\w+(?=: )", "".join(map(str, CONTENTS)).replace("'", ""))))


@settings(max_examples=300)
@given(st.integers(0, 2**32))
def test_fuzz_restructured_files(seed: int) -> None:
    survives(restructured(seed))
