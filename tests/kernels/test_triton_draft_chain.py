"""Whole drafts against the reference: chains, trees, formats, windows; launches and graphs."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime import interpreter
from weights import weight

from leeboard import reference
from leeboard.kernels import draft_chain
from leeboard.kernels._graph import ChainGraph
from leeboard.reference import DrafterWeights
from leeboard.reference._drafter import MATRICES
from tolerances import assert_close_to_reference

H, HEADS, GROUPS, D, INNER, VOCABULARY, DRAFT, CAPACITY = 32, 4, 2, 16, 40, 70, 53, 21


def drafter(dtype, device, form="plain", d2t=True, **options):
    def gain():
        return (1.0 + 0.3 * torch.randn(H, device=device)).to(dtype)

    shapes = {
        "q": (HEADS * D, 2 * H),
        "k": (GROUPS * D, 2 * H),
        "v": (GROUPS * D, 2 * H),
        "o": (H, HEADS * D),
        "gate": (INNER, H),
        "up": (INNER, H),
        "down": (H, INNER),
        "head": (DRAFT, H),
    }
    forms = form if isinstance(form, dict) else dict.fromkeys(MATRICES, form)
    matrices = {
        name: weight(N, K, forms[name], dtype, device, scale=K**-0.5)
        for name, (N, K) in shapes.items()
    }
    angles = torch.outer(torch.arange(CAPACITY + 9).double(), 9.0 ** -torch.arange(D // 2).double())
    offsets = torch.randint(0, VOCABULARY - DRAFT + 1, (DRAFT,), device=device).sort().values
    return DrafterWeights(
        embedding=torch.randn(VOCABULARY, H, device=device).to(dtype),
        input_norm=gain(),
        hidden_norm=gain(),
        post_norm=gain(),
        norm=gain(),
        **matrices,
        cos=angles.cos().float().to(device),
        sin=angles.sin().float().to(device),
        d2t=offsets if d2t else None,
        eps=1e-5,
        **options,
    )


def inputs(lengths, dtype, device):
    B = len(lengths)
    caches = [torch.randn(B, GROUPS, CAPACITY, D + 3, device=device) for _ in range(2)]
    caches = [cache.to(dtype)[..., :D] for cache in caches]
    for cache in caches:
        for b, length in enumerate(lengths):
            cache[b, :, length:] = float("nan")
    state = torch.randn(B, H, device=device).to(dtype)
    token = torch.randint(0, VOCABULARY, (B,), device=device)
    return state, token, *caches, torch.tensor(lengths, device=device)


def outputs(B, nodes, rows, dtype, device):
    whole = [torch.full((B, nodes), -9, dtype=torch.int64, device=device) for _ in range(2)]
    scores = torch.full((B, nodes), float("nan"), device=device)
    return *whole, scores, torch.full((B, rows, H), float("nan"), dtype=dtype, device=device)


def run(weights, given, steps, topk=1, nodes=None):
    state = given[0]
    every = topk + (steps - 1) * topk * topk
    nodes = min(steps * topk, every) if nodes is None else nodes
    found = outputs(len(state), nodes, 1 + (steps - 1) * topk, state.dtype, state.device)
    before = [cache.clone() for cache in given[2:4]]
    draft_chain.forward(weights, *given, steps, topk, nodes, *found)
    for cache, old in zip(given[2:4], before, strict=True):
        assert torch.equal(cache.nan_to_num(7.0), old.nan_to_num(7.0))
    return found


def doubled(value):
    floating = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.double() if floating else value


def check(weights, given, steps, topk=1, nodes=None):
    tokens, parents, scores, states = run(weights, given, steps, topk, nodes)
    low = reference.draft_chain(weights, *given, steps, topk=topk, nodes=nodes)
    assert torch.equal(tokens, low.tokens)
    assert torch.equal(parents, low.parents)
    matrices = {
        name: m if isinstance(m, torch.Tensor) else m.dequantize(torch.float64)
        for name in MATRICES
        for m in [getattr(weights, name)]
    }
    exact_weights = pytree.tree_map(doubled, dataclasses.replace(weights, **matrices))
    # The caches keep their dtype, to which keys and values are rounded in float64 too.
    state, token, *rest = given
    options = {"topk": topk, "nodes": nodes}
    exact = reference.draft_chain(exact_weights, state.double(), token, *rest, steps, **options)
    assert torch.equal(exact.tokens, low.tokens)
    # A chain amplifies its errors: what a last bit of the first state does is allowed.
    off = state.double() * (1.0 + 2.0**-23 * torch.randn(state.shape).to(state.device))
    near = reference.draft_chain(exact_weights, off, token, *rest, steps, **options)
    for name, got in (("scores", scores), ("states", states)):
        known = [getattr(draft, name) for draft in (low, exact)]
        assert_close_to_reference(got, *known, what=name, nearby=getattr(near, name))


@pytest.mark.parametrize("options", [{}, {"norm_output": False}, {"norm_before_residual": True}])
@pytest.mark.parametrize("lengths", [(9,), (0, 5, 21)], ids=["B1", "B3"])
def test_chain(lengths, options, dtype, device):
    """One row is streamed; three take `tl.dot`. One cache is empty and one is full."""
    check(drafter(dtype, device, **options), inputs(lengths, dtype, device), 4)


@pytest.mark.parametrize("form", ["int8", "int4", "fp8"])
@pytest.mark.parametrize("B", [1, 3])
def test_formats(B, form, device):
    weights = drafter(torch.float32, device, form, d2t=False)
    check(weights, inputs((9, 4, 20)[:B], torch.float32, device), 3)


def test_formats_may_differ(device):
    forms = dict.fromkeys(MATRICES, "int8") | {"v": "plain", "down": "int4", "head": "plain"}
    check(drafter(torch.float32, device, forms), inputs((9, 4), torch.float32, device), 3)


@pytest.mark.parametrize("window", [1, 3, 30])
def test_window_and_sinks(window, device):
    """A window shorter than the draft hides cached rows only."""
    weights = drafter(torch.float32, device, window=window, sinks=2)
    check(weights, inputs((19, 1), torch.float32, device), 5)
    check(weights, inputs((19, 4), torch.float32, device), 4, topk=2)


@pytest.mark.parametrize(("topk", "steps", "nodes"), [(2, 1, None), (3, 4, None), (3, 3, 17)])
def test_tree(topk, steps, nodes, device):
    weights = drafter(torch.float32, device, norm_output=topk == 3)
    check(weights, inputs((9, 16), torch.float32, device), steps, topk, nodes)


def test_few_nodes_of_a_chain(device):
    check(drafter(torch.float32, device), inputs((9,), torch.float32, device), 4, nodes=2)


def test_nothing_to_do(device):
    run(drafter(torch.float32, device), inputs((), torch.float32, device), 3)


class Work(TorchDispatchMode):
    """Counts torch's own work on tensors: neither views nor allocations."""

    FREE = frozenset({"empty", "empty_strided", "empty_like", "new_empty"})

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        view = any(a.alias_info is not None for a in func._schema.returns)
        written = any(a.alias_info and a.alias_info.is_write for a in func._schema.arguments)
        if (not view or written) and func.overloadpacket.__name__ not in self.FREE:
            self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(not torch.cuda.is_available() and interpreter is None, reason="interpreter")
