"""RMSNorm: checks, dispatch, autograd and fake tensors."""

from __future__ import annotations

from typing import Any, Literal

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

Rounding = Literal["after_weight", "before_weight"]


def rms_norm(
    x: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-6,
    *,
    weight_offset: float = 0.0,
    rounding: Rounding = "after_weight",
    out: Tensor | None = None,
) -> Tensor:
    """Root-mean-square normalisation over the last dimension.

    y = x / sqrt(mean(x^2) + eps) * (weight + weight_offset), accumulated in float32 (float64 for
    float64 inputs), rounded as `rounding` says. Zhang and Sennrich, 2019, arXiv:1910.07467.

    Args:
        x: [..., H], H >= 1; float32, bfloat16, float16 (float64 by the reference). Rows may be
            strided; a layout that no kernel takes costs one copy.
        weight: [H] of x's dtype and device, or None for none. A float32 weight with half-precision
            x is computed by the reference.
        eps: Added to the mean square; >= 0.
        weight_offset: Added to the weight: 1.0 for Gemma, whose weight is stored minus one.
        rounding: "after_weight" rounds once, at the end (torch.nn.RMSNorm, Gemma);
            "before_weight" rounds the normed value to x's dtype first (Llama, Mistral, Qwen).
        out: Written and returned, if given: x's shape, dtype and device. It may be x itself.
            Not differentiable.

    Returns:
        Tensor [..., H] of x's dtype, contiguous unless `out` is given. Differentiable in x and
        weight (once). Same inputs give bit-identical results whatever the thread count.

    Raises:
        TypeError, ValueError: For an argument that does not fit; the message names it.
        RuntimeError: If `out` is given while a gradient is wanted, or a forced backend cannot run.
    """
    level = direct_level(x, weight, out)
    if level is not None:
        y = torch.empty_like(x) if out is None else out
        if _C.rms_norm_forward(x, weight, y, eps, weight_offset, rounding, level):
            if out is not None:
                increment_version(out)
            return y
    _check.rows("x", x)
    _check.gain("weight", weight, x)
    eps, weight_offset = _check.norm_options(eps, weight_offset, rounding)
    if out is None and takes_reference("rms_norm"):
        return reference.rms_norm(x, weight, eps, weight_offset=weight_offset, rounding=rounding)
    if out is None:
        return torch.ops.leeboard.rms_norm(x, weight, eps, weight_offset, rounding)  # type: ignore[no-any-return]
    _check.output("out", out, "x", x, x.shape)
    check_out("rms_norm", x=x, weight=weight, out=out)
    return out.copy_(torch.ops.leeboard.rms_norm(x, weight, eps, weight_offset, rounding))


def _forward(
    x: Tensor, weight: Tensor | None, eps: float, weight_offset: float, rounding: str
) -> Tensor:
    _check.rounding(rounding)
    backend = choose("rms_norm", [x] if weight is None else [x, weight])
    if backend == "reference":
        y = reference.rms_norm(x, weight, eps, weight_offset=weight_offset, rounding=rounding)
        return y.contiguous()
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if backend == "triton":
        kernels("rms_norm").forward(
            as_matrix(x), weight, as_matrix(out), eps, weight_offset, rounding
        )
        return out
    run_kernel(
        _C.rms_norm_forward,
        [x, weight],
        [out],
        eps,
        weight_offset,
        rounding,
        state().level,
    )
    return out


def _fake(
    x: Tensor, weight: Tensor | None, eps: float, weight_offset: float, rounding: str
) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, ctx.eps, ctx.weight_offset, ctx.rounding = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    grad_x, grad_weight = torch.ops.leeboard.rms_norm_backward(
        grad, x, weight, ctx.eps, ctx.weight_offset, ctx.rounding, None
    )
    return grad_x, None if weight is None else grad_weight, None, None, None


def _gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    eps: float,
    weight_offset: float,
    rounding: str,
    grad_residual: Tensor | None,
) -> tuple[Tensor, Tensor]:
    _check.rounding(rounding)
    tensors = [t for t in (x, grad, weight, grad_residual) if t is not None]
    backend = choose("rms_norm_backward", tensors)
    grad_x, grad_weight = _fake_gradients(
        grad, x, weight, eps, weight_offset, rounding, grad_residual
    )
    if backend == "reference":
        exact_x, exact_weight = reference.rms_norm_backward(
            grad,
            x,
            weight,
            eps,
            weight_offset=weight_offset,
            rounding=rounding,
            grad_residual=grad_residual,
        )
        grad_x.copy_(exact_x)
        if exact_weight is not None:
            grad_weight.copy_(exact_weight)
    elif backend == "triton":
        kernels("rms_norm").backward(
            as_matrix(grad),
            as_matrix(x),
            weight,
            as_matrix(grad_x),
            None if weight is None else grad_weight,
            eps,
            weight_offset,
            rounding,
            None if grad_residual is None else as_matrix(grad_residual),
        )
    else:
        run_kernel(
            _C.rms_norm_backward,
            [grad, x, weight, grad_residual],
            [grad_x, None if weight is None else grad_weight],
            eps,
            weight_offset,
            rounding,
            state().level,
        )
    return grad_x, grad_weight


def _fake_gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    eps: float,
    weight_offset: float,
    rounding: str,
    grad_residual: Tensor | None,
) -> tuple[Tensor, Tensor]:
    # An op returns tensors: without a weight the second one is empty.
    like = x if weight is None else weight
    size = (0,) if weight is None else weight.shape
    return (
        torch.empty(x.shape, dtype=x.dtype, device=x.device),
        torch.empty(size, dtype=like.dtype, device=x.device),
    )


define(
    "rms_norm(Tensor x, Tensor? weight, float eps, float weight_offset, str rounding) -> Tensor",
    _forward,
    _fake,
    row_arguments=(0,),
    setup_context=_setup_context,
    backward=_backward,
)
define(
    "rms_norm_backward(Tensor grad, Tensor x, Tensor? weight, float eps, float weight_offset, "
    "str rounding, Tensor? grad_residual) -> (Tensor, Tensor)",
    _gradients,
    _fake_gradients,
    # The weight's gradient sums over every row, batched ones too: vmap takes the ops one by one.
    row_arguments=(),
)
