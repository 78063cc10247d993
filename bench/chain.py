"""Steps of a drafter's chain on a GPU, weights in every format, against PyTorch and the bandwidth.

The peers draft with the same bfloat16 weights in the idiom of plain PyTorch: eager, and compiled
with `mode="max-autotune"`, whose CUDA graphs hold the whole chain. The floor is the time in which a
device-to-device copy moves as many bytes as a step has weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.timings import microseconds
from leeboard import reference
from leeboard.kernels import draft_chain
from leeboard.reference import Draft, DrafterWeights, QuantizedWeight, quantize_weight
from leeboard.reference._drafter import MATRICES

FORMATS = ("bfloat16", "int8", "int4", "fp8")
BATCHES = (1, 64)
HEAD = [
    "weights",
    "batch",
    "leeboard",
    "eager",
    "compile",
    "floor",
    "share",
]
READING = """\
Microseconds for one step of a chain: the drafter of an 8B Llama (hidden 4096, feed-forward 14336,
32 heads on 8 of 128, 32000 entries), 1024 cached rows, 5 steps in one call. `eager` and `compile`
hold bfloat16 weights in every row and say how many times as long they take. `floor` is a copy of
the weights' bytes; `share` is floor / time."""
# How far the first score may be from the reference's in float32: ours rounds nothing but keys and
# values, the peers round every intermediate to bfloat16.
SCORE_ERROR = {"leeboard": 0.01, "eager": 0.2, "compile": 0.2}


@dataclass(frozen=True)
class Sizes:
    """A drafter; the defaults are those of an 8B Llama's."""

    hidden: int = 4096
    inner: int = 14336
    heads: int = 32
    groups: int = 8
    width: int = 128
    vocabulary: int = 128256
    draft: int = 32000
    context: int = 1024
    steps: int = 5


@dataclass(frozen=True)
class Inputs:
    """What a chain starts from."""

    state: Tensor
    token: Tensor
    k_cache: Tensor
    v_cache: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class Row:
    """Seconds a step of one format and batch."""

    form: str
    batch: int
    seconds: dict[str, float]
    floor: float

    def cells(self) -> list[str]:
        own = self.seconds["leeboard"]
        peers = [f"{self.seconds[name] / own:.2f}x" for name in ("eager", "compile")]
        share = f"{self.floor / own:.0%}"
        return [
            self.form,
            str(self.batch),
            microseconds(own),
            *peers,
            microseconds(self.floor),
            share,
        ]


