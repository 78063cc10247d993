"""Grouped-query attention under a pattern: checks, dispatch, autograd and fake tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from leeboard import _C, reference
from leeboard.ops import _check, patterns
from leeboard.ops._attention_plan import plan_for
from leeboard.ops._library import (
    check_out,
    choose,
    define,
    kernels,
    overlaps,
    run_kernel,
    takes_reference,
)
from leeboard.ops._sparse_backward import OPTIONS
from leeboard.ops._sparse_call import (
    Segments,
    as_heads,
    dense,
    kernel_options,
    plain_sample,
    require_memory,
    rows,
    top_u_sample,
    wide,
)
from leeboard.ops._sparse_checks import LEAST_SOFTCAP, check_call, heads_of
from leeboard.ops._state import direct_level, state


@overload
def sparse_gqa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: patterns.Pattern,
    *,
    scale: float | None = ...,
    active_heads: Sequence[int] | None = ...,
    key_padding: Tensor | None = ...,
    cu_seqlens: Tensor | None = ...,
    cu_seqlens_k: Tensor | None = ...,
    softcap: float | None = ...,
    sink_logits: Tensor | None = ...,
    return_lse: Literal[False] = ...,
    out: Tensor | None = ...,
) -> Tensor: ...


@overload
def sparse_gqa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: patterns.Pattern,
    *,
    scale: float | None = ...,
    active_heads: Sequence[int] | None = ...,
    key_padding: Tensor | None = ...,
    cu_seqlens: Tensor | None = ...,
    cu_seqlens_k: Tensor | None = ...,
    softcap: float | None = ...,
    sink_logits: Tensor | None = ...,
    return_lse: Literal[True],
    out: Tensor | None = ...,
) -> tuple[Tensor, Tensor]: ...


@overload
def sparse_gqa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: patterns.Pattern,
    *,
    scale: float | None = ...,
    active_heads: Sequence[int] | None = ...,
    key_padding: Tensor | None = ...,
    cu_seqlens: Tensor | None = ...,
    cu_seqlens_k: Tensor | None = ...,
    softcap: float | None = ...,
    sink_logits: Tensor | None = ...,
    return_lse: bool,
    out: Tensor | None = ...,
) -> Tensor | tuple[Tensor, Tensor]: ...


def sparse_gqa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: patterns.Pattern,
    *,
    scale: float | None = None,
    active_heads: Sequence[int] | None = None,
    key_padding: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    softcap: float | None = None,
    sink_logits: Tensor | None = None,
    return_lse: bool = False,
    out: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Grouped-query attention whose time follows a pattern: what is out of sight is not computed.

    out[i] = sum_j w[i, j] v[j] / sum_j w[i, j] over the keys j that `pattern` shows to query i,
    w = exp(s - max s), s = scale * q[i] . k[j], or softcap * tanh(s / softcap). Query head h reads
    key-value head h // (Hq / Hkv). A row that sees no key gives zeros and -inf (the sink's logit
    where there is one), and zero gradients. No [Lq, Lk] tensor is made, but by the reference.
    Sources: see `leeboard.reference.sparse_gqa`.

    Products, softmax and sums are float32 (float64 for float64 inputs). Weights are rounded to the
    storage dtype before they meet v, their sum is not; the result is rounded once.

    Args:
        q: [B, Hq, Lq, D], 1 <= D <= 256; float32, bfloat16, float16 (float64 by the reference). Hq
            is a multiple of Hkv. Any strides; with contiguous channels no copy is made.
        k: [B, Hkv, Lk, D] of q's dtype. Where Lk != Lq the last query is aligned with the last key.
        v: [B, Hkv, Lk, D] of q's dtype.
        pattern: One of `leeboard.ops.patterns`.
        scale: Of the scores; D ** -0.5 by default.
        active_heads: The query heads to compute, ascending; all by default. Others cost nothing:
            zeros, -inf, zero gradients.
        key_padding: bool [B, Lk], true for keys that nobody sees, as `key_padding_mask` of
            `torch.nn.MultiheadAttention`. What they hold must be finite.
        cu_seqlens: int32 or int64 [n + 1], ascending from 0 to Lq, for B = 1: rows cu_seqlens[s] to
            cu_seqlens[s + 1] are a sequence of its own, which the pattern applies to. Its values
            are read: on a GPU that waits for the queue.
        cu_seqlens_k: The same for the keys; `cu_seqlens` by default.
        softcap: Bound of the scores, > 0; none by default.
        sink_logits: float32 [Hq] (float64 for float64 inputs): one more logit in the softmax of
            each head, whose value is zero.
        return_lse: Whether the log-sum-exp of the scores, sink included, is returned, too.
        out: Written and returned, if given: q's shape, dtype and device. Not differentiable.

    Returns:
        Tensor [B, Hq, Lq, D] of q's dtype, contiguous unless `out` is given; with `return_lse` also
        float32 [B, Hq, Lq] (float64 for float64 inputs), natural logarithms. Differentiable (once)
        in q, k, v and sink_logits through both; which queries a TopU chooses is constant. Same
        inputs give bit-identical results whatever the thread count.

    Raises:
        TypeError, ValueError: For an argument that does not fit; the message names it.
        RuntimeError: If `out` is given while a gradient is wanted, or a forced backend cannot run.
    """
    if cu_seqlens is None and cu_seqlens_k is None:
        done = _direct(
            q,
            k,
            v,
            pattern,
            scale,
            active_heads,
            key_padding,
            softcap,
            sink_logits,
            return_lse,
            out,
        )
        if done is not None:
            return done
    scale, heads, softcap = check_call(
        q,
        k,
        v,
        pattern,
        scale,
        active_heads,
        key_padding,
        cu_seqlens,
        cu_seqlens_k,
        softcap,
        sink_logits,
    )
    if out is not None:
        _check.output("out", out, "q", q, q.shape)
        check_out("sparse_gqa", q=q, k=k, v=v, sink_logits=sink_logits, out=out)
    elif takes_reference("sparse_gqa"):
        Segments.of(q, k, cu_seqlens, cu_seqlens_k).check(pattern)
        return reference.sparse_gqa(
            q,
            k,
            v,
            pattern,
            scale=scale,
            active_heads=heads,
            key_padding=key_padding,
            cu_seqlens=cu_seqlens,
            cu_seqlens_k=cu_seqlens_k,
            softcap=softcap,
            sink_logits=sink_logits,
            return_lse=return_lse,
        )
    y, lse, _ = torch.ops.leeboard.sparse_gqa(
        q,
        k,
        v,
        pattern.code,
        scale,
        heads,
        key_padding,
        cu_seqlens,
        cu_seqlens_k,
        softcap,
        sink_logits,
    )
    if out is not None:
        y = out.copy_(y)
    return (y, lse) if return_lse else y


