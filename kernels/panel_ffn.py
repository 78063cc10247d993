"""A feed-forward block over a list of panels of its hidden channels, in two launches.

First launch: norm, up (and gate) projection, activation and gates of a block of listed channels,
which is written in float32 as the reference keeps it; blocks that are all padding are skipped and
not written. Second launch: the down projection over the same list, bias and residual
(`panel_linear.py`). With a norm a small launch before finds each row's mean and scale. The weights
are those of torch.nn.Linear: nothing is packed or copied, and the listed part is read once per
block of rows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from leeboard.kernels import panel_linear
from leeboard.kernels._common import (
    PINNED,
    STREAM_ROWS,
    block_offsets,
    device_of,
    reciprocal_rms,
    row_config,
    split_product,
    tile_index,
)
from leeboard.kernels._panels import listed, tile_for


@triton.jit
def _row_moments_kernel(
    x, moments, M, K, x_stride, eps, CENTRED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """moments [2, M]: what is taken from a row, and what it is multiplied with."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    cols = tl.arange(0, BLOCK)[None, :]
    x += rows * x_stride
    mean = tl.zeros([ROWS, 1], tl.float32)
    if CENTRED:
        sums = tl.zeros([ROWS, BLOCK], tl.float32)
        for start in range(0, K, BLOCK):
            mask = (rows < M) & (start + cols < K)
            sums += tl.load(x + start + cols, mask, other=0.0).to(tl.float32)
        mean = tl.sum(sums, 1, keep_dims=True) / K
    squares = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in range(0, K, BLOCK):
        mask = (rows < M) & (start + cols < K)
        value = tl.load(x + start + cols, mask, other=0.0).to(tl.float32) - mean
        squares += tl.where(mask, value * value, 0.0)
    scale = reciprocal_rms(tl.sum(squares, 1, keep_dims=True), K, eps)
    tl.store(moments + rows, mean, rows < M)
    tl.store(moments + M + rows, scale, rows < M)


@triton.jit
def _normed(row, mean, scale, gamma, beta, cols, K):
    """(row - mean) * scale * gamma + beta in float32."""
    row = (row.to(tl.float32) - mean) * scale
    if gamma is not None:
        row *= tl.load(gamma + cols, cols < K, other=0.0).to(tl.float32)
    if beta is not None:
        row += tl.load(beta + cols, cols < K, other=0.0).to(tl.float32)
    return row


