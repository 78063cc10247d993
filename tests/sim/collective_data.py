"""Moves data through the schedules of collectives, to prove that every rank ends with the right one.

A schedule says who sends how many bytes to whom in which round. What those bytes are is restated
here, apart from the C++ code: `contents` of the collectives that reduce, a queue for the others.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from leeboard import _C

COLLECTIVES = _C.sim_collectives()
ALGORITHMS = _C.sim_algorithms()
SEGMENT = 1 << 19

# Island of a rank: of three ranks each, two interleaved, four in no order.
LAYOUTS: list[Callable[[int], int]] = [lambda r: r // 3, lambda r: r % 2, lambda r: r * 5 % 4]

Sends = list[tuple[int, Any]]


def algorithms(collective: str) -> list[str]:
    number = COLLECTIVES.index(collective)
    return [name for i, name in enumerate(ALGORITHMS) if _C.sim_supports(number, i)]


@dataclass
class Case:
    """One collective of one group."""

    collective: str
    algorithm: str
    ranks: int
    size: int
    root: int = 0
    islands: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rounds, self.depth = _C.sim_rounds(
            COLLECTIVES.index(self.collective),
            ALGORITHMS.index(self.algorithm),
            self.ranks,
            self.root,
            self.size,
            self.islands,
            self.sizes,
        )

    def groups(self) -> list[list[int]]:
        """Ranks by island."""
        found: dict[int, list[int]] = {}
        for rank, island in enumerate(self.islands or [0] * self.ranks):
            found.setdefault(island, []).append(rank)
        return list(found.values())


def execute(
    case: Case,
    load: Callable[[int, int, int, int], Any],
    store: Callable[[int, int, list[tuple[int, Any]], bool], None],
) -> None:
    """Run a schedule under rendezvous: nothing leaves before its receive is posted.

    Args:
        case: What to run.
        load: (rank, round, peer, bytes) -> what that send carries; called as the round begins.
        store: (rank, round, [(peer, what came)], reduce): called as the round ends.
    """
    at, over = [0] * case.ranks, [0] * case.ranks
    waiting = [[0] * len(rounds) for rounds in case.rounds]
    came: list[list[list[tuple[int, Any]]]] = [[[] for _ in rounds] for rounds in case.rounds]
    offered: dict[tuple[int, int], deque[Any]] = defaultdict(deque)
    expected: dict[tuple[int, int], deque[Any]] = defaultdict(deque)

    def begin(rank: int) -> None:
        k, rounds = at[rank], case.rounds[rank]
        touched = []
        for peer, size in rounds[k][1]:
            expected[peer, rank].append((size, k))
            waiting[rank][k] += 1
            touched.append((peer, rank))
        for peer, size in rounds[k][0]:
            assert peer != rank
            offered[rank, peer].append((size, k, load(rank, k, peer, size)))
            waiting[rank][k] += 1
            touched.append((rank, peer))
        for pair in touched:
            while offered[pair] and expected[pair]:
                sent, sending, data = offered[pair].popleft()
                size, receiving = expected[pair].popleft()
                assert sent == size, (case, pair)
                came[pair[1]][receiving].append((pair[0], data))
                waiting[pair[0]][sending] -= 1
                waiting[pair[1]][receiving] -= 1

        at[rank] += 1

    moving = True
    while moving:
        moving = False
        for rank, rounds in enumerate(case.rounds):
            while over[rank] < len(rounds):
                k = over[rank]
                if at[rank] < min(len(rounds), k + case.depth):
                    begin(rank)
                elif waiting[rank][k]:
                    break
                else:
                    _, receives, reduced = rounds[k]
                    assert reduced in (0, sum(size for _, size in receives)), case
                    store(rank, k, came[rank][k], reduced > 0)
                    over[rank] += 1
                moving = True
    assert over == [len(rounds) for rounds in case.rounds], f"{case} blocks"
    assert not any(offered.values()), case
    assert not any(expected.values()), case


def reduces(case: Case, dtype: type = np.uint64) -> list[np.ndarray[Any, Any]]:
    """Run a collective that adds on random tensors; every byte is an element.

    Returns:
        The sum of all ranks' tensors, then each rank's tensor after the collective.
    """
    rng = np.random.default_rng(case.ranks * 1000 + case.size)
    most = np.iinfo(dtype).max
    data = [rng.integers(0, most, case.size, dtype=dtype) for _ in range(case.ranks)]
    total = np.add.reduce(np.stack(data), dtype=dtype) if case.size else np.zeros(0, dtype)
    contents = [iter(list(content(case, rank))) for rank in range(case.ranks)]

    def load(rank: int, k: int, peer: int, size: int) -> Any:
        expected_peer, elements = next(contents[rank])
        assert expected_peer == peer, (case, rank, k)
        assert len(elements) == size, (case, rank, k)
        return elements, data[rank][elements].copy()

    def store(rank: int, k: int, came: list[tuple[int, Any]], reduce: bool) -> None:
        for _, (elements, values) in came:
            if reduce:
                data[rank][elements] += values
            else:
                data[rank][elements] = values

    execute(case, load, store)
    assert all(next(rest, None) is None for rest in contents), case
    return [total, *data]


def blocks(elements: Any, count: int) -> list[Any]:
    """Cut into `count` blocks, the first ones longer by one."""
    return np.array_split(np.asarray(elements, dtype=np.int64), count)


def ring(team: list[int], me: int, parts: list[Any], gather: bool) -> Sends:
    n, i = len(team), team.index(me)
    shift = 0 if gather else -1
    return [(team[(i + 1) % n], parts[(i - k + shift) % n]) for k in range(n - 1)]


def parents(team: list[int], top: int) -> dict[int, int]:
    """Binomial tree: without its lowest bit, a place is its parent's."""
    order = team[team.index(top) :] + team[: team.index(top)]
    return {order[v]: order[v - (v & -v)] for v in range(1, len(order))}


