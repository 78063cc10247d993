"""Gradients of panel_ffn: matrix products over the listed channels, whose h is computed again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from leeboard.ops._library import define
from leeboard.ops._panels import places
from leeboard.reference.panel_ffn import ACTIVATIONS

_aten = torch.ops.aten

# The derivative of an activation at v, times g.
_DERIVATIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gelu": lambda g, v: _aten.gelu_backward(g, v),
    "gelu_tanh": lambda g, v: _aten.gelu_backward(g, v, approximate="tanh"),
    "relu": lambda g, v: g * (v > 0),
    "silu": lambda g, v: _aten.silu_backward(g, v),
    "identity": lambda g, v: g,
}
# Positions of what has a gradient among the arguments of panel_ffn; the residual's is the output's.
_WANTED = (0, 1, 2, 3, 4, 5, 7, 8, 10, 11)
_RESIDUAL = 9


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Keeps the arguments but for the residual."""
    ctx.options = inputs[12:]
    ctx.save_for_backward(*inputs[:_RESIDUAL], *inputs[_RESIDUAL + 1 : 12])


def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """Gradients in the order of the arguments of panel_ffn."""
    wants = ctx.needs_input_grad
    result: list[Any] = [None] * len(wants)
    if wants[_RESIDUAL]:
        result[_RESIDUAL] = grad
    needed = [wants[i] for i in _WANTED]
    if any(needed):
        made = torch.ops.leeboard.panel_ffn_backward(grad, *ctx.saved_tensors, needed, *ctx.options)
        for i, need, value in zip(_WANTED, needed, made, strict=True):
            result[i] = value if need else None
    return tuple(result)


