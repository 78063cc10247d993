"""The flow network: messages that share links max-min fairly, on their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fair_shares import fluid
from leeboard import _C, sim

NEVER = 2**64 - 1
RATE = 1e6  # bytes a second
ALPHA = 1e-3


def carry(
    platform: sim.Platform | dict[str, Any],
    messages: list[tuple[float, int, int, int]],
    bins: int = 0,
    network: str = "flow",
) -> dict[str, Any]:
    """Messages of (seconds, source, target, bytes); times come back in seconds."""
    columns = platform if isinstance(platform, dict) else platform.core()
    at, source, target, size = zip(*messages, strict=True)
    offers = {
        "at": np.array([round(t * 1e12) for t in at], np.uint64),
        "source": np.array(source, np.uint32),
        "target": np.array(target, np.uint32),
        "bytes": np.array(size, np.uint64),
    }
    out = dict(_C.sim_carry(columns, offers, network, bins))
    for name in ("departed", "arrived", "ideal"):
        never = out[name] == NEVER
        out[name] = np.where(never, np.inf, out[name].astype(float) * 1e-12)
    return out


def star(devices: int, duplex: str = "full", **protocol: Any) -> sim.Platform:
    return sim.Platform.star(
        devices,
        bandwidth=RATE,
        latency=ALPHA,
        duplex=duplex,
        protocol=sim.Protocol(**protocol),
    )


def failing(platform: sim.Platform, changes: list[tuple[float, int, float]]) -> dict[str, Any]:
    """With links at a factor of their speed from (seconds, link, factor) on."""
    at, link, factor = zip(*changes, strict=True)
    return platform.core() | {
        "link_changes": (
            np.array(link, np.uint32),
            np.array([round(t * 1e12) for t in at], np.uint64),
            np.array(factor, float),
        )
    }


@pytest.mark.parametrize("size", [0, 1, 1000, 10**9])
@pytest.mark.parametrize("goodput", [1.0, 0.9])
def test_one_message_takes_latency_and_bytes_over_goodput(size: int, goodput: float) -> None:
    out = carry(star(2, goodput=goodput), [(0.5, 0, 1, size)])
    assert out["departed"][0] == pytest.approx(0.5 + size / (RATE * goodput), abs=2e-12)
    assert out["arrived"][0] == pytest.approx(out["departed"][0] + ALPHA, abs=1e-12)
    assert out["ideal"][0] == pytest.approx(out["arrived"][0] - 0.5, abs=2e-12)


def test_incast_and_fan_out_share_one_link() -> None:
    for messages in (
        [(0.0, source, 0, 1000) for source in (1, 2, 3)],
        [(0.0, 0, target, 1000) for target in (1, 2, 3)],
    ):
        out = carry(star(4), messages)
        np.testing.assert_allclose(out["arrived"], ALPHA + 3e-3, atol=2e-12)
        np.testing.assert_allclose(out["ideal"], ALPHA + 1e-3, atol=2e-12)


def test_a_later_flow_slows_the_first_while_both_last() -> None:
    # Alone for 1 ms, two for 2 ms, the second alone for its last 500 bytes.
    out = carry(star(3), [(0.0, 0, 1, 2000), (1e-3, 0, 2, 1500)])
    np.testing.assert_allclose(out["departed"], [3e-3, 3.5e-3], atol=2e-12)


def test_acknowledgements_slow_the_other_direction() -> None:
    platform = star(2, cross_traffic=0.05)
    alone = carry(platform, [(0.0, 0, 1, 1000)])
    assert alone["departed"][0] == pytest.approx(1e-3, abs=2e-12)
    both = carry(platform, [(0.0, 0, 1, 1000), (0.0, 1, 0, 1000)])
    np.testing.assert_allclose(both["departed"], 1.05e-3, atol=2e-12)
    np.testing.assert_allclose(both["ideal"], ALPHA + 1e-3, atol=2e-12)


def test_half_duplex_links_carry_both_directions_together() -> None:
    both = [(0.0, 0, 1, 1000), (0.0, 1, 0, 1000)]
    np.testing.assert_allclose(carry(star(2, "half"), both)["departed"], 2e-3, atol=2e-12)
    # Its own acknowledgements are in the way of a message too.
    out = carry(star(2, "half", cross_traffic=0.1), [(0.0, 0, 1, 1000)])
    assert out["departed"][0] == pytest.approx(1.1e-3, abs=2e-12)
    assert out["ideal"][0] == pytest.approx(ALPHA + 1.1e-3, abs=2e-12)


def test_messages_of_a_pair_go_one_after_the_other() -> None:
    # The measured case of two messages of one pair: done at 1 and 2, not both at 2.
    messages = [(0.0, 0, 1, 1000), (0.0, 0, 1, 0), (0.0, 0, 1, 1000), (0.0, 1, 0, 1000)]
    out = carry(star(2), messages)
    np.testing.assert_allclose(out["departed"], [1e-3, 1e-3, 2e-3, 1e-3], atol=2e-12)


def test_overheads_of_links_hold_the_pair() -> None:
    columns = star(3).core() | {"link_overhead": np.array([10**8, 0, 10**7], np.uint64)}
    out = carry(columns, [(0.0, 0, 1, 1000), (0.0, 0, 1, 1000), (0.0, 0, 2, 0)])
    np.testing.assert_allclose(out["departed"], [1.1e-3, 2.2e-3, 1.1e-4], atol=2e-12)
    np.testing.assert_allclose(out["ideal"], [2.1e-3, 2.1e-3, 1.11e-3], atol=1e-9)


def test_a_message_is_not_faster_than_its_own_limit() -> None:
    out = carry(star(3, rate_limit=RATE / 4), [(0.0, 0, 1, 1000), (0.0, 0, 2, 1000)])
    np.testing.assert_allclose(out["departed"], 4e-3, atol=2e-12)
    np.testing.assert_allclose(out["ideal"], ALPHA + 4e-3, atol=2e-12)


def test_a_dumbbell_shares_what_is_in_the_middle() -> None:
    """Three pairs over one link of 1.2 MB/s between two switches, and one pair beside it."""
    hosts = 8
    columns = star(hosts).core()
    ends = np.array([8, 8, 8, 8, 9, 9, 9, 9, 9], np.uint32)
    columns |= {
        "switches": 2,
        "link_a": np.arange(9, dtype=np.uint32),
        "link_b": ends,
        "link_bandwidth": np.array([RATE] * 8 + [1.2 * RATE]),
    }
    for name in ("link_latency", "link_overhead", "link_full_duplex"):
        columns[name] = np.resize(columns[name], 9)
    out = carry(columns, [(0.0, 0, 4, 400), (0.0, 1, 5, 400), (0.0, 2, 6, 400), (0.0, 2, 3, 600)])
    # The fourth gets the 600 kB/s that the middle leaves to its host's link.
    np.testing.assert_allclose(out["departed"], 1e-3, atol=2e-12)


def test_a_link_fails_and_comes_back_under_way() -> None:
    changes = [(1e-3, 0, 0.0), (5e-3, 0, 1.0), (6e-3, 0, 0.5)]
    out = carry(failing(star(3), changes), [(0.0, 0, 1, 3000), (0.0, 2, 1, 3000)])
    # Half of the receiver's link, then nothing for 4 ms, then what is left of either.
    first, second = out["departed"]
    assert second == pytest.approx(1e-3 + 2.5e-3, abs=2e-12)
    assert first == pytest.approx(6e-3 + 1500 / (RATE / 2), abs=2e-12)
    # For good: it never arrives, others do.
    out = carry(failing(star(4), [(1e-3, 0, 0.0)]), [(0.0, 0, 1, 3000), (0.0, 2, 3, 3000)])
    assert out["departed"].tolist() == [np.inf, pytest.approx(3e-3, abs=2e-12)]


def test_changes_of_capacity_cost_what_they_take() -> None:
    """A link that changes a thousand times while one flow crosses it."""
    random = np.random.default_rng(3)
    factors = random.choice([0.0, 0.25, 0.5, 1.0], 1000)
    changes = [(1e-3 * (i + 1), 0, float(f)) for i, f in enumerate(factors)]
    size = 1000 * (1 + float(factors[:-1].sum())) + 100 * float(factors[-1] or 1.0)
    changes.append((1.001, 0, 1.0))
    out = carry(failing(star(2), changes), [(0.0, 0, 1, round(size))])
    last = 1e-4 if factors[-1] else 1e-3 + 1e-4
    assert out["departed"][0] == pytest.approx(1.0 + last, abs=1e-8)


def random_messages(
    random: np.random.Generator, devices: int, count: int, spread: float = 0.5
) -> list[Any]:
    """Of which some start together, some are empty, and sizes span five orders."""
    at = np.sort(random.integers(0, round(count * spread), count)) * 1e-4
    sizes = (10.0 ** random.uniform(0, 5, count)).astype(int) * (random.random(count) > 0.05)
    pairs = [random.choice(devices, 2, replace=False) for _ in range(count)]
    return [
        (float(t), int(a), int(b), int(s)) for t, (a, b), s in zip(at, pairs, sizes, strict=True)
    ]


@pytest.mark.parametrize(
    ("cross", "limit", "duplex", "count", "spread"),
    [
        (0.0, 0.0, "full", 500, 0.5),
        (0.05, 0.0, "full", 500, 0.5),
        (0.05, RATE / 3, "full", 500, 0.5),
        (0.05, 0.0, "half", 500, 0.5),
        # 10,000, of which some 50 are under way together.
        pytest.param(0.05, 0.0, "full", 11_000, 3.0, marks=pytest.mark.slow),
    ],
)
def test_random_flows_end_when_a_fluid_simulation_says(
    cross: float, limit: float, duplex: str, count: int, spread: float
) -> None:
    random = np.random.default_rng(count + round(100 * cross))
    devices = 48 if count < 1000 else 256
    platform = star(devices, duplex, cross_traffic=cross, rate_limit=limit)
    messages = random_messages(random, devices, count, spread)
    # One message of a pair at most: queues of pairs have a test of their own.
    messages = list({(a, b): (t, a, b, s) for t, a, b, s in messages}.values())
    out = carry(platform, messages)
    start, source, target, size = (np.array(x) for x in zip(*messages, strict=True))
    weights = np.zeros((2 * devices, len(messages)))
    flows = np.arange(len(messages))
    back = 0 if duplex == "half" else 1
    np.add.at(weights, (2 * source, flows), 1.0)
    np.add.at(weights, (2 * target + back, flows), 1.0)
    np.add.at(weights, (2 * target, flows), cross)
    np.add.at(weights, (2 * source + back, flows), cross)
    expected = fluid(start, size, weights, np.full(2 * devices, RATE), limit or np.inf)
    np.testing.assert_allclose(out["departed"], expected, rtol=1e-6, atol=1e-8)
    assert (out["departed"] - start >= out["ideal"] - ALPHA - 1e-11).all()


@pytest.mark.parametrize("network", ["flow", "alpha-beta"])
def test_links_carry_all_bytes_and_no_more_than_they_can(network: str) -> None:
    random = np.random.default_rng(11)
    devices, bins = 12, 50
    platform = star(devices, goodput=0.8)
    messages = random_messages(random, devices, 1500)
    out = carry(platform, messages, bins, network)
    for device in range(devices):
        for way in (0, 1):
            expected = sum(m[3] for m in messages if m[1 + way] == device) / 0.8
            total, busy, by_bin = out["links"][2 * device + way]
            assert total == pytest.approx(expected, rel=1e-6)
            assert sum(by_bin) == pytest.approx(expected, rel=1e-6)
            # 1,500 roundings of a picosecond.
            assert busy * 1e-12 * RATE >= expected * (1 - 1e-6)
            most = RATE * out["bin_ps"] * 1e-12
            if network == "flow":
                assert max(by_bin) <= most * (1 + 1e-6)
    end = max(m for m in out["departed"])
    assert out["bin_ps"] * 1e-12 * bins >= end


def test_two_runs_give_the_same_picoseconds() -> None:
    messages = random_messages(np.random.default_rng(2), 16, 2000)
    first, second = (carry(star(16, cross_traffic=0.03), messages) for _ in range(2))
    assert (first["departed"] == second["departed"]).all()


def test_equal_flows_end_together() -> None:
    """All to all of one size, where all levels tie: everyone at once, to the picosecond."""
    devices = 24
    messages = [(0.0, a, b, 12_345) for a in range(devices) for b in range(devices) if a != b]
    out = carry(star(devices, cross_traffic=0.05), messages)
    assert np.ptp(out["departed"]) <= 1e-12
    assert out["departed"][0] == pytest.approx((devices - 1) * 1.05 * 12_345 / RATE, rel=1e-9)


def test_rates_of_nine_orders_of_magnitude_meet() -> None:
    columns = star(4).core() | {"link_bandwidth": np.array([1e12, 1e3, 1e12, 1e6])}
    messages = [(0.0, 0, 1, 1000), (0.0, 0, 2, 10**12), (0.0, 0, 3, 10**6), (0.5, 2, 3, 10**6)]
    out = carry(columns, messages)
    second = 1e12 / (1e12 - 1e3 - 1e6)
    np.testing.assert_allclose(out["departed"], [1.0, 1 + 1e-6, 1.5, 2.0], rtol=3e-6)
    assert out["departed"][1] < second * (1 + 1e-6)
