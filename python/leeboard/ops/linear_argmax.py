"""The most likely token of a head: checks, dispatch and fake tensors."""

from __future__ import annotations

import torch
from torch import Tensor

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


def linear_argmax(
    x: Tensor,
    weight: Tensor,
    *,
    d2t: Tensor | None = None,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Greedy token of a language-model head, without writing its logits.

    index = argmax_v x . weight[v], value = max_v x . weight[v]. Products are accumulated in float32
    and compared unrounded; ties go to the lowest v; a NaN counts as the maximum, as in torch.max.
    With `d2t` the index becomes v + d2t[v], the target's token of draft token v (the offset table
    of EAGLE-3 checkpoints).

    Args:
        x: [..., H], H >= 1; float32, bfloat16, float16 (float64 by the reference).
        weight: [V, H] of x's dtype, V >= 1.
        d2t: int64 [V] on x's device, or None.
        out: (index, value) to write and return: int64 and float32 of shape [...].

    Returns:
        (index int64 [...], value float32 [...]; float64 for float64 inputs). Inference only. A
        row's result does not depend on the other rows, nor on the thread count.

    Raises:
        TypeError, ValueError: For an argument that does not fit; the message names it.
        RuntimeError: If an input requires grad while grad mode is on, or a forced backend cannot
            run.
    """
    width = _check.rows("x", x)
    _check.companion("weight", weight, "x", x)
    if weight.dim() != 2 or weight.shape[1] != width or weight.shape[0] == 0:
        raise ValueError(
            f"weight: shape {list(weight.shape)} was given; expected [V, {width}] with V >= 1 "
            "(H is the last dimension of x)"
        )
    if d2t is not None:
        _check.integers("d2t", d2t, "x", x)
        _check.shape("d2t", d2t, weight.shape[:1], "the vocabulary of weight")
    _check.no_grad("linear_argmax", "is inference-only", x=x, weight=weight)
    if out is not None:
        _check.pair("out", out)
        _check.integers("out[0]", out[0], "x", x)
        _check.shape("out[0]", out[0], x.shape[:-1], "the leading dimensions of x")
        _check.values("out[1]", out[1], x)
        _check.shape("out[1]", out[1], x.shape[:-1], "the leading dimensions of x")
        _check.memory("out[0]", out[0])
        _check.memory("out[1]", out[1])
        check_out("linear_argmax", **{"out[1]": out[1]})
    if direct_level(x, weight, d2t) is not None and out is None:
        return _forward(x, weight, d2t)
    if out is None and takes_reference("linear_argmax"):
        return reference.linear_argmax(x, weight, d2t=d2t)
    index, value = torch.ops.leeboard.linear_argmax(x, weight, d2t)
    if out is None:
        return index, value
    return out[0].copy_(index), out[1].copy_(value)


def _forward(x: Tensor, weight: Tensor, d2t: Tensor | None) -> tuple[Tensor, Tensor]:
    backend = choose("linear_argmax", [x, weight])
    index, value = _fake(x, weight, d2t)
    if index.numel() == 0:
        return index, value
    if backend == "reference":
        exact_index, exact_value = reference.linear_argmax(x, weight, d2t=d2t)
        index.copy_(exact_index)
        value.copy_(exact_value)
    elif backend == "triton":
        table = None if d2t is None else d2t.contiguous()
        kernels("linear_argmax").forward(
            as_matrix(x), as_matrix(weight), index.view(-1), value.view(-1), table
        )
    else:
        run_kernel(
            _C.linear_argmax_forward,
            [x, weight, None, d2t],
            [index.view(-1), value.view(-1)],
            "plain",
            state().level,
        )
    return index, value


def _fake(x: Tensor, weight: Tensor, d2t: Tensor | None) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    return (
        torch.empty(x.shape[:-1], dtype=torch.int64, device=x.device),
        torch.empty(x.shape[:-1], dtype=wide, device=x.device),
    )


define(
    "linear_argmax(Tensor x, Tensor weight, Tensor? d2t) -> (Tensor, Tensor)",
    _forward,
    _fake,
    row_arguments=(0,),
)
