"""Products over a list of panels: which channels it names, tiles, and the end of a tile.

A list is int32 [n] on the device; place i of the channels that it names, side by side, is channel
list[i // panel] * panel + i % panel, and -1 names none. Every width is served by that index: where
8 or 16 neighbours stay neighbours, whatever the list, the compiler is told, so that they load as a
vector. The grid covers the whole list. What is padding is skipped on the device, so
that one CUDA graph serves every list of a length.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from leeboard.kernels._common import is_hip
from leeboard.kernels._weights import weight_config

# The most neighbours that the compiler is told of.
VECTOR = 16


def run_of(panel: int) -> int:
    """Neighbouring channels that stay so in every list, at a multiple of their number."""
    return min(VECTOR, panel & -panel)


def tile_for(
    rows: int, columns: int, dtype: torch.dtype, *, aligned: bool, wide: bool
) -> dict[str, int]:
    """Tile of a product of rows with matrices of `dtype`.

    Args:
        rows: Of the activations.
        columns: That are summed over.
        aligned: Whether they load as vectors.
        wide: Whether rows enter in two terms, or a second product waits in registers.
    """
    # What is not a multiple of 16 long has an address for every element.
    length = columns if aligned else columns | 1
    return weight_config(rows, length, dtype, "plain", hip=is_hip(), wide=wide)


@triton.jit
def listed(panels, places, n, size, PANEL: tl.constexpr, RUN: tl.constexpr):
    """(channel, whether there is one) of places of a list; without a list, the places themselves.

    With RUN > 1 places come in runs of so many, which begin at a multiple of RUN.
    """
    if panels is None:
        return places, places < size
    entry = tl.load(panels + places // PANEL, places < n * PANEL, other=-1)
    entry = tl.max_constancy(entry, RUN)
    channel = entry * PANEL + places % PANEL
    channel = tl.max_contiguous(tl.multiple_of(channel, RUN), RUN)
    return channel, (entry >= 0) & (channel < size)


@triton.jit
def list_end(panels, n):
    """One past the last entry that names a panel."""
    if panels is None:
        return n
    end = 0
    for start in range(0, n, 1024):
        at = start + tl.arange(0, 1024)
        entry = tl.load(panels + at, at < n, other=-1)
        end = tl.maximum(end, tl.max(tl.where(entry >= 0, at + 1, 0), 0))
    return end


@triton.jit
def store_tile(
    sums, rows, row_mask, columns, column_mask, residual, residual_stride, out, out_stride
):
    """Adds the residual to a tile, rounds it once and writes it."""
    mask = row_mask[:, None] & column_mask[None, :]
    rows = rows[:, None].to(tl.int64)
    if residual is not None:
        at = residual + rows * residual_stride + columns[None, :]
        sums += tl.load(at, mask, other=0.0).to(tl.float32)
    tl.store(out + rows * out_stride + columns[None, :], sums.to(out.dtype.element_ty), mask)
