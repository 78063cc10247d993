"""What the verification kernels share: the tree of a draft, probabilities as integers.

A probability counts as round(p * 2^51); integers are summed without rounding, so the blocks and
the order in which a program sums them change nothing, and the CPU kernels draw the same tokens.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_tree(tokens, parents, index, N):
    """(token, parent) of the nodes `index`; past the end, a parent that no node is."""
    inside = index < N
    token = tl.load(tokens + index, inside, other=0)
    parent = index.to(tl.int64) - 1
    if parents is not None:
        parent = tl.load(parents + index, inside, other=-2)
    return token, tl.where(inside, parent, -2)


@triton.jit
def first_of(mask, index, N):
    """The lowest index within `mask`, or N."""
    return tl.min(tl.where(mask, index, N), 0)


@triton.jit
def mass_as_double(p):
    """round(p * 2^51), ties to even, of p clamped to [0, 2]; NaN counts as 0."""
    wide = p.to(tl.float64)
    wide = tl.where(wide > 0.0, wide, 0.0)
    wide = tl.where(wide < 2.0, wide, 2.0)
    # Adding 2^52 leaves no bits for a fraction.
    return (wide * 2251799813685248.0 + 4503599627370496.0) - 4503599627370496.0


@triton.jit
def mass(p):
    """The same as an integer."""
    return mass_as_double(p).to(tl.int64)


@triton.jit
def draw(u, total):
    """floor(u * total), an integer of [0, total); 0 where total is not positive."""
    clamped = tl.where(u > 0.0, u, 0.0)
    clamped = tl.where(clamped < 1.0, clamped, 1.0)
    bound = (clamped * total.to(tl.float64)).to(tl.int64)
    return tl.maximum(tl.minimum(bound, total - 1), 0)


@triton.jit
def row_mass(row, V, BLOCK: tl.constexpr):
    """The mass of a whole row."""
    sums = tl.zeros([BLOCK], tl.int64)
    for start in range(0, V, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        sums += mass(tl.load(row + cols, cols < V, other=0.0))
    return tl.sum(sums, 0)


@triton.jit
def divisor(total):
    """What masses are divided by: a row without any, which is no distribution, counts as zeros."""
    return tl.maximum(total, 1).to(tl.float64)


@triton.jit
def residual_mass(p, q, p_total, q_total):
    """The mass of max(p / sum p - q / sum q, 0).

    Divisions, not products with a reciprocal: those might be contracted with the difference.
    """
    return mass(mass_as_double(p) / p_total - mass_as_double(q) / q_total)