def drafter(sizes: Sizes, dtype: torch.dtype, device: str) -> DrafterWeights:
    """Random weights of usual scale."""
    torch.manual_seed(0)
    H, attended = sizes.hidden, sizes.heads * sizes.width
    shapes = {
        "q": (attended, 2 * H),
        "k": (sizes.groups * sizes.width, 2 * H),
        "v": (sizes.groups * sizes.width, 2 * H),
        "o": (H, attended),
        "gate": (sizes.inner, H),
        "up": (sizes.inner, H),
        "down": (H, sizes.inner),
        "head": (sizes.draft, H),
    }

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype, device=device)

    places = torch.arange(sizes.context + sizes.steps, device=device).float()
    rates = 5e5 ** -(torch.arange(sizes.width // 2, device=device) / (sizes.width // 2))
    angles = torch.outer(places, rates)
    gains = {
        name: 1.0 + 0.1 * normal(H) for name in ("input_norm", "hidden_norm", "post_norm", "norm")
    }
    return DrafterWeights(
        embedding=normal(sizes.vocabulary, H),
        **gains,
        **{name: normal(N, K) * K**-0.5 for name, (N, K) in shapes.items()},
        cos=angles.cos(),
        sin=angles.sin(),
        d2t=torch.arange(sizes.draft, device=device) % (sizes.vocabulary - sizes.draft + 1),
    )


def inputs(sizes: Sizes, batch: int, dtype: torch.dtype, device: str) -> Inputs:
    """A batch of states and full caches."""
    torch.manual_seed(1)
    shape = (batch, sizes.groups, sizes.context, sizes.width)
    return Inputs(
        torch.randn(batch, sizes.hidden, dtype=dtype, device=device),
        torch.randint(0, sizes.vocabulary, (batch,), device=device),
        torch.randn(shape, dtype=dtype, device=device),
        torch.randn(shape, dtype=dtype, device=device),
        torch.full((batch,), sizes.context, device=device),
    )


def quantised(weights: DrafterWeights, form: str) -> DrafterWeights:
    """The same drafter with its matrices in a format."""
    if form not in ("int8", "int4", "fp8"):
        return weights
    matrices = {name: quantize_weight(getattr(weights, name), form) for name in MATRICES}
    return dataclasses.replace(weights, **matrices)


def weight_bytes(weights: DrafterWeights) -> int:
    """Bytes of the matrices, each of which a step reads once."""
    matrices = [getattr(weights, name) for name in MATRICES]
    return sum(m.nbytes for m in matrices if isinstance(m, Tensor | QuantizedWeight))


def own_chain(weights: DrafterWeights, given: Inputs, steps: int) -> Draft:
    """The chain by our kernels."""
    B, H = given.state.shape
    tokens, parents = (
        torch.empty(B, steps, dtype=torch.int64, device=given.state.device) for _ in range(2)
    )
    scores = torch.empty(B, steps, dtype=torch.float32, device=given.state.device)
    states = given.state.new_empty(B, steps, H)
    start = (given.state, given.token, given.k_cache, given.v_cache, given.lengths)
    draft_chain.forward(weights, *start, steps, 1, steps, tokens, parents, scores, states)
    return Draft(tokens, parents, scores, states)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)


def peer_chain(weights: DrafterWeights, given: Inputs, steps: int) -> tuple[Tensor, Tensor]:
    """(tokens, scores) of the chain in plain PyTorch; every cache is full."""
    w, D, H = weights, weights.head_dim, weights.hidden_size
    B, kept = given.state.shape[0], given.k_cache.shape[2]
    keys, values, x, token = given.k_cache, given.v_cache, given.state, given.token
    matrix = {name: getattr(w, name) for name in MATRICES}
    total, tokens, scores = 0.0, [], []
    for step in range(steps):
        entered = F.rms_norm(F.embedding(token, w.embedding), (H,), w.input_norm, w.eps)
        hidden = F.rms_norm(x, (H,), w.hidden_norm, w.eps)
        joined = torch.cat((entered, hidden), -1)
        q, k, v = (F.linear(joined, matrix[name]).view(B, -1, 1, D) for name in ("q", "k", "v"))
        cos, sin = w.cos[kept + step], w.sin[kept + step]
        keys = torch.cat((keys, _rotate(k, cos, sin)), 2)
        values = torch.cat((values, v), 2)
        attended = F.scaled_dot_product_attention(
            _rotate(q, cos, sin), keys, values, enable_gqa=True
        )
        middle = x + F.linear(attended.reshape(B, -1), matrix["o"])
        n = F.rms_norm(middle, (H,), w.post_norm, w.eps)
        gated = F.silu(F.linear(n, matrix["gate"])) * F.linear(n, matrix["up"])
        x = F.rms_norm(middle + F.linear(gated, matrix["down"]), (H,), w.norm, w.eps)
        logits = F.linear(x, matrix["head"]).float()
        best, index = logits.max(-1)
        total = total + best - logits.logsumexp(-1)
        token = index if w.d2t is None else index + w.d2t[index]
        tokens.append(token)
        scores.append(total)
    return torch.stack(tokens, 1), torch.stack(scores, 1)


def check(name: str, tokens: Tensor, scores: Tensor, right: Draft) -> None:
    """Raises unless a chain is the reference's, but for ties within the rounding."""
    error = (scores[:, 0] - right.scores[:, 0]).abs().max().item()
    if not error <= SCORE_ERROR[name]:
        raise AssertionError(f"{name}: the first score is off by {error}")
    same = (tokens == right.tokens).cumprod(1).bool()
    error = torch.where(same, (scores - right.scores).abs(), 0.0).max().item()
    if not error <= SCORE_ERROR[name] * tokens.shape[1]:
        raise AssertionError(f"{name}: a score is off by {error} where the tokens agree")


def measure(
    sizes: Sizes,
    dtype: torch.dtype,
    device: str,
    timer: Callable[[Callable[[], Any]], float],
    copy_seconds: Callable[[int], float],
    compiler: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None,
    formats: tuple[str, ...] = FORMATS,
    batches: tuple[int, ...] = BATCHES,
) -> list[Row]:
    """Checks and times every format and batch; `copy_seconds` of a number of bytes."""
    if compiler is None:

        def compiler(function: Callable[..., Any]) -> Callable[..., Any]:
            return torch.compile(function, mode="max-autotune", dynamic=False)

    plain, steps = drafter(sizes, dtype, device), sizes.steps
    rows = []
    with torch.no_grad():
        for batch in batches:
            given = inputs(sizes, batch, dtype, device)
            start = (given.state, given.token, given.k_cache, given.v_cache, given.lengths)
            exact = reference.draft_chain(plain, *start, steps)
            peers = {}
            for name, chain in (("eager", peer_chain), ("compile", compiler(peer_chain))):
                # A compiled chain's outputs are its graph's own.
                check(name, *(t.clone() for t in chain(plain, given, steps)), exact)
                peers[name] = timer(partial(chain, plain, given, steps)) / steps
            for form in formats:
                weights = quantised(plain, form)
                own = own_chain(weights, given, steps)
                right = reference.draft_chain(weights, *start, steps)
                check("leeboard", own.tokens, own.scores, right)
                seconds = timer(partial(own_chain, weights, given, steps)) / steps
                floor = copy_seconds(weight_bytes(weights))
                rows.append(Row(form, batch, {"leeboard": seconds, **peers}, floor))
    return rows
