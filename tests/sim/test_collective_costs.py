"""What collectives take on an idle network, against closed forms and measured step counts."""

from __future__ import annotations

import pytest

from leeboard import sim
from leeboard.sim.collectives import closed_form, supported
from leeboard.sim.ops import COLLECTIVES, ROOTED

ALPHA = 1e-3
BANDWIDTH = 1e9
REDUCE = 4e9
RANKS = (2, 3, 5, 8, 12)
SHAPED = [
    (c, a)
    for c in COLLECTIVES
    for a in supported(c)
    if a not in ("hierarchical", "gloo_ring", "gloo_tree")
]
DEVICE = sim.Device(reduce_bandwidth=REDUCE)


def protocol(handshake: str) -> sim.Protocol:
    if handshake == "eager":
        return sim.Protocol()
    return sim.Protocol(eager_limit=0, handshake=handshake)


def call(
    collective: str, algorithm: str | None, ranks: int, size: int, times: int = 1
) -> sim.Program:
    program = sim.Program(ranks)
    arguments: list[int] = [] if collective == "barrier" else [size]
    if collective in ROOTED:
        arguments.append(ranks // 2)
    with program.loop(times):
        getattr(program, collective)(*arguments, algorithm=algorithm)
    return program


def seconds(
    collective: str,
    algorithm: str | None,
    ranks: int,
    size: int,
    platform: sim.Platform,
    network: str = "flow",
) -> float:
    program = call(collective, algorithm, ranks, size)
    return sim.run(program, platform, network=network, timeline=False, links=False).makespan


def queues(collective: str, algorithm: str, network: str, handshake: str) -> bool:
    """Whether messages leave one by one in an order that lets links idle now and then.

    Where everybody sends to everybody, the alpha-beta model sends as receivers give their word.
    """
    everybody = algorithm == "direct" and collective not in (*ROOTED, "barrier")
    return everybody and network == "alpha-beta" and handshake != "eager"


def exact(collective: str, algorithm: str, ranks: int) -> bool:
    """Whether the closed form is the time, not a bound."""
    power = ranks & (ranks - 1) == 0
    if algorithm == "binomial_tree" or (
        algorithm == "recursive_doubling" and collective in ("all_reduce", "reduce_scatter")
    ):
        return power
    return True


@pytest.mark.parametrize("network", ["flow", "alpha-beta"])
@pytest.mark.parametrize(("collective", "algorithm"), SHAPED)
def test_costs_are_those_of_the_closed_forms(collective: str, algorithm: str, network: str) -> None:
    for handshake in ("eager", "notify", "request"):
        for ranks in RANKS:
            size = ranks * 4800
            expected = closed_form(
                *(collective, algorithm, ranks, size, ALPHA, 1 / BANDWIDTH),
                gamma=1 / REDUCE,
                handshake=handshake,
            )
            platform = sim.Platform.star(
                *(ranks,),
                bandwidth=BANDWIDTH,
                latency=ALPHA,
                protocol=protocol(handshake),
                device=DEVICE,
            )
            found = seconds(collective, algorithm, ranks, size, platform, network)
            case = (handshake, ranks)
            # Each message and each reduction is rounded to a picosecond.
            room = 1e-12 * 4 * ranks
            if queues(collective, algorithm, network, handshake):
                assert expected - room <= found <= 2 * expected, case
            elif not exact(collective, algorithm, ranks):
                assert 0.49 * expected <= found <= expected + room, case
            else:
                assert found == pytest.approx(expected, abs=room), case


@pytest.mark.parametrize("network", ["flow", "alpha-beta"])
@pytest.mark.parametrize("collective", COLLECTIVES)
def test_hierarchies_cost_what_they_consist_of(collective: str, network: str) -> None:
    trees = collective in (*ROOTED, "barrier")
    for ranks, islands in ((4, 2), (8, 1), (8, 2), (8, 8), (16, 4), (12, 3), (15, 5)):
        size = ranks * 4800
        costs = (ALPHA, 1 / BANDWIDTH, 1 / REDUCE)
        expected = closed_form(
            *(collective, "hierarchical", ranks, size, *costs[:2]), gamma=costs[2], islands=islands
        )
        platform = sim.Platform.star(ranks, bandwidth=BANDWIDTH, latency=ALPHA, device=DEVICE)
        platform = platform.with_islands(ranks // islands)
        found = seconds(collective, "hierarchical", ranks, size, platform, network)
        room = 1e-12 * 4 * ranks
        if ranks in (12, 15) and trees:
            assert 0.49 * expected <= found <= expected + room, (ranks, islands)
        else:
            assert found == pytest.approx(expected, abs=room), (ranks, islands)


@pytest.mark.parametrize("collective", ["broadcast", "reduce"])
def test_a_chain_of_pieces_overlaps(collective: str) -> None:
    """5 pieces through 6 ranks: 9 or so pieces' time, not 25."""
    size = 5 * (1 << 19)
    for ranks in (2, 3, 6):
        platform = sim.Platform.star(ranks, bandwidth=BANDWIDTH, latency=ALPHA, device=DEVICE)
        expected = closed_form(
            collective, "ring", ranks, size, ALPHA, 1 / BANDWIDTH, gamma=1 / REDUCE
        )
        for network in ("flow", "alpha-beta"):
            found = seconds(collective, "ring", ranks, size, platform, network)
            assert found == pytest.approx(expected, abs=1e-9)
    assert expected < 0.75 * 5 * (ALPHA + size / BANDWIDTH)


@pytest.mark.parametrize("ranks", [2, 3, 4, 6, 8])
def test_small_messages_of_gloo_take_the_measured_steps(ranks: int) -> None:
    """Latencies measured: all_gather 2 (P - 1), barrier 2 ceil(log2 P), one hop 2."""
    platform = sim.Platform.star(
        ranks, bandwidth="1 Tbit/s", latency="5 ms", protocol="gloo", collectives="gloo"
    )
    steps = {c: seconds(c, None, ranks, 4, platform) / 5e-3 for c in COLLECTIVES}
    assert steps["all_gather"] == pytest.approx(2 * (ranks - 1), rel=1e-6)
    assert steps["barrier"] == pytest.approx(2 * (ranks - 1).bit_length(), rel=1e-6)
    for collective in ("gather", "scatter", "all_to_all"):
        assert steps[collective] == pytest.approx(2, rel=1e-6)
    program = sim.Program(2)
    program[0].send(1, bytes=4)
    program[1].recv(0)
    assert sim.run(program, platform).makespan == pytest.approx(10e-3, rel=1e-6)


@pytest.mark.parametrize(
    ("collective", "ranks", "size", "steps"),
    [
        ("all_reduce", 3, 16, 7.02),
        ("all_reduce", 3, 64, 8.28),
        ("all_reduce", 4, 4, 7.02),
        ("all_reduce", 4, 16, 8.03),
        ("all_reduce", 4, 64, 12.2),
        ("reduce", 3, 16, 5.03),
        ("reduce", 3, 64, 6.04),
        ("reduce", 4, 16, 6.02),
        ("reduce", 4, 64, 8.08),
        ("all_gather", 4, 64, 6.07),
        ("broadcast", 4, 64, 3.01),
        ("barrier", 4, 0, 4.04),
        ("all_to_all", 3, 64, 2.04),
    ],
)
def test_few_numbers_take_the_steps_measured_of_gloo(
    collective: str, ranks: int, size: int, steps: float
) -> None:
    """Latencies of real gloo on links of 20 ms (medians of 3, in latencies of 20.15 ms).

    Segments without data are not sent: few numbers take fewer steps than many.
    """
    platform = sim.Platform.star(
        ranks, bandwidth="1 Tbit/s", latency="5 ms", protocol="gloo", collectives="gloo"
    )
    program = sim.Program(ranks)
    getattr(program, collective)(*([size] if size else []))
    found = sim.run(program, platform).makespan / 5e-3
    assert found == pytest.approx(steps, rel=0.04)
    assert found == pytest.approx(round(found), abs=1e-3)


def test_gloos_ring_goes_around_once_for_each_number_where_nobody_waits_for_words() -> None:
    """Measured in a tight loop: 4 latencies an all_reduce among 4, with receives posted ahead.

    The number starts at the last rank and is back there after P hops; then the next one starts.
    """
    platform = sim.Platform.star(4, bandwidth="1 Tbit/s", latency="5 ms", collectives="gloo")
    few, many = (
        sim.run(call("all_reduce", None, 4, 4, times=n), platform).makespan for n in (10, 30)
    )
    assert (many - few) / 20 / 5e-3 == pytest.approx(4, rel=1e-6)


def test_gloos_ring_keeps_two_segments_in_flight() -> None:
    """Where latency hides behind the other segment, the links never rest."""
    platform = sim.Platform.star(4, bandwidth=BANDWIDTH, latency="1 us", protocol="gloo")
    platform = platform.with_protocol(goodput=1.0, cross_traffic=0.0)
    size = 64 << 20
    found = seconds("all_reduce", "gloo_ring", 4, size, platform)
    alone = 2 * 3 / 4 * size / BANDWIDTH
    assert alone < found < alone * 1.001
    # One segment in flight: every step waits for a word and a message.
    plain = seconds("all_reduce", "ring", 4, size, platform)
    assert plain == pytest.approx(alone + 2 * 3 * 2e-6, rel=1e-9)


@pytest.mark.parametrize("network", ["flow", "alpha-beta"])
@pytest.mark.parametrize(
    ("collective", "islands", "flat"),
    [
        ("all_reduce", 4, "ring"),
        ("all_gather", 4, "ring"),
        ("reduce_scatter", 4, "ring"),
        ("all_reduce", [5, 4, 4, 3], "ring"),
        ("broadcast", [5, 4, 4, 3], "direct"),
        ("barrier", 4, "recursive_doubling"),
    ],
)
def test_hierarchies_win_where_islands_are_far_apart(
    collective: str, islands: int | list[int], flat: str, network: str
) -> None:
    """Four islands of fast links, a slow and distant one between them."""
    counts = [islands] * 4 if isinstance(islands, int) else islands
    names = [f"d.{i}" for i in range(16)]
    groups = [names[sum(counts[:i]) : sum(counts[: i + 1])] for i in range(4)]
    fast, slow = sim.Link("10 GB/s", "1 us"), sim.Link("1 GB/s", "1 ms")
    links: list[tuple[str, object, object, sim.Link]] = []
    for i, group in enumerate(groups):
        links.append((f"near{i}", group, f"rack.{i}", fast))
        links.append((f"far{i}", f"rack.{i}", "core", slow))
    platform = sim.Platform.custom({"d": 16}, links, switches={"rack": 4, "core": None})
    platform = platform.with_islands(groups)
    size = {"barrier": 0, "broadcast": 1 << 24}.get(collective, 1 << 16)
    hierarchical = seconds(collective, "hierarchical", 16, size, platform, network)
    assert hierarchical < 0.9 * seconds(collective, flat, 16, size, platform, network)


def test_without_islands_a_hierarchy_is_what_it_is_within_one() -> None:
    platform = sim.Platform.star(6, bandwidth=BANDWIDTH, latency=ALPHA)
    for collective, same in (("all_reduce", "ring"), ("broadcast", "binomial_tree")):
        found = seconds(collective, "hierarchical", 6, 6000, platform)
        assert found == seconds(collective, same, 6, 6000, platform)


def test_a_table_chooses_by_ranks_and_bytes() -> None:
    rules = (
        sim.Rule("all_reduce", "binomial_tree", max_bytes="1 kB"),
        sim.Rule("all_reduce", "direct", max_ranks=4),
        sim.Rule("all_reduce", "ring"),
    )
    for ranks, size, algorithm in (
        (4, 1000, "binomial_tree"),
        (4, 1001, "direct"),
        (5, 1001, "ring"),
    ):
        platform = sim.Platform.star(ranks, bandwidth=BANDWIDTH, latency=ALPHA)
        chosen = seconds("all_reduce", None, ranks, size, platform.with_collectives(rules))
        assert chosen == seconds("all_reduce", algorithm, ranks, size, platform)
    with pytest.raises(sim.PlatformError, match="broadcast has none named 'pairwise', expected"):
        sim.Rule("broadcast", "pairwise")


@pytest.mark.parametrize("name", ["gloo", "nccl"])
def test_named_tables_know_every_collective(name: str) -> None:
    platform = sim.Platform.star(5, bandwidth=BANDWIDTH, latency=ALPHA, collectives=name)
    rows = platform.core()["selector"]
    assert set(rows[:, 0]) == set(range(len(COLLECTIVES)))
    # The last rule of each holds whatever the size and the number of ranks.
    last = {int(row[0]): row for row in rows}
    assert all(row[1] == 1 and row[4] == 2**64 - 1 for row in last.values())
    for collective in COLLECTIVES:
        assert seconds(collective, None, 5, 1000, platform) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("all_sum", "ring", 4, 8), "collective: got 'all_sum'"),
        (("broadcast", "pairwise", 4, 8), "algorithm: broadcast has none named 'pairwise'"),
        (("all_reduce", "gloo_ring", 4, 8), "gloo_ring has no closed form"),
        (("all_reduce", "ring", 0, 8), "ranks, bytes: got 0, 8"),
    ],
)
def test_a_closed_form_refuses(arguments: tuple[str, str, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        closed_form(*arguments, ALPHA, 1e-9)
    with pytest.raises(ValueError, match="handshake: got 'tcp'"):
        closed_form("all_reduce", "ring", 4, 8, ALPHA, 1e-9, handshake="tcp")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="islands: got 3, expected a divisor of 4 ranks"):
        closed_form("all_reduce", "hierarchical", 4, 8, ALPHA, 1e-9, islands=3)
    with pytest.raises(ValueError, match="handshake: a hierarchy has a closed form for eager only"):
        closed_form("all_reduce", "hierarchical", 4, 8, ALPHA, 1e-9, handshake="notify")
