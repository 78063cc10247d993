"""Generated graphs against networkx: degrees, diameters, bisections, latencies, counts."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import networkx as nx
import numpy as np
import pytest

from leeboard.sim import Platform, PlatformError
from leeboard.sim.graph import unreachable

SMALL = {
    "star": Platform.star(7, bandwidth="1 Gbit/s", latency="100 us"),
    "ring": Platform.ring(6, bandwidth="1 Gbit/s", latency="1 us"),
    "full": Platform.full(5, bandwidth="1 Gbit/s"),
    "mesh": Platform.mesh((3, 4), bandwidth="1 Gbit/s"),
    "torus": Platform.torus((3, 4, 2), bandwidth="1 Gbit/s"),
    "fat_tree": Platform.fat_tree(4, bandwidth="1 Gbit/s", latency="2 us"),
    "leaf_spine": Platform.fat_tree(radix=6, levels=2, oversubscription=2, bandwidth="1 Gbit/s"),
    "dragonfly": Platform.dragonfly(7, 3, 2, bandwidth="1 Gbit/s"),
    "edge": Platform.edge(3, 4, bandwidth=1e9, uplink_bandwidth=1e7, hub=True),
    "cluster": Platform.cluster(2, 4, bandwidth=1e9, network_bandwidth=1e7),
}


def graph_of(platform: Platform) -> Any:
    shape = platform.graph
    graph = nx.MultiGraph()
    graph.add_nodes_from(range(shape.devices + len(shape.switches)))
    core = platform.core()
    for a, b, bandwidth, latency in zip(
        shape.link_a, shape.link_b, core["link_bandwidth"], core["link_latency"], strict=True
    ):
        graph.add_edge(int(a), int(b), capacity=float(bandwidth), latency=int(latency))
    return graph


def distance(platform: Platform, a: int, b: int) -> float:
    return nx.shortest_path_length(graph_of(platform), a, b, weight="latency") / 1e12


def bisection(platform: Platform, left: list[int]) -> float:
    """Bytes a second that devices of `left` can send to all others together."""
    graph = nx.Graph(graph_of(platform))
    right = set(range(len(platform))) - set(left)
    for name, side in (("left", left), ("right", right)):
        graph.add_edges_from((name, device) for device in side)
    return float(nx.maximum_flow_value(graph, "left", "right"))


def edges(graph: Any, dims: tuple[int, ...]) -> set[tuple[int, ...]]:
    number = {
        node: int(np.ravel_multi_index(node, dims)) for node in itertools.product(*map(range, dims))
    }
    return {tuple(sorted((number[_tuple(a)], number[_tuple(b)]))) for a, b in graph.edges}


def _tuple(node: Any) -> tuple[int, ...]:
    return node if isinstance(node, tuple) else (node,)


@pytest.mark.parametrize("name", SMALL)
def test_simple_and_connected(name: str) -> None:
    graph = graph_of(SMALL[name])
    assert nx.is_connected(graph)
    assert unreachable(SMALL[name].graph) is None
    assert nx.number_of_selfloops(graph) == 0
    assert max(Counter(tuple(sorted(edge[:2])) for edge in graph.edges).values()) == 1


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_star(n: int) -> None:
    platform = Platform.star(n, bandwidth="1 Gbit/s", latency="100 us")
    graph = graph_of(platform)
    assert nx.is_isomorphic(graph, nx.star_graph(n))
    if n > 1:
        assert distance(platform, 0, n - 1) == 100e-6


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_ring(n: int) -> None:
    platform = Platform.ring(n, bandwidth="1 Gbit/s", latency="1 us")
    expected = nx.cycle_graph(n) if n > 2 else nx.path_graph(n)
    assert nx.is_isomorphic(nx.Graph(graph_of(platform)), expected)
    assert len(platform.graph.links) == expected.number_of_edges()
    if n == 6:
        assert distance(platform, 0, 3) == pytest.approx(3e-6)
        assert nx.diameter(graph_of(platform)) == 3


def test_full() -> None:
    assert nx.is_isomorphic(nx.Graph(graph_of(SMALL["full"])), nx.complete_graph(5))


@pytest.mark.parametrize("dims", [(5,), (3, 4), (2, 2), (3, 1, 2), (4, 2, 3)])
@pytest.mark.parametrize("periodic", [False, True])
def test_grids(dims: tuple[int, ...], periodic: bool) -> None:
    """The same neighbours, device by device, as networkx's grids."""
    make = Platform.torus if periodic else Platform.mesh
    ours = graph_of(make(dims, bandwidth=1.0))
    # networkx names the last dimension first, and closes a line of one onto itself.
    theirs = nx.grid_graph(dims[::-1], periodic=periodic)
    theirs.remove_edges_from(list(nx.selfloop_edges(theirs)))
    assert {tuple(sorted(edge[:2])) for edge in ours.edges} == edges(theirs, dims)