@triton.jit
def _stream_projection(
    x,
    mean,
    scale,
    gamma,
    beta,
    w,
    K,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """n w^T [ROWS, FEATURES] on the plain cores; x is [ROWS, 1, 1], w [1, FEATURES, 1]."""
    sums = tl.zeros([ROWS, FEATURES, BLOCK], tl.float32)
    for start in range(0, K, BLOCK):
        cols = start + tl.arange(0, BLOCK)[None, None, :]
        row = tl.load(x + cols, cols < K, other=0.0).to(tl.float32)
        if scale is not None:
            row = _normed(row, mean, scale, gamma, beta, cols, K)
        weights = tl.load(w + cols, cols < K, other=0.0, eviction_policy="evict_first")
        sums += row * weights.to(tl.float32)
    return tl.sum(sums, 2)


@triton.jit
def _dot_projection(
    x,
    mean,
    scale,
    gamma,
    beta,
    w,
    K,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The same by `tl.dot`; x is [ROWS, 1], w [1, FEATURES]. Normed rows enter in two terms."""
    SPLIT: tl.constexpr = (scale is not None) & (w.dtype.element_ty != tl.float32)
    sums = tl.zeros([ROWS, FEATURES], tl.float32)
    for start in range(0, K, BLOCK):
        inner = start + tl.arange(0, BLOCK)
        cols = inner[None, :]
        row = tl.load(x + cols, cols < K, other=0.0)
        if scale is not None:
            row = _normed(row, mean, scale, gamma, beta, cols, K)
        weights = tl.load(w + inner[:, None], inner[:, None] < K, other=0.0)
        sums = split_product(sums, row, weights, SPLIT)
    return sums


@triton.jit
def _activated(h, ACTIVATION: tl.constexpr):
    """An activation function in float32."""
    if ACTIVATION == "gelu":
        h = 0.5 * h * (1.0 + tl.erf(h * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        # h (1 + tanh u) / 2 = h / (1 + exp(-2 u)), u = sqrt(2 / pi) (h + 0.044715 h^3).
        h = h / (1.0 + tl.exp(-1.5957691216057308 * (h + 0.044715 * h * h * h)))
    elif ACTIVATION == "relu":
        h = tl.where(h < 0.0, 0.0, h)
    elif ACTIVATION == "silu":
        h = h / (1.0 + tl.exp(-h))
    return h


@triton.jit
def _offset(sums, bias, channels, there):
    """sums + bias of the channels."""
    if bias is not None:
        sums += tl.load(bias + channels, there, other=0.0).to(tl.float32)[None, :]
    return sums


@triton.jit
def _store_hidden(
    ups,
    gate_sums,
    up_bias,
    gate_bias,
    factors,
    rows,
    places,
    channels,
    there,
    hidden,
    M,
    n,
    factor_stride,
    rows_per_sample,
    PANEL: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """Activation and gates of a tile, which goes to hidden [M, n * PANEL] float32."""
    ups = _offset(ups, up_bias, channels, there)
    if gate_sums is None:
        ups = _activated(ups, ACTIVATION)
    else:
        ups *= _activated(_offset(gate_sums, gate_bias, channels, there), ACTIVATION)
    mask = (rows[:, None] < M) & there[None, :]
    rows = rows[:, None].to(tl.int64)
    if factors is not None:
        at = factors + rows // rows_per_sample * factor_stride + channels[None, :]
        ups *= tl.load(at, mask, other=0.0).to(tl.float32)
    tl.store(hidden + rows * n * PANEL + places[None, :], ups, mask)


@triton.jit
def _panel_hidden_stream_kernel(
    x,
    moments,
    gamma,
    beta,
    up,
    gate,
    up_bias,
    gate_bias,
    factors,
    panels,
    hidden,
    M,
    n,
    size,
    K,
    x_stride,
    up_stride,
    gate_stride,
    factor_stride,
    rows_per_sample,
    PANEL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    places = tl.program_id(0) * FEATURES + tl.arange(0, FEATURES)
    channels, there = listed(panels, places, n, size, PANEL, 1)
    if tl.max(there.to(tl.int32), 0) > 0:
        rows = tl.arange(0, ROWS)
        row_at = tl.minimum(rows, M - 1).to(tl.int64)[:, None, None]
        feature_at = tl.where(there, channels, 0).to(tl.int64)[None, :, None]
        mean, scale = None, None
        if moments is not None:
            mean, scale = tl.load(moments + row_at), tl.load(moments + M + row_at)
        x_at, up_at = x + row_at * x_stride, up + feature_at * up_stride
        ups = _stream_projection(x_at, mean, scale, gamma, beta, up_at, K, ROWS, FEATURES, BLOCK)
        gates = None
        if gate is not None:
            gate_at = gate + feature_at * gate_stride
            gates = _stream_projection(
                x_at, mean, scale, gamma, beta, gate_at, K, ROWS, FEATURES, BLOCK
            )
        _store_hidden(
            ups,
            gates,
            up_bias,
            gate_bias,
            factors,
            rows,
            places,
            channels,
            there,
            hidden,
            M,
            n,
            factor_stride,
            rows_per_sample,
            PANEL,
            ACTIVATION,
        )


@triton.jit
def _panel_hidden_dot_kernel(
    x,
    moments,
    gamma,
    beta,
    up,
    gate,
    up_bias,
    gate_bias,
    factors,
    panels,
    hidden,
    M,
    n,
    size,
    K,
    x_stride,
    up_stride,
    gate_stride,
    factor_stride,
    rows_per_sample,
    PANEL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row_block, place_block = tile_index(tl.program_id(0), M, n * PANEL, ROWS, FEATURES)
    places = place_block * FEATURES + tl.arange(0, FEATURES)
    channels, there = listed(panels, places, n, size, PANEL, 1)
    if tl.max(there.to(tl.int32), 0) > 0:
        rows, row_at = block_offsets(row_block, M, ROWS)
        row_at = row_at[:, None]
        feature_at = tl.where(there, channels, 0).to(tl.int64)[None, :]
        mean, scale = None, None
        if moments is not None:
            mean, scale = tl.load(moments + row_at), tl.load(moments + M + row_at)
        x_at, up_at = x + row_at * x_stride, up + feature_at * up_stride
        ups = _dot_projection(x_at, mean, scale, gamma, beta, up_at, K, ROWS, FEATURES, BLOCK)
        gates = None
        if gate is not None:
            gate_at = gate + feature_at * gate_stride
            gates = _dot_projection(
                x_at, mean, scale, gamma, beta, gate_at, K, ROWS, FEATURES, BLOCK
            )
        _store_hidden(
            ups,
            gates,
            up_bias,
            gate_bias,
            factors,
            rows,
            places,
            channels,
            there,
            hidden,
            M,
            n,
            factor_stride,
            rows_per_sample,
            PANEL,
            ACTIVATION,
        )


def _moments(x: torch.Tensor, norm: str, eps: float) -> torch.Tensor:
    """[2, M] float32: the mean of each row (zero for rms_norm) and its reciprocal deviation."""
    M, K = x.shape
    moments = torch.empty(2, M, dtype=torch.float32, device=x.device)
    tile = row_config(K, 4096)
    _row_moments_kernel[(triton.cdiv(M, tile["ROWS"]),)](
        x,
        moments,
        M,
        K,
        x.stride(0),
        float(eps),
        CENTRED=norm == "layer_norm",
        ROWS=tile["ROWS"],
        BLOCK=tile["BLOCK"],
        num_warps=tile["num_warps"],
        **PINNED,
    )
    return moments


def forward(
    x: torch.Tensor,
    up: torch.Tensor,
    gate: torch.Tensor | None,
    down: torch.Tensor,
    up_bias: torch.Tensor | None,
    gate_bias: torch.Tensor | None,
    panels: torch.Tensor | None,
    gates: torch.Tensor | None,
    rows_per_sample: int,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    out: torch.Tensor,
    *,
    activation: str,
    norm: str | None,
    norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None,
    eps: float,
    panel: int,
) -> None:
    """out [M, d_out] = residual + bias + sum over listed channels j of down[:, j] g_j h_j.

    h = act(n up^T + b), or act(n gate^T + b) * (n up^T + b) with a gate, of n = norm(x), x [M, d].
    `up` and `gate` are [F, d], `down` is [d_out, F]; rows of x, weights, residual and out have any
    stride. `panels` is int32 [n], None for every panel. `gates` g are [1, F] or [B, F]: row r is of
    sample r // rows_per_sample. Sums and hidden values are float32; with float16 weights and more
    than `STREAM_ROWS` rows neither these nor normed rows may leave float16's range.
    """
    M, K = x.shape
    if out.numel() == 0:
        return
    size = up.shape[0]
    n = triton.cdiv(size, panel) if panels is None else panels.shape[0]
    hidden = torch.empty(M, n * panel, dtype=torch.float32, device=x.device)
    wide = norm is not None or gate is not None
    tile = tile_for(M, K, up.dtype, aligned=True, wide=wide)
    kernel, grid = _panel_hidden_stream_kernel, triton.cdiv(n * panel, tile["FEATURES"])
    if M > STREAM_ROWS:
        kernel, grid = _panel_hidden_dot_kernel, grid * triton.cdiv(M, tile["ROWS"])
        if tile["ROWS"] == 64 and norm is not None:
            # Normed rows pass through registers, in two terms, while a gate's sums wait.
            tile |= {"num_warps": 8}
    with device_of(x):
        if grid > 0:
            kernel[(grid,)](
                x,
                None if norm is None else _moments(x, norm, eps),
                norm_weight if norm is not None else None,
                norm_bias if norm == "layer_norm" else None,
                up,
                gate,
                up_bias,
                gate_bias,
                gates,
                panels,
                hidden,
                M,
                n,
                size,
                K,
                x.stride(0),
                up.stride(0),
                0 if gate is None else gate.stride(0),
                0 if gates is None or gates.shape[0] == 1 else gates.stride(0),
                rows_per_sample,
                PANEL=panel,
                ACTIVATION=activation,
                **tile,
            )
        panel_linear.join(hidden, down, panels, bias, residual, out, panel=panel)
