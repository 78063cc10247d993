"""Attention of a drafter's training unroll: checks, dispatch, autograd and fake tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from leeboard import _C, reference
from leeboard.ops import _check
from leeboard.ops._library import (
    check_out,
    choose,
    define,
    overlaps,
    run_kernel,
    takes_reference,
)
from leeboard.ops._sparse_call import require_memory, rows, wide
from leeboard.ops._state import direct_level, state
from leeboard.ops._ttt_call import (
    backward_on_triton,
    check_call,
    documents_of,
    forward_on_triton,
)


def ttt_attention(
    q: Tensor,
    k: Tensor | Sequence[Tensor],
    v: Tensor | Sequence[Tensor],
    *,
    window: int | None = None,
    sinks: int = 0,
    cu_seqlens: Tensor | None = None,
    scale: float | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Attention of a drafter that is trained as it will be used, one chain step after another.

    In step s row t sees the keys of step 0 of the rows c <= t of its document, and of its own row
    those of steps 1 to s, which stand for the tokens that it would have drafted before. One softmax
    over both. With `window`, a key of step 0 is in sight if t + s - c < window, or if c is among
    the first `sinks` rows of the document; own keys always are. Query head h reads key-value head
    h // (Hq / Hkv). No [T, T] tensor is made, but by the reference: memory is linear in T.
    Sources: see `leeboard.reference.ttt_attention`.

    Products, softmax and sums are float32 (float64 for float64 inputs). Weights of step-0 keys are
    rounded to the storage dtype before they meet v where the processor multiplies in it, their sum
    is not; the result is rounded once.

    Args:
        q: The queries of the last step, [B, Hq, T, D], which an unroll calls for step after step;
            or those of all steps, [S, B, Hq, T, D]. 1 <= D <= 256; float32, bfloat16, float16
            (float64 by the reference). Any strides; with contiguous channels no copy is made.
        k: The keys of the S steps so far, S >= 1: [S, B, Hkv, T, D], or a sequence of tensors
            [B, Hkv, T, D]. Hq is a multiple of Hkv.
        v: The values, as k.
        window: Least distance out of sight, >= 1; None for none.
        sinks: Leading rows of a document whose step-0 keys stay in sight, >= 0.
        cu_seqlens: int32 or int64 [n + 1], ascending from 0 to B * T: the rows of all sequences,
            one after another, in documents that do not see each other. Every multiple of T is
            among the bounds. None: each sequence is one document. Its values are read: on a GPU
            that waits for the queue.
        scale: Of the scores; D ** -0.5 by default.
        out: Written and returned, if given: q's shape, dtype and device. Not differentiable.

    Returns:
        Tensor of q's shape and dtype: in q's memory layout where that is [B, T, Hq, D], else
        contiguous. Differentiable (once) in q and every key and value. Same inputs give
        bit-identical results whatever the thread count.

    Raises:
        TypeError, ValueError: For an argument that does not fit; the message names it.
        RuntimeError: If `out` is given while a gradient is wanted, or a forced backend cannot run.
    """
    done = _direct(q, k, v, window, sinks, cu_seqlens, scale, out)
    if done is not None:
        return done
    keys, values, window, scale = check_call(q, k, v, window, sinks, cu_seqlens, scale)
    if out is not None:
        _check.output("out", out, "q", q, q.shape)
        named = {f"k[{s}]": t for s, t in enumerate(keys)}
        named |= {f"v[{s}]": t for s, t in enumerate(values)}
        check_out("ttt_attention", q=q, **named, out=out)
    elif takes_reference("ttt_attention"):
        documents_of(q, cu_seqlens)
        return reference.ttt_attention(
            q, k, v, window=window, sinks=sinks, cu_seqlens=cu_seqlens, scale=scale
        )
    options = (window, sinks, cu_seqlens, scale)
    call = torch.ops.leeboard.ttt_attention
    if q.dim() == 4:
        result: Tensor = call(q, keys, values, *options)[0]
    else:
        steps = enumerate(q.unbind(), start=1)
        result = torch.stack([call(one, keys[:s], values[:s], *options)[0] for s, one in steps])
    return result if out is None else out.copy_(result)


