"""What forward and backward of sparse attention do alike to a tile: loads, caps, masks."""

from __future__ import annotations

import triton
import triton.language as tl

from leeboard.kernels._common import dot_product
from leeboard.kernels._gqa_tiles import ITEM

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def item_of(items, blocks, count):
    """What a program works on: a batch, one of `count` heads or groups, and its item's numbers.

    First and end of its rows (or keys), first and number of what they meet, begin, middle and end
    of its list of tiles, and two that say where its spans stand; see `leeboard.kernels._gqa_tiles`.
    """
    item = items + tl.program_id(0) % blocks * ITEM
    pair = tl.program_id(0) // blocks
    batch, other = (pair // count).to(tl.int64), (pair % count).to(tl.int64)
    first, last = tl.load(item), tl.load(item + 1)
    met, number = tl.load(item + 2).to(tl.int64), tl.load(item + 3)
    begin, middle, end = tl.load(item + 4), tl.load(item + 5), tl.load(item + 6)
    table, spare = tl.load(item + 7), tl.load(item + 8)
    return batch, other, first, last, met, number, begin, middle, end, table, spare


@triton.jit
def channels(pointers, mask, FULL: tl.constexpr):
    """A load of whole rows; no mask where the channels fill the tile."""
    return tl.load(pointers) if FULL else tl.load(pointers, mask, other=0.0)


@triton.jit
def product(tile, other, rows, others, D: tl.constexpr, CHUNK: tl.constexpr):
    """tile other^T, in float32 sums.

    With CHUNK both are read again, that many channels at a time, from the rows whose first channels
    `rows` and `others` point at: products without tensor cores would hold the tiles in registers.
    """
    if CHUNK > 0:
        sums = tl.zeros([rows.shape[0], others.shape[0]], tl.float32)
        sums = dot_product(sums, rows[:, None], None, None, others[None, :], D, CHUNK)
    else:
        sums = tl.dot(tile, tl.trans(other), input_precision="ieee")
    return sums


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
    rest = tl.exp2(tl.abs(x) * (-2.0 * LOG2_E))
    far = (1.0 - rest) / (1.0 + rest)
    return tl.where(z < 0.390625, near, tl.where(x < 0.0, -far, far))


@triton.jit
def scores_of(products, scale, softcap):
    """Scores of the products q . k, in units of log 2, and with a cap the tanh in them."""
    share, unit = products, tl.cast(scale, tl.float32) * LOG2_E
    if softcap is not None:
        share = tanh(products * (tl.cast(scale, tl.float32) / tl.cast(softcap, tl.float32)))
        unit = tl.cast(softcap, tl.float32) * LOG2_E
    return share * unit, share


@triton.jit
def _in_span(begins, lengths, at, keys):
    """1 for keys in the span that stands at `at`, else 0.

    Numbers, since masks that live through a loop would take scalar registers on AMD.
    """
    # A key before the span wraps around, and is far beyond its end.
    far = (keys - tl.load(begins + at)).to(tl.uint32)
    return (far < tl.load(lengths + at).to(tl.uint32)).to(tl.int32)


@triton.jit
def in_spans(begins, lengths, at, keys, first, last, stride, SPANS: tl.constexpr):
    """Which `keys` the rows see whose spans stand at `at`; both broadcast to the tile's shape.

    Columns `first` to `last` of the table reach into the tile; SPANS, if not zero, are all.
    """
    inside = _in_span(begins, lengths, at, keys)
    if SPANS > 0:
        for c in tl.static_range(1, SPANS):
            inside |= _in_span(begins, lengths, at + c * stride, keys)
    else:
        for c in range(tl.maximum(first, 1), last):
            inside |= _in_span(begins, lengths, at + c * stride, keys)
    return inside != 0


@triton.jit
def softmax_of(scores, lse):
    """The weights of a softmax whose log-sum-exp is known; zero for rows that see nothing."""
    log = tl.where(lse == -float("inf"), float("inf"), lse * LOG2_E)
    return tl.exp2(scores - log)
