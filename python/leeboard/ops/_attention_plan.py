"""What a pattern means for given lengths, worked out once."""

from __future__ import annotations

import functools
from typing import Any

import torch

from leeboard import _C
from leeboard.ops import patterns
from leeboard.ops._numpy import Integers
from leeboard.ops._spans import Spans


class AttentionPlan:
    """The keys that each row sees, for one pattern and one pair of lengths.

    Attributes:
        queries: Rows.
        keys: Keys.
        offsets: int64 [queries + 1]; read-only.
        spans: int64 [n, 2]: row i sees the keys in the union of [begin, end) of
            spans[offsets[i] : offsets[i + 1]]; read-only.
        cache: What backends derive from it.
    """

    def __init__(self, queries: int, keys: int, spans: Spans) -> None:
        self.queries, self.keys = queries, keys
        self.offsets, self.spans = spans
        for part in spans:
            part.setflags(write=False)
        self.cache: dict[Any, Any] = {}

    offsets: Integers
    spans: Integers

    @functools.cached_property
    def native(self) -> _C.AttentionPlan:
        """The same for the CPU kernels."""
        # An empty array [0, 2] would have no strides to speak of.
        spans = torch.tensor(self.spans.reshape(-1)).view(len(self.spans), 2)
        return _C.AttentionPlan(torch.tensor(self.offsets), spans, self.keys)

    @functools.cached_property
    def alone(self) -> list[_C.AttentionPlan]:
        """`native` as the list of plans of a batch, made once."""
        return [self.native]


@functools.lru_cache(256)
def plan_for(code: str, queries: int, keys: int) -> AttentionPlan:
    """The plan of a pattern's code.

    Raises:
        ValueError: If the pattern does not fit these lengths.
    """
    return AttentionPlan(queries, keys, patterns.decode(code).spans(queries, keys))