def test_fat_tree_of_three_levels() -> None:
    platform = SMALL["fat_tree"]
    graph = graph_of(platform)
    assert len(platform) == 16
    names = platform.graph.switches
    assert {group.name: len(group) for group in names.groups} == {
        "leaf": 8,
        "aggregation": 8,
        "core": 4,
    }
    assert {graph.degree(node) for node in range(16, 36)} == {4}
    assert nx.diameter(graph) == 6
    # Full bisection: every device of a half sends at full speed to the other.
    assert bisection(platform, list(range(8))) == 8 * 1.25e8
    assert distance(platform, 0, 1) == 2e-6
    assert distance(platform, 0, 15) == pytest.approx(6e-6)
    # A pod's switches reach every core.
    pod = [16 + 8, 16 + 9]
    assert {n for node in pod for n in graph[node] if n >= 32} == set(range(32, 36))


def test_fat_tree_oversubscribed() -> None:
    platform = SMALL["leaf_spine"]
    graph = graph_of(platform)
    assert len(platform) == 24
    assert {group.name: len(group) for group in platform.graph.switches.groups} == {
        "leaf": 6,
        "spine": 2,
    }
    assert {graph.degree(node) for node in range(24, 32)} == {6}
    assert nx.diameter(graph) == 4
    assert bisection(platform, list(range(12))) == 6 * 1.25e8
    assert platform.graph.island.tolist() == [i // 4 for i in range(24)]


def test_fat_tree_with_faster_uplinks() -> None:
    platform = Platform.fat_tree(
        radix=6, levels=2, oversubscription=2, bandwidth=100.0, uplink_bandwidth=200.0
    )
    assert bisection(platform, list(range(12))) == 1200


@pytest.mark.parametrize("shape", [(1, 3, 2), (2, 1, 1), (7, 3, 2), (9, 4, 1), (5, 8, 1)])
def test_dragonfly(shape: tuple[int, int, int]) -> None:
    groups, routers, hosts = shape
    platform = Platform.dragonfly(*shape, bandwidth="1 Gbit/s")
    graph = graph_of(platform)
    devices = math.prod(shape)
    assert len(platform) == devices
    between: Counter[tuple[int, int]] = Counter()
    wide: Counter[int] = Counter()
    for a, b in graph.edges():
        if min(a, b) < devices:
            continue
        one, other = (a - devices) // routers, (b - devices) // routers
        if one != other:
            between[min(one, other), max(one, other)] += 1
            wide.update((a, b))
    assert between == Counter(itertools.combinations(range(groups), 2))
    used = [wide[node] for node in range(devices, devices + groups * routers)]
    assert max(used) - min(used) <= 1
    routers_only = graph.subgraph(range(devices, devices + groups * routers))
    assert nx.diameter(routers_only) <= 3
    assert all(graph.degree(node) == 1 for node in range(devices))
    for node, extra in zip(range(devices, devices + groups * routers), used, strict=True):
        assert graph.degree(node) == hosts + routers - 1 + extra
    assert platform.graph.island.max() == groups - 1


def test_edge_tiers() -> None:
    platform = Platform.edge(
        3,
        4,
        bandwidth="300 Mbit/s",
        latency="4 ms",
        uplink_bandwidth="20 Mbit/s",
        uplink_latency="10 ms",
        duplex="half",
        hub=True,
        hub_bandwidth="1 Gbit/s",
    )
    assert len(platform) == 13
    assert distance(platform, 0, 3) == pytest.approx(4e-3)
    assert distance(platform, 0, 4) == pytest.approx(24e-3)
    assert distance(platform, 0, 12) == pytest.approx(12e-3)
    assert bisection(platform, [0, 1, 2, 3]) == 2.5e6
    assert bisection(platform, [12]) == 3 * 2.5e6
    assert platform.graph.island.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3]
    assert platform.link("link.0").duplex == "half"
    assert platform.link("uplink.0").duplex == "full"
    assert platform.link("hub.0").bandwidth == 1.25e8


