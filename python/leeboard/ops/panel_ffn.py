"""A feed-forward block over a list of panels of its channels: checks, dispatch, fake tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

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
from leeboard.ops._panel_backward import backward as _backward
from leeboard.ops._panel_backward import setup_context
from leeboard.ops._panel_checks import ACTIVATIONS, NORMS, check_arguments, code
from leeboard.ops._panels import for_triton
from leeboard.ops._state import direct_level, state
from leeboard.reference import FeedForwardWeights


def panel_ffn(
    x: Tensor,
    weights: FeedForwardWeights,
    panels: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    gates: Tensor | None = None,
    residual: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """A feed-forward block over some groups of neighbouring hidden channels.

    out = residual + b_down + sum over listed channels j of W_down[:, j] g_j h_j, with h = act(W_up n
    + b_up), or act(W_gate n + b_gate) * (W_up n + b_up) with a gate, of n = norm(x). Panel p is the
    channels [p * panel, (p + 1) * panel). Weights are read where they lie: nothing is packed or
    copied, what lies between the two products stays in the cache, and the time follows the list.

    Args:
        x: [..., d]; float32, bfloat16, float16 (float64 by the reference).
        weights: Of that dtype.
        panels: int32 or int64 [n] on x's device, in any order, or None for every panel. -1 stands
            for none, so a list of fixed length serves every plan. An empty list leaves the bias and
            the residual.
        bias: [d_out], takes the place of `weights.down_bias` (say, with the mean of what is left
            out), or None.
        gates: g, [F], or [B, F] for x [B, ..., d], or None for ones: a soft mask, or one finer than
            a panel.
        residual: [..., d_out], or None.
        out: [..., d_out], written and returned if given. Not differentiable.

    Returns:
        Tensor [..., d_out] of x's dtype. Sums and what is between the products are float32, and the
        result is rounded once; but for bfloat16 and more than 8 rows on CPUs that multiply pairs
        the normed x and g h are rounded to the dtype before they are multiplied.
        Differentiable (once) in x, the weights, bias, gates and residual; the backward computes h
        again. On CPUs a row's result does not depend on the thread count, nor on the other rows as
        long as there are at most 8, or more.

    Raises:
        TypeError, ValueError: For an argument that does not fit; the message names it. On CPUs also
            for a panel that there is not, or that is listed twice; on GPUs nobody looks.
        RuntimeError: If `out` is given while a gradient is wanted, or a forced backend cannot run.
    """
    if out is None and type(weights) is FeedForwardWeights:
        made = _direct(x, weights, panels, bias, gates, residual)
        if made is not None:
            return made
    shape, eps = check_arguments(x, weights, panels, bias, gates, residual)
    offset = weights.down_bias if bias is None else bias
    sample_dims = x.dim() - 1 if gates is not None and gates.dim() == 2 else 0
    arguments = (
        x,
        weights.up,
        weights.down,
        weights.gate,
        weights.up_bias,
        weights.gate_bias,
        panels,
        offset,
        gates[None] if gates is not None and gates.dim() == 1 else gates,
        residual,
        weights.norm_weight,
        weights.norm_bias,
        sample_dims,
        weights.activation,
        weights.norm or "none",
        eps,
        weights.panel,
    )
    tensors = [t for t in arguments if isinstance(t, Tensor)]
    if direct_level(*tensors) is not None:
        if out is None:
            return _forward(*arguments)
        _check.output("out", out, "x", x, shape)
        if direct_level(out) is not None and out.is_contiguous() and not overlaps(out, *tensors):
            _compute(*arguments, out=out)
            increment_version(out)
            return out
    if out is None and takes_reference("panel_ffn"):
        return reference.panel_ffn(x, weights, panels, bias=bias, gates=gates, residual=residual)
    if out is not None:
        _check.output("out", out, "x", x, shape)
        named = {f"weights.{name}": t for name, t in _tensors_of(weights).items()}
        check_out("panel_ffn", x=x, **named, bias=bias, gates=gates, residual=residual, out=out)
    result: Tensor = torch.ops.leeboard.panel_ffn(*arguments)
    return result if out is None else out.copy_(result)


def _tensors_of(weights: FeedForwardWeights) -> dict[str, Tensor | None]:
    return {
        "up": weights.up,
        "down": weights.down,
        "up_bias": weights.up_bias,
        "down_bias": weights.down_bias,
        "gate": weights.gate,
        "gate_bias": weights.gate_bias,
        "norm_weight": weights.norm_weight,
        "norm_bias": weights.norm_bias,
    }


def _direct(
    x: Tensor,
    weights: FeedForwardWeights,
    panels: Tensor | None,
    bias: Tensor | None,
    gates: Tensor | None,
    residual: Tensor | None,
) -> Tensor | None:
    """The result by the CPU kernel, which checks what it is given, or None if it refuses."""
    up, down, gate = weights.up, weights.down, weights.gate
    up_bias, gate_bias = weights.up_bias, weights.gate_bias
    scale, shift = weights.norm_weight, weights.norm_bias
    if bias is None:
        bias = weights.down_bias
    more = [t for t in (gate, gate_bias, panels, gates, residual, scale, shift) if t is not None]
    level = direct_level(x, up_bias, bias, None, None, up, down, *more)
    if level is None:
        return None
    panel, eps = weights.panel, weights.eps
    plain = type(panel) is int and type(eps) is float and eps >= 0.0
    activation, norm = code(ACTIVATIONS, weights.activation), code(NORMS, weights.norm)
    if not plain or activation is None or norm is None or x.dim() == 0 or down.dim() != 2:
        return None
    if (gate is None and gate_bias is not None) or (shift is not None and norm != 1):
        return None
    if scale is not None and norm == 0:
        return None
    if down.shape[0] == x.shape[-1] and x.is_contiguous():
        # Half the time of the other way: a tenth of a short call.
        out = torch.empty_like(x)
    else:
        out = x.new_empty((*x.shape[:-1], down.shape[0]))
    if out.numel() == 0 or (residual is not None and residual.shape != out.shape):
        return None
    per_sample = 0
    if gates is not None:
        if gates.dim() == 2:
            if gates.shape[0] != out.shape[0] or x.dim() < 2:
                return None
            per_sample = out.numel() // (out.shape[0] * out.shape[-1])
        elif gates.dim() != 1:
            return None
    taken = _C.panel_ffn_forward(
        x,
        up,
        down,
        gate,
        up_bias,
        gate_bias,
        panels,
        bias,
        gates,
        residual,
        scale,
        shift,
        out,
        per_sample,
        activation,
        norm,
        eps,
        panel,
        True,
        level,
    )
    return out if taken else None


def _weights(
    up: Tensor,
    down: Tensor,
    gate: Tensor | None,
    up_bias: Tensor | None,
    gate_bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    activation: str,
    norm: str,
    eps: float,
    panel: int,
) -> FeedForwardWeights:
    return FeedForwardWeights(
        up,
        down,
        up_bias,
        None,
        gate,
        gate_bias,
        activation,
        None if norm == "none" else norm,
        norm_weight,
        norm_bias,
        eps,
        panel,
    )


def _forward(*arguments: Any) -> Tensor:
    out = _fake(*arguments)
    _compute(*arguments, out=out)
    return out


def _compute(
    x: Tensor,
    up: Tensor,
    down: Tensor,
    gate: Tensor | None,
    up_bias: Tensor | None,
    gate_bias: Tensor | None,
    panels: Tensor | None,
    bias: Tensor | None,
    gates: Tensor | None,
    residual: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    sample_dims: int,
    activation: str,
    norm: str,
    eps: float,
    panel: int,
    *,
    out: Tensor,
) -> None:
    """Writes the result to a contiguous `out` that shares no memory with the inputs.

    `gates` are [1, F], or [B, F] for the last 1 + `sample_dims` dimensions of x, [B, ..., d]: what
    vmap puts before those repeats them.
    """
    parts = (x, up, down, gate, up_bias, gate_bias, bias, gates, residual, norm_weight, norm_bias)
    backend = choose("panel_ffn", [t for t in parts if t is not None])
    if out.numel() == 0:
        return
    per_sample = 1
    for size in x.shape[x.dim() - sample_dims : -1]:
        per_sample *= size
    rows = out.numel() // out.shape[-1]
    if gates is not None and gates.shape[0] > 1 and gates.shape[0] * per_sample != rows:
        gates = gates.repeat(rows // (gates.shape[0] * per_sample), 1)
    options = (activation, norm, eps, panel)
    if backend == "reference":
        weights = _weights(up, down, gate, up_bias, gate_bias, norm_weight, norm_bias, *options)
        samples = gates is not None and gates.shape[0] > 1
        shape = (-1, per_sample) if samples else x.shape[:-1]
        result = reference.panel_ffn(
            x.reshape(*shape, x.shape[-1]),
            weights,
            panels,
            bias=bias,
            gates=gates if samples or gates is None else gates[0],
            residual=None if residual is None else residual.reshape(*shape, out.shape[-1]),
        )
        out.copy_(result.view(out.shape))
    elif backend == "triton":

        def dense(t: Tensor | None) -> Tensor | None:
            return None if t is None else t.contiguous()

        kernels("panel_ffn").forward(
            as_matrix(x),
            as_matrix(up),
            None if gate is None else as_matrix(gate),
            as_matrix(down),
            dense(up_bias),
            dense(gate_bias),
            for_triton(panels),
            None if gates is None else as_matrix(gates),
            per_sample,
            dense(bias),
            None if residual is None else as_matrix(residual),
            as_matrix(out),
            activation=activation,
            norm=None if norm == "none" else norm,
            norm_weight=dense(norm_weight),
            norm_bias=dense(norm_bias),
            eps=eps,
            panel=panel,
        )
    else:
        run_kernel(
            _C.panel_ffn_forward,
            [*parts[:6], panels, bias, gates, *parts[8:]],
            [out],
            per_sample,
            ACTIVATIONS[activation],
            NORMS[None if norm == "none" else norm],
            eps,
            panel,
            False,
            state().level,
        )


def _fake(x: Tensor, up: Tensor, down: Tensor, *others: Any) -> Tensor:
    return torch.empty((*x.shape[:-1], down.shape[0]), dtype=x.dtype, device=x.device)


define(
    "panel_ffn(Tensor x, Tensor up, Tensor down, Tensor? gate, Tensor? up_bias, "
    "Tensor? gate_bias, Tensor? panels, Tensor? bias, Tensor? gates, Tensor? residual, "
    "Tensor? norm_weight, Tensor? norm_bias, int sample_dims, str activation, str norm, "
    "float eps, int panel) -> Tensor",
    _forward,
    _fake,
    row_arguments=(0, 9),
    setup_context=setup_context,
    backward=_backward,
)