def up(team: list[int], top: int, me: int, elements: Any) -> Sends:
    above = parents(team, top)
    return [(above[me], elements)] if me in above else []


def down(team: list[int], top: int, me: int, elements: Callable[[list[int]], Any]) -> Sends:
    """`elements` of the ranks under a child, it included."""
    above = parents(team, top)
    order = team[team.index(top) :] + team[: team.index(top)]

    def under(rank: int) -> list[int]:
        return [rank, *(r for c in order if above.get(c) == rank for r in under(c))]

    mine = [child for child in order if above.get(child) == me]
    return [(child, elements(under(child))) for child in reversed(mine)]


def content(case: Case, me: int) -> Iterator[tuple[int, Any]]:
    """(peer, elements) of what a rank sends, in order."""
    everything = np.arange(case.size)
    team = list(range(case.ranks))
    parts = blocks(everything, case.ranks)
    yield from {
        "ring": _ring,
        "gloo_ring": _gloo,
        "gloo_tree": _gloo_tree,
        "recursive_doubling": _doubling,
        "hierarchical": _hierarchical,
        "binomial_tree": lambda *_: (
            up(team, case.root if case.collective == "reduce" else 0, me, everything)
            + (down(team, 0, me, lambda _: everything) if case.collective == "all_reduce" else [])
        ),
        "direct": lambda *_: [
            (peer, parts[peer] if case.collective == "reduce_scatter" else everything)
            for peer in ((me + i) % case.ranks for i in range(1, case.ranks))
            if case.collective != "reduce" or (peer == case.root and me != case.root)
        ],
        "pairwise": lambda *_: [
            ((me + i) % case.ranks, parts[(me + i) % case.ranks]) for i in range(1, case.ranks)
        ],
    }[case.algorithm](case, me, everything)