def _direct(
    q: Any,
    k: Any,
    v: Any,
    pattern: object,
    scale: float | None,
    active_heads: Sequence[int] | None,
    key_padding: Tensor | None,
    softcap: float | None,
    sink_logits: Tensor | None,
    return_lse: bool,
    out: Tensor | None,
) -> Tensor | tuple[Tensor, Tensor] | None:
    """The result without torch's dispatcher and most checks, or None where they are needed."""
    level = direct_level(q, k, v, key_padding, sink_logits)
    if level is None or k is None or v is None or not isinstance(pattern, patterns.Pattern):
        return None
    size, key_size = q.shape, k.shape
    if len(size) != 4 or len(key_size) != 4 or 0 in size or 0 in key_size:
        return None
    batch, query_heads, queries, channels = size
    if scale is None:
        scale = channels**-0.5
    elif type(scale) is not float or not math.isfinite(scale):
        return None
    if softcap is None:
        softcap = 0.0
    elif type(softcap) is not float or not LEAST_SOFTCAP <= softcap < math.inf:
        return None
    heads = None if active_heads is None else heads_of(active_heads, query_heads)
    if q.layout is not torch.strided:
        return None
    if out is None:
        # Sooner done than torch.empty of a size.
        y = torch.empty_like(q, memory_format=torch.contiguous_format)
    elif (
        direct_level(out) is None
        or not out.is_contiguous()
        or overlaps(out, *(t for t in (q, k, v, key_padding, sink_logits) if t is not None))
    ):
        return None
    else:
        y = out
    lse = torch.empty(size[:3], dtype=torch.float32) if return_lse else None
    if isinstance(pattern, patterns.TopU):
        if key_padding is not None:
            return None
        sample, counts = plain_sample(pattern.code, batch, queries, key_size[2])
        done = _C.sparse_gqa_top_u(
            q,
            k,
            v,
            y,
            lse,
            torch.empty((batch, query_heads, pattern.queries(queries)), dtype=torch.int64),
            sample,
            counts,
            None,
            None,
            heads,
            None,
            sink_logits,
            scale,
            softcap,
            level,
        )
    else:
        done = _C.sparse_gqa_forward(
            q,
            k,
            v,
            y,
            lse,
            plan_for(pattern.code, queries, key_size[2]).alone,
            None,
            None,
            heads,
            key_padding,
            sink_logits,
            scale,
            softcap,
            level,
        )
    if not done:
        return None
    if out is not None:
        increment_version(out)
    return y if lse is None else (y, lse)


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    code: str,
    scale: float | None,
    active_heads: Sequence[int] | None,
    key_padding: Tensor | None,
    cu_seqlens: Tensor | None,
    cu_seqlens_k: Tensor | None,
    softcap: float | None,
    sink_logits: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    require_memory(
        key_padding=key_padding,
        cu_seqlens=cu_seqlens,
        cu_seqlens_k=cu_seqlens_k,
        sink_logits=sink_logits,
    )
    pattern = patterns.decode(code)
    segments = Segments.of(q, k, cu_seqlens, cu_seqlens_k)
    segments.check(pattern)
    backend = choose("sparse_gqa", [q, k, v])

    if backend == "reference" or q.numel() == 0 or k.numel() == 0:
        exact = reference.sparse_gqa_parts(
            q,
            k,
            v,
            pattern,
            scale=scale,
            active_heads=active_heads,
            key_padding=key_padding,
            cu_seqlens=cu_seqlens,
            cu_seqlens_k=cu_seqlens_k,
            softcap=softcap,
            sink_logits=sink_logits,
        )
        return exact[0].contiguous(), exact[1].contiguous(), exact[2]
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:3], dtype=wide(q), device=q.device)
    arguments = [rows(q), rows(k), rows(v)]
    last = (
        as_heads(active_heads),
        None if key_padding is None else rows(key_padding),
        dense(sink_logits),
        *kernel_options(scale, softcap, q.shape[3]),
    )
    if isinstance(pattern, patterns.TopU):
        sample, counts = top_u_sample(pattern, segments, key_padding)
        size = (len(counts), q.shape[1], pattern.queries(q.shape[2]))
        chosen = torch.full(size, -1, device=q.device)
        if backend == "triton":
            kernels("sparse_gqa").top_u(
                *arguments,
                out,
                lse,
                chosen,
                sample.to(q.device),
                counts.tolist(),
                segments.cu_q,
                segments.cu_k,
                *last,
            )
        else:
            run_kernel(
                _C.sparse_gqa_top_u,
                arguments,
                [out, lse, chosen],
                sample,
                counts,
                *segments.tensors(),
                *last,
                state().level,
            )
        return out, lse, chosen
    plans = segments.plans(code)
    if backend == "triton":
        kernels("sparse_gqa").forward(
            *arguments, out, lse, plans, segments.cu_q, segments.cu_k, *last
        )
    else:
        run_kernel(
            _C.sparse_gqa_forward,
            arguments,
            [out, lse],
            [plan.native for plan in plans],
            *segments.tensors(),
            *last,
            state().level,
        )
    return out, lse, torch.empty(0, dtype=torch.int64, device=q.device)


