"""The backward of sparse attention, an op of its own: dispatch, and what is composed of others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from leeboard import _C, reference
from leeboard.ops import patterns
from leeboard.ops._library import choose, define, kernels, run_kernel
from leeboard.ops._sparse_call import (
    Segments,
    as_heads,
    dense,
    kernel_options,
    rows,
    wide,
)
from leeboard.ops._state import state

_DENSE = patterns.Dense().code

# Of the schemas of forward and backward.
OPTIONS = (
    "str pattern, float? scale, int[]? active_heads, Tensor? key_padding, Tensor? cu_seqlens, "
    "Tensor? cu_seqlens_k, float? softcap, Tensor? sink_logits"
)


def _gradients(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    chosen: Tensor,
    code: str,
    scale: float | None,
    active_heads: Sequence[int] | None,
    key_padding: Tensor | None,
    cu_seqlens: Tensor | None,
    cu_seqlens_k: Tensor | None,
    softcap: float | None,
    sink_logits: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    given = (grad_out, grad_lse, q, k, v, out, lse, chosen)
    options = (scale, active_heads, key_padding, cu_seqlens, cu_seqlens_k, softcap, sink_logits)
    if patterns.decode(code).kind == "top_u":
        return _top_u_gradients(*given, *options)
    return (
        *_masked_gradients(*given[:7], code, *options[:-1]),
        _sink_gradient(*given, sink_logits),
    )


def _masked_gradients(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    code: str,
    scale: float | None,
    active_heads: Sequence[int] | None,
    key_padding: Tensor | None,
    cu_seqlens: Tensor | None,
    cu_seqlens_k: Tensor | None,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v under any pattern but TopU."""
    segments = Segments.of(q, k, cu_seqlens, cu_seqlens_k)
    backend = choose("sparse_gqa_backward", [q, k, v, grad_out])

    if backend == "reference" or q.numel() == 0 or k.numel() == 0:
        exact = reference.sparse_gqa_backward(
            grad_out,
            grad_lse,
            q,
            k,
            v,
            out,
            lse,
            patterns.decode(code),
            scale=scale,
            active_heads=active_heads,
            key_padding=key_padding,
            cu_seqlens=cu_seqlens,
            cu_seqlens_k=cu_seqlens_k,
            softcap=softcap,
        )
        return exact[0].to(q.dtype), exact[1].to(k.dtype), exact[2].to(v.dtype)
    grads = [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (q, k, v)]
    arguments = [
        rows(grad_out),
        dense(grad_lse),
        *(rows(t) for t in (q, k, v)),
        rows(out),
        dense(lse),
    ]
    plans = segments.plans(code)
    last = (
        as_heads(active_heads),
        None if key_padding is None else rows(key_padding),
        *kernel_options(scale, softcap, q.shape[3]),
    )
    if backend == "triton":
        kernels("sparse_gqa").backward(
            *arguments, *grads, plans, segments.cu_q, segments.cu_k, *last
        )
    else:
        run_kernel(
            _C.sparse_gqa_backward,
            arguments,
            grads,
            [plan.native for plan in plans],
            *segments.tensors(),
            *last,
            state().level,
        )
    return grads[0], grads[1], grads[2]


def _sink_gradient(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    chosen: Tensor,
    sink_logits: Tensor | None,
) -> Tensor:
    """Of the sinks, whose value is zero: sum over rows of p_sink (grad_lse - sum(grad_out out))."""
    # An op returns tensors: without sinks this one is empty.
    if sink_logits is None:
        return torch.empty(0, dtype=wide(q), device=q.device)
    share = (sink_logits[None, :, None] - lse).exp().masked_fill(lse == float("-inf"), 0.0)
    grad = -(grad_out.to(lse.dtype) * out.to(lse.dtype)).sum(-1)
    if grad_lse is not None:
        grad = grad + grad_lse
    return (share * grad).sum(2).sum(0)


