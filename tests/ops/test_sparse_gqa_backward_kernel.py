"""The CPU kernel of the backward pass of sparse attention, called as it is bound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import leeboard.ops
from harness import assert_same
from leeboard import _C, reference
from leeboard.ops._attention_plan import plan_for
from leeboard.ops.patterns import Band, Blocks, Causal, Dense, Modality
from sparse_inputs import heads_of, normal
from tolerances import assert_close_to_reference, nudged

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


@dataclass(frozen=True, eq=False)
class Shown:
    """A pattern that no formula gives: what the reference and a plan need of one."""

    mask: Tensor  # [queries, keys]
    kind = "shown"

    def dense_mask(self, queries: int, keys: int, device: Any = None) -> Tensor:
        return self.mask

    def native(self) -> _C.AttentionPlan:
        offsets, spans = [0], []
        for row in self.mask.tolist():
            edges = [j for j, (a, b) in enumerate(zip([0, *row], [*row, 0], strict=True)) if a != b]
            spans += list(zip(edges[::2], edges[1::2], strict=True))
            offsets.append(len(spans))
        pairs = torch.tensor(spans, dtype=torch.int64).reshape(-1, 2)
        return _C.AttentionPlan(torch.tensor(offsets), pairs, self.mask.shape[1])


@dataclass(frozen=True)
class Call:
    """A call of the kernel without what the forward pass gives: q, k, v and the rest."""

    q: Tensor
    k: Tensor
    v: Tensor
    grad_out: Tensor
    pattern: Any
    grad_lse: Tensor | None = None
    scale: float | None = None
    heads: tuple[int, ...] | None = None
    padding: Tensor | None = None
    cu_q: Tensor | None = None
    cu_k: Tensor | None = None
    softcap: float | None = None
    sinks: Tensor | None = None

    def plans(self) -> list[_C.AttentionPlan]:
        lengths = [(self.q.shape[2], self.k.shape[2])]
        if self.cu_q is not None and self.cu_k is not None:
            pairs = zip(self.cu_q.diff().tolist(), self.cu_k.diff().tolist(), strict=True)
            lengths = list(pairs)
        if isinstance(self.pattern, Shown):
            return [self.pattern.native()]
        return [plan_for(self.pattern.code, *pair).native for pair in lengths]

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Output and log-sum-exp of the reference."""
        out, lse, _ = reference.sparse_gqa_parts(
            q,
            k,
            v,
            self.pattern,
            scale=self.scale,
            active_heads=self.heads,
            key_padding=self.padding,
            cu_seqlens=self.cu_q,
            cu_seqlens_k=self.cu_k,
            softcap=self.softcap,
            sink_logits=None if self.sinks is None else self.sinks.to(q.dtype),
        )
        return out, lse

    def arguments(self) -> dict[str, Any]:
        out, lse = self.forward(self.q, self.k, self.v)
        return {
            "grad_out": self.grad_out,
            "grad_lse": self.grad_lse,
            "q": self.q,
            "k": self.k,
            "v": self.v,
            "out": out,
            "lse": lse.contiguous(),
            "grad_q": torch.empty_like(self.q),
            "grad_k": torch.empty_like(self.k),
            "grad_v": torch.empty_like(self.v),
            "plans": self.plans(),
            "cu_q": self.cu_q,
            "cu_k": self.cu_k,
            "heads": self.heads,
            "padding": self.padding,
            "scale": self.q.shape[3] ** -0.5 if self.scale is None else self.scale,
            "softcap": self.softcap or 0.0,
            "level": leeboard.ops._state.state().level,
        }

    def exact(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Gradients by autograd through the reference, of inputs in dtype."""
        leaves = [t.detach().to(dtype).requires_grad_() for t in (self.q, self.k, self.v)]
        out, lse = self.forward(*leaves)
        results, grads = [out], [self.grad_out.to(dtype)]
        if self.grad_lse is not None:
            results, grads = [out, lse], [*grads, self.grad_lse.to(lse.dtype)]
        return torch.autograd.grad(results, leaves, grads)

    def nearby(self) -> tuple[Tensor, ...]:
        """In float64, from a q, k and log-sum-exp that are off in float32's last place.

        All three are inputs of the kernel: an error of the last is one of all weights of a row.
        """

        q, k, v, grad_out = (t.double() for t in (self.q, self.k, self.v, self.grad_out))
        out, lse = self.forward(q, k, v)
        q, k, lse = nudged(self.q), nudged(self.k), nudged(lse.float())
        return reference.sparse_gqa_backward(
            grad_out,
            None if self.grad_lse is None else self.grad_lse.double(),
            q,
            k,
            v,
            out,
            lse,
            self.pattern,
            scale=self.scale,
            active_heads=self.heads,
            key_padding=self.padding,
            cu_seqlens=self.cu_q,
            cu_seqlens_k=self.cu_k,
            softcap=self.softcap,
        )


def kernel(call: Call, **changed: Any) -> tuple[Tensor, ...]:
    given = {**call.arguments(), **changed}
    assert _C.sparse_gqa_backward(**given)
    return given["grad_q"], given["grad_k"], given["grad_v"]


def agrees(call: Call) -> tuple[Tensor, ...]:
    """The kernel's gradients, held against autograd through the reference."""
    actual = kernel(call)
    low, exact = call.exact(call.q.dtype), call.exact(torch.float64)
    nearby = call.nearby()
    for name, *grads, near in zip("qkv", actual, low, exact, nearby, strict=True):
        assert_close_to_reference(*grads, what=f"grad_{name}", nearby=near)
    return actual


def make(
    dtype: torch.dtype,
    batch: int,
    heads: tuple[int, int],
    rows: tuple[int, int],
    channels: int,
    pattern: Any,
    padded: Sequence[Sequence[int]] = (),
    sinks: bool = False,
    active: tuple[int, ...] | None = None,
    **options: Any,
) -> Call:
    q, k, v = heads_of(dtype, batch, heads, rows, channels)
    if padded:
        options["padding"] = torch.zeros(batch, rows[1], dtype=torch.bool)
        for b, keys in enumerate(padded):
            options["padding"][b, list(keys)] = True
    if sinks:
        options["sinks"] = normal(torch.float32, heads[0])
    grad_lse = normal(torch.float32, batch, heads[0], rows[0])
    return Call(q, k, v, normal(dtype, *q.shape), pattern, grad_lse, heads=active, **options)


BLOCKS = Blocks([[0, 3], [], [1, 2], [0, 1, 2, 3], [2]], block=32)
CASES: dict[str, Callable[[torch.dtype], Call]] = {
    "dense": lambda t: make(t, 2, (3, 3), (70, 70), 32, Dense()),
    "one-row": lambda t: make(t, 1, (1, 1), (1, 1), 16, Dense()),
    "more-keys": lambda t: make(t, 1, (4, 2), (53, 131), 40, Causal()),
    "more-queries": lambda t: make(t, 1, (8, 1), (60, 29), 17, Causal()),
    "ratio-3": lambda t: make(t, 1, (9, 3), (67, 67), 64, Band(9, sinks=3)),
    "ratio-12": lambda t: make(t, 2, (12, 1), (40, 40), 24, Band(5, causal=False)),
    # More rows than a block of any level; several chunks.
    "long": lambda t: make(t, 1, (4, 2), (471, 471), 16, Band(100, sinks=1)),
    "modality": lambda t: make(t, 1, (2, 1), (131, 131), 33, Modality.of_lengths((50, 81), 7)),
    "blocks": lambda t: make(t, 1, (4, 4), (150, 120), 48, BLOCKS),
    "capped": lambda t: make(t, 1, (4, 2), (50, 66), 32, Dense(), softcap=1.5, scale=0.9),
    "scaled": lambda t: make(t, 1, (2, 2), (30, 30), 16, Causal(), scale=-0.4),
    "padded": lambda t: make(
        t, 3, (4, 2), (37, 75), 24, Band(30), [[3, 40, 74], range(75), range(10, 75)]
    ),
    "sinks": lambda t: make(
        t, 2, (4, 2), (20, 45), 16, Causal(), [[], range(45)], sinks=True, softcap=3.0
    ),
    # A group without an active head, and groups with some.
    "inactive": lambda t: make(t, 2, (9, 3), (41, 41), 16, Causal(), active=(0, 2, 7)),
    "no-head": lambda t: make(t, 1, (2, 1), (9, 9), 16, Dense(), active=()),
    "packed": lambda t: make(
        t,
        1,
        (6, 2),
        (160, 170),
        24,
        Band(20, sinks=1),
        [range(30, 60)],
        cu_q=torch.tensor([0, 13, 13, 120, 133, 160]),
        cu_k=torch.tensor([0, 17, 30, 143, 143, 170]),
        active=(1, 2, 3, 5),
    ),
}


@dtypes
@pytest.mark.parametrize("case", CASES)
def test_gradients(isa: str, case: str, dtype: torch.dtype) -> None:
    agrees(CASES[case](dtype))


@pytest.mark.parametrize("channels", [1, 2, 3, 7, 8, 9, 15, 31, 63, 65, 80, 96, 128, 129, 255, 256])
def test_channels(isa: str, channels: int) -> None:
    agrees(make(torch.float32, 1, (2, 1), (19, 37), channels, Causal(), softcap=4.0))
    agrees(make(torch.bfloat16, 1, (2, 1), (19, 37), channels, Dense()))


@pytest.mark.parametrize("seed", range(12))
def test_spans_of_any_kind(isa: str, seed: int) -> None:
    """Random rows of many spans, of one, of none; lengths about the edges of strips and panels."""
    draw = torch.Generator().manual_seed(seed)
    rows, keys = (int(torch.randint(1, 140, (), generator=draw)) for _ in range(2))
    group = int(torch.randint(1, 6, (), generator=draw))
    runs = torch.rand(rows, keys, generator=draw) < torch.rand(rows, 1, generator=draw) ** 2
    mask = runs.cumsum(-1) % 2 == 1
    mask[torch.rand(rows, generator=draw) < 0.1] = False
    mask[torch.rand(rows, generator=draw) < 0.2] = True
    agrees(make(torch.float32, 1, (2 * group, 2), (rows, keys), 16, Shown(mask)))


def test_rows_that_see_nothing(isa: str) -> None:
    """Zero gradients, whatever is in the rows of the gradient; keys that nobody sees too."""
    call = make(torch.float32, 1, (2, 1), (40, 12), 16, Causal())
    call.grad_out[:, :, :28] = float("inf")
    grad_q, grad_k, grad_v = kernel(call)
    assert torch.equal(grad_q[:, :, :28], torch.zeros(1, 2, 28, 16))
    assert all(torch.isfinite(t).all() for t in (grad_q, grad_k, grad_v))
    call = make(torch.float32, 1, (2, 1), (9, 50), 16, Blocks([[1]], block=20))
    grads = kernel(call)
    unseen = torch.ones(50, dtype=torch.bool)
    unseen[20:40] = False
    for grad in grads[1:]:
        assert torch.equal(grad[:, :, unseen], torch.zeros(1, 1, 30, 16))
        assert (grad[:, :, ~unseen] != 0).all()


@dtypes
def test_what_is_not_read(isa: str, dtype: torch.dtype) -> None:
    """Padding and heads that take no part may hold anything."""
    options = {"padded": [range(5, 11), [1]], "active": (0, 3)}
    call = make(dtype, 2, (6, 3), (30, 30), 24, Band(9), **options)
    given = call.arguments()
    expected = kernel(call)
    idle = [h for h in range(6) if h not in (0, 3)]
    padding = call.padding
    assert padding is not None
    for name in ("q", "grad_out", "out", "grad_lse", "lse"):
        given[name] = given[name].clone()
        given[name][:, idle] = float("nan")
    for name in ("k", "v"):
        given[name] = given[name].clone().masked_fill(padding[:, None, :, None], float("nan"))
        given[name][:, 2] = float("nan")
    grads = kernel(call, **{k: v for k, v in given.items() if not k.startswith("grad_q")})
    assert_same(grads, expected)
    assert not grads[0][:, idle].any()
    assert not grads[1][:, 2].any()
    assert not grads[2][:, 2].any()
    hidden = padding[:, None, :, None]
    assert not grads[1].masked_select(hidden).any()
    assert not grads[2].masked_select(hidden).any()


@dtypes
def test_strides(isa: str, dtype: torch.dtype) -> None:
    call = make(dtype, 2, (4, 2), (33, 41), 20, Causal(), [range(3), range(30, 41)])
    expected = kernel(call)
    given = call.arguments()

    def apart(t: Tensor) -> Tensor:
        """The same numbers, heads behind rows, with a gap behind each row of channels."""
        wide = torch.full((t.shape[0], t.shape[2], t.shape[1], t.shape[3] + 3), float("nan"))
        wide = wide.to(t.dtype)[..., : t.shape[3]].transpose(1, 2)
        return wide.copy_(t)

    names = ("q", "k", "v", "grad_out", "out", "grad_q", "grad_k", "grad_v")
    moved = {name: apart(given[name]) for name in names}
    moved["padding"] = torch.zeros(2, 50, dtype=torch.bool)[:, :41].copy_(call.padding)
    assert_same(kernel(call, **moved), expected)
    # One row of the gradient for all.
    call = replace(call, grad_out=call.grad_out[:, :, :1].expand(call.q.shape))
    assert_same(kernel(call), kernel(replace(call, grad_out=call.grad_out.contiguous())))


@pytest.mark.parametrize("pattern", [Causal(), Band(90, sinks=4)], ids=str)
def test_threads(isa: str, pattern: Any) -> None:
    """Bit-equal gradients for any number of threads; rows enough for several chunks of a head."""
    call = make(torch.float32, 1, (4, 2), (1100, 1100), 16, pattern)
    torch.set_num_threads(1)
    expected = kernel(call)
    for threads in (2, 3, 5):
        torch.set_num_threads(threads)
        assert_same(kernel(call), expected)


def test_chunks(isa: str) -> None:
    agrees(make(torch.float32, 1, (4, 1), (500, 300), 8, Causal(), [range(100, 140)]))


def test_turns() -> None:
    """Heads whose packed keys do not fit the scratch memory together."""
    given = make(torch.bfloat16, 1, (2, 2), (3, 13000), 256, Dense()).arguments()
    assert _C.sparse_gqa_backward(**given)
    names = ("grad_q", "grad_k", "grad_v")
    for h in range(2):
        alone = {k: t[:, h : h + 1] if isinstance(t, Tensor) else t for k, t in given.items()}
        expected = [alone.pop(name) for name in names]
        alone.update({name: torch.empty_like(t) for name, t in zip(names, expected, strict=True)})
        assert _C.sparse_gqa_backward(**alone)
        assert_same([alone[name] for name in names], expected)


@pytest.mark.parametrize(
    "shape",
    [(0, 2, 1, 5, 5), (2, 2, 1, 0, 5), (2, 2, 1, 5, 0), (1, 0, 1, 5, 5)],
    ids=["batch", "queries", "keys", "heads"],
)
def test_empty(shape: tuple[int, ...]) -> None:
    batch, query_heads, key_heads, queries, keys = shape
    q = torch.randn(batch, query_heads, queries, 16)
    k, v = torch.randn(2, batch, key_heads, keys, 16)
    lse = torch.full((batch, query_heads, queries), -float("inf"))
    grads = [torch.empty_like(t) for t in (q, k, v)]
    plans = [plan_for(Dense().code, queries, keys).native]
    options = (plans, None, None, None, None, 0.25, 0.0, -1)
    assert _C.sparse_gqa_backward(q, None, q, k, v, q, lse, *grads, *options)
    assert all(not t.any() for t in grads)


def bad_arguments() -> dict[str, Callable[[dict[str, Any]], dict[str, Any]]]:
    def changed(name: str, f: Callable[[Any], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
        return lambda given: {name: f(given[name])}

    bounds = torch.tensor([0, 10, 20])
    two = [plan_for(Causal().code, 10, 10).native] * 2
    split = {"cu_q": bounds, "cu_k": bounds, "plans": two}
    one_of = {name: (lambda t: t[:1]) for name in ("q", "k", "v", "out", "grad_out", "lse")}
    return {
        **{f"{name}-batch": changed(name, f) for name, f in one_of.items()},
        **{
            f"{name}-dtype": changed(name, lambda t: t.double())
            for name in ("q", "k", "v", "out", "grad_out", "lse", "grad_lse")
        },
        **{
            f"{name}-channels": changed(name, lambda t: t.mT.contiguous().mT)
            for name in ("q", "k", "v", "out", "grad_out")
        },
        "lse-strides": changed("lse", lambda t: t.mT.contiguous().mT),
        "grad_lse-shape": changed("grad_lse", lambda t: t[:, :, :-1].contiguous()),
        "grad_q-overlaps": lambda given: {"grad_q": given["q"][:1].clone().expand(2, 4, 20, 16)},
        "grad_k-overlaps": lambda given: {"grad_k": torch.ones(16).expand(2, 2, 20, 16)},
        "padding-shape": lambda given: {"padding": torch.zeros(2, 19, dtype=torch.bool)},
        "padding-dtype": lambda given: {"padding": torch.zeros(2, 20, dtype=torch.uint8)},
        "heads-range": lambda given: {"heads": (0, 4)},
        "heads-order": lambda given: {"heads": (2, 1)},
        "heads-twice": lambda given: {"heads": (1, 1)},
        "heads-negative": lambda given: {"heads": (-1, 1)},
        "heads-list": lambda given: {"heads": [0, 1]},
        "heads-float": lambda given: {"heads": (0.0, 1.0)},
        "plans-none": lambda given: {"plans": []},
        "plans-many": lambda given: {"plans": given["plans"] * 2},
        "plans-type": lambda given: {"plans": [None]},
        "plans-queries": lambda given: {"plans": [plan_for(Causal().code, 19, 20).native]},
        "plans-keys": lambda given: {"plans": [plan_for(Causal().code, 20, 21).native]},
        "packed-batches": lambda given: split,
        "one-bound": lambda given: {"cu_q": bounds},
    }


@pytest.mark.parametrize("bad", bad_arguments())
def test_refusals(bad: str) -> None:
    """False, and nothing is written."""
    call = make(torch.float32, 2, (4, 2), (20, 20), 16, Causal())
    given = call.arguments()
    given.update(bad_arguments()[bad](given))
    outputs = [given[name] for name in ("grad_q", "grad_k", "grad_v")]
    before = [t.clone() for t in outputs]
    assert _C.sparse_gqa_backward(**given) is False
    assert_same(outputs, before)


@pytest.mark.parametrize(
    ("rows", "keys"),
    [
        ([0, 10, 19], [0, 10, 20]),
        ([0, 10, 20], [1, 10, 20]),
        ([0, 20, 10], [0, 10, 20]),
        ([0, 30, 20], [0, 10, 20]),
        ([0, 10, 20], [0, -5, 20]),
        ([0, 20], [0, 20]),
    ],
)
def test_refused_bounds(rows: list[int], keys: list[int]) -> None:
    call = make(torch.float32, 1, (2, 1), (20, 20), 16, Causal())
    given = call.arguments()
    given["plans"] = [plan_for(Causal().code, 10, 10).native] * 2
    given["cu_q"], given["cu_k"] = torch.tensor(rows), torch.tensor(keys)
    assert _C.sparse_gqa_backward(**given) is False
    assert given["grad_q"].isnan().all()


def test_too_wide() -> None:
    call = make(torch.float32, 1, (1, 1), (3, 3), 257, Dense())
    assert _C.sparse_gqa_backward(**call.arguments()) is False
