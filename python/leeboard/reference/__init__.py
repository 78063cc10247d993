"""What every op computes, in plain PyTorch. This package is the specification.

The functions here import torch and nothing else, run on any device and dtype, and are
differentiable. Tests, benchmarks and the documentation use them; nothing restates them.
"""

from __future__ import annotations

from leeboard.reference.add_rms_norm import add_rms_norm
from leeboard.reference.aux_norm_linear import aux_norm_linear
from leeboard.reference.decode_attention import decode_attention, decode_attention_
from leeboard.reference.linear_argmax import linear_argmax
from leeboard.reference.rms_norm import rms_norm, rms_norm_backward

__all__ = [
    "add_rms_norm",
    "aux_norm_linear",
    "decode_attention",
    "decode_attention_",
    "linear_argmax",
    "rms_norm",
    "rms_norm_backward",
]
