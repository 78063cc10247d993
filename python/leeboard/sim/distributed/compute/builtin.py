"""Operators of common programs over a range of sizes, to profile a device without a script."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

_WIDTHS = (256, 1024, 4096)
_ROWS = (1, 16, 256, 2048)
_MOST = 1 << 26


def operators(dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)) -> None:
    """Products, attention, norms, elementwise ops and moves, from small to large."""
    with torch.no_grad():
        for dtype in dtypes:
            _products(dtype)
            _attention(dtype)
            _rows(dtype)


def transformer(dtypes: tuple[torch.dtype, ...] = (torch.float32,)) -> None:
    """A transformer block, forward and backward, and a step of its optimiser, in three widths."""
    for dtype, width in itertools.product(dtypes, (128, 512, 1024)):
        block = torch.nn.TransformerEncoderLayer(
            width, 8, 4 * width, dropout=0.0, batch_first=True, norm_first=True, dtype=dtype
        )
        step = torch.optim.AdamW(block.parameters())
        for length in (16, 128):
            block(torch.rand(1, length, width, dtype=dtype)).sum().backward()
            step.step()
            step.zero_grad()


BUILTINS: dict[str, Callable[[], Any]] = {"operators": operators, "transformer": transformer}


def _tensor(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype).fill_(0.5)


def _products(dtype: torch.dtype) -> None:
    for rows, width, out in itertools.product(_ROWS, _WIDTHS, _WIDTHS):
        if rows * width * out > 1 << 33 or width * out > _MOST:
            continue
        x, weight, bias = _tensor(dtype, rows, width), _tensor(dtype, out, width), None
        functional.linear(x, weight, bias)
        if width == out:
            functional.linear(x, weight, _tensor(dtype, out))


def _attention(dtype: torch.dtype) -> None:
    for heads, head, (queries, keys) in itertools.product(
        (8,), (64, 128), ((1, 128), (1, 2048), (128, 128), (512, 512))
    ):
        q = _tensor(dtype, 1, heads, queries, head)
        k, v = (_tensor(dtype, 1, heads, keys, head) for _ in range(2))
        functional.scaled_dot_product_attention(q, k, v, is_causal=queries == keys)


def _rows(dtype: torch.dtype) -> None:
    for rows, width in itertools.product(_ROWS, _WIDTHS):
        x, y = _tensor(dtype, rows, width), _tensor(dtype, rows, width)
        x + y, x * y, x - y, x / 2, x * 2.0, x + 1.0
        functional.silu(x), functional.gelu(x), functional.relu(x), torch.sigmoid(x), torch.tanh(x)
        torch.exp(x), torch.rsqrt(x), x.pow(2), x.mean(-1, keepdim=True), x.sum(-1)
        functional.softmax(x, -1), functional.log_softmax(x, -1), functional.layer_norm(x, (width,))
        torch.cat([x, y]), x.clone(), x.t().contiguous(), x.to(torch.float32), x.argmax(-1)
        torch.zeros_like(x), x.add_(y), x.mul_(0.5), x.copy_(y)
        functional.embedding(torch.zeros(rows, dtype=torch.int64), _tensor(dtype, 512, width))
