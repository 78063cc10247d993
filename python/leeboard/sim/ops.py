"""The ops that programs are made of: kinds, names and the 32 bytes of each.

The layout is that of csrc/sim/program.h; docs/sim/trace.md explains every field.
"""

from __future__ import annotations

import enum
import struct

import numpy as np

ANY = -1
NO_SLOT = -1
ALL_SLOTS = -1
UNKNOWN = 2**64 - 1
# Rounds of a loop that ends when its queue has run dry.
ENDLESS = 2**63

OP = np.dtype(
    [
        ("kind", "u1"),
        ("stream", "u1"),
        ("flags", "<u2"),
        ("peer", "<i4"),
        ("tag", "<i4"),
        ("slot", "<i4"),
        ("a", "<u8"),
        ("b", "<u8"),
    ]
)
PACKED = struct.Struct("<BBHiiiQQ")
assert OP.itemsize == PACKED.size == 32


class OpKind(enum.IntEnum):
    """What an op does."""

    COMPUTE = 1
    DELAY = 2
    RANDOM = 3
    SEND = 4
    RECV = 5
    WAIT = 6
    SYNC = 7
    COLLECTIVE = 8
    LOOP = 9
    LOOP_END = 10
    MARK = 11
    CALL = 12
    ALLOC = 13
    FREE = 14
    TAKE = 15
    DONE = 16
    SLEEP = 17
    SIGNAL = 18
    AWAIT = 19


class Draw(enum.IntEnum):
    """The distribution of a random compute time."""

    EXPONENTIAL = 0
    LOGNORMAL = 1
    UNIFORM = 2


# In the order of their numbers in csrc/sim/program.h and csrc/sim/collective.h.
COLLECTIVES = (
    "all_reduce",
    "all_gather",
    "reduce_scatter",
    "broadcast",
    "reduce",
    "gather",
    "scatter",
    "all_to_all",
    "barrier",
)
ALGORITHMS = (
    "auto",
    "ring",
    "recursive_doubling",
    "binomial_tree",
    "direct",
    "pairwise",
    "hierarchical",
    "gloo_ring",
    "gloo_tree",
)
# What a compute op's `flags` says it computes in; each may have a peak of its own (`Device`).
PRECISIONS = ("any", "float64", "float32", "float16", "float8", "int8")
ROOTED = frozenset({"broadcast", "reduce", "gather", "scatter"})


class ProgramError(ValueError):
    """A program that cannot be built: which argument of which rank, what was given, what fits."""


def integer(place: str, value: object, least: int, most: int) -> int:
    """The integer `value`, if it is from `least` up to `most`; `place` says where it was given."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        number = least - 1
    else:
        number = int(value.__index__())
    if not least <= number <= most:
        raise ProgramError(f"{place}: got {value!r}, expected an integer from {least} to {most}")
    return number
