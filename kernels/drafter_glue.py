"""What lies between two steps of a drafter's chain, in one launch and one pass over the row.

A program per row. With s = sum x^2, t = sum (x g)^2 and r = 1 / sqrt(s / H + eps), the state is
y = x r g, and since sum y^2 = r^2 t the next norm of it needs no second pass:
rms_norm(y, h) = y h / sqrt(r^2 t / H + eps). Nothing is rounded in between.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from leeboard.kernels._common import device_of, reciprocal_rms, row_config

# Widest row that a program holds; wider ones are read twice.
LIMIT = 8192


@triton.jit
def _read(x, embedded, norm_weight, cols, H, NORM_OUTPUT: tl.constexpr):
    """x, x norm_weight (or x) and the embedding of a block of columns."""
    mask = cols < H
    h = tl.load(x + cols, mask, other=0.0).to(tl.float32)
    e = tl.load(embedded + cols, mask, other=0.0).to(tl.float32)
    gained = h
    if NORM_OUTPUT:
        gained = h * tl.load(norm_weight + cols, mask, other=0.0).to(tl.float32)
    return h, gained, e


@triton.jit
def _write(y, e, inner, entering, hidden_weight, input_weight, joined, state, cols, H):
    """The outputs of a block of columns, of the state `y` and the embedding `e`."""
    mask = cols < H
    hidden = y * inner * tl.load(hidden_weight + cols, mask, other=0.0).to(tl.float32)
    entered = e * entering * tl.load(input_weight + cols, mask, other=0.0).to(tl.float32)
    tl.store(state + cols, y.to(state.dtype.element_ty), mask)
    tl.store(joined + cols, entered.to(joined.dtype.element_ty), mask)
    tl.store(joined + H + cols, hidden.to(joined.dtype.element_ty), mask)


@triton.jit
def _drafter_glue_kernel(
    x,
    token,
    embedding,
    norm_weight,
    hidden_weight,
    input_weight,
    joined,
    state,
    H,
    x_stride,
    token_stride,
    embedding_stride,
    joined_stride,
    state_stride,
    eps,
    NORM_OUTPUT: tl.constexpr,
    BLOCK: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    x += row * x_stride
    joined += row * joined_stride
    state += row * state_stride
    embedded = embedding + tl.load(token + row * token_stride) * embedding_stride
    cols = tl.arange(0, BLOCK)
    h, gained, e = _read(x, embedded, norm_weight, cols, H, NORM_OUTPUT)
    plain_squares, gained_squares, e_squares = h * h, gained * gained, e * e
    if not ONE_BLOCK:
        for start in range(BLOCK, H, BLOCK):
            h, y, e = _read(x, embedded, norm_weight, start + cols, H, NORM_OUTPUT)
            plain_squares += h * h
            gained_squares += y * y
            e_squares += e * e
    entering = reciprocal_rms(tl.sum(e_squares, 0), H, eps)
    outer = 1.0
    if NORM_OUTPUT:
        outer = reciprocal_rms(tl.sum(plain_squares, 0), H, eps)
    inner = reciprocal_rms(outer * outer * tl.sum(gained_squares, 0), H, eps)
    if ONE_BLOCK:
        y = gained * outer
        _write(y, e, inner, entering, hidden_weight, input_weight, joined, state, cols, H)
    else:
        for start in range(0, H, BLOCK):
            at = start + cols
            h, y, e = _read(x, embedded, norm_weight, at, H, NORM_OUTPUT)
            y *= outer
            _write(y, e, inner, entering, hidden_weight, input_weight, joined, state, at, H)


def config(columns: int) -> dict[str, int]:
    """Tile of a row: one block up to `LIMIT` columns."""
    tile = row_config(columns, LIMIT)
    del tile["ROWS"]
    return tile


def forward(
    x: torch.Tensor,
    token: torch.Tensor,
    embedding: torch.Tensor,
    norm_weight: torch.Tensor,
    hidden_weight: torch.Tensor,
    input_weight: torch.Tensor,
    joined: torch.Tensor,
    state: torch.Tensor,
    eps: float,
    norm_output: bool,
) -> None:
    """joined [N, 2H] and state [N, H] of x [N, H] and token [N] int64.

    state = rms_norm(x, norm_weight) with `norm_output`, else x;
    joined = [rms_norm(embedding[token], input_weight); rms_norm(state, hidden_weight)]. Any row strides and dtypes. Tokens must
    be rows of `embedding`.
    """
    N, H = x.shape
    if x.numel() == 0:
        return
    with device_of(x):
        _drafter_glue_kernel[(N,)](
            x,
            token,
            embedding,
            norm_weight,
            hidden_weight,
            input_weight,
            joined,
            state,
            H,
            x.stride(0),
            token.stride(0),
            embedding.stride(0),
            joined.stride(0),
            state.stride(0),
            float(eps),
            NORM_OUTPUT=norm_output,
            **config(H),
        )