def _direct(
    q: Any,
    k: Any,
    v: Any,
    window: Any,
    sinks: Any,
    cu_seqlens: Tensor | None,
    scale: float | None,
    out: Tensor | None,
) -> Tensor | None:
    """The result without torch's dispatcher and most checks, or None where they are needed."""
    if not isinstance(q, Tensor) or q.dim() != 4 or q.numel() == 0:
        return None
    for each in (k, v):
        if not isinstance(each, Tensor | list | tuple) or len(each) == 0:
            return None
    level = direct_level(q, *k, *v, cu_seqlens)
    if level is None or q.layout is not torch.strided or q.stride(3) != 1:
        return None
    if type(sinks) is not int or sinks < 0:
        return None
    if window is not None and (type(window) is not int or window < 1):
        return None
    if scale is None:
        scale = q.shape[3] ** -0.5
    elif type(scale) is not float or not math.isfinite(scale):
        return None
    if out is not None and (
        direct_level(out) is None or overlaps(out, q, *k, *v) or out.shape != q.shape
    ):
        return None
    if cu_seqlens is not None and (
        cu_seqlens.dtype not in (torch.int32, torch.int64)
        or cu_seqlens.dim() != 1
        or cu_seqlens.untyped_storage().nbytes() == 0
    ):
        return None
    documents = documents_of(q, cu_seqlens)
    made = _like(q) if out is None else out
    done = _C.ttt_attention_forward(
        q,
        list(k),
        list(v),
        made,
        None,
        documents.native(len(k) - 1, window, sinks),
        documents.tensor(),
        scale,
        level,
    )
    if not done:
        return None
    if out is not None:
        increment_version(out)
    return made


def _like(t: Tensor) -> Tensor:
    """A tensor of t's shape, in its layout if that is [B, H, T, D] or [B, T, H, D]."""
    if t.is_contiguous() or t.transpose(1, 2).is_contiguous():
        return torch.empty_like(t)
    return torch.empty(t.shape, dtype=t.dtype, device=t.device)


def _forward(
    q: Tensor,
    k: Sequence[Tensor],
    v: Sequence[Tensor],
    window: int | None,
    sinks: int,
    cu_seqlens: Tensor | None,
    scale: float | None,
) -> tuple[Tensor, Tensor]:
    require_memory(cu_seqlens=cu_seqlens)
    documents = documents_of(q, cu_seqlens)
    backend = choose("ttt_attention", [q, *k, *v])
    if backend == "reference" or q.numel() == 0:
        scores = reference.ttt_attention_scores(q, k, window, sinks, cu_seqlens, scale)
        exact = reference.ttt_attention(
            q, k, v, window=window, sinks=sinks, cu_seqlens=cu_seqlens, scale=scale
        )
        made, lse = _fake(q, k, v)
        return made.copy_(exact), lse.copy_(scores.logsumexp(-1))
    out, lse = _fake(q, k, v)
    keys, values = [rows(t) for t in k], [rows(t) for t in v]
    factor = q.shape[3] ** -0.5 if scale is None else scale
    if backend == "triton":
        forward_on_triton(rows(q), keys, values, out, lse, documents, window, sinks, factor)
    else:
        run_kernel(
            _C.ttt_attention_forward,
            [rows(q), keys, values],
            [out, lse],
            documents.native(len(k) - 1, window, sinks),
            documents.tensor(),
            factor,
            state().level,
        )
    return out, lse


def _fake(
    q: Tensor, k: Sequence[Tensor], v: Sequence[Tensor], *options: object
) -> tuple[Tensor, Tensor]:
    return _like(q), torch.empty(q.shape[:3], dtype=wide(q), device=q.device)


