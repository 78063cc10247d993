"""What is particular to verify_sample: what it emits is distributed as the target's own samples."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cases import probabilities, tree_of
from harness import assert_same
from leeboard import _C, reference
from leeboard.ops import backend, verify_greedy, verify_sample
from leeboard.ops._verify import first_bad_row, tolerance
from verification import SIGNIFICANCE, p_value, walk

BELOW_ONE = math.nextafter(1.0, 0.0)
COUNT = 60_000
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Three children of the root, three children of each of them.
TREE = torch.tensor([-1, -1, -1, 0, 0, 0, 1, 1, 1, 2, 2, 2])

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
backends = pytest.mark.parametrize("name", ["cpu", "reference", "triton"])


class Target:
    """A language model of three tokens: p(x), p(y | x) and p(z | x, y) over a small vocabulary."""

    def __init__(self, dtype: torch.dtype, size: int = 5) -> None:
        logits = [torch.randn([size] * n, dtype=torch.float64) for n in (1, 2, 3)]
        # A token that never comes first, and one that never follows it.
        logits[0][size - 1], logits[1][1, 2] = -math.inf, -math.inf
        self.first, self.second, self.third = (t.softmax(dim=-1).to(dtype) for t in logits)

    def joint(self) -> Tensor:
        """p(x) p(y | x), every row relative to its own sum."""
        first, second = self.first.double(), self.second.double()
        return (first / first.sum())[:, None] * (second / second.sum(dim=1, keepdim=True))


def sampled(rows: Tensor) -> Tensor:
    """One token of every row, by torch's own sampler."""
    return rows.double().multinomial(1)[:, 0]


def pairs(target: Target, drafted: Tensor, accepted: Tensor, next_token: Tensor) -> Tensor:
    """Counts of the first two tokens emitted: the accepted drafts [COUNT, 2], next_token, and
    where that makes one only, a second one sampled from the target.
    """
    size = target.first.numel()
    x = torch.where(accepted > 0, drafted[:, 0], next_token)
    follows = torch.where(accepted > 1, drafted[:, 1], next_token)
    y = torch.where(accepted > 0, follows, sampled(target.second[x]))
    return torch.bincount(x * size + y, minlength=size * size).view(size, size)


def chain_rows(target: Target, drafts: Tensor) -> Tensor:
    x, y = drafts.T
    return torch.stack((target.first.expand(COUNT, -1), target.second[x], target.third[x, y]), 1)


