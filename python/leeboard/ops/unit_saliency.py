"""Saliency of prunable units: checks, dispatch and fake tensors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from leeboard import _C, reference
from leeboard.ops import _check
from leeboard.ops._library import check_out, choose, define, kernels, run_kernel, takes_reference
from leeboard.ops._state import direct_level, state


def unit_saliency(
    activation: Tensor, grad: Tensor, *, width: int = 1, out: Tensor | None = None
) -> Tensor:
    """First-order saliency of units of neighbouring channels, for each sample of a batch.

    s[b, u] = |sum over tokens t and the unit's channels c of a[b, t, c] * dL/da[b, t, c]|: how much
    the loss would change, to first order, if the unit were switched off. That is |dL_b / dg_u| at
    g_u = 1 for a gate g_u on the unit (Michel et al., 2019, arXiv:1905.10650; Molchanov et al.,
    2017, arXiv:1611.06440). Unit u is the channels [u * width, (u + 1) * width): the head width for
    the input of an attention's output projection, 1 for the hidden channels of a feed-forward
    block. Both tensors are read once, and no product is written.

    Args:
        activation: [B, ..., C], C >= 1; float32, bfloat16, float16 (float64 by the reference). The
            tokens of a sample may be strided, and samples lie anywhere; a layout that no kernel
            takes costs one copy.
        grad: The loss's gradient in the activation, of its shape, dtype and device. Where the loss
            is a mean over the batch, each sample's is 1 / B of its own loss's.
        width: Channels of a unit; divides C.
        out: Written and returned, if given: [B, C / width], of the result's dtype.

    Returns:
        Tensor [B, C / width], float32 (float64 for float64 inputs), in the loss's units. Without
        tokens it is zero. Products and sums are float32, added in a tree, so that many tokens cost
        no precision. Same inputs give bit-identical results whatever the thread count. It has no
        gradient: a saliency is a target.

    Raises:
        TypeError, ValueError: For an argument that does not fit; the message names it.
        RuntimeError: If an input requires grad while grad mode is on, or a forced backend cannot
            run.
    """
    level = direct_level(activation, grad, out)
    if level is not None and _has_units(activation, width):
        made = _result(activation, width) if out is None else out
        if _C.unit_saliency_forward(activation, grad, made, width, level):
            if out is not None:
                increment_version(out)
            return made
    _check_arguments(activation, grad, width)
    _check.no_grad("unit_saliency", "has no gradient", activation=activation, grad=grad)
    if out is not None:
        _check_out(activation, width, out)
    elif takes_reference("unit_saliency"):
        return reference.unit_saliency(activation, grad, width=width)
    result: Tensor = torch.ops.leeboard.unit_saliency(activation, grad, width)
    return result if out is None else out.copy_(result)


def _has_units(activation: Tensor, width: object) -> bool:
    """Whether a result can be made, before anything is checked."""
    return isinstance(width, int) and width > 0 and activation.dim() > 1


def _check_arguments(activation: Tensor, grad: Tensor, width: int) -> None:
    channels = _check.rows("activation", activation)
    if activation.dim() < 2:
        raise ValueError(f"activation: shape [{channels}] was given; expected [B, ..., C]")
    _check.companion("grad", grad, "activation", activation)
    _check.shape("grad", grad, activation.shape, "the shape of activation")
    _check.integer("width", width, 1)
    if channels % width:
        raise ValueError(
            f"width: {width} was given; expected a divisor of {channels}, "
            "the last dimension of activation"
        )


def _check_out(activation: Tensor, width: int, out: Tensor) -> None:
    _check.values("out", out, activation)
    expected = (activation.shape[0], activation.shape[-1] // width)
    _check.shape("out", out, expected, "a sample's units, for each sample")
    _check.memory("out", out)
    check_out("unit_saliency", out=out)


def _result(activation: Tensor, width: int) -> Tensor:
    return torch.empty(
        (activation.shape[0], activation.shape[-1] // width),
        dtype=torch.promote_types(activation.dtype, torch.float32),
        device=activation.device,
    )


def _forward(activation: Tensor, grad: Tensor, width: int) -> Tensor:
    backend = choose("unit_saliency", [activation, grad])
    if backend == "reference":
        return reference.unit_saliency(activation, grad, width=width)
    out = _result(activation, width)
    if backend == "triton":
        kernels("unit_saliency").forward(_samples(activation), _samples(grad), out, width)
    else:
        samples = [_samples(activation), _samples(grad)]
        run_kernel(_C.unit_saliency_forward, samples, [out], width, state().level)
    return out


def _samples(t: Tensor) -> Tensor:
    """[B, ..., C] as [B, T, C] with unit stride along C; copies only where it must."""
    plain = t.as_subclass(Tensor).resolve_neg()
    samples = plain[:, None] if t.dim() == 2 else plain.flatten(1, -2)
    return samples if samples.stride(-1) == 1 or samples.shape[-1] == 1 else samples.contiguous()


def _fake(activation: Tensor, grad: Tensor, width: int) -> Tensor:
    return _result(activation, width)


define(
    "unit_saliency(Tensor activation, Tensor grad, int width) -> Tensor",
    _forward,
    _fake,
    # A sample's tokens are summed: vmap takes the batched calls one by one.
    row_arguments=(),
)
