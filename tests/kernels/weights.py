"""Weights in every format for kernel tests."""

from __future__ import annotations

import torch

from leeboard.reference import QuantizedWeight, Weight, quantize_weight

FORMATS = ("plain", "int8", "int4", "fp8")


def weight(
    N: int, K: int, form: str, dtype: torch.dtype, device: str, scale: float = 1.0
) -> Weight:
    """Normal values [N, K] times `scale` in a format; plain rows lie apart from each other."""
    values = scale * torch.randn(N, K, device=device)
    if form == "plain":
        storage = torch.full((N, K + 5), float("nan"), dtype=dtype, device=device)
        storage[:, :K] = values
        return storage[:, :K]
    return quantize_weight(values, form)


def doubled(w: Weight) -> torch.Tensor:
    """The float64 matrix that a weight stands for."""
    return w.dequantize(torch.float64) if isinstance(w, QuantizedWeight) else w.double()
