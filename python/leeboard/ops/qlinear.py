"""A linear layer on weights in any format: checks, dispatch and fake tensors."""

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
    overlaps,
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
from leeboard.reference import Weight


def qlinear(
    x: Tensor,
    weight: Weight,
    *,
    norm_weight: Tensor | None = None,
    eps: float = 1e-6,
    residual: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """A linear layer with an RMSNorm before and a residual after, on weights in any format.

    out = residual + n weight^T with n = rms_norm(x, norm_weight), or n = x without `norm_weight`.
    Sums, the norm and the residual's addition are float32, and the result is rounded once.
    Quantised weights are converted in registers: the call costs what reading them costs, as long as
    there are few rows.

    Args:
        x: [..., K], K >= 1; float32, bfloat16, float16 (float64 by the reference).
        weight: [N, K] of x's dtype, or bfloat16 with float32 x, or a `QuantizedWeight` (int8 and
            int4 on CPUs; fp8 there by the reference).
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
    features = check_weight("weight", weight, x, None, width)
    eps = check_epilogue("qlinear", x, features, norm_weight, eps, residual)
    matrices, (text,) = to_arguments([weight])
    parts = named_parts("weight", weight)
    named = {"x": x, **parts, "norm_weight": norm_weight, "residual": residual}
    _check.no_grad("qlinear", "is inference-only", **named)
    if direct_level(x, norm_weight, residual, out, *matrices) is not None:
        if out is None:
            return _forward(x, matrices, text, norm_weight, eps, residual)
        _check.output("out", out, "x", x, (*x.shape[:-1], features))
        if out.is_contiguous() and not overlaps_any(out, x, norm_weight, residual, *matrices):
            _compute(x, matrices, text, norm_weight, eps, residual, out)
            increment_version(out)
            return out
    if out is None and takes_reference("qlinear"):
        return reference.qlinear(x, weight, norm_weight=norm_weight, eps=eps, residual=residual)
    if out is not None:
        _check.output("out", out, "x", x, (*x.shape[:-1], features))
        check_out("qlinear", out=out)
    made: Tensor = torch.ops.leeboard.qlinear(x, matrices, text, norm_weight, eps, residual)
    return made if out is None else out.copy_(made)


def check_epilogue(
    op: str,
    x: Tensor,
    features: int,
    norm_weight: Tensor | None,
    eps: object,
    residual: Tensor | None,
) -> float:
    """What surrounds the products of a layer; returns eps as a float."""
    _check.gain("norm_weight", norm_weight, x)
    if residual is not None:
        _check.companion("residual", residual, "x", x)
        meaning = "the leading dimensions of x and the rows of the last weight"
        _check.shape("residual", residual, (*x.shape[:-1], features), meaning)
    return _check.epsilon(eps)


def overlaps_any(out: Tensor, *inputs: Tensor | None) -> bool:
    """Whether `out` shares its storage with an input that is there."""
    return overlaps(out, *(t for t in inputs if t is not None))


def _forward(
    x: Tensor,
    matrices: Sequence[Tensor],
    text: str,
    norm_weight: Tensor | None,
    eps: float,
    residual: Tensor | None,
) -> Tensor:
    out = _fake(x, matrices, text, norm_weight, eps, residual)
    _compute(x, matrices, text, norm_weight, eps, residual, out)
    return out


def _compute(
    x: Tensor,
    matrices: Sequence[Tensor],
    text: str,
    norm_weight: Tensor | None,
    eps: float,
    residual: Tensor | None,
    out: Tensor,
) -> None:
    """Writes the result to a contiguous `out` that shares no memory with the inputs."""
    backend = choose("qlinear", [x], refusals=refusals(text))
    if out.numel() == 0:
        return
    (weight,) = from_arguments(matrices, [text], [x.shape[-1]])
    if backend == "reference":
        out.copy_(reference.qlinear(x, weight, norm_weight=norm_weight, eps=eps, residual=residual))
    elif backend == "triton":
        kernels("qlinear").forward(
            as_matrix(x),
            to_triton(weight),
            as_matrix(out),
            None if norm_weight is None else norm_weight.contiguous(),
            eps,
            None if residual is None else as_matrix(residual),
        )
    else:
        parts, _ = to_kernel(weight)
        run_kernel(
            _C.qlinear_forward, [x, *parts, norm_weight, residual], [out], text, eps, state().level
        )


def _fake(
    x: Tensor,
    matrices: Sequence[Tensor],
    text: str,
    norm_weight: Tensor | None,
    eps: float,
    residual: Tensor | None,
) -> Tensor:
    return torch.empty((*x.shape[:-1], matrices[0].shape[0]), dtype=x.dtype, device=x.device)


define(
    "qlinear(Tensor x, Tensor[] weight, str format, Tensor? norm_weight, float eps, "
    "Tensor? residual) -> Tensor",
    _forward,
    _fake,
    row_arguments=(0, 5),
)
