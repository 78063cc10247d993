"""Routes: given, or shortest by latency, then links; equal ones shared out."""

from __future__ import annotations

from collections import Counter
from typing import Any

import networkx as nx
import numpy as np
import pytest

from leeboard import _C, sim


def core(links: list[tuple[int, int, int]], devices: int, switches: int = 0, **more: Any) -> Any:
    """A platform's columns, of links (a, b, latency in ps)."""
    count = len(links)
    a, b, latency = np.array(links, np.uint64).reshape(-1, 3).T
    columns = sim.Platform.star(devices, bandwidth=1e9, latency=0).core()
    return columns | {
        "switches": switches,
        "link_a": a.astype(np.uint32),
        "link_b": b.astype(np.uint32),
        "link_bandwidth": np.arange(1.0, count + 1),
        "link_latency": latency,
        "link_overhead": np.arange(count, dtype=np.uint64),
        "link_full_duplex": np.ones(count, np.uint8),
        **more,
    }


def follow(columns: Any, source: int, resources: list[int]) -> list[int]:
    """The nodes that resources lead through; the direction of each must fit."""
    nodes = [source]
    for resource in resources:
        ends = [int(columns["link_a"][resource // 2]), int(columns["link_b"][resource // 2])]
        if not columns["link_full_duplex"][resource // 2]:
            assert resource % 2 == 0
            begin = ends.index(nodes[-1])
        else:
            begin = resource % 2
        assert ends[begin] == nodes[-1]
        nodes.append(ends[1 - begin])
    return nodes


@pytest.mark.parametrize("seed", range(12))
def test_paths_cost_what_networkx_finds(seed: int) -> None:
    random = np.random.default_rng(seed)
    devices, switches = int(random.integers(4, 12)), int(random.integers(0, 8))
    nodes = devices + switches
    # Sparse enough for leaves and for islands; parallel links and equal latencies occur.
    count = int(random.integers(nodes - 1, 2 * nodes))
    links = [
        (int(a), int(b), int(random.integers(0, 4)))
        for a, b in (random.choice(nodes, 2, replace=False) for _ in range(count))
    ]
    duplex = random.integers(0, 2, count).astype(np.uint8)
    columns = core(links, devices, switches, link_full_duplex=duplex)
    graph = nx.Graph()
    graph.add_nodes_from(range(nodes))
    for a, b, latency in links:
        # Latency first, then links: one weight holds both.
        weight = latency * 1000 + 1
        if not graph.has_edge(a, b) or graph[a][b]["weight"] > weight:
            graph.add_edge(a, b, weight=weight)
    routes = _C.SimRoutes(columns)
    # Twice, and from every source to more targets than it takes for full distances.
    for _ in range(2):
        for source in range(devices):
            reached = nx.single_source_dijkstra_path_length(graph, source)
            for target in range(devices):
                if source == target:
                    continue
                if target not in reached:
                    with pytest.raises(RuntimeError, match=f"{source} to device {target}"):
                        routes.find(source, target)
                    continue
                resources, latency, overhead, bandwidth = routes.find(source, target)
                assert follow(columns, source, resources)[-1] == target
                assert latency * 1000 + len(resources) == reached[target]
                on = [resource // 2 for resource in resources]
                assert latency == sum(links[link][2] for link in on)
                assert overhead == sum(on)
                assert bandwidth == 1.0 + min(on)


def test_given_routes_come_first_one_way() -> None:
    links = [(0, 1, 1), (1, 2, 1), (0, 2, 1)]
    columns = core(links, 3, routes=[(0, 2, np.array([0, 1], np.uint32))])
    routes = _C.SimRoutes(columns)
    assert routes.find(0, 2)[0] == [0, 2]
    assert routes.find(2, 0)[0] == [5]


@pytest.mark.parametrize(("links", "word"), [([1], "breaks at link 1"), ([0], "does not get")])
def test_a_given_route_must_join_its_ends(links: list[int], word: str) -> None:
    columns = core([(0, 1, 1), (1, 2, 1)], 3, routes=[(0, 2, np.array(links, np.uint32))])
    with pytest.raises((RuntimeError, ValueError), match=word):
        _C.SimRoutes(columns).find(0, 2)


def test_equal_ways_are_shared_out() -> None:
    """16 hosts on one switch, 16 on another, eight switches of equal latency between them."""
    left, right = 32, 33
    links = [(host, left if host < 16 else right, 5) for host in range(32)]
    for spine in range(34, 42):
        links += [(left, spine, 5), (spine, right, 5)]
    routes = _C.SimRoutes(core(links, 32, 10))
    used: Counter[int] = Counter()
    for source in range(16):
        for target in range(16, 32):
            resources = routes.find(source, target)[0]
            assert len(resources) == 4
            used[resources[1]] += 1
    assert len(used) == 8
    # 32 on average; the draw is a hash, the same in every run.
    assert 16 <= min(used.values()) <= max(used.values()) <= 48


def test_large_platforms_answer_what_is_asked() -> None:
    """A star and a ring of 65,536 devices, the latter for neighbours only."""
    size = 1 << 16
    star = [(host, size, 1) for host in range(size)]
    routes = _C.SimRoutes(core(star, size, 1))
    for source in range(0, size, 16):
        assert routes.find(source, size - 1 - source)[1] == 2
    ring = [(host, (host + 1) % size, 1) for host in range(size)]
    routes = _C.SimRoutes(core(ring, size))
    for source in range(0, size, 16):
        assert routes.find(source, (source + 1) % size)[1] == 1
        assert routes.find(source, (source - 3) % size)[1] == 3
