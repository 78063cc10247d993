"""Fused ops: one function each, on CPU kernels, Triton kernels or plain PyTorch."""

from __future__ import annotations

from leeboard.ops._pending import draft_chain, linear_argmax, qlinear, swiglu_linear
from leeboard.ops._state import backend, isa
from leeboard.ops.add_rms_norm import add_rms_norm
from leeboard.ops.aux_norm_linear import aux_norm_linear
from leeboard.ops.decode_attention import decode_attention, decode_attention_
from leeboard.ops.rms_norm import rms_norm
from leeboard.ops.verify_greedy import verify_greedy
from leeboard.ops.verify_sample import verify_sample
from leeboard.reference import Draft, DrafterWeights, QuantizedWeight, quantize_weight

__all__ = [
    "Draft",
    "DrafterWeights",
    "QuantizedWeight",
    "add_rms_norm",
    "aux_norm_linear",
    "backend",
    "decode_attention",
    "decode_attention_",
    "draft_chain",
    "isa",
    "linear_argmax",
    "qlinear",
    "quantize_weight",
    "rms_norm",
    "swiglu_linear",
    "verify_greedy",
    "verify_sample",
]