@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("form", ["plain", "int4"])
def test_launches_of_a_step(B, form, device, monkeypatch):
    """Kernels counted and not run; torch itself does nothing in a step."""
    if device != "cpu":
        pytest.skip("counts the interpreter's launches")
    counts = []
    given = inputs((9, 4, 20)[:B], torch.float32, device)
    weights = drafter(torch.float32, device, form)
    for steps in (2, 3, 7):
        launched = []
        monkeypatch.setattr(
            interpreter.GridExecutor, "__call__", lambda *a, n=launched, **k: n.append(1)
        )
        found = outputs(B, steps, steps, torch.float32, device)
        with Work() as work:
            draft_chain.forward(weights, *given, steps, 1, steps, *found)
        counts.append((len(launched), work.count))
    assert counts[0][0] > 0
    assert counts[1][0] - counts[0][0] == draft_chain.LAUNCHES_PER_STEP
    assert counts[2][0] - counts[1][0] == 4 * draft_chain.LAUNCHES_PER_STEP
    assert counts[0][1] == counts[1][1] == counts[2][1]
    assert draft_chain.LAUNCHES_PER_STEP <= 10


class Fake:
    """A captured call that says when it is replayed."""

    made = 0

    def __init__(self, call, inputs, outputs):
        Fake.made += 1
        self.call, self.replays = call, 0

    def replay(self, inputs, outputs):
        self.replays += 1
        self.call(inputs, outputs)


