"""Moves items through the schedules of collectives that copy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np

from collective_data import SEGMENT, Case, execute


def copies(case: Case) -> list[list[Any]]:
    """Run a collective that copies on items; items held first are passed on first.

    An item of all_gather, gather and barrier is the rank that it came from, of scatter the rank
    that it is for, of broadcast (segment,), of all_to_all (source, target); of gloo's all_gather
    (rank, half).

    Returns:
        What each rank holds in the end, in the order in which it came.
    """
    n, kind = case.ranks, case.collective
    held: list[list[Any]] = [[rank] for rank in range(n)]
    size: Callable[[Any], int] = lambda _: case.size
    chunks = _cut(case.size, n)
    halves = kind == "all_gather" and case.algorithm == "gloo_ring"
    if halves:
        held = [[(rank, 0), (rank, 1)] for rank in range(n)]
        size = lambda item: (case.size + item[1]) // 2
    elif kind == "broadcast":
        count = 1
        if case.algorithm == "ring":
            count = max(1, -(-case.size // SEGMENT))
        pieces = _cut(case.size, count)
        held = [[(i,) for i in range(count)] if r == case.root else [] for r in range(n)]
        size = lambda item: pieces[item[0]]
    elif kind == "scatter":
        held = [list(range(n)) if r == case.root else [] for r in range(n)]
        size = chunks.__getitem__
    elif kind == "all_to_all":
        table = np.reshape(case.sizes, (n, n)).tolist() if case.sizes else [chunks] * n
        held = [[(r, t) for t in range(n)] for r in range(n)]
        size = lambda item: table[item[0]][item[1]]
    beneath = _beneath(case) if kind == "scatter" else []
    passed: dict[tuple[int, int], int] = defaultdict(int)
    place = {r: i for group in case.groups() for i, r in enumerate(group)}

    def wanted(rank: int, k: int, peer: int, count: int) -> list[Any]:
        mine = held[rank]
        if kind == "barrier":
            return list(mine)
        if kind == "scatter":
            return [item for item in mine if item in beneath[peer]]
        if kind == "all_to_all":
            # On the way: to the target's place on this island; then to the target.
            last = len(case.rounds[rank]) - 1
            if case.algorithm == "hierarchical" and k < last:
                return [item for item in mine if item[0] == rank and place[item[1]] == place[peer]]
            return [item for item in mine if item[1] == peer]
        if halves:
            return [mine[k]]
        items: list[Any] = []
        while sum(map(size, items)) < count:
            items.append(mine[passed[rank, peer]])
            passed[rank, peer] += 1
        return items

    def load(rank: int, k: int, peer: int, count: int) -> Any:
        items = wanted(rank, k, peer, count)
        assert kind == "barrier" or sum(map(size, items)) == count, (case, rank, k, peer)
        return items

    def store(rank: int, k: int, came: list[tuple[int, Any]], reduce: bool) -> None:
        assert not reduce
        for _, items in came:
            held[rank] += [item for item in items if item not in held[rank]]

    execute(case, load, store)
    return held


def _cut(size: int, count: int) -> list[int]:
    return [size // count + (i < size % count) for i in range(count)]


def _beneath(case: Case) -> list[set[int]]:
    """Of each rank: it, and those whose items pass through it, as the schedule's sends say."""
    found = [{rank} for rank in range(case.ranks)]
    above = {
        p: r for r, rounds in enumerate(case.rounds) for sends, _, _ in rounds for p, _ in sends
    }
    for rank in range(case.ranks):
        node = rank
        while node in above:
            node = above[node]
            found[node].add(rank)
    return found