def _fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    code: str,
    scale: float | None,
    active_heads: Sequence[int] | None,
    key_padding: Tensor | None,
    cu_seqlens: Tensor | None,
    cu_seqlens_k: Tensor | None,
    softcap: float | None,
    sink_logits: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    pattern = patterns.decode(code)
    size: tuple[int, ...] = (0,)
    if isinstance(pattern, patterns.TopU):
        segments = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
        size = (segments, q.shape[1], pattern.queries(int(q.shape[2])))
    return (
        torch.empty(q.shape, dtype=q.dtype, device=q.device),
        torch.empty(q.shape[:3], dtype=wide(q), device=q.device),
        torch.empty(size, dtype=torch.int64, device=q.device),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, ctx.code, ctx.scale, ctx.heads, padding, cu, cu_k, ctx.softcap, sinks = inputs
    ctx.save_for_backward(q, k, v, *output, padding, cu, cu_k, sinks)
    # A log-sum-exp that nobody uses has no gradient: then the kernels add none.
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    q, k, v, out, lse, chosen, padding, cu, cu_k, sinks = ctx.saved_tensors
    grads = torch.ops.leeboard.sparse_gqa_backward(
        torch.zeros_like(out) if grad_out is None else grad_out,
        grad_lse,
        q,
        k,
        v,
        out,
        lse,
        chosen,
        ctx.code,
        ctx.scale,
        ctx.heads,
        padding,
        cu,
        cu_k,
        ctx.softcap,
        sinks,
    )
    return (*grads[:3], *[None] * 7, None if sinks is None else grads[3])


define(
    f"sparse_gqa(Tensor q, Tensor k, Tensor v, {OPTIONS}) -> (Tensor, Tensor, Tensor)",
    _forward,
    _fake,
    # Batches are no rows: a head count or a bound may belong to each sample.
    row_arguments=(),
    setup_context=_setup_context,
    backward=_backward,
)