def add_one(inputs, outputs):
    outputs[0].copy_(inputs[0] + 1)


def graph_run(graphs, key, value=1.0):
    out = torch.zeros(2)
    graphs.run(lambda: key, add_one, [torch.full((2,), value)], [out])
    assert torch.equal(out, torch.full((2,), value + 1))


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(Fake, "made", 0)
    return Fake


def test_second_call_is_captured_and_later_ones_replayed(fake):
    graphs = ChainGraph(capture=fake, allowed=lambda t: True)
    for value in (1.0, 2.0, 3.0):
        graph_run(graphs, "a", value)
    assert fake.made == 1
    graph_run(graphs, "b")
    assert fake.made == 1


def test_least_recent_graph_is_forgotten(fake):
    graphs = ChainGraph(capacity=2, capture=fake, allowed=lambda t: True)
    for key in "aabbacca":
        graph_run(graphs, key)
    # b was the least recent when c came; a is still there.
    assert fake.made == 3
    graph_run(graphs, "b")
    assert fake.made == 3
    graph_run(graphs, "b")
    assert fake.made == 4


def test_failed_capture_falls_back_for_good(fake):
    tries = []

    def capture(*arguments):
        tries.append(arguments)
        raise RuntimeError("not here")

    graphs = ChainGraph(capture=capture, allowed=lambda t: True)
    for _ in range(4):
        graph_run(graphs, "a")
    assert len(tries) == 1


def test_no_graph_where_none_is_allowed(fake):
    graphs = ChainGraph(capture=fake, allowed=lambda t: False)

    def key():
        raise AssertionError("not wanted")

    out = torch.zeros(2)
    for _ in range(3):
        graphs.run(key, add_one, [torch.zeros(2)], [out])
    assert fake.made == 0
    assert torch.equal(out, torch.ones(2))


def test_cpu_tensors_are_never_captured(fake):
    graphs = ChainGraph(capture=fake)
    for _ in range(3):
        graph_run(graphs, "a")
    assert fake.made == 0


def test_key_names_all_that_a_graph_keeps(monkeypatch):
    """Another weight, cache, shape or option is another graph; another state or token is not."""
    keys = []
    monkeypatch.setattr(
        draft_chain._graphs, "run", lambda key, call, inputs, outputs: keys.append(key())
    )
    stream = type("Stream", (), {"cuda_stream": 5})()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    weights, given = drafter(torch.float32, "cpu", "int4"), inputs((9, 4), torch.float32, "cpu")

    def key(weights=weights, given=given, steps=3, topk=1, nodes=3):
        found = outputs(len(given[0]), nodes, 1, torch.float32, "cpu")
        draft_chain.forward(weights, *given, steps, topk, nodes, *found)
        return keys.pop()

    same = key()
    assert same == key(given=tuple(t.clone() for t in given[:2]) + given[2:])
    others = [
        key(steps=4),
        key(topk=2),
        key(nodes=2),
        key(given=(*given[:2], given[2].clone(), *given[3:])),
        key(given=inputs((9,), torch.float32, "cpu")),
        key(weights=dataclasses.replace(weights, norm=weights.norm.clone())),
        key(weights=dataclasses.replace(weights, o=weight(H, HEADS * D, "int4", None, "cpu"))),
        key(weights=dataclasses.replace(weights, window=5)),
        key(weights=dataclasses.replace(weights, d2t=None)),
    ]
    assert len({same, *others}) == 1 + len(others)
