"""What forward and backward of sparse attention do alike to a tile: loads, caps, masks."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def channels(pointers, mask, FULL: tl.constexpr):
    """A load of whole rows; no mask where the channels fill the tile."""
    return tl.load(pointers) if FULL else tl.load(pointers, mask, other=0.0)


@triton.jit
def tanh(x):
    """Hyperbolic tangent, relative error below 2e-7.

    Coefficients: Moshier, Cephes mathematical library, single/tanhf.c.
    """
    z = x * x
    near = -5.70498872745e-3
    near = near * z + 2.06390887954e-2
    near = near * z - 5.37397155531e-2
    near = near * z + 1.33314422036e-1
    near = near * z - 3.33332819422e-1
    near = near * z * x + x
    far = 1.0 - 2.0 / (tl.exp2(x * (2.0 * LOG2_E)) + 1.0)
    return tl.where(z < 0.390625, near, far)


@triton.jit
def scores_of(products, scale, softcap):
    """(scores in units of log 2, tanh of the capped ones) of products q . k."""
    if softcap is not None:
        cap = tl.cast(softcap, tl.float32)
        share = tanh(products * (tl.cast(scale, tl.float32) / cap))
        return share * (cap * LOG2_E), share
    else:
        return products * (tl.cast(scale, tl.float32) * LOG2_E), products


@triton.jit
def in_spans(begins, lengths, at, keys, first, last, stride, SPANS: tl.constexpr):
    """Which `keys` the rows see whose spans stand at `at`; both broadcast to the tile's shape.

    Columns `first` to `last` of the table reach into the tile; SPANS, if not zero, are all.
    """
    # A key before the span wraps around, and is far beyond its end.
    inside = (keys - tl.load(begins + at)).to(tl.uint32) < tl.load(lengths + at).to(tl.uint32)
    if SPANS > 0:
        for c in tl.static_range(1, SPANS):
            begin, length = tl.load(begins + at + c * stride), tl.load(lengths + at + c * stride)
            inside |= (keys - begin).to(tl.uint32) < length.to(tl.uint32)
    else:
        for c in range(tl.maximum(first, 1), last):
            begin, length = tl.load(begins + at + c * stride), tl.load(lengths + at + c * stride)
            inside |= (keys - begin).to(tl.uint32) < length.to(tl.uint32)
    return inside
