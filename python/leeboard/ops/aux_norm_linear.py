"""Fusion of captured target states: checks, dispatch, autograd and fake tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.utils import _pytree as pytree

from leeboard import _C, reference
from leeboard.ops import _check
from leeboard.ops._library import (
    as_matrix,
    check_out,
    choose,
    define,
    kernels,
    overlaps,
    run_kernel,
    takes_reference,
)
from leeboard.ops._state import direct_level, state

MAX_STATES = 8
# Above this many rows the product is a matrix product, which torch does well; the normed copy
# that it needs is made piece by piece.
_STREAMING_ROWS = 16
_PIECE_ROWS = 512


def aux_norm_linear(
    hiddens: Sequence[Tensor],
    gammas: Sequence[Tensor] | None,
    weight: Tensor,
    eps: float = 1e-6,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """RMSNorm of each captured target state, concatenation and projection, in one op.

    out = [rms_norm(h_0, gamma_0); rms_norm(h_1, gamma_1); ...] weight^T, computed as
    sum_i r_i (W_i diag(gamma_i)) h_i with r_i the row's reciprocal RMS: with few rows no normed
    copy is written and the weights are streamed once. This is `fc_norm` + `fc` of EAGLE-3 drafters
    that normalise every captured state (arXiv:2605.09992).

    Args:
        hiddens: 1 to 8 (normally 3) tensors [..., Ht] of one shape, dtype and device; float32,
            bfloat16, float16 (float64 by the reference).
        gammas: As many tensors [Ht] of that dtype, or None for no scale.
        weight: [H, n * Ht] of that dtype.
        eps: Added to the mean square; >= 0.
        out: [..., H], written and returned if given. Not differentiable.

    Returns:
        Tensor [..., H], accumulated in float32. Up to 16 rows on a CPU the normed states stay in
        float32 and only the result is rounded; more rows, and GPUs beyond a few rows, round the
        normed states first, as `rms_norm` followed by a matrix product would, and leave the product
        to torch. Differentiable in hiddens, gammas and weight (once).

    Raises:
        TypeError, ValueError: For an argument that does not fit; the message names it.
        RuntimeError: If `out` is given while a gradient is wanted, or a forced backend cannot run.
    """
    hiddens = _check.tensors("hiddens", hiddens, MAX_STATES)
    first = hiddens[0]
    width = _check.rows("hiddens[0]", first)
    for i, hidden in enumerate(hiddens[1:], start=1):
        _check.companion(f"hiddens[{i}]", hidden, "hiddens[0]", first)
        _check.shape(f"hiddens[{i}]", hidden, first.shape, "the shape of hiddens[0]")
    scales = [] if gammas is None else _check.tensors("gammas", gammas, MAX_STATES)
    if gammas is not None and len(scales) != len(hiddens):
        raise ValueError(
            f"gammas: {len(scales)} given; expected {len(hiddens)}, one for each of hiddens"
        )
    for i, gamma in enumerate(scales):
        _check.companion(f"gammas[{i}]", gamma, "hiddens[0]", first)
        _check.shape(f"gammas[{i}]", gamma, (width,), "the last dimension of hiddens")
    _check.companion("weight", weight, "hiddens[0]", first)
    if weight.dim() != 2 or weight.shape[1] != len(hiddens) * width:
        raise ValueError(
            f"weight: shape {list(weight.shape)} was given; expected [H, {len(hiddens) * width}] "
            f"({len(hiddens)} states of {width})"
        )
    eps = _check.epsilon(eps)
    if direct_level(weight, out, *hiddens, *scales) is not None:
        if out is None:
            return _forward(hiddens, scales, weight, eps)
        _check.output("out", out, "hiddens[0]", first, (*first.shape[:-1], weight.shape[0]))
        if out.is_contiguous() and not overlaps(out, weight, *hiddens, *scales):
            _compute(hiddens, scales, weight, eps, out)
            increment_version(out)
            return out
    if out is None and takes_reference("aux_norm_linear"):
        return reference.aux_norm_linear(hiddens, scales or None, weight, eps)
    if out is None:
        return torch.ops.leeboard.aux_norm_linear(hiddens, scales, weight, eps)  # type: ignore[no-any-return]
    _check.output("out", out, "hiddens[0]", first, (*first.shape[:-1], weight.shape[0]))
    named = {f"hiddens[{i}]": t for i, t in enumerate(hiddens)}
    named |= {f"gammas[{i}]": t for i, t in enumerate(scales)}
    check_out("aux_norm_linear", **named, weight=weight, out=out)
    return out.copy_(torch.ops.leeboard.aux_norm_linear(hiddens, scales, weight, eps))


def _forward(
    hiddens: Sequence[Tensor], gammas: Sequence[Tensor], weight: Tensor, eps: float
) -> Tensor:
    out = _fake(hiddens, gammas, weight, eps)
    _compute(hiddens, gammas, weight, eps, out)
    return out


def _compute(
    hiddens: Sequence[Tensor],
    gammas: Sequence[Tensor],
    weight: Tensor,
    eps: float,
    out: Tensor,
) -> None:
    """Writes the result to a contiguous `out` that shares no memory with the inputs."""
    backend = choose("aux_norm_linear", [*hiddens, *gammas, weight])
    if out.numel() == 0:
        return
    if backend == "reference":
        out.copy_(reference.aux_norm_linear(hiddens, list(gammas) or None, weight, eps))
    elif backend == "triton":
        kernels("aux_norm_linear").forward(
            [as_matrix(h) for h in hiddens],
            list(gammas) or None,
            as_matrix(weight),
            as_matrix(out),
            eps,
        )
    elif hiddens[0].numel() // hiddens[0].shape[-1] <= _STREAMING_ROWS:
        run_kernel(
            _C.aux_norm_linear_forward,
            [list(hiddens), list(gammas), weight],
            [out],
            eps,
            state().level,
        )
    else:
        _forward_in_pieces(hiddens, gammas, weight, eps, as_matrix(out))


def _forward_in_pieces(
    hiddens: Sequence[Tensor], gammas: Sequence[Tensor], weight: Tensor, eps: float, out: Tensor
) -> None:
    rows = [as_matrix(h) for h in hiddens]
    for start in range(0, out.shape[0], _PIECE_ROWS):
        piece = slice(start, start + _PIECE_ROWS)
        normed = _normed([h[piece] for h in rows], gammas, eps)
        torch.mm(normed, weight.t(), out=out[piece])


def _normed(rows: Sequence[Tensor], gammas: Sequence[Tensor], eps: float) -> Tensor:
    """[N, n * Ht]: every state normed, side by side."""
    scales: Sequence[Tensor | None] = gammas or [None] * len(rows)
    return torch.cat(
        [
            torch.ops.leeboard.rms_norm(h, g, eps, 0.0, "after_weight")
            for h, g in zip(rows, scales, strict=True)
        ],
        dim=-1,
    )


def _fake(
    hiddens: Sequence[Tensor], gammas: Sequence[Tensor], weight: Tensor, eps: float
) -> Tensor:
    first = hiddens[0]
    return torch.empty((*first.shape[:-1], weight.shape[0]), dtype=first.dtype, device=first.device)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    hiddens, gammas, weight, ctx.eps = inputs
    ctx.states, ctx.scaled = len(hiddens), len(gammas) > 0
    ctx.save_for_backward(*hiddens, *gammas, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    *states, weight = ctx.saved_tensors
    hiddens, gammas = states[: ctx.states], states[ctx.states :]
    shape = hiddens[0].shape
    rows = [h.reshape(-1, shape[-1]) for h in hiddens]
    grad_rows = grad.reshape(-1, weight.shape[0])
    wants_states, wants_gammas, wants_weight, _ = (
        any(pytree.tree_leaves(want)) for want in ctx.needs_input_grad
    )
    grad_weight = grad_rows.t() @ _normed(rows, gammas, ctx.eps) if wants_weight else None
    if not (wants_states or wants_gammas):
        return [None] * ctx.states, [None] * len(gammas), grad_weight, None
    grad_normed = (grad_rows @ weight).split(shape[-1], dim=-1)
    pairs = [
        torch.ops.leeboard.rms_norm_backward(
            g, h, gammas[i] if ctx.scaled else None, ctx.eps, 0.0, "after_weight", None
        )
        for i, (g, h) in enumerate(zip(grad_normed, rows, strict=True))
    ]
    grad_hiddens = [grad_h.reshape(shape) for grad_h, _ in pairs]
    grad_gammas = [grad_gamma for _, grad_gamma in pairs] if ctx.scaled else []
    return grad_hiddens, grad_gammas, grad_weight, None


define(
    "aux_norm_linear(Tensor[] hiddens, Tensor[] gammas, Tensor weight, float eps) -> Tensor",
    _forward,
    _fake,
    row_arguments=(0,),
    setup_context=_setup_context,
    backward=_backward,
)
