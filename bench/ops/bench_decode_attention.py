"""decode_attention: a token, or the tokens of a draft, over the cache of a grouped-query model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.cases import Aim, Case, Inputs, Subject
from bench.grid import Measure, Point, grid

HEADS = 32
GROUPS = 8
KEYS = 4096
WINDOW = 1024
SINKS = 4
DRAFT = 5


def _case(width: int, dtype: torch.dtype, *, tokens: int = 1, window: int | None = None) -> Case:
    shape = {"T": tokens, "L": KEYS, "D": width}
    visible = KEYS
    if window is not None:
        shape["W"] = window
        visible = window + SINKS
    products = HEADS * tokens * (visible + tokens) * width
    return Case(
        op="decode_attention",
        shape=shape,
        dtype=dtype,
        direction="forward",
        read=2 * GROUPS * visible * width * dtype.itemsize,
        written=0,
        # A multiplication and an addition for the score, the same for the value.
        flops=4 * products,
        streams=(1, 0),
        aim=Aim(share=1 / 1.5),
        quick=width == 128 and dtype == torch.bfloat16,
    )


def _inputs(case: Case, device: torch.device) -> Inputs:
    tokens, width = case.shape["T"], case.shape["D"]

    def rows(heads: int, count: int) -> Tensor:
        return torch.randn(1, heads, count, width, device=device).to(case.dtype)

    capacity = KEYS + DRAFT
    frequencies = 10000.0 ** (-torch.arange(0, width, 2, device=device) / width)
    angles = torch.outer(torch.arange(capacity, device=device), frequencies)
    options: dict[str, Any] = {"cos": angles.cos(), "sin": angles.sin()}
    if "W" in case.shape:
        options |= {"window": case.shape["W"], "sinks": SINKS}
    new = (rows(HEADS, tokens), rows(GROUPS, tokens), rows(GROUPS, tokens))
    caches = (rows(GROUPS, capacity), rows(GROUPS, capacity))
    return Inputs((*new, *caches, torch.tensor([KEYS], device=device)), options)


def _eager(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    *,
    cos: Tensor,
    sin: Tensor,
    window: int | None = None,
    sinks: int = 0,
) -> Tensor:
    # A user's loop knows the length as a number, and writes the new rows where they belong. The
    # window is a slice of the cache: what is out of sight is not read.
    tokens, end = q.shape[2], KEYS + q.shape[2]
    c = torch.cat([cos[KEYS:end]] * 2, -1).to(q.dtype)
    s = torch.cat([sin[KEYS:end]] * 2, -1).to(q.dtype)

    def rotate(x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return x * c + torch.cat([-b, a], -1) * s

    at = torch.arange(KEYS, end, device=q.device)
    k_cache.index_copy_(2, at, rotate(k))
    v_cache.index_copy_(2, at, v)
    keys, values = k_cache[:, :, :end], v_cache[:, :, :end]
    if window is not None:
        first = end - window
        keys = torch.cat([keys[:, :, :sinks], keys[:, :, first:]], 2)
        values = torch.cat([values[:, :, :sinks], values[:, :, first:]], 2)
    mask = None
    if tokens > 1:
        mask = torch.ones(tokens, end, dtype=torch.bool, device=q.device).tril(KEYS)
    return F.scaled_dot_product_attention(rotate(q), keys, values, mask, enable_gqa=True)


SUBJECT = Subject(
    op="decode_attention",
    cases=[
        *(_case(width, dtype) for dtype in (torch.float32, torch.bfloat16) for width in (64, 128)),
        _case(128, torch.bfloat16, window=WINDOW),
        _case(128, torch.bfloat16, tokens=DRAFT),
    ],
    inputs=_inputs,
    eager=_eager,
)


@pytest.mark.parametrize("point", grid(SUBJECT))
def test_decode_attention(measure: Measure, point: Point) -> None:
    measure(SUBJECT, point)
