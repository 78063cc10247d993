"""What the heads share: checks, dispatch and fake tensors of linear_argmax and linear_topk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from leeboard import _C, reference
from leeboard.ops import _check
from leeboard.ops._library import as_matrix, check_out, choose, kernels, run_kernel, takes_reference
from leeboard.ops._state import Backend, direct_level, state
from leeboard.ops._weights import (
    check_weight,
    from_arguments,
    named_parts,
    refusals,
    to_arguments,
    to_kernel,
    to_triton,
)
from leeboard.reference import Weight

# The most tokens that the kernels keep of a row.
KERNEL_TOP = 64


def call(
    op: str,
    x: Tensor,
    weight: Weight,
    k: int | None,
    d2t: Tensor | None,
    logsumexp: bool,
    out: tuple[Tensor, ...] | None,
) -> tuple[Tensor, ...]:
    """A public head: (index, value) or (index, value, lse). Without k they are [...], not [..., k]."""
    width = _check.rows("x", x)
    vocabulary = check_weight("weight", weight, x, None, width, f"[V, {width}] with V >= 1")
    if k is not None and k > vocabulary:
        raise ValueError(f"k: {k} was given; expected at most {vocabulary}, the rows of weight")
    if d2t is not None:
        _check.integers("d2t", d2t, "x", x)
        _check.shape("d2t", d2t, (vocabulary,), "the vocabulary of weight")
    if not isinstance(logsumexp, bool):
        raise TypeError(f"logsumexp: expected True or False, got {type(logsumexp).__name__}")
    _check.no_grad(op, "is inference-only", x=x, **named_parts("weight", weight))
    if out is not None:
        _check_out(op, x, k, logsumexp, out)
    matrices, (text,) = to_arguments([weight])
    counts = () if k is None else (k,)
    wanted = 3 if logsumexp else 2
    if out is None and direct_level(x, d2t, *matrices) is not None:
        return compute(op, x, matrices, text, k, d2t, logsumexp)[:wanted]
    if out is None and takes_reference(op):
        return _reference(op, x, weight, k, d2t, logsumexp)
    made: tuple[Tensor, ...] = getattr(torch.ops.leeboard, op)(
        x, matrices, text, *counts, d2t, logsumexp
    )[:wanted]
    if out is None:
        return made
    return tuple(given.copy_(fresh) for given, fresh in zip(out, made, strict=True))


def _check_out(op: str, x: Tensor, k: int | None, logsumexp: bool, out: tuple[Tensor, ...]) -> None:
    if logsumexp:
        _check.several("out", out, 3)
    else:
        _check.pair("out", out)
    rows = x.shape[:-1]
    size = rows if k is None else (*rows, k)
    meaning = "the leading dimensions of x" + ("" if k is None else " and k")
    _check.integers("out[0]", out[0], "x", x)
    _check.shape("out[0]", out[0], size, meaning)
    _check.values("out[1]", out[1], x)
    _check.shape("out[1]", out[1], size, meaning)
    if logsumexp:
        _check.values("out[2]", out[2], x)
        _check.shape("out[2]", out[2], rows, "the leading dimensions of x")
    for i, tensor in enumerate(out):
        _check.memory(f"out[{i}]", tensor)
    check_out(op, **{f"out[{i}]": tensor for i, tensor in enumerate(out) if i > 0})


def _reference(
    op: str, x: Tensor, weight: Weight, k: int | None, d2t: Tensor | None, logsumexp: bool
) -> tuple[Tensor, ...]:
    if k is None:
        return reference.linear_argmax(x, weight, d2t=d2t, logsumexp=logsumexp)
    return reference.linear_topk(x, weight, k, d2t=d2t, logsumexp=logsumexp)


def compute(
    op: str,
    x: Tensor,
    matrices: Sequence[Tensor],
    text: str,
    k: int | None,
    d2t: Tensor | None,
    logsumexp: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(index, value, lse), lse [..., 0] where it is not asked for."""
    refused: dict[Backend, str] = dict(refusals(text))
    if k is not None and k > KERNEL_TOP:
        for name in ("cpu", "triton"):
            refused[name] = f"the {name} kernels keep at most {KERNEL_TOP} tokens, not k = {k}"
    backend = choose(op, [x], refusals=refused)
    index, value, lse = described(x, k, logsumexp)
    if index.numel() == 0:
        return index, value, lse
    (weight,) = from_arguments(matrices, [text], [x.shape[-1]])
    if backend == "reference":
        made = _reference(op, x, weight, k, d2t, logsumexp)
        for given, fresh in zip((index, value, lse), made, strict=False):
            given.copy_(fresh)
        return index, value, lse
    flat_lse = lse.view(-1) if logsumexp else None
    if backend == "triton":
        size = (-1,) if k is None else (-1, k)
        kernels(op).forward(
            as_matrix(x),
            to_triton(weight),
            index.view(size),
            value.view(size),
            None if d2t is None else d2t.contiguous(),
            flat_lse,
        )
        return index, value, lse
    parts, _ = to_kernel(weight)
    run_kernel(
        _C.linear_topk_forward,
        [x, *parts, d2t],
        [index.view(-1, k or 1), value.view(-1, k or 1), flat_lse],
        text,
        state().level,
    )
    return index, value, lse


def described(x: Tensor, k: int | None, logsumexp: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs of the registered op, not filled."""
    wide: Any = torch.promote_types(x.dtype, torch.float32)
    rows = x.shape[:-1]
    size = rows if k is None else (*rows, k)
    return (
        torch.empty(size, dtype=torch.int64, device=x.device),
        torch.empty(size, dtype=wide, device=x.device),
        torch.empty(rows if logsumexp else (*rows, 0), dtype=wide, device=x.device),
    )
