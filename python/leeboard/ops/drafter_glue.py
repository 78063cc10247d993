"""What lies between two steps of a drafter's chain: checks, dispatch and fake tensors."""

from __future__ import annotations

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
from leeboard.ops._state import direct_level, state, values_visible


def drafter_glue(
    x: Tensor,
    token: Tensor,
    embedding: Tensor,
    norm_weight: Tensor,
    hidden_weight: Tensor,
    input_weight: Tensor,
    eps: float = 1e-6,
    *,
    norm_output: bool = True,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """From the end of one drafter step to the input of the next, in one pass over the row.

    state = rms_norm(x, norm_weight) with `norm_output` (post-norm, arXiv:2605.09992), else x;
    joined = [rms_norm(embedding[token], input_weight); rms_norm(state, hidden_weight)], the input
    of an EAGLE-3 drafter's layer (arXiv:2503.01840). Computed in float32; each output is rounded
    once, and `joined` follows from the unrounded state.

    Args:
        x: [..., H], H >= 1, the residual stream that a step left; float32, bfloat16, float16
            (float64 by the reference).
        token: int64 [...], the leading dimensions of x: the tokens that the step chose.
        embedding: [V, H] of x's dtype, V >= 1.
        norm_weight: [H] of x's dtype, gain of the output norm (not read without `norm_output`).
        hidden_weight: [H] of x's dtype, gain of the norm of the fed-back state.
        input_weight: [H] of x's dtype, gain of the norm of the embedding.
        eps: Added to every mean square; >= 0.
        norm_output: Feed back the normed state instead of the residual stream.
        out: (joined, state) to write and return, of x's dtype and device and apart from each other;
            state may be x itself.

    Returns:
        (joined [..., 2H], state [..., H]) of x's dtype. Inference only. A row's result does not
        depend on the other rows, nor on the thread count.

    Raises:
        TypeError, ValueError: For an argument that does not fit; the message names it. Token ids
            outside 0 .. V - 1 are found on CPUs, before anything is read or written; on GPUs ids
            are not checked.
        RuntimeError: If an input requires grad while grad mode is on, or a forced backend cannot
            run.
    """
    if out is not None:
        _check.pair("out", out)
    tensors = (x, token, embedding, norm_weight, hidden_weight, input_weight)
    level = direct_level(*tensors, *(() if out is None else out))
    if level is not None and (out is not None or _has_rows(x)):
        joined, fed = _empty(x) if out is None else out
        if _C.drafter_glue_forward(*tensors, joined, fed, eps, norm_output, level):
            if out is not None:
                increment_version(out)
            return joined, fed
    width = _check.rows("x", x)
    _check.integers("token", token, "x", x)
    _check.shape("token", token, x.shape[:-1], "the leading dimensions of x")
    _check.companion("embedding", embedding, "x", x)
    if embedding.dim() != 2 or embedding.shape[1] != width or embedding.shape[0] == 0:
        raise ValueError(
            f"embedding: shape {list(embedding.shape)} was given; expected [V, {width}] with "
            "V >= 1 (H is the last dimension of x)"
        )
    gains = {
        "norm_weight": norm_weight,
        "hidden_weight": hidden_weight,
        "input_weight": input_weight,
    }
    for name, weight in gains.items():
        _check.companion(name, weight, "x", x)
        _check.shape(name, weight, (width,), "the last dimension of x")
    eps = _check.epsilon(eps)
    if not isinstance(norm_output, bool):
        raise TypeError(f"norm_output: expected True or False, got {type(norm_output).__name__}")
    _check.no_grad("drafter_glue", "is inference-only", x=x, embedding=embedding, **gains)
    if out is not None:
        _check.output("out[0]", out[0], "x", x, (*x.shape[:-1], 2 * width))
        _check.output("out[1]", out[1], "x", x, x.shape)
        _check.apart("out[0]", out[0], "out[1]", out[1])
        check_out("drafter_glue", **{"out[0]": out[0], "out[1]": out[1]})
    elif takes_reference("drafter_glue"):
        return reference.drafter_glue(*tensors, eps, norm_output=norm_output)
    joined, fed = torch.ops.leeboard.drafter_glue(*tensors, eps, norm_output)
    return (joined, fed) if out is None else (out[0].copy_(joined), out[1].copy_(fed))


def _has_rows(x: Tensor) -> bool:
    return x.layout == torch.strided and not x.is_nested and x.dim() > 0


def _empty(x: Tensor) -> tuple[Tensor, Tensor]:
    leading, width = x.shape[:-1], x.shape[-1]
    return (
        torch.empty((*leading, 2 * width), dtype=x.dtype, device=x.device),
        torch.empty(x.shape, dtype=x.dtype, device=x.device),
    )


def _forward(
    x: Tensor,
    token: Tensor,
    embedding: Tensor,
    norm_weight: Tensor,
    hidden_weight: Tensor,
    input_weight: Tensor,
    eps: float,
    norm_output: bool,
) -> tuple[Tensor, Tensor]:
    gains = (norm_weight, hidden_weight, input_weight)
    backend = choose("drafter_glue", [x, embedding, *gains])
    if token.device.type == "cpu" and values_visible(token):
        _check.token_ids("token", token, embedding.shape[0])
    joined, fed = _empty(x)
    if fed.numel() == 0:
        return joined, fed
    if backend == "reference":
        exact = reference.drafter_glue(
            x, token, embedding, *gains, eps=eps, norm_output=norm_output
        )
        joined.copy_(exact[0])
        fed.copy_(exact[1])
        return joined, fed
    rows, tokens = as_matrix(x), token.reshape(-1)
    outs = as_matrix(joined), as_matrix(fed)
    if backend == "triton":
        contiguous = [t.contiguous() for t in gains]
        kernels("drafter_glue").forward(
            rows, tokens.contiguous(), as_matrix(embedding), *contiguous, *outs, eps, norm_output
        )
    else:
        run_kernel(
            _C.drafter_glue_forward,
            [rows, tokens, embedding, *gains],
            outs,
            eps,
            norm_output,
            state().level,
        )
    return joined, fed


def _fake(
    x: Tensor,
    token: Tensor,
    embedding: Tensor,
    norm_weight: Tensor,
    hidden_weight: Tensor,
    input_weight: Tensor,
    eps: float,
    norm_output: bool,
) -> tuple[Tensor, Tensor]:
    return _empty(x)


define(
    "drafter_glue(Tensor x, Tensor token, Tensor embedding, Tensor norm_weight, "
    "Tensor hidden_weight, Tensor input_weight, float eps, bool norm_output) -> (Tensor, Tensor)",
    _forward,
    _fake,
    row_arguments=(0, 1),
)
