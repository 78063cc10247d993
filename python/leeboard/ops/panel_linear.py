"""A linear layer over a list of panels: checks, dispatch, autograd and fake tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    overlaps,
    run_kernel,
    takes_reference,
)
from leeboard.ops._panels import check_panels, for_triton, places
from leeboard.ops._state import direct_level, state

Over = Literal["outputs", "inputs"]


def panel_linear(
    x: Tensor,
    weight: Tensor,
    panels: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    panel: int = 16,
    over: Over = "outputs",
    residual: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """A linear layer over some groups of neighbouring rows or columns of its weight.

    out = residual + x W^T + bias, of the listed panels alone. With `over="outputs"` panel p is the
    rows [p * panel, (p + 1) * panel) of W and of bias, and their outputs stand side by side. With
    `over="inputs"` it is those columns of W, and x holds their inputs side by side. W is read where
    it lies: nothing is packed or copied, and the time follows the list.

    Args:
        x: [..., K], or [..., n * panel] over inputs; float32, bfloat16, float16 (float64 by the
            reference).
        weight: W [N, K] of that dtype, as `torch.nn.Linear` holds it.
        panels: int32 or int64 [n] on x's device, in any order, or None for every panel. -1 stands
            for none (zeros come out of it, what goes into it is ignored), so a list of fixed length
            serves every plan.
        bias: [N] of x's dtype, or None.
        panel: Rows or columns of a panel, >= 1. Multiples of 4 are fast; 16 and 32 are the best.
            What a last panel has beyond the end of W counts as zero.
        over: Whether panels are "outputs" or "inputs".
        residual: Of the shape and dtype of the result, or None.
        out: Of that shape, written and returned if given. Not differentiable.

    Returns:
        Tensor [..., n * panel], or [..., N] over inputs, of x's dtype. Sums are float32 and rounded
        once. Differentiable (once) in x, weight, bias and residual. On CPUs a row's result does
        not depend on the thread count, nor on the other rows as long as there are at most 8, or
        more.

    Raises:
        TypeError, ValueError: For an argument that does not fit; the message names it. On CPUs also
            for a panel that W does not have, or that is listed twice; on GPUs nobody looks.
        RuntimeError: If `out` is given while a gradient is wanted, or a forced backend cannot run.
    """
    if out is None:
        level = direct_level(x, weight, panels, bias, residual)
        if level is not None:
            made = _direct(x, weight, panels, bias, residual, panel, over, level)
            if made is not None:
                return made
    size = _check_arguments(x, weight, panels, bias, residual, panel, over)
    if direct_level(x, weight, panels, bias, residual) is not None:
        if out is None:
            return _forward(x, weight, panels, bias, residual, panel, over)
        _check.output("out", out, "x", x, size)
        inputs = [t for t in (x, weight, panels, bias, residual) if t is not None]
        if direct_level(out) is not None and out.is_contiguous() and not overlaps(out, *inputs):
            _compute(x, weight, panels, bias, residual, panel, over, out)
            increment_version(out)
            return out
    if out is None and takes_reference("panel_linear"):
        return reference.panel_linear(
            x, weight, panels, bias, panel=panel, over=over, residual=residual
        )
    if out is not None:
        _check.output("out", out, "x", x, size)
        check_out("panel_linear", x=x, weight=weight, bias=bias, residual=residual, out=out)
    result: Tensor = torch.ops.leeboard.panel_linear(x, weight, panels, bias, residual, panel, over)
    return result if out is None else out.copy_(result)


def _direct(
    x: Tensor,
    weight: Tensor,
    panels: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    panel: int,
    over: str,
    level: int,
) -> Tensor | None:
    """The result by the CPU kernel, which checks what it is given, or None if it refuses."""
    if type(panel) is not int or panel < 1 or weight is None:
        return None
    if x.dim() == 0 or weight.dim() != 2:
        return None
    width = weight.shape[0]
    if over == "outputs":
        width = (-(-width // panel) if panels is None else panels.numel()) * panel
    elif over != "inputs":
        return None
    out = x.new_empty((*x.shape[:-1], width))
    if out.numel() == 0 or (residual is not None and residual.shape != out.shape):
        return None
    taken = _C.panel_linear_forward(
        x, weight, panels, bias, residual, out, over == "inputs", panel, True, level
    )
    return out if taken else None


def _check_arguments(
    x: Tensor,
    weight: Tensor,
    panels: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    panel: int,
    over: str,
) -> tuple[int, ...]:
    """Raises for what does not fit; returns the shape of the result."""
    _check.activations("x", x)
    if over not in ("outputs", "inputs"):
        raise ValueError(f"over: {over!r} was given; expected 'outputs' or 'inputs'")
    _check.companion("weight", weight, "x", x)
    if weight.dim() != 2 or weight.shape[0] == 0 or weight.shape[1] == 0:
        raise ValueError(
            f"weight: shape {list(weight.shape)} was given; expected [N, K] with N, K >= 1"
        )
    size = weight.shape[0 if over == "outputs" else 1]
    listed = check_panels(panels, panel, x, size)
    wanted = weight.shape[1] if over == "outputs" else listed
    if x.shape[-1] != wanted:
        meaning = (
            "the columns of weight"
            if over == "outputs"
            else f"{listed // panel} panels of {panel} columns"
        )
        raise ValueError(
            f"x: shape {list(x.shape)} was given; expected [..., {wanted}] ({meaning})"
        )
    if bias is not None:
        _check.companion("bias", bias, "x", x)
        _check.shape("bias", bias, weight.shape[:1], "the rows of weight")
    shape = (*x.shape[:-1], listed if over == "outputs" else weight.shape[0])
    if residual is not None:
        _check.companion("residual", residual, "x", x)
        _check.shape("residual", residual, shape, "the shape of the result")
    return shape


def _forward(
    x: Tensor,
    weight: Tensor,
    panels: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    panel: int,
    over: Over,
) -> Tensor:
    out = _fake(x, weight, panels, bias, residual, panel, over)
    _compute(x, weight, panels, bias, residual, panel, over, out)
    return out


def _compute(
    x: Tensor,
    weight: Tensor,
    panels: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    panel: int,
    over: Over,
    out: Tensor,
) -> None:
    """Writes the result to a contiguous `out` that shares no memory with the inputs."""
    floats = [t for t in (x, weight, bias, residual) if t is not None]
    backend = choose("panel_linear", floats)
    if out.numel() == 0:
        return
    if backend == "reference":
        out.copy_(
            reference.panel_linear(
                x, weight, panels, bias, panel=panel, over=over, residual=residual
            )
        )
    elif backend == "triton":
        kernels("panel_linear").forward(
            as_matrix(x),
            as_matrix(weight),
            for_triton(panels),
            None if bias is None else bias.contiguous(),
            None if residual is None else as_matrix(residual),
            as_matrix(out),
            panel=panel,
            over=over,
        )
    else:
        run_kernel(
            _C.panel_linear_forward,
            [x, weight, panels, bias, residual],
            [out],
            over == "inputs",
            panel,
            False,
            state().level,
        )


def _fake(
    x: Tensor,
    weight: Tensor,
    panels: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    panel: int,
    over: str,
) -> Tensor:
    width = weight.shape[0]
    if over == "outputs":
        width = (-(-width // panel) if panels is None else panels.shape[0]) * panel
    return torch.empty((*x.shape[:-1], width), dtype=x.dtype, device=x.device)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, panels, _, _, ctx.panel, ctx.over = inputs
    ctx.save_for_backward(x, weight, panels)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    wants = ctx.needs_input_grad
    needed = [wants[0], wants[1], wants[3]]
    grads: list[Tensor | None] = [None] * 3
    if any(needed):
        made = torch.ops.leeboard.panel_linear_backward(
            grad, *ctx.saved_tensors, needed, ctx.panel, ctx.over
        )
        grads = [g if need else None for g, need in zip(made, needed, strict=True)]
    return grads[0], grads[1], None, grads[2], grad if wants[4] else None, None, None


def _gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    panels: Tensor | None,
    needed: Sequence[bool],
    panel: int,
    over: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias; products are float32 (float64 for float64 inputs)."""
    grad_x, grad_weight, grad_bias = _fake_gradients(grad, x, weight, panels, needed, panel, over)
    wide = torch.promote_types(x.dtype, torch.float32)
    # Of an empty list either has no columns: their rows cannot be counted by -1.
    count = math.prod(x.shape[:-1])
    grads = grad.as_subclass(Tensor).reshape(count, grad.shape[-1]).to(wide)
    rows = x.as_subclass(Tensor).reshape(count, x.shape[-1]).to(wide)
    outputs = over == "outputs"
    at, channels = places(panels, weight.shape[0 if outputs else 1], panel, x.device)
    dim = 0 if outputs else 1
    if outputs:
        grads = grads.index_select(1, at)
    else:
        rows = rows.index_select(1, at)
    if needed[0]:
        part = grads @ weight.index_select(dim, channels).to(wide)
        if not outputs:
            part = part.new_zeros((len(part), x.shape[-1])).index_copy_(1, at, part)
        grad_x.copy_(part.view(x.shape))
    if needed[1]:
        whole = torch.zeros(weight.shape, dtype=wide, device=x.device)
        grad_weight.copy_(whole.index_add_(dim, channels, grads.t() @ rows))
    if needed[2]:
        total = grads.sum(0)
        if outputs:
            total = total.new_zeros(len(grad_bias)).index_add_(0, channels, total)
        grad_bias.copy_(total)
    return grad_x, grad_weight, grad_bias


def _fake_gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    panels: Tensor | None,
    needed: Sequence[bool],
    panel: int,
    over: str,
) -> tuple[Tensor, Tensor, Tensor]:
    shapes = (x.shape, weight.shape, weight.shape[:1])
    made = [
        torch.empty(shape if need else (0,), dtype=x.dtype, device=x.device)
        for shape, need in zip(shapes, needed, strict=True)
    ]
    return made[0], made[1], made[2]


define(
    "panel_linear(Tensor x, Tensor weight, Tensor? panels, Tensor? bias, Tensor? residual, "
    "int panel, str over) -> Tensor",
    _forward,
    _fake,
    row_arguments=(0, 4),
    setup_context=_setup_context,
    backward=_backward,
)

define(
    "panel_linear_backward(Tensor grad, Tensor x, Tensor weight, Tensor? panels, bool[] needed, "
    "int panel, str over) -> (Tensor, Tensor, Tensor)",
    _gradients,
    _fake_gradients,
    row_arguments=(),
)
