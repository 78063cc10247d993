"""What is particular to verify_greedy: which node wins, the path, and the KV rows it names."""

from __future__ import annotations

import pytest
import torch

from cases import tree_of
from harness import assert_same
from leeboard.ops import backend, verify_greedy
from verification import walk

backends = pytest.mark.parametrize("name", ["cpu", "reference", "triton"])


def ints(*values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


@backends
@pytest.mark.parametrize("matching", range(6))
def test_leading_matches_of_a_chain(name: str, matching: int) -> None:
    """A later match counts for nothing."""
    target = ints(10, 11, 12, 13, 14, 15)
    drafts = target[:5].clone()
    if matching < 5:
        drafts[matching] = -7
    with backend(name):
        accepted, next_token = verify_greedy(drafts[None], target[None])
    assert accepted.tolist() == [matching]
    assert next_token.tolist() == [10 + matching]


@backends
def test_any_number_is_a_token(name: str) -> None:
    extremes = ints(-1, -(1 << 63), (1 << 63) - 1, 0)
    with backend(name):
        accepted, next_token = verify_greedy(extremes[None, :3], extremes[None])
    assert (accepted.item(), next_token.item()) == (3, 0)


@backends
def test_a_tree_by_hand(name: str) -> None:
    """root -> 0 (5), 1 (6), 2 (6); 1 -> 3 (7); 2 -> 4 (8), 5 (8); the lowest 6 leads to 3."""
    parents = ints(-1, -1, -1, 1, 2, 2)
    drafts = ints(5, 6, 6, 7, 8, 8)
    for after, expected in {
        (6, 0, 7, 0, 40, 0, 0): ([1, 3], 40),
        # Node 2 would lead to node 4, but node 1 has the same token and comes first.
        (6, 0, 8, 8, 0, 9, 9): ([1], 8),
        (5, 6, 0, 0, 0, 0, 0): ([0], 6),
        (1, 0, 0, 0, 0, 0, 0): ([], 1),
    }.items():
        with backend(name):
            accepted, next_token, path = verify_greedy(
                drafts[None], ints(*after)[None], parents=parents
            )
        nodes, token = expected
        assert accepted.tolist() == [len(nodes)]
        assert next_token.tolist() == [token]
        assert path.tolist() == [nodes + [-1] * (6 - len(nodes))]


@backends
@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
def test_random_trees(name: str, own: bool) -> None:
    sequences, nodes = 40, 14
    drafts = torch.randint(0, 2, (sequences, nodes))
    target = torch.randint(0, 2, (sequences, nodes + 1))
    trees = torch.stack([tree_of(nodes) for _ in range(sequences if own else 1)])
    with backend(name):
        outputs = verify_greedy(drafts, target, parents=trees if own else trees[0])
    for b, (accepted, next_token, path) in enumerate(zip(*outputs, strict=True)):
        tokens, wanted = drafts[b].tolist(), target[b].tolist()
        expected = walk(
            tokens,
            trees[b if own else 0].tolist(),
            lambda node, i, t=tokens, w=wanted: t[i] == w[node + 1],
        )
        assert path.tolist() == expected + [-1] * (nodes - len(expected))
        assert accepted == len(expected)
        assert next_token == wanted[expected[-1] + 1 if expected else 0]
    assert outputs[0].max() >= 3


def test_a_chain_is_the_tree_in_a_row(isa: str) -> None:
    drafts, target = torch.randint(0, 2, (50, 6)), torch.randint(0, 2, (50, 7))
    accepted, next_token, path = verify_greedy(drafts, target, parents=torch.arange(-1, 5))
    assert_same(verify_greedy(drafts, target), (accepted, next_token))
    assert torch.equal(path, torch.where(torch.arange(6) < accepted[:, None], torch.arange(6), -1))


def test_the_path_names_the_rows_to_keep() -> None:
    """The recipe of the docstring leaves the cache of decoding token by token.

    A cache row stands for the tokens that its keys have seen: those on the way from the root.
    """
    parents, drafts = ints(-1, -1, 1, 1, 3), ints(3, 5, 6, 7, 8)
    past, root = [100, 101], 1
    ways = [[*past, root]]
    for i, parent in enumerate(parents.tolist()):
        ways.append([*ways[parent + 1], int(drafts[i])])
    cache = [past[:1], past, *ways]
    accepted, next_token, path = verify_greedy(
        drafts[None], ints(5, 0, 7, 0, 8, 9)[None], parents=parents
    )
    keep = [len(past), *(len(past) + 1 + path[0, : int(accepted)]).tolist()]
    kept = [*cache[: len(past)], *(cache[row] for row in keep)]
    written = [*past, root, 5, 7, 8]
    assert kept == [written[: n + 1] for n in range(len(written))]
    assert next_token.item() == 9


@backends
def test_unordered_parents_do_no_harm(name: str) -> None:
    """Past the checks, through the registered op: such a node is never accepted."""
    drafts, target = torch.zeros(1, 4).long(), torch.zeros(1, 5).long()
    for parents in (ints(-1, 3, 1, 0), ints(0, 1 << 40, -(1 << 40), -1), ints(3, 2, 1, 0)):
        with backend(name):
            accepted, next_token, path = torch.ops.leeboard.verify_greedy(drafts, target, parents)
        expected: list[int] = []
        for i, parent in enumerate(parents.tolist()):
            if parent == (expected[-1] if expected else -1):
                expected.append(i)
        assert path.tolist() == [expected + [-1] * (4 - len(expected))]
        assert (accepted.item(), next_token.item()) == (len(expected), 0)
