"""The gated feed-forward block on weights in any format: checks, dispatch and fake tensors."""

from __future__ import annotations

from collections.abc import Sequence

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
    run_kernel,
    takes_reference,
)
from leeboard.ops._state import direct_level, state
from leeboard.ops._weights import (
    check_weight,
    from_arguments,
    named_parts,
    refusals,
    to_arguments,
    to_kernel,
    to_triton,
)
from leeboard.ops.qlinear import check_epilogue, overlaps_any
from leeboard.reference import Weight


def swiglu_linear(
    x: Tensor,
    gate: Weight,
    up: Weight,
    down: Weight,
    *,
    norm_weight: Tensor | None = None,
    eps: float = 1e-6,
    residual: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """The SwiGLU feed-forward block with an RMSNorm before and a residual after.

    out = residual + (silu(n gate^T) * (n up^T)) down^T with n = rms_norm(x, norm_weight), or n = x
    without `norm_weight` (Shazeer, 2020, arXiv:2002.05202). Gate and up are read in one pass; what
    lies between the products stays in float32, and the result is rounded once.

    Args:
        x: [..., K], K >= 1; float32, bfloat16, float16 (float64 by the reference).
        gate: [I, K]; of x's dtype, or bfloat16 with float32 x, or a `QuantizedWeight` (int8 and int4
            on CPUs; fp8 there by the reference). Formats of the three may differ.
        up: [I, K], likewise.
        down: [N, I], likewise.
        norm_weight: [K] of x's dtype (float32 also goes with half precision), or None for no norm.
        eps: Added to the mean square of the norm; >= 0.
        residual: [..., N] of x's dtype, or None.
        out: [..., N], written and returned if given.

    Returns:
        Tensor [..., N] of x's dtype. Inference only. A row's result does not depend on the other
        rows, nor on the thread count.

    Raises:
        TypeError, ValueError: For an argument that does not fit; the message names it.
        RuntimeError: If an input requires grad while grad mode is on, or a forced backend cannot
            run.
    """
    width = _check.rows("x", x)
    hidden = check_weight("gate", gate, x, None, width)
    check_weight("up", up, x, hidden, width)
    features = check_weight("down", down, x, None, hidden)
    eps = check_epilogue("swiglu_linear", x, features, norm_weight, eps, residual)
    matrices, names = to_arguments([gate, up, down])
    # torch.jit.trace knows no lists of strings.
    formats = ",".join(names)
    parts = named_parts("gate", gate) | named_parts("up", up) | named_parts("down", down)
    named = {"x": x, **parts, "norm_weight": norm_weight, "residual": residual}
    _check.no_grad("swiglu_linear", "is inference-only", **named)
    if direct_level(x, norm_weight, residual, out, *matrices) is not None:
        if out is None:
            return _forward(x, matrices, formats, norm_weight, eps, residual)
        _check.output("out", out, "x", x, (*x.shape[:-1], features))
        if out.is_contiguous() and not overlaps_any(out, x, norm_weight, residual, *matrices):
            _compute(x, matrices, formats, norm_weight, eps, residual, out)
            increment_version(out)
            return out
    if out is None and takes_reference("swiglu_linear"):
        return reference.swiglu_linear(
            x, gate, up, down, norm_weight=norm_weight, eps=eps, residual=residual
        )
    if out is not None:
        _check.output("out", out, "x", x, (*x.shape[:-1], features))
        check_out("swiglu_linear", out=out)
    made: Tensor = torch.ops.leeboard.swiglu_linear(
        x, matrices, formats, norm_weight, eps, residual
    )
    return made if out is None else out.copy_(made)


def _forward(
    x: Tensor,
    matrices: Sequence[Tensor],
    formats: str,
    norm_weight: Tensor | None,
    eps: float,
    residual: Tensor | None,
) -> Tensor:
    out = _fake(x, matrices, formats, norm_weight, eps, residual)
    _compute(x, matrices, formats, norm_weight, eps, residual, out)
    return out


def _weights(x: Tensor, matrices: Sequence[Tensor], formats: str) -> list[Weight]:
    width = x.shape[-1]
    return from_arguments(matrices, formats.split(","), [width, width, matrices[0].shape[0]])


def _compute(
    x: Tensor,
    matrices: Sequence[Tensor],
    formats: str,
    norm_weight: Tensor | None,
    eps: float,
    residual: Tensor | None,
    out: Tensor,
) -> None:
    """Writes the result to a contiguous `out` that shares no memory with the inputs."""
    backend = choose("swiglu_linear", [x], refusals=refusals(*formats.split(",")))
    if out.numel() == 0:
        return
    weights = _weights(x, matrices, formats)
    if backend == "reference":
        out.copy_(
            reference.swiglu_linear(
                x, *weights, norm_weight=norm_weight, eps=eps, residual=residual
            )
        )
    elif backend == "triton":
        kernels("swiglu_linear").forward(
            as_matrix(x),
            *map(to_triton, weights),
            as_matrix(out),
            None if norm_weight is None else norm_weight.contiguous(),
            eps,
            None if residual is None else as_matrix(residual),
        )
    else:
        parts = [part for weight in weights for part in to_kernel(weight)[0]]
        run_kernel(
            _C.swiglu_linear_forward,
            [x, parts, norm_weight, residual],
            [out],
            formats.split(","),
            eps,
            state().level,
        )


def _fake(
    x: Tensor,
    matrices: Sequence[Tensor],
    formats: str,
    norm_weight: Tensor | None,
    eps: float,
    residual: Tensor | None,
) -> Tensor:
    down = matrices[-1 if formats.endswith("plain") else -2]
    return torch.empty((*x.shape[:-1], down.shape[0]), dtype=x.dtype, device=x.device)


define(
    "swiglu_linear(Tensor x, Tensor[] weights, str formats, Tensor? norm_weight, float eps, "
    "Tensor? residual) -> Tensor",
    _forward,
    _fake,
    row_arguments=(0, 5),
)
