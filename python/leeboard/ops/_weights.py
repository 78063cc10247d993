"""Stand-in until linear's."""

from __future__ import annotations

from leeboard.ops import _check
from leeboard.reference import QuantizedWeight
import torch


def check_weight(name, weight, like, rows, columns):
    if isinstance(weight, QuantizedWeight):
        n, k = weight.shape
    else:
        _check.companion(name, weight, "state", like, (torch.bfloat16,))
        n, k = weight.shape
    if k != columns or (rows is not None and n != rows):
        raise ValueError(f"{name}: shape {[n, k]} was given; expected [{rows or 'N'}, {columns}]")
    return n


def to_arguments(weights):
    tensors, formats = [], []
    for w in weights:
        if isinstance(w, QuantizedWeight):
            tensors += [w.data, w.scales]
            formats.append(w.format)
        else:
            tensors.append(w)
            formats.append("plain")
    return tensors, formats


def from_arguments(tensors, formats, columns):
    it = iter(tensors)
    out = []
    for f, c in zip(formats, columns):
        if f == "plain":
            out.append(next(it))
        else:
            d = next(it)
            out.append(
                QuantizedWeight(
                    f,
                    d,
                    next(it),
                    c if c is not None else (2 * d.shape[1] if f == "int4" else d.shape[1]),
                )
            )
    return out
