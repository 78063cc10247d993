"""Residual addition and RMSNorm in one pass: checks, dispatch, autograd and fake tensors."""

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
    run_kernel,
    takes_reference,
)
from leeboard.ops._state import direct_level, state
from leeboard.ops.rms_norm import Rounding


def add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-6,
    *,
    weight_offset: float = 0.0,
    rounding: Rounding = "after_weight",
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Residual addition followed by RMSNorm, reading and writing memory once.

    new_residual = x + residual, rounded to the storage type; normed = rms_norm(new_residual).

    Args:
        x: [..., H], H >= 1; float32, bfloat16, float16 (float64 by the reference).
        residual: Shape, dtype and device of x.
        weight: As in `rms_norm`.
        eps: As in `rms_norm`.
        weight_offset: As in `rms_norm`.
        rounding: As in `rms_norm`.
        out: (normed, new_residual) to write and return, each of x's shape, dtype and device and
            apart from the other. new_residual may be residual itself, normed may be x itself.
            Not differentiable.

    Returns:
        (normed, new_residual), both [..., H] of x's dtype. Differentiable in x, residual and weight
        (once). Same inputs give bit-identical results whatever the thread count.

    Raises:
        TypeError, ValueError: For an argument that does not fit; the message names it.
        RuntimeError: If `out` is given while a gradient is wanted, or a forced backend cannot run.
    """
    if out is not None:
        _check.pair("out", out)
    level = direct_level(x, residual, weight, *(() if out is None else out))
    if level is not None:
        if out is None:
            normed = torch.empty_like(x)
            new_residual = torch.empty_like(x)
        else:
            normed, new_residual = out
        if _C.add_rms_norm_forward(
            x, residual, weight, normed, new_residual, eps, weight_offset, rounding, level
        ):
            if out is not None:
                increment_version(out)
            return normed, new_residual
    _check.rows("x", x)
    _check.companion("residual", residual, "x", x)
    _check.shape("residual", residual, x.shape, "the shape of x")
    _check.gain("weight", weight, x)
    eps, weight_offset = _check.norm_options(eps, weight_offset, rounding)
    result: tuple[Tensor, Tensor]
    if out is None and takes_reference("add_rms_norm"):
        return reference.add_rms_norm(
            x, residual, weight, eps, weight_offset=weight_offset, rounding=rounding
        )
    if out is None:
        result = torch.ops.leeboard.add_rms_norm(x, residual, weight, eps, weight_offset, rounding)
        return result
    normed, new_residual = out
    _check.output("out[0]", normed, "x", x, x.shape)
    _check.output("out[1]", new_residual, "x", x, x.shape)
    _check.apart("out[0]", normed, "out[1]", new_residual)
    named = {"x": x, "residual": residual, "weight": weight}
    named |= {"out[0]": normed, "out[1]": new_residual}
    check_out("add_rms_norm", **named)
    result = torch.ops.leeboard.add_rms_norm(x, residual, weight, eps, weight_offset, rounding)
    return normed.copy_(result[0]), new_residual.copy_(result[1])


def _forward(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    eps: float,
    weight_offset: float,
    rounding: str,
) -> tuple[Tensor, Tensor]:
    _check.rounding(rounding)
    tensors = [t for t in (x, residual, weight) if t is not None]
    backend = choose("add_rms_norm", tensors)
    normed, new_residual = _fake(x, residual, weight, eps, weight_offset, rounding)
    if backend == "reference":
        exact = reference.add_rms_norm(
            x, residual, weight, eps, weight_offset=weight_offset, rounding=rounding
        )
        normed.copy_(exact[0])
        new_residual.copy_(exact[1])
    elif backend == "triton":
        kernels("add_rms_norm").forward(
            as_matrix(x),
            as_matrix(residual),
            weight,
            as_matrix(normed),
            as_matrix(new_residual),
            eps,
            weight_offset,
            rounding,
        )
    else:
        run_kernel(
            _C.add_rms_norm_forward,
            [x, residual, weight],
            [normed, new_residual],
            eps,
            weight_offset,
            rounding,
            state().level,
        )
    return normed, new_residual


def _fake(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    eps: float,
    weight_offset: float,
    rounding: str,
) -> tuple[Tensor, Tensor]:
    return (
        torch.empty(x.shape, dtype=x.dtype, device=x.device),
        torch.empty(x.shape, dtype=x.dtype, device=x.device),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, _, weight, ctx.eps, ctx.weight_offset, ctx.rounding = inputs
    ctx.save_for_backward(output[1], weight)


def _backward(ctx: Any, grad_normed: Tensor, grad_residual: Tensor) -> tuple[Tensor | None, ...]:
    new_residual, weight = ctx.saved_tensors
    grad_sum, grad_weight = torch.ops.leeboard.rms_norm_backward(
        grad_normed,
        new_residual,
        weight,
        ctx.eps,
        ctx.weight_offset,
        ctx.rounding,
        grad_residual,
    )
    return grad_sum, grad_sum, None if weight is None else grad_weight, None, None, None


define(
    "add_rms_norm(Tensor x, Tensor residual, Tensor? weight, float eps, float weight_offset, "
    "str rounding) -> (Tensor, Tensor)",
    _forward,
    _fake,
    row_arguments=(0, 1),
    setup_context=_setup_context,
    backward=_backward,
)
