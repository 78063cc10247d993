"""What every op computes, in plain PyTorch. This package is the specification.

The functions here import torch and nothing else, run on any device and dtype, and are
differentiable. Tests, benchmarks and the documentation use them; nothing restates them.
"""

from __future__ import annotations

from leeboard.reference._drafter import DrafterWeights, feedback
from leeboard.reference._quantized import QuantizedWeight, Weight, quantize_weight
from leeboard.reference.add_rms_norm import add_rms_norm
from leeboard.reference.aux_norm_linear import aux_norm_linear
from leeboard.reference.decode_attention import decode_attention, decode_attention_
from leeboard.reference.draft_chain import Draft, draft_chain
from leeboard.reference.drafter_glue import drafter_glue
from leeboard.reference.linear_argmax import linear_argmax
from leeboard.reference.linear_topk import linear_topk
from leeboard.reference.panel_ffn import FeedForwardWeights, panel_ffn
from leeboard.reference.panel_linear import panel_linear
from leeboard.reference.qlinear import qlinear
from leeboard.reference.rms_norm import rms_norm, rms_norm_backward
from leeboard.reference.sparse_gqa import (
    sparse_gqa,
    sparse_gqa_backward,
    sparse_gqa_parts,
)
from leeboard.reference.swiglu_linear import swiglu_linear
from leeboard.reference.ttt_attention import (
    ttt_attention,
    ttt_attention_backward,
    ttt_attention_scores,
)
from leeboard.reference.ttt_loss import TTTLossTerms, ttt_loss, ttt_loss_gradients
from leeboard.reference.unit_saliency import unit_saliency
from leeboard.reference.verify_greedy import verify_greedy
from leeboard.reference.verify_sample import verify_sample

__all__ = [
    "Draft",
    "DrafterWeights",
    "FeedForwardWeights",
    "QuantizedWeight",
    "TTTLossTerms",
    "Weight",
    "add_rms_norm",
    "aux_norm_linear",
    "decode_attention",
    "decode_attention_",
    "draft_chain",
    "drafter_glue",
    "feedback",
    "linear_argmax",
    "linear_topk",
    "panel_ffn",
    "panel_linear",
    "qlinear",
    "quantize_weight",
    "rms_norm",
    "rms_norm_backward",
    "sparse_gqa",
    "sparse_gqa_backward",
    "sparse_gqa_parts",
    "swiglu_linear",
    "ttt_attention",
    "ttt_attention_backward",
    "ttt_attention_scores",
    "ttt_loss",
    "ttt_loss_gradients",
    "unit_saliency",
    "verify_greedy",
    "verify_sample",
]
