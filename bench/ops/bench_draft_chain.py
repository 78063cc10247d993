"""draft_chain: chains of an EAGLE-3 head of real size, in several weight formats, and of a small one.

The limit is reading the weights of every step, and the visible cache, once. The rivals multiply with
bfloat16 (or float32) weights whatever the format: that is what PyTorch offers at these shapes.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.cases import Aim, Case, Inputs, Prepared, Subject, Variant
from bench.grid import Measure, Point, grid
from leeboard import reference
from leeboard.ops import DrafterWeights, Weight, quantize_weight
from leeboard.reference._drafter import MATRICES

STEPS = 6
# Bits of a weight with its share of the scales.
FORMATS = {"bfloat16": 16.0, "float32": 32.0, "int8": 8.0, "int4": 4.125}


@dataclasses.dataclass(frozen=True)
class Head:
    """Sizes of a drafter, and the rows of its cache."""

    hidden: int
    inner: int
    heads: int
    kv_heads: int
    width: int
    vocabulary: int
    context: int

    @property
    def weights(self) -> int:
        """Numbers in the matrices of a step."""
        attention = (
            2 * self.heads + 2 * (self.heads + 2 * self.kv_heads) - self.heads
        ) * self.width
        return self.hidden * (attention + 3 * self.inner + self.vocabulary)


REAL = Head(4096, 14336, 32, 8, 128, 32000, 1024)
SMALL = Head(512, 1792, 8, 4, 64, 4096, 256)


def _case(head: Head, form: str, batch: int = 1, aim: Aim | None = None) -> Case:
    dtype = torch.float32 if form == "float32" else torch.bfloat16
    shape = {"B": batch, "H": head.hidden, "V": head.vocabulary, "L": head.context}
    if form in ("int8", "int4"):
        shape["bits"] = int(FORMATS[form])
    cache = 2 * batch * head.kv_heads * head.context * head.width * dtype.itemsize
    return Case(
        op="draft_chain",
        shape=shape,
        dtype=dtype,
        direction="forward",
        read=STEPS * (int(head.weights * FORMATS[form] / 8) + cache),
        written=0,
        flops=STEPS * batch * 2 * head.weights,
        streams=(1, 0),
        aim=aim,
        quick=batch == 1,
    )


def _form(case: Case) -> str:
    bits = case.shape.get("bits")
    return case.dtype_name if bits is None else f"int{bits}"


def _inputs(case: Case, device: torch.device) -> Inputs:
    head = REAL if case.shape["H"] == REAL.hidden else SMALL
    batch, dtype = case.shape["B"], case.dtype

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, dtype=dtype, device=device) * scale

    def matrix(rows: int, columns: int, gain: float = 1.0) -> Tensor:
        return normal(rows, columns, scale=gain * columns**-0.5)

    hidden, queries, kv = head.hidden, head.heads * head.width, head.kv_heads * head.width
    positions = torch.arange(head.context + STEPS, device=device)
    frequencies = 1e4 ** (-torch.arange(0, head.width, 2, device=device) / head.width)
    angles = torch.outer(positions.float(), frequencies)
    weights = DrafterWeights(
        embedding=normal(head.vocabulary, hidden),
        input_norm=torch.ones(hidden, dtype=dtype, device=device),
        hidden_norm=torch.ones(hidden, dtype=dtype, device=device),
        post_norm=torch.ones(hidden, dtype=dtype, device=device),
        norm=torch.ones(hidden, dtype=dtype, device=device),
        q=matrix(queries, 2 * hidden),
        k=matrix(kv, 2 * hidden),
        v=matrix(kv, 2 * hidden),
        o=matrix(hidden, queries),
        gate=matrix(head.inner, hidden),
        up=matrix(head.inner, hidden),
        down=matrix(hidden, head.inner),
        head=matrix(head.vocabulary, hidden, 4.0),
        cos=angles.cos(),
        sin=angles.sin(),
    )
    form = _form(case)
    if form in ("int8", "int4"):
        few = {name: quantize_weight(getattr(weights, name), form) for name in MATRICES}
        weights = dataclasses.replace(weights, **few)
    cache = (batch, head.kv_heads, head.context + STEPS, head.width)
    return Inputs(
        (
            weights,
            normal(batch, hidden),
            torch.randint(0, head.vocabulary, (batch,), device=device),
            normal(*cache),
            normal(*cache),
            torch.full((batch,), head.context, device=device),
            STEPS,
        )
    )


def _plain(inputs: Inputs) -> Inputs:
    """With weights as PyTorch's own linear layers take them."""
    weights, *rest = inputs.args
    dtype = weights.norm.dtype

    def matrix(weight: Weight) -> Tensor:
        return weight if isinstance(weight, Tensor) else weight.dequantize(dtype)

    changed = {name: matrix(getattr(weights, name)) for name in MATRICES}
    return Inputs((dataclasses.replace(weights, **changed), *rest))


