"""Max-min fair shares, brought up to date change by change, against progressive filling."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fair_shares import fair_rates, matrix
from leeboard import _C

Random = np.random.Generator


def mesh(random: Random, flows: int) -> list[dict[int, float]]:
    """Any few of 12 resources, at any weight."""
    out = []
    for _ in range(flows):
        picked = random.choice(12, random.integers(1, 6), replace=False)
        out.append({int(r): float(random.choice([1.0, 0.05, 0.5, 2.0])) for r in picked})
    return out


def star(random: Random, flows: int) -> list[dict[int, float]]:
    """Out by one link and in by another, with acknowledgements the other way."""
    out = []
    for _ in range(flows):
        a, b = (int(x) for x in random.choice(8, 2, replace=False))
        out.append({2 * a: 1.0, 2 * b + 1: 1.0, 2 * b: 0.05, 2 * a + 1: 0.05})
    return out


def lines(random: Random, flows: int) -> list[dict[int, float]]:
    """Stretches of a line of 30 links: chains of bottlenecks."""
    out = []
    for _ in range(flows):
        begin, end = sorted(int(x) for x in random.choice(31, 2, replace=False))
        out.append(dict.fromkeys(range(begin, end), 1.0))
    return out


def check(
    flows: _C.SimMaxMin, active: list[int], weights: np.ndarray, capacity: np.ndarray, limit: float
) -> None:
    rates = np.array(flows.solve())
    assert not np.delete(rates, active).any()
    expected = fair_rates(weights[:, active], capacity, limit)
    np.testing.assert_allclose(rates[active], expected, rtol=1e-9, atol=1e-30)
    load = weights @ rates
    np.testing.assert_allclose(flows.loads(), load, rtol=1e-9, atol=1e-9 * capacity.max())
    assert (load <= capacity * (1 + 1e-9)).all()
    # What holds each flow back: its limit, or a full resource of which no flow has more.
    full = load >= capacity * (1 - 1e-9)
    for flow in active:
        on = np.flatnonzero(weights[:, flow])
        bottlenecks = [
            r for r in on if full[r] and rates[flow] >= rates[weights[r] > 0].max() * (1 - 1e-9)
        ]
        assert bottlenecks or rates[flow] == pytest.approx(limit, rel=1e-9)


@pytest.mark.parametrize("limit", [np.inf, 2.0])
@pytest.mark.parametrize("span", [0.0, 0.5, 4.0])
@pytest.mark.parametrize("graph", [mesh, star, lines])
def test_shares_follow_any_changes(
    graph: Callable[[Random, int], list[dict[int, float]]], span: float, limit: float
) -> None:
    random = np.random.default_rng([int(10 * span), int(limit == 2.0), len(graph.__name__)])
    shares = graph(random, 60)
    resources = 1 + max(max(share) for share in shares)
    weights = matrix(shares, resources)
    # Powers of two times 10**(-span .. span): with and without ties.
    capacity = 8.0 * 2.0 ** random.integers(0, 3, resources)
    capacity *= 10.0 ** random.uniform(-span, span, resources)
    flows = _C.SimMaxMin(capacity.tolist(), limit)
    for share in shares:
        flows.add(list(share.items()))
    active: set[int] = set()
    for _ in range(150):
        for _ in range(random.choice([1, 1, 1, 2, 5, 25])):
            kind = random.random()
            if kind < 0.1:
                resource = int(random.integers(resources))
                capacity[resource] *= random.choice([0.0, 0.5, 2.0, 1.0])
                capacity[resource] = capacity[resource] or random.choice([0.0, 3.0])
                flows.set_capacity(resource, capacity[resource])
            else:
                flow = int(random.integers(len(shares)))
                flows.set_active(flow, flow not in active)
                active ^= {flow}
        check(flows, sorted(active), weights, capacity, limit)


def test_a_failed_resource_stops_its_flows_alone_and_gives_them_back() -> None:
    flows = _C.SimMaxMin([8.0, 4.0, 6.0], np.inf)
    for share in ({0: 1.0, 1: 1.0}, {0: 1.0}, {2: 1.0}):
        flows.set_active(flows.add(list(share.items())), True)
    assert flows.solve() == [4.0, 4.0, 6.0]
    flows.set_capacity(1, 0.0)
    assert flows.solve() == [0.0, 8.0, 6.0]
    flows.set_capacity(1, 2.0)
    assert flows.solve() == [2.0, 6.0, 6.0]


def test_a_resource_twice_on_the_way_counts_twice() -> None:
    flows = _C.SimMaxMin([9.0], np.inf)
    flows.set_active(flows.add([(0, 1.0), (0, 0.5)]), True)
    assert flows.solve() == [6.0]


def test_a_change_is_not_felt_where_it_cannot_be() -> None:
    """Pairs of resources of their own, of which one changes: the others are not looked at."""
    flows = _C.SimMaxMin([1.0] * 2000, np.inf)
    for pair in range(1000):
        flows.set_active(flows.add([(2 * pair, 1.0), (2 * pair + 1, 1.0)]), True)
    flows.solve()
    flows.set_active(7, False)
    flows.solve()
    assert flows.visited() == 2
    # A flow that is held back elsewhere does not pass the change on.
    flows.set_active(flows.add([(14, 1.0), (0, 0.25)]), True)
    assert flows.solve()[-1] == pytest.approx(0.8)
    assert flows.visited() == 3


def test_long_sequences_do_not_drift() -> None:
    random = np.random.default_rng(5)
    shares = star(random, 40)
    weights = matrix(shares, 16)
    capacity = np.full(16, 1e9)
    flows = _C.SimMaxMin(capacity.tolist(), np.inf)
    for share in shares:
        flows.add(list(share.items()))
    active: set[int] = set()
    for flow in random.integers(len(shares), size=20_000):
        flows.set_active(int(flow), int(flow) not in active)
        active ^= {int(flow)}
        flows.solve()
    check(flows, sorted(active), weights, capacity, np.inf)


@pytest.mark.parametrize("hops", [2, 5, 30])
def test_change_by_change_comes_to_the_same_as_from_nothing(hops: int) -> None:
    """Far larger than the oracle can take: capacities from 1e3 to 1e12, waves that go far."""
    random = np.random.default_rng(hops)
    capacity = (10.0 ** random.uniform(3, 12, 500)).tolist()
    shares = []
    for _ in range(3000):
        way = (random.integers(500) + np.arange(hops)) % 500 if hops == 30 else None
        way = random.choice(500, hops, replace=False) if way is None else way
        shares.append([(int(r), float(random.choice([1.0, 0.05]))) for r in way])
    flows = _C.SimMaxMin(capacity, np.inf)
    for share in shares:
        flows.add(share)
    active: set[int] = set()
    for step in range(3000):
        flow = int(random.integers(len(shares)))
        flows.set_active(flow, flow not in active)
        active ^= {flow}
        if step % 5:
            continue
        rates = flows.solve()
        if step % 500:
            continue
        fresh = _C.SimMaxMin(capacity, np.inf)
        for share in shares:
            fresh.add(share)
        for flow in sorted(active):
            fresh.set_active(flow, True)
        np.testing.assert_allclose(rates, fresh.solve(), rtol=1e-10)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="capacity: got -1"):
        _C.SimMaxMin([-1.0], np.inf)
    flows = _C.SimMaxMin([1.0], np.inf)
    for shares, word in (([], "shares"), ([(1, 1.0)], "resource"), ([(0, 0.0)], "weight")):
        with pytest.raises(ValueError, match=word):
            flows.add(shares)
    flow = flows.add([(0, 1.0)])
    with pytest.raises(ValueError, match="is not active"):
        flows.set_active(flow, False)
