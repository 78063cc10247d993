"""Weights of the benchmarks by their bits, and what a user of plain PyTorch has in their place."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from bench.cases import Inputs
from leeboard.ops import QuantizedWeight, quantize_weight
from leeboard.reference import Weight

# Bits of a weight; 32 and 16 are plain tensors.
BITS = (32, 16, 8, 4)


def dtype_of(bits: int) -> torch.dtype:
    """The activations that go with weights of so many bits."""
    return torch.float32 if bits == 32 else torch.bfloat16


def weight_bytes(rows: int, columns: int, bits: int) -> int:
    """Bytes of a matrix with its scales."""
    scales = {8: 4 * rows, 4: 2 * rows * -(-columns // 128)}.get(bits, 0)
    return rows * columns * bits // 8 + scales


def weight_of(rows: int, columns: int, bits: int, device: torch.device) -> Weight:
    """A random matrix whose products with unit normal rows are about unit normal."""
    weight = torch.empty(rows, columns).normal_(std=columns**-0.5)
    if bits >= 16:
        return torch.nn.Parameter(weight.to(device, dtype_of(bits)))
    quantised = quantize_weight(weight, "int8" if bits == 8 else "int4")
    moved: Weight = pytree.tree_map_only(Tensor, lambda t: t.to(device), quantised)
    return moved


def in_bfloat16(inputs: Inputs) -> Inputs:
    """Quantised weights as the bfloat16 matrices that F.linear takes."""

    def plain(value: object) -> object:
        if isinstance(value, QuantizedWeight):
            return torch.nn.Parameter(value.dequantize().bfloat16(), requires_grad=False)
        return value

    return Inputs(tuple(plain(arg) for arg in inputs.args), inputs.kwargs)