def _gradients(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    own_k: Tensor | None,
    own_v: Tensor | None,
    out: Tensor,
    lse: Tensor,
    window: int | None,
    sinks: int,
    cu_seqlens: Tensor | None,
    scale: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    require_memory(cu_seqlens=cu_seqlens)
    documents = documents_of(q, cu_seqlens)
    backend = choose("ttt_attention_backward", [q, k, v, grad_out])
    made = _fake_gradients(grad_out, q, k, v, own_k)
    keys, values = [k], [v]
    if own_k is not None and own_v is not None:
        keys, values = [k, *own_k.unbind()], [v, *own_v.unbind()]
    grads = made[0], [made[1], *made[3].unbind()], [made[2], *made[4].unbind()]
    if backend == "reference" or q.numel() == 0:
        exact = reference.ttt_attention_backward(
            grad_out,
            q,
            keys,
            values,
            out,
            lse,
            window=window,
            sinks=sinks,
            cu_seqlens=cu_seqlens,
            scale=scale,
        )
        for to, each in zip(_flat(grads), _flat(exact), strict=True):
            to.copy_(each)
        return made
    keys, values = [rows(t) for t in keys], [rows(t) for t in values]
    given = (rows(grad_out), rows(q), keys, values, rows(out), lse.contiguous())
    factor = q.shape[3] ** -0.5 if scale is None else scale
    if backend == "triton":
        backward_on_triton(*given, grads, documents, window, sinks, factor)
        return made
    run_kernel(
        _C.ttt_attention_backward,
        given,
        grads,
        documents.native(len(keys) - 1, window, sinks),
        documents.tensor(),
        factor,
        state().level,
    )
    return made


def _flat(grads: tuple[Tensor, list[Tensor], list[Tensor]]) -> list[Tensor]:
    return [grads[0], *grads[1], *grads[2]]


def _fake_gradients(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, own_k: Tensor | None, *others: object
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    steps = 0 if own_k is None else own_k.shape[0]
    return _like(q), _like(k), _like(v), _several_like(k, steps), _several_like(v, steps)


def _several_like(t: Tensor, count: int) -> Tensor:
    """[count, B, H, T, D], each in the layout of `_like`."""
    if t.is_contiguous() or not t.transpose(1, 2).is_contiguous():
        return torch.empty((count, *t.shape), dtype=t.dtype, device=t.device)
    batch, heads, length, channels = t.shape
    size = (count, batch, length, heads, channels)
    return torch.empty(size, dtype=t.dtype, device=t.device).transpose(2, 3)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, *ctx.options, cu_seqlens, ctx.scale = inputs
    ctx.steps = len(k)
    ctx.save_for_backward(q, *k, *v, *output, cu_seqlens)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad_out: Tensor, _: Tensor | None) -> tuple[Any, ...]:
    q, *others = ctx.saved_tensors
    k, v, rest = others[: ctx.steps], others[ctx.steps : 2 * ctx.steps], others[2 * ctx.steps :]
    out, lse, cu_seqlens = rest
    # Cotangents in batches (is_grads_batched) want tensors for arguments and results, no lists.
    grad_q, grad_k, grad_v, grad_own_k, grad_own_v = torch.ops.leeboard.ttt_attention_backward(
        grad_out,
        q,
        k[0],
        v[0],
        _together(k[1:]),
        _together(v[1:]),
        out,
        lse,
        *ctx.options,
        cu_seqlens,
        ctx.scale,
    )
    grads = [grad_k, *grad_own_k.unbind()], [grad_v, *grad_own_v.unbind()]
    return (grad_q, *grads, *[None] * 4)


def _together(steps: Sequence[Tensor]) -> Tensor | None:
    """[S - 1, B, Hkv, T, D]; a single step is not copied."""
    if len(steps) == 0:
        return None
    return steps[0][None] if len(steps) == 1 else torch.stack(list(steps))


OPTIONS = "int? window, int sinks, Tensor? cu_seqlens, float? scale"

define(
    f"ttt_attention(Tensor q, Tensor[] k, Tensor[] v, {OPTIONS}) -> (Tensor, Tensor)",
    _forward,
    _fake,
    # Batches are no rows: their rows are counted by the documents' bounds.
    row_arguments=(),
    setup_context=_setup_context,
    backward=_backward,
)

define(
    "ttt_attention_backward(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor? own_k, "
    f"Tensor? own_v, Tensor out, Tensor lse, {OPTIONS}) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor)",
    _gradients,
    _fake_gradients,
    row_arguments=(),
)