def _ring(case: Case, me: int, everything: Any) -> Sends:
    team = list(range(case.ranks))
    if case.collective == "reduce":
        away = (me - case.root) % case.ranks
        pieces = blocks(everything, max(1, -(-case.size // SEGMENT)))
        return [((me - 1) % case.ranks, piece) for piece in pieces] if away else []
    parts = blocks(everything, case.ranks)
    sends = ring(team, me, parts, gather=False)
    return sends + (ring(team, me, parts, gather=True) if case.collective == "all_reduce" else [])


def _gloo(case: Case, me: int, everything: Any) -> Sends:
    """As gloo/allreduce.cc and reduce.cc number their segments; empty ones are not sent."""
    n = case.ranks
    if n == 1 or case.size == 0:
        return []
    most = -(-case.size // (1 << 20))
    count = -(-max(most, 2 * n) // n) * n
    each = count // n
    length = (case.size + count - 1) // count
    length = (length + 3) // 4 * 4
    segments = [everything[i * length : (i + 1) * length] for i in range(count)]
    left = (me - 1) % n
    order = [((me + 1) * each + i) % count for i in range(count - each)]
    if case.collective != "reduce":
        order += [(me * each + i) % count for i in range(count - each)]
    sends = [(left, segments[i]) for i in order]
    if case.collective == "reduce" and me != case.root:
        sends.append((case.root, everything[me * each * length : (me + 1) * each * length]))
    return [(peer, elements) for peer, elements in sends if len(elements)]


def _gloo_tree(case: Case, me: int, everything: Any) -> Sends:
    """As gloo/broadcast.cc: in step i, whoever of the first 2^i has it sends to the 2^i-th after."""
    n = case.ranks
    v = (me - case.root) % n
    steps = range((n - 1).bit_length())
    return [((me + (1 << i)) % n, everything) for i in steps if v < 1 << i and v + (1 << i) < n]


def _doubling(case: Case, me: int, everything: Any) -> Sends:
    n, power = case.ranks, 1 << (case.ranks.bit_length() - 1)
    extra = n - power
    if me < 2 * extra and me % 2 == 0:
        return [(me + 1, everything)]
    active = [r for r in range(n) if r >= 2 * extra or r % 2]
    owned = [[r - 1, r] if r < 2 * extra else [r] for r in active]
    parts = blocks(everything, n)
    place = active.index(me)
    sends: Sends = []
    for k in range(power.bit_length() - 1):
        if case.collective == "all_reduce":
            sends.append((active[place ^ (1 << k)], everything))
            continue
        half = power >> (k + 1)
        peer = place ^ half
        theirs = [j for j in range(power) if j // half == peer // half]
        elements = np.concatenate([parts[r] for j in theirs for r in owned[j]])
        sends.append((active[peer], elements))
    if me < 2 * extra:
        result = everything if case.collective == "all_reduce" else parts[me - 1]
        sends.append((me - 1, result))
    return sends


def _hierarchical(case: Case, me: int, everything: Any) -> Sends:
    groups = case.groups()
    mine = next(group for group in groups if me in group)
    parts = blocks(everything, case.ranks)
    of = lambda ranks: np.concatenate([parts[r] for r in sorted(ranks)])
    if case.collective == "reduce":
        leaders = [case.root if case.root in group else group[0] for group in groups]
        top = case.root if case.root in mine else mine[0]
        sends = up(mine, top, me, everything)
        return sends + (up(leaders, case.root, me, everything) if me == top else [])
    if len({len(group) for group in groups}) == 1:
        place = mine.index(me)
        columns = [sorted(group[j] for group in groups) for j in range(len(mine))]
        column = columns[place]
        if case.collective == "reduce_scatter":
            sends = ring(mine, me, [of(c) for c in columns], gather=False)
            return sends + ring(column, me, [parts[r] for r in column], gather=False)
        shares = blocks(everything, len(mine))
        small = blocks(shares[place], len(groups))
        sends = ring(mine, me, shares, gather=False)
        sends += ring(column, me, small, gather=False) + ring(column, me, small, gather=True)
        return sends + ring(mine, me, shares, gather=True)
    leaders = [group[0] for group in groups]
    sends = up(mine, mine[0], me, everything)
    if case.collective == "reduce_scatter":
        if me == mine[0]:
            sends += ring(leaders, me, [of(group) for group in groups], gather=False)
        return sends + down(mine, mine[0], me, of)
    if me == mine[0]:
        shares = blocks(everything, len(groups))
        sends += ring(leaders, me, shares, gather=False) + ring(leaders, me, shares, gather=True)
    return sends + down(mine, mine[0], me, lambda _: everything)
