"""Drop-in modules built on `leeboard.ops`."""

from __future__ import annotations

from leeboard.nn._decoding import AttentionCache
from leeboard.nn.cross_attention import CrossAttention
from leeboard.nn.feed_forward import FeedForward
from leeboard.nn.hugging_face import register_attention
from leeboard.nn.multihead import SparseMultiheadAttention
from leeboard.nn.quantized_linear import QuantizedLinear
from leeboard.nn.replace import Entry, ReplaceReport, replace
from leeboard.nn.rms_norm import RMSNorm
from leeboard.nn.sparse_gqa import SparseGQA

__all__ = [
    "AttentionCache",
    "CrossAttention",
    "Entry",
    "FeedForward",
    "QuantizedLinear",
    "RMSNorm",
    "ReplaceReport",
    "SparseGQA",
    "SparseMultiheadAttention",
    "register_attention",
    "replace",
]