def test_cluster_tiers() -> None:
    platform = Platform.cluster(
        2,
        4,
        bandwidth="900 GB/s",
        latency="2 us",
        network_bandwidth="200 GB/s",
        network_latency="6 us",
    )
    assert distance(platform, 0, 3) == pytest.approx(2e-6)
    assert distance(platform, 0, 4) == pytest.approx(8e-6)
    assert bisection(platform, [0, 1, 2, 3]) == 200e9


@pytest.mark.parametrize(
    ("platform", "switches", "links"),
    [
        (Platform.star(65536, bandwidth=1e9), 1, 65536),
        (Platform.fat_tree(64, bandwidth=1e9), 5 * 64**2 // 4, 3 * 65536),
        (Platform.torus((64, 32, 32), bandwidth=1e9), 0, 3 * 65536),
        (Platform.dragonfly(64, 32, 32, bandwidth=1e9), 2048, 65536 + 64 * 496 + 2016),
        (Platform.edge(256, 256, bandwidth=1e9, uplink_bandwidth=1e9), 257, 65536 + 256),
    ],
)
def test_large_ones_are_columns(platform: Platform, switches: int, links: int) -> None:
    """No object a device: a few bytes of columns each, of which one kind is held once."""
    assert len(platform) == 65536
    assert len(platform.graph.switches) == switches
    assert len(platform.graph.links) == links
    assert len(platform.kinds) == 1
    assert len(platform.graph.kinds) <= 3
    own = [platform.device_kind, platform.device_factor, platform.graph.island]
    own += [platform.graph.link_a, platform.graph.link_b, platform.graph.link_kind]
    assert sum(column.nbytes for column in own) <= 16 * len(platform) + 12 * links
    sent = [value for value in platform.core().values() if isinstance(value, np.ndarray)]
    assert sum(column.nbytes for column in sent) <= 80 * len(platform) + 33 * links
    assert unreachable(platform.graph) is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Platform.star(0, bandwidth=1), "devices: got 0"),
        (lambda: Platform.star(2.5, bandwidth=1), "devices: got 2.5"),  # type: ignore[arg-type]
        (lambda: Platform.star(True, bandwidth=1), "devices: got True"),
        (lambda: Platform.star(1 << 25, bandwidth=1), "from 1 to 16777216"),
        (lambda: Platform.full(5000, bandwidth=1), "n: got 5000"),
        (lambda: Platform.mesh((), bandwidth=1), "dims: got ()"),
        (lambda: Platform.mesh("44", bandwidth=1), "dims: got '44'"),
        (lambda: Platform.torus((2, 0), bandwidth=1), "dims: got 0"),
        (lambda: Platform.torus((4096, 4096, 4096), bandwidth=1), "devices: got 68719476736"),
        (lambda: Platform.fat_tree(bandwidth=1), "expected one of them"),
        (lambda: Platform.fat_tree(4, radix=4, bandwidth=1), "expected one of them"),
        (lambda: Platform.fat_tree(5, bandwidth=1), "do not divide"),
        (lambda: Platform.fat_tree(8, oversubscription=2, bandwidth=1), "do not divide"),
        (lambda: Platform.fat_tree(4, levels=4, bandwidth=1), "levels: got 4"),
        (
            lambda: Platform.dragonfly(4096, 4096, 1, bandwidth=1),
            "links or more, expected 33554432",
        ),
        (lambda: Platform.edge(0, 1, bandwidth=1, uplink_bandwidth=1), "sites: got 0"),
        (lambda: Platform.cluster(1, 0, bandwidth=1, network_bandwidth=1), "devices: got 0"),
        (lambda: Platform.star(2, bandwidth=1, duplex="both"), "duplex: got 'both'"),
    ],
)
def test_refused(make: Any, message: str) -> None:
    with pytest.raises(PlatformError) as error:
        make()
    assert message in str(error.value)