def _top_u_gradients(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    chosen: Tensor,
    scale: float | None,
    active_heads: Sequence[int] | None,
    key_padding: Tensor | None,
    cu_seqlens: Tensor | None,
    cu_seqlens_k: Tensor | None,
    softcap: float | None,
    sink_logits: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Dense attention of the chosen rows, put together; the others are means of v."""
    segments = Segments.of(q, k, cu_seqlens, cu_seqlens_k)
    index = chosen.clamp(min=0)
    cu_chosen = None
    if segments.cu_q is not None:
        # Rows of all segments in a row: each has as many in every head, and its own number.
        first = torch.tensor(segments.cu_q, device=q.device)[:-1]
        counted = (chosen >= 0).any(1)
        index = (index + first[:, None, None]).transpose(0, 1)[:, counted][None]
        index = index.clamp(max=max(q.shape[2] - 1, 0))
        cu_chosen = torch.zeros(counted.shape[0] + 1, dtype=torch.int64)
        cu_chosen[1:] = counted.sum(1).cumsum(0)
        cu_seqlens_k = cu_seqlens if cu_seqlens_k is None else cu_seqlens_k
    wide_index = index[..., None].expand(*index.shape, q.shape[3])
    best_grad, best_q, best_out = (t.gather(2, wide_index) for t in (grad_out, q, out))
    best_lse = lse.gather(2, index)
    best_grad_lse = None if grad_lse is None else grad_lse.gather(2, index)
    grad_best, grad_k, grad_v = _masked_gradients(
        best_grad,
        best_grad_lse,
        best_q,
        k,
        v,
        best_out,
        best_lse,
        _DENSE,
        scale,
        active_heads,
        key_padding,
        cu_chosen,
        cu_seqlens_k,
        softcap,
    )
    # Rows that stand for none (nothing is in sight, or the head is idle) all name row 0; their
    # gradients are zero.
    grad_q = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    grad_q.scatter_(2, wide_index, grad_best)
    grad_sinks = _sink_gradient(
        best_grad, best_grad_lse, best_q, k, v, best_out, best_lse, chosen, sink_logits
    )

    mean_grad = grad_out.to(lse.dtype).scatter(2, wide_index, 0.0)
    if active_heads is not None:
        idle = torch.ones(q.shape[1], dtype=torch.bool, device=q.device)
        idle[list(active_heads)] = False
        mean_grad = mean_grad.masked_fill(idle[:, None, None], 0.0)
    grad_v = grad_v + _of_means(mean_grad, v, segments, key_padding)
    return grad_q, grad_k, grad_v.to(v.dtype), grad_sinks


def _of_means(grad: Tensor, v: Tensor, segments: Segments, key_padding: Tensor | None) -> Tensor:
    """What the mean over the values in sight hands to each of them, [B, Hkv, Lk, D]."""
    batch, heads, _, channels = grad.shape
    groups, keys = v.shape[1:3]
    seen = segments.visible(key_padding)
    if segments.cu_q is None:
        sums = grad.sum(2)
    else:
        bounds = zip(segments.cu_q, segments.cu_q[1:], strict=False)
        parts = [grad[0, :, begin:end].sum(1) for begin, end in bounds]
        sums = torch.stack(parts) if parts else grad.new_zeros(0, heads, channels)
    # [S, Hkv, D]
    sums = sums.reshape(-1, groups, heads // groups, channels).sum(2)
    counts = torch.tensor(seen, dtype=grad.dtype, device=grad.device).clamp(min=1.0)
    shares = (sums / counts[:, None, None])[:, :, None]
    if segments.cu_k is None:
        result = shares.expand(batch, groups, keys, channels)
    else:
        lengths = torch.tensor([n for _, n in segments.lengths], device=grad.device)
        result = shares[:, :, 0].repeat_interleave(lengths, 0).transpose(0, 1)[None]
    if key_padding is not None:
        return result.masked_fill(key_padding[:, None, :, None], 0.0)
    return result


def _fake_gradients(
    grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, *others: object
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grads = [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (q, k, v)]
    size = 0 if others[-1] is None else q.shape[1]
    return (*grads, torch.empty(size, dtype=wide(q), device=q.device))  # type: ignore[return-value]


define(
    "sparse_gqa_backward(Tensor grad_out, Tensor? grad_lse, Tensor q, Tensor k, Tensor v, "
    f"Tensor out, Tensor lse, Tensor chosen, {OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor)",
    _gradients,
    _fake_gradients,
    row_arguments=(),
)