def _eager(
    weights: DrafterWeights,
    state: Tensor,
    token: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    steps: int,
) -> tuple[Tensor, Tensor]:
    # A user's loop: rows all at one length, which is known as a number; the cache takes the rows.
    w, dtype = weights, state.dtype
    batch, hidden = state.shape
    length = k_cache.shape[2] - steps
    width = w.head_dim
    tokens, states = [], []
    x = state
    for at in range(length, length + steps):
        embedded = F.rms_norm(F.embedding(token, w.embedding), (hidden,), w.input_norm, w.eps)
        normed = F.rms_norm(x, (hidden,), w.hidden_norm, w.eps)
        joined = torch.cat((embedded, normed), -1)
        c = torch.cat([w.cos[at]] * 2).to(dtype)
        s = torch.cat([w.sin[at]] * 2).to(dtype)

        def rotate(t: Tensor, c: Tensor = c, s: Tensor = s) -> Tensor:
            a, b = t.chunk(2, -1)
            return t * c + torch.cat((-b, a), -1) * s

        q, k, v = (F.linear(joined, m).view(batch, -1, 1, width) for m in (w.q, w.k, w.v))
        k_cache[:, :, at : at + 1] = rotate(k)
        v_cache[:, :, at : at + 1] = v
        attended = F.scaled_dot_product_attention(
            rotate(q), k_cache[:, :, : at + 1], v_cache[:, :, : at + 1], enable_gqa=True
        )
        r = x + F.linear(attended.flatten(1), w.o)
        n = F.rms_norm(r, (hidden,), w.post_norm, w.eps)
        r = r + F.linear(F.silu(F.linear(n, w.gate)) * F.linear(n, w.up), w.down)
        x = F.rms_norm(r, (hidden,), w.norm, w.eps)
        token = F.linear(x, w.head).argmax(-1)
        tokens.append(token)
        states.append(x)
    return torch.stack(tokens, 1), torch.stack(states, 1)


def _check(prepared: Prepared, variant: Variant, result: tuple[Tensor, ...]) -> None:
    """The same tokens as the reference, as far as the first rounding that tips one over."""
    if "draft" not in prepared.kept:
        prepared.kept["draft"] = reference.draft_chain(*prepared.inputs.args)
    expected = prepared.kept["draft"]
    states = result[-1]
    same = (result[0] == expected.tokens).long().cumprod(1).sum(1)
    for b, count in enumerate(same.tolist()):
        # The peers round after every operation; leeboard does not, and must agree to the end.
        assert count == STEPS or (variant not in ("leeboard", "leeboard-out") and count >= 1)
        known = min(count + 1, STEPS)
        error = (states[b, :known].float() - expected.states[b, :known].float()).square().mean()
        scale = expected.states[b, :known].float().square().mean()
        bound = 1e-2 if states.dtype == torch.float32 else 5e-2
        assert float((error / scale).sqrt()) < bound


SUBJECT = Subject(
    op="draft_chain",
    cases=[
        _case(REAL, "bfloat16", aim=Aim(share=0.9, compiled=True)),
        _case(REAL, "int8"),
        _case(REAL, "int4"),
        _case(REAL, "bfloat16", batch=8),
        _case(SMALL, "float32"),
        _case(SMALL, "bfloat16"),
    ],
    inputs=_inputs,
    eager=_eager,
    check=_check,
    plain=_plain,
)


@pytest.mark.parametrize("point", grid(SUBJECT))
def test_draft_chain(measure: Measure, point: Point) -> None:
    measure(SUBJECT, point)
