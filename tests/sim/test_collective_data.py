"""Every schedule is matched, never blocks, and leaves every rank with exactly the right data."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from collective_data import (
    ALGORITHMS,
    COLLECTIVES,
    LAYOUTS,
    SEGMENT,
    Case,
    algorithms,
    blocks,
    reduces,
)
from collective_items import copies
from leeboard import _C
from leeboard.sim import ops

ROOTED = ("broadcast", "reduce", "gather", "scatter")
REDUCING = ("all_reduce", "reduce_scatter", "reduce")
BOTH = [(c, a) for c in COLLECTIVES for a in algorithms(c)]


def cases(collective: str, algorithm: str, sizes: tuple[int, ...]) -> Iterator[Case]:
    """1 to 17 ranks, every root, several layouts of islands."""
    for ranks in range(1, 18):
        layouts: list[list[int]] = [[]]
        if algorithm == "hierarchical":
            layouts += [[layout(r) for r in range(ranks)] for layout in LAYOUTS]
        for root in range(ranks) if collective in ROOTED else [0]:
            for islands in layouts:
                for size in sizes:
                    yield Case(collective, algorithm, ranks, size, root, islands)


def sums(case: Case) -> None:
    total, *data = reduces(case)
    parts = blocks(np.arange(case.size), case.ranks)
    for rank, tensor in enumerate(data):
        if case.collective == "all_reduce" or (case.collective == "reduce" and rank == case.root):
            np.testing.assert_array_equal(tensor, total, err_msg=str(case))
        elif case.collective == "reduce_scatter":
            np.testing.assert_array_equal(tensor[parts[rank]], total[parts[rank]])


def arrives(case: Case) -> None:
    n = case.ranks
    held = copies(case)
    for rank, items in enumerate(held):
        needed: set[object] = set()
        if case.collective == "all_gather" and case.algorithm == "gloo_ring":
            needed = {(source, half) for source in range(n) for half in range(2)}
        elif case.collective in ("all_gather", "barrier"):
            needed = set(range(n))
        elif case.collective == "gather":
            needed = set(range(n)) if rank == case.root else set()
        elif case.collective == "scatter":
            needed = {rank}
        elif case.collective == "broadcast":
            needed = set(held[case.root])
        else:
            full = np.reshape(case.sizes, (n, n)) if case.sizes else np.ones((n, n))
            needed = {(source, rank) for source in range(n) if full[source, rank]}
        assert needed <= set(items), (case, rank)


@pytest.mark.parametrize(("collective", "algorithm"), [b for b in BOTH if b[0] in REDUCING])
def test_every_contribution_is_added_once(collective: str, algorithm: str) -> None:
    for case in cases(collective, algorithm, (1, 53) if collective == "reduce" else (1, 5, 97)):
        sums(case)


@pytest.mark.parametrize(("collective", "algorithm"), [b for b in BOTH if b[0] not in REDUCING])
def test_every_item_arrives(collective: str, algorithm: str) -> None:
    sizes = (0,) if collective == "barrier" else (1, 5, 97)
    for case in cases(collective, algorithm, sizes):
        if collective == "all_to_all" and len({len(group) for group in case.groups()}) > 1:
            case.algorithm = "direct"
        arrives(case)


@pytest.mark.parametrize("algorithm", algorithms("all_to_all"))
def test_uneven_all_to_all(algorithm: str) -> None:
    rng = np.random.default_rng(1)
    for ranks, islands in ((1, []), (2, []), (6, [0, 0, 1, 1, 2, 2]), (8, [0, 1] * 4), (13, [])):
        sizes = rng.integers(0, 3, ranks * ranks).tolist()
        case = Case("all_to_all", algorithm, ranks, 7, islands=islands, sizes=sizes)
        arrives(case)
        if algorithm != "hierarchical":
            given = np.reshape(sizes, (ranks, ranks)).copy()
            np.fill_diagonal(given, 0)
            sent = [sum(b for s, _, _ in rounds for _, b in s) for rounds in case.rounds]
            assert sent == given.sum(axis=1).tolist()
            assert all(b > 0 for rounds in case.rounds for s, _, _ in rounds for _, b in s)


@pytest.mark.parametrize(
    ("collective", "algorithm", "ranks", "size"),
    [
        ("reduce", "ring", 3, 2 * SEGMENT + 5),
        ("all_reduce", "gloo_ring", 2, (5 << 20) + 3),
        ("reduce_scatter", "gloo_ring", 3, 7 << 20),
    ],
)
def test_long_tensors_pass_in_segments(
    collective: str, algorithm: str, ranks: int, size: int
) -> None:
    case = Case(collective, algorithm, ranks, size)
    most = SEGMENT if algorithm == "ring" else 1 << 20
    assert max(b for rounds in case.rounds for s, _, _ in rounds for _, b in s) <= most
    total, *data = reduces(case, np.uint8)
    if collective == "reduce_scatter":
        # torch's over gloo sums everything and keeps a part.
        assert all((tensor == total).all() for tensor in data)
    elif collective == "reduce":
        assert (data[0] == total).all()
    else:
        assert all((tensor == total).all() for tensor in data)


def test_a_long_broadcast_passes_in_segments() -> None:
    case = Case("broadcast", "ring", 4, 5 * SEGMENT + 1, root=2)
    arrives(case)
    assert [len(rounds) for rounds in case.rounds] == [7, 6, 6, 7]


@pytest.mark.parametrize(("collective", "algorithm"), BOTH)
def test_empty_and_single(collective: str, algorithm: str) -> None:
    assert Case(collective, algorithm, 1, 100).rounds == [[]]
    empty = Case(collective, algorithm, 5, 0, 3)
    (sums if collective in REDUCING else lambda _: None)(empty)
    assert sum(b for rounds in empty.rounds for s, _, _ in rounds for _, b in s) == 0


@pytest.mark.parametrize(("collective", "algorithm"), BOTH)
def test_the_proof_notices_a_wrong_schedule(collective: str, algorithm: str) -> None:
    """A message less, its receive too: nobody blocks, but the data are wrong."""
    case = Case(collective, algorithm, 6, 120, root=1, islands=[0, 0, 1, 1, 2, 2])
    check = sums if collective in REDUCING else arrives
    check(case)
    sender, k = next(
        (r, k)
        for r in reversed(range(6))
        for k, (sends, _, _) in enumerate(case.rounds[r])
        if sends
    )
    peer, size = case.rounds[sender][k][0].pop()
    taken = next(received for _, received, _ in case.rounds[peer] if (sender, size) in received)
    taken.remove((sender, size))
    with pytest.raises((AssertionError, IndexError, StopIteration)):
        check(case)
    # Sent, and received by nobody.
    case.rounds[sender][k][0].append((peer, size))
    with pytest.raises((AssertionError, IndexError)):
        check(case)


def test_names_and_support() -> None:
    assert tuple(COLLECTIVES) == ops.COLLECTIVES
    assert tuple(ALGORITHMS) == ops.ALGORITHMS
    assert not any(_C.sim_supports(i, 0) for i in range(len(COLLECTIVES)))
    assert not _C.sim_supports(len(COLLECTIVES), 1)
    assert not _C.sim_supports(0, len(ALGORITHMS))
    with pytest.raises(ValueError, match="algorithm: 5 is none of broadcast"):
        _C.sim_rounds(COLLECTIVES.index("broadcast"), 5, 4, 0, 1)
    with pytest.raises(ValueError, match="root: got 4 of 4 ranks"):
        _C.sim_rounds(COLLECTIVES.index("broadcast"), 3, 4, 4, 1)
    with pytest.raises(ValueError, match="islands: got 3, expected 4"):
        _C.sim_rounds(0, 6, 4, 0, 1, [0, 0, 0])
    with pytest.raises(ValueError, match="sizes: got 2, expected 16"):
        _C.sim_rounds(7, 5, 4, 0, 1, [], [1, 2])