class _Norm:
    """n = norm(x) of rows, and its gradients."""

    def __init__(
        self, x: Tensor, norm: str, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> None:
        self.x, self.norm, self.weight, self.bias = x, norm, weight, bias
        self.normed = x
        if norm == "layer_norm":
            self.normed, self.mean, self.factor = torch.native_layer_norm(
                x, x.shape[-1:], weight, bias, eps
            )
        elif norm == "rms_norm":
            self.factor = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
            self.unit = x * self.factor
            self.normed = self.unit if weight is None else self.unit * weight

    def gradients(self, grad: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Of x, weight and bias, from that of n."""
        if self.norm == "layer_norm":
            mask = [True, self.weight is not None, self.bias is not None]
            made: tuple[Tensor, Tensor | None, Tensor | None] = _aten.native_layer_norm_backward(
                grad,
                self.x,
                self.x.shape[-1:],
                self.mean,
                self.factor,
                self.weight,
                self.bias,
                mask,
            )
            return made
        if self.norm == "rms_norm":
            grad_weight = (grad * self.unit).sum(0)
            grad = grad if self.weight is None else grad * self.weight
            across = (grad * self.unit).mean(-1, keepdim=True)
            return (grad - self.unit * across) * self.factor, grad_weight, None
        return grad, None, None


def _gradients(
    grad: Tensor,
    x: Tensor,
    up: Tensor,
    down: Tensor,
    gate: Tensor | None,
    up_bias: Tensor | None,
    gate_bias: Tensor | None,
    panels: Tensor | None,
    bias: Tensor | None,
    gates: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    needed: Sequence[bool],
    sample_dims: int,
    activation: str,
    norm: str,
    eps: float,
    panel: int,
) -> tuple[Tensor, ...]:
    """Gradients in the order of _WANTED; products are float32 (float64 for float64 inputs)."""
    wide = torch.promote_types(x.dtype, torch.float32)
    _, channels = places(panels, up.shape[0], panel, x.device)

    def listed(t: Tensor | None, dim: int = 0) -> Tensor | None:
        return None if t is None else t.as_subclass(Tensor).index_select(dim, channels).to(wide)

    def whole(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.as_subclass(Tensor).to(wide)

    def project(weight: Tensor, offset: Tensor | None) -> Tensor:
        return torch.nn.functional.linear(around.normed, weight, offset)

    grads = grad.as_subclass(Tensor).reshape(-1, grad.shape[-1]).to(wide)
    rows = x.as_subclass(Tensor).reshape(-1, x.shape[-1]).to(wide)
    around = _Norm(rows, norm, whole(norm_weight), whole(norm_bias), eps)
    up_rows, gate_rows, down_columns = listed(up), listed(gate), listed(down, 1)
    assert up_rows is not None
    assert down_columns is not None
    upward = project(up_rows, listed(up_bias))
    act, derivative = ACTIVATIONS[activation], _DERIVATIVES[activation]
    if gate_rows is None:
        hidden = act(upward)
    else:
        gateward = project(gate_rows, listed(gate_bias))
        acted = act(gateward)
        hidden = acted * upward
    grad_hidden = grads @ down_columns
    made: list[Tensor | None] = [None] * len(_WANTED)
    factors = None
    if gates is not None:
        samples = listed(gates, 1)
        assert samples is not None
        factors = _per_row(samples, x, sample_dims)
        if needed[7]:
            each = grad_hidden * hidden
            made[7] = _per_sample(each, len(samples), x, sample_dims)
        grad_hidden = grad_hidden * factors
    if needed[2]:
        made[2] = grads.t() @ (hidden if factors is None else hidden * factors)
    if needed[6]:
        made[6] = grads.sum(0)
    if gate_rows is None:
        grad_up = derivative(grad_hidden, upward)
        grad_normed = grad_up @ up_rows
    else:
        grad_up = grad_hidden * acted
        grad_gate = derivative(grad_hidden * upward, gateward)
        grad_normed = grad_up @ up_rows + grad_gate @ gate_rows
        made[3] = grad_gate.t() @ around.normed if needed[3] else None
        made[5] = grad_gate.sum(0) if needed[5] else None
    made[1] = grad_up.t() @ around.normed if needed[1] else None
    made[4] = grad_up.sum(0) if needed[4] else None
    made[0], made[8], made[9] = around.gradients(grad_normed)

    outputs = _fake_gradients(grad, x, up, down, gate, up_bias, gate_bias, panels, bias, gates,
                              norm_weight, norm_bias, needed)  # fmt: skip
    # Channels that are not listed have gradients of zero.
    over = {1: 0, 2: 1, 3: 0, 4: 0, 5: 0, 7: 1}
    for i, out in enumerate(outputs):
        value = made[i]
        if not needed[i]:
            continue
        assert value is not None
        if i in over:
            zeros = torch.zeros(out.shape, dtype=wide, device=out.device)
            value = zeros.index_add_(over[i], channels, value)
        out.copy_(value.view(out.shape))
    return outputs


def _per_row(samples: Tensor, x: Tensor, sample_dims: int) -> Tensor:
    """Gates of each row [rows, active], or of all [1, active]."""
    if len(samples) == 1:
        return samples
    per_sample = _rows_of_a_sample(x, sample_dims)
    rows, of_all = x.numel() // x.shape[-1], len(samples) * per_sample
    times = rows // of_all if of_all else 0
    return samples.repeat_interleave(per_sample, 0).repeat(times, 1)


def _per_sample(each: Tensor, samples: int, x: Tensor, sample_dims: int) -> Tensor:
    """Rows [rows, active] summed over those of a sample."""
    if samples == 1:
        return each.sum(0, keepdim=True)
    per_sample = _rows_of_a_sample(x, sample_dims)
    if each.shape[0] == 0:
        return each.new_zeros((samples, each.shape[1]))
    times = each.shape[0] // (samples * per_sample)
    return each.view(times, samples, per_sample, each.shape[1]).sum((0, 2))


def _rows_of_a_sample(x: Tensor, sample_dims: int) -> int:
    per_sample = 1
    for size in x.shape[x.dim() - sample_dims : -1]:
        per_sample *= size
    return per_sample


def _fake_gradients(
    grad: Tensor,
    x: Tensor,
    up: Tensor,
    down: Tensor,
    gate: Tensor | None,
    up_bias: Tensor | None,
    gate_bias: Tensor | None,
    panels: Tensor | None,
    bias: Tensor | None,
    gates: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    needed: Sequence[bool],
    *options: Any,
) -> tuple[Tensor, ...]:
    inputs = (x, up, down, gate, up_bias, gate_bias, bias, gates, norm_weight, norm_bias)
    return tuple(
        torch.empty(t.shape if need and t is not None else (0,), dtype=x.dtype, device=x.device)
        for t, need in zip(inputs, needed, strict=True)
    )


define(
    "panel_ffn_backward(Tensor grad, Tensor x, Tensor up, Tensor down, Tensor? gate, "
    "Tensor? up_bias, Tensor? gate_bias, Tensor? panels, Tensor? bias, Tensor? gates, "
    "Tensor? norm_weight, Tensor? norm_bias, bool[] needed, int sample_dims, str activation, "
    "str norm, float eps, int panel) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _gradients,
    _fake_gradients,
    row_arguments=(),
)
