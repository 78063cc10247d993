"""The sparse attention kernels against the reference, in the interpreter."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from leeboard import reference
from leeboard.kernels import _gqa_tiles, sparse_gqa
from leeboard.ops import patterns
from leeboard.ops._attention_plan import plan_for
from leeboard.reference.sparse_gqa import sparse_gqa_parts
from tolerances import assert_close_to_reference

# Several tiles on each side of few rows.
TILE = {"ROWS": 16, "BLOCK": 16}
MODALITY = patterns.Modality(((0, 7), (7, 30), (30, 52)), window=9, summary=1)
BLOCKS = patterns.Blocks(((0, 1), (1,), (0, 2, 3), (3,)), block=16)
PATTERNS = {
    "dense": patterns.Dense(),
    "causal": patterns.Causal(),
    "band": patterns.Band(19, sinks=3),
    "two-sided": patterns.Band(5, sinks=1, causal=False),
    "modality": MODALITY,
    "blocks": BLOCKS,
    "blocks-and-causal": BLOCKS & patterns.Causal(),
    "union": patterns.Band(3) | patterns.Blocks(((0,), (2,), (1,)), block=20),
}


def lengths(pattern):
    return {"modality": (52, 52), "blocks": (60, 60)}.get(pattern, (41, 53))