def accept_all(drafts: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return torch.full((COUNT,), drafts.shape[1]), sampled(target[:, -1])


def keep_the_rejected(drafts: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The target-only rule, but a rejected token may still be drawn."""
    hits = torch.rand(drafts.shape) < target[:, :-1].gather(2, drafts[..., None])[..., 0]
    accepted = hits.long().cumprod(dim=1).sum(dim=1)
    return accepted, sampled(target[torch.arange(COUNT), accepted])


Rule = Callable[[Tensor, Tensor], tuple[Tensor, ...]]


def chain_p_value(target: Target, rule: Rule) -> float:
    """Drafts that know nothing of the uniforms: any token, some more often than others."""
    drafts = torch.tensor([0.4, 0.3, 0.1, 0.1, 0.1]).expand(COUNT, -1).multinomial(2, True)
    accepted, next_token = rule(drafts, chain_rows(target, drafts))
    return p_value(pairs(target, drafts, accepted, next_token), target.joint())


@dtypes
def test_target_only_chain_is_lossless(dtype: torch.dtype) -> None:
    assert chain_p_value(Target(dtype), verify_sample) > SIGNIFICANCE


@pytest.mark.parametrize("rule", [accept_all, keep_the_rejected])
def test_wrong_rules_are_found_in_a_chain(rule: Rule) -> None:
    """Negative control: the same statistic, the same drafts."""
    assert chain_p_value(Target(torch.float32), rule) < SIGNIFICANCE


def tree_p_value(target: Target, siblings: Callable[[int], Tensor], always: bool = False) -> float:
    """Two levels of `siblings(count)` [count, 3]; `always` accepts the first child."""
    size = target.first.numel()
    tops = siblings(COUNT)
    drafts = torch.cat((tops, *(siblings(COUNT) for _ in range(3))), dim=1)
    before = torch.cat((tops, tops.repeat_interleave(3, dim=1)), dim=1)
    rows = [target.first.expand(COUNT, size)]
    rows += [target.second[drafts[:, i]] for i in range(3)]
    rows += [target.third[before[:, i], drafts[:, i]] for i in range(3, 12)]
    if always:
        accepted, path = torch.full((COUNT,), 2), torch.tensor([0, 3] + [-1] * 10)
        path, next_token = path.expand(COUNT, -1), sampled(rows[4])
    else:
        accepted, next_token, path = verify_sample(drafts, torch.stack(rows, dim=1), parents=TREE)
        assert set(accepted.tolist()) == {0, 1, 2}
    drafted = drafts.gather(1, path[:, :2].clamp(min=0))
    return p_value(pairs(target, drafted, accepted, next_token), target.joint())


def distinct(count: int) -> Tensor:
    weights = torch.tensor([0.3, 0.3, 0.2, 0.1, 0.1])
    return weights.expand(count, -1).multinomial(3)


def with_repeats(count: int) -> Tensor:
    return torch.randint(0, 5, (count, 3))


@dtypes
@pytest.mark.parametrize("siblings", [distinct, with_repeats])
def test_target_only_tree_is_lossless(
    dtype: torch.dtype, siblings: Callable[[int], Tensor]
) -> None:
    assert tree_p_value(Target(dtype), siblings) > SIGNIFICANCE


def test_accepting_always_is_found_in_a_tree() -> None:
    assert tree_p_value(Target(torch.float32), distinct, always=True) < SIGNIFICANCE


def ratio_p_value(target: Target, drafter: Target, rule: str) -> float:
    x = sampled(drafter.first.expand(COUNT, -1))
    drafts = torch.stack((x, sampled(drafter.second[x])), dim=1)
    rows = chain_rows(target, drafts)
    draft_rows = torch.stack((drafter.first.expand(COUNT, -1), drafter.second[x]), dim=1)
    accepted, next_token = {
        "p/q": lambda: verify_sample(drafts, rows, draft_rows),
        "target-only": lambda: verify_sample(drafts, rows),
        "always": lambda: accept_all(drafts, rows),
        "q is uniform": lambda: verify_sample(
            drafts, rows, torch.full_like(draft_rows, 1.0 / rows.shape[2])
        ),
    }[rule]()
    return p_value(pairs(target, drafts, accepted, next_token), target.joint())


@dtypes
# The target-only rule asks nothing of the drafter, so it fits sampled drafts too.
@pytest.mark.parametrize("rule", ["p/q", "target-only"])
def test_ratio_chain_is_lossless(dtype: torch.dtype, rule: str) -> None:
    assert ratio_p_value(Target(dtype), Target(dtype), rule) > SIGNIFICANCE


@pytest.mark.parametrize("rule", ["always", "q is uniform"])
def test_wrong_rules_are_found_in_a_ratio_chain(rule: str) -> None:
    assert ratio_p_value(Target(torch.float32), Target(torch.float32), rule) < SIGNIFICANCE


def test_the_p_q_rule_accepts_more_than_the_target_only_rule() -> None:
    """sum min(p, q) against sum p q."""
    p, q = (t.expand(COUNT, 2, 8) for t in probabilities(torch.float32, 2, 8))
    drafts = sampled(q[:, 0])[:, None]
    for draft_probs, expected in (
        (q[:, :1], torch.minimum(p[0, 0], q[0, 0]).sum()),
        (None, (p[0, 0] * q[0, 0]).sum()),
    ):
        accepted, _ = verify_sample(drafts, p, draft_probs)
        rate = float(accepted.double().mean())
        assert abs(rate - float(expected)) < 4 * (0.25 / COUNT) ** 0.5


# --- rules, case by case ---


def one_hot(tokens: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    return torch.nn.functional.one_hot(tokens, size).to(dtype)


@backends
@pytest.mark.parametrize("rule", ["chain", "tree", "ratio"])
def test_one_hot_probabilities_are_greedy(name: str, rule: str) -> None:
    sequences, nodes, size = 30, 8, 3
    drafts = torch.randint(0, size, (sequences, nodes))
    target = torch.randint(0, size, (sequences, nodes + 1))
    parents = tree_of(nodes) if rule == "tree" else None
    draft_probs = one_hot(drafts, size, torch.float32) if rule == "ratio" else None
    uniforms = torch.rand(sequences, nodes + 1)
    uniforms[0], uniforms[1] = 0.0, 1.0 - 2.0**-24
    with backend(name):
        actual = verify_sample(
            drafts,
            one_hot(target, size, torch.float32),
            draft_probs,
            parents=parents,
            uniforms=uniforms,
        )
    assert_same(actual, verify_greedy(drafts, target, parents=parents))


@backends
@pytest.mark.parametrize("near", [0.0, 1e-300, 1.0 - 2.0**-24, BELOW_ONE])
@pytest.mark.parametrize("size", [1, 3, 64, 65, 1000])
def test_uniforms_at_the_ends(name: str, near: float, size: int) -> None:
    """Zero accepts what can be and draws the first possible token; below one, the last."""
    sequences, nodes = 12, 3
    mask = torch.rand(sequences, nodes + 1, size) < 0.5
    mask[..., 0] |= ~mask.any(dim=-1)
    # More than two possible tokens or one: nothing is nearly certain.
    weights = torch.where(mask, torch.rand(mask.shape, dtype=torch.float64) + 0.5, 0.0)
    target = (weights / weights.sum(dim=-1, keepdim=True)).float()
    drafts = torch.randint(0, size, (sequences, nodes))
    with backend(name):
        accepted, next_token = verify_sample(
            drafts, target, uniforms=torch.full((sequences, nodes + 1), near, dtype=torch.float64)
        )
    for b in range(sequences):
        rows, left = target[b].clone(), []
        for i in range(nodes):
            p = float(rows[i, drafts[b, i]])
            alone = int((rows[i] > 0).sum()) == 1
            if not (p > 0 if near < 0.5 else p > 0 and alone):
                rows[i, drafts[b, i]] = 0.0
                break
            left.append(i)
        assert int(accepted[b]) == len(left)
        possible = rows[len(left)].nonzero()[:, 0]
        assert int(next_token[b]) == int(possible[0 if near < 0.5 else -1])


@backends
def test_impossible_and_certain_drafts(name: str) -> None:
    p = torch.tensor([[0.0, 0.25, 0.75], [0.0, 1.0, 0.0], [0.5, 0.0, 0.5]])[None]
    with backend(name):
        for u in (0.0, 0.3, BELOW_ONE):
            uniforms = torch.full((1, 3), u, dtype=torch.float64)
            accepted, next_token = verify_sample(torch.tensor([[0, 1]]), p, uniforms=uniforms)
            assert accepted.item() == 0
            assert next_token.item() == (1 if u == 0.0 else 2)
            uniforms[0, 0] = 0.2
            accepted, next_token = verify_sample(torch.tensor([[1, 1]]), p, uniforms=uniforms)
            assert accepted.item() == 2
            assert next_token.item() == (2 if u == BELOW_ONE else 0)


@backends
def test_siblings_take_their_share_in_turn(name: str) -> None:
    """0.5, then 0.25 of the 0.5 that is left; the equal sibling between them has nothing."""
    p = torch.tensor([0.5, 0.25, 0.25]).expand(1, 4, 3)
    drafts, parents = torch.tensor([[0, 0, 1]]), torch.tensor([-1, -1, -1])

    def run(*uniforms: float) -> tuple[int, int, int]:
        with backend(name):
            accepted, next_token, path = verify_sample(
                drafts, p, parents=parents, uniforms=torch.tensor([uniforms], dtype=torch.float64)
            )
        return accepted.item(), int(path[0, 0]), next_token.item()

    assert run(0.49, 0.0, 0.0, 0.0)[:2] == (1, 0)
    assert run(0.51, 0.0, 0.49, 0.0)[:2] == (1, 2)
    assert run(0.51, 0.0, 0.51, 0.0) == (0, -1, 2)
    assert run(0.51, 0.0, 0.51, BELOW_ONE) == (0, -1, 2)


@backends
def test_ratio_case_by_case(name: str) -> None:
    p = torch.tensor([0.5, 0.125, 0.375, 0.0]).expand(1, 2, 4)
    q = torch.tensor([0.25, 0.5, 0.125, 0.125]).expand(1, 1, 4)

    def run(token: int, test: float, last: float) -> tuple[int, int]:
        with backend(name):
            accepted, next_token = verify_sample(
                torch.tensor([[token]]),
                p,
                q,
                uniforms=torch.tensor([[test, last]], dtype=torch.float64),
            )
        return accepted.item(), next_token.item()

    assert run(0, BELOW_ONE, 0.0) == (1, 0)
    assert run(1, 0.24, BELOW_ONE) == (1, 2)
    # Left of p - q: 0.25 for token 0, 0.25 for token 2.
    assert run(1, 0.25, 0.49) == (0, 0)
    assert run(1, 0.25, 0.5) == (0, 2)
    assert run(3, 0.0, BELOW_ONE) == (0, 2)


@backends
def test_equal_distributions_accept_everything(name: str) -> None:
    p = probabilities(torch.float32, 40, 5, 9)
    drafts = torch.stack([sampled(p[:, i]) for i in range(4)], dim=1)
    with backend(name):
        accepted, _ = verify_sample(
            drafts, p, p[:, :4], uniforms=torch.full((40, 5), BELOW_ONE, dtype=torch.float64)
        )
    assert accepted.tolist() == [4] * 40


@backends
def test_a_residual_that_rounds_to_nothing_falls_back_to_p(name: str) -> None:
    """p < q at the draft by one unit of 2^-51, and p > q nowhere by as much as half of one."""
    p = torch.tensor([0.5, 0.5, 2.0**-51]).expand(1, 2, 3)
    q = torch.tensor([0.5, 0.5, 2.0**-50]).expand(1, 1, 3)
    for last, expected in ((0.25, 0), (0.75, 1)):
        with backend(name):
            accepted, next_token = verify_sample(
                torch.tensor([[2]]),
                p,
                q,
                uniforms=torch.tensor([[0.9, last]], dtype=torch.float64),
            )
        assert (accepted.item(), next_token.item()) == (0, expected)


def test_a_draft_that_q_excludes() -> None:
    """Not drawn from q, so no rule applies: accepted where p allows it, and no division by zero."""
    p, q = torch.tensor([0.5, 0.5, 0.0]).expand(1, 2, 3), torch.tensor([1.0, 0.0, 0.0])
    for token, expected in ((1, 1), (2, 0)):
        accepted, next_token = verify_sample(
            torch.tensor([[token]]), p, q.expand(1, 1, 3), uniforms=torch.tensor([[0.5, 0.5]])
        )
        assert accepted.item() == expected
        assert next_token.item() == 1


@pytest.mark.parametrize("size", [40, 5000])
def test_random_trees_walk_as_the_rule_says(size: int, isa: str) -> None:
    """The rule once more, in float64 and plain loops, on drafts that are often accepted."""
    sequences, nodes = 20, 9
    target = 0.25 * probabilities(torch.float32, sequences, nodes + 1, size)
    target[..., :3] += 0.25
    drafts = torch.randint(0, 3, (sequences, nodes))
    parents, uniforms = tree_of(nodes), torch.rand(sequences, nodes + 1, dtype=torch.float64)
    accepted, next_token, path = verify_sample(drafts, target, parents=parents, uniforms=uniforms)
    for b in range(sequences):
        rows = target[b].double()
        rows /= rows.sum(dim=1, keepdim=True)

        def accepts(node: int, i: int, b: int = b, rows: Tensor = rows) -> bool:
            row, token = rows[node + 1], drafts[b, i]
            hit = bool(uniforms[b, i] < row[token] / row.sum())
            if not hit:
                row[token] = 0.0
            return hit

        expected = walk(drafts[b].tolist(), parents.tolist(), accepts)
        assert path[b, : int(accepted[b])].tolist() == expected
        row = rows[expected[-1] + 1 if expected else 0]
        below = row.cumsum(0) / row.sum() <= uniforms[b, nodes]
        assert int(next_token[b]) == int(below.sum())
    assert accepted.max() > 1


# --- values ---


@dtypes
@pytest.mark.parametrize("size", [2, 100, 32000, 152064])
@pytest.mark.parametrize("scale", [0.0, 1.0, 10.0])
def test_softmax_rows_are_distributions(dtype: torch.dtype, size: int, scale: float) -> None:
    """What torch's softmax makes of logits of the dtype, and what a top-k renormalisation leaves.

    One large number and many small ones cost a float32 sum the most.
    """
    logits = (torch.randn(2, 2, size) * scale).to(dtype)
    logits[1, 1, 0] = math.log(size) + scale + 2.0
    p = logits.softmax(dim=-1)
    kept = torch.where(p >= p.topk(min(50, size)).values[..., -1:], p, 0)
    for rows in (p, logits.double().softmax(dim=-1), kept / kept.sum(dim=-1, keepdim=True)):
        accepted, next_token = verify_sample(torch.zeros(2, 1).long(), rows)
        assert accepted.shape == next_token.shape == (2,)


@dtypes
@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_the_checks_of_both_paths_agree(dtype: torch.dtype, size: int, isa: str) -> None:
    allowed = tolerance(dtype, size)
    seen = set()
    for value in (0.0, 1e-3, -1e-3, -0.0, float("nan"), float("inf"), -float("inf"), 3.0, 0.5):
        for place in {0, size // 2, size - 1}:
            p = probabilities(dtype, 3, 2, size)
            p[1, 1, place] = value
            found = _C.first_bad_distribution(p, allowed, -1)
            assert found == first_bad_row(p, allowed)
            seen.add(found)
    assert 3 in seen
    assert seen <= {3, -1}


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_stated_tolerance(sign: int) -> None:
    size = 1000
    allowed = tolerance(torch.float32, size)
    assert allowed == pytest.approx(2.0**-22 + size * 2.0**-27)
    for share, fits in ((0.9, True), (1.1, False)):
        p = torch.full((1, 1, size), (1.0 + sign * share * allowed) / size)
        assert (_C.first_bad_distribution(p, allowed, -1) == -1) == fits


def test_nothing_is_written_before_an_error() -> None:
    p = torch.full((2, 2, 4), 0.25)
    p[1, 1, 0] = 0.5
    out = (torch.full((2,), -5), torch.full((2,), -5))
    with pytest.raises(ValueError, match=r"target_probs: row \[1, 1\] sums to 1\.25"):
        verify_sample(torch.zeros(2, 1).long(), p, out=out)
    assert [t.tolist() for t in out] == [[-5, -5]] * 2


@pytest.mark.parametrize("ratio", [False, True])
def test_unchecked_values_have_a_meaning_too(ratio: bool, isa: str) -> None:
    """Tokens stay inside the vocabulary, and every backend says the same."""
    sequences, nodes, size = 40, 4, 90
    p, q = probabilities(torch.float32, 2, sequences, nodes + 1, size)
    for rows in (p, q):
        place = torch.rand(rows.shape)
        rows[place < 0.05], rows[place > 0.95] = float("nan"), -0.5
        rows[:5], rows[5:10, :, 3] = 0.0, float("inf")
    drafts = torch.randint(-3, size + 3, (sequences, nodes))
    drafts[20] = 1 << 62
    uniforms = torch.rand(sequences, nodes + 1)
    uniforms[30:33] = torch.tensor([-1.0, 2.0, float("nan")])[:, None]
    args = (drafts, p, q[:, :nodes].contiguous() if ratio else None)
    expected = reference.verify_sample(*args, uniforms=uniforms)
    assert int(expected[1].min()) >= 0
    assert int(expected[1].max()) < size
    for name in ("cpu", "triton", "reference"):
        with backend(name):
            actual = verify_sample(*args, uniforms=uniforms, validate=False)
        assert_same(actual, expected)


def test_compiled_code_checks_no_values() -> None:
    torch._dynamo.reset()
    p = torch.full((1, 2, 4), 0.5)
    drafts, uniforms = torch.zeros(1, 1).long(), torch.zeros(1, 2)
    with pytest.raises(ValueError, match="sums to 2"):
        verify_sample(drafts, p, uniforms=uniforms)
    compiled = torch.compile(
        lambda d, p, u: verify_sample(d, p, uniforms=u), backend="eager", fullgraph=True
    )
    assert [t.tolist() for t in compiled(drafts, p, uniforms)] == [[1], [0]]


# --- randomness ---


def test_uniforms_are_drawn_with_the_generator() -> None:
    p, drafts = probabilities(torch.float32, 30, 4, 9), torch.randint(0, 9, (30, 3))

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(5)

    first = verify_sample(drafts, p, generator=generator())
    assert_same(verify_sample(drafts, p, generator=generator()), first)
    uniforms = torch.rand(30, 4, dtype=torch.float64, generator=generator())
    assert_same(verify_sample(drafts, p, uniforms=uniforms), first)
    torch.manual_seed(5)
    assert_same(verify_sample(drafts, p), first)
    assert not torch.equal(verify_sample(drafts, p)[1], first[1])


def test_needs_no_gradient() -> None:
    p, drafts = probabilities(torch.float32, 2, 2, 5), torch.zeros(2, 1).long()
    with torch.no_grad():
        outputs = verify_sample(drafts, p.clone().requires_grad_())
    assert not any(y.requires_grad for y in outputs)
