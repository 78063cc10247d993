"""Fused ops: one function each, on CPU kernels, Triton kernels or plain PyTorch."""

from __future__ import annotations

from leeboard.ops import patterns
from leeboard.ops._state import backend, isa
from leeboard.ops.add_rms_norm import add_rms_norm
from leeboard.ops.aux_norm_linear import aux_norm_linear
from leeboard.ops.decode_attention import decode_attention, decode_attention_
from leeboard.ops.draft_chain import draft_chain
from leeboard.ops.drafter_glue import drafter_glue
from leeboard.ops.linear_argmax import linear_argmax
from leeboard.ops.linear_topk import linear_topk
from leeboard.ops.panel_ffn import panel_ffn
from leeboard.ops.panel_linear import panel_linear
from leeboard.ops.qlinear import qlinear
from leeboard.ops.rms_norm import rms_norm
from leeboard.ops.sparse_gqa import sparse_gqa
from leeboard.ops.swiglu_linear import swiglu_linear
from leeboard.ops.ttt_attention import ttt_attention
from leeboard.ops.ttt_loss import ttt_loss
from leeboard.ops.unit_saliency import unit_saliency
from leeboard.ops.verify_greedy import verify_greedy
from leeboard.ops.verify_sample import verify_sample
from leeboard.reference import (
    Draft,
    DrafterWeights,
    FeedForwardWeights,
    QuantizedWeight,
    TTTLossTerms,
    Weight,
    feedback,
    quantize_weight,
)

__all__ = [
    "Draft",
    "DrafterWeights",
    "FeedForwardWeights",
    "QuantizedWeight",
    "TTTLossTerms",
    "Weight",
    "add_rms_norm",
    "aux_norm_linear",
    "backend",
    "decode_attention",
    "decode_attention_",
    "draft_chain",
    "drafter_glue",
    "feedback",
    "isa",
    "linear_argmax",
    "linear_topk",
    "panel_ffn",
    "panel_linear",
    "patterns",
    "qlinear",
    "quantize_weight",
    "rms_norm",
    "sparse_gqa",
    "swiglu_linear",
    "ttt_attention",
    "ttt_loss",
    "unit_saliency",
    "verify_greedy",
    "verify_sample",
]
