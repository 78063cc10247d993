"""What every op computes, in plain PyTorch. This package is the specification.

The functions here import torch and nothing else, run on any device and dtype, and are
differentiable. Tests, benchmarks and the documentation use them; nothing restates them.
"""

from __future__ import annotations

from leeboard.reference.add_rms_norm import add_rms_norm
from leeboard.reference.aux_norm_linear import aux_norm_linear
from leeboard.reference.linear_argmax import linear_argmax
from leeboard.reference.rms_norm import rms_norm, rms_norm_backward
from leeboard.reference.verify_greedy import verify_greedy
from leeboard.reference.verify_sample import verify_sample

__all__ = [
    "add_rms_norm",
    "aux_norm_linear",
    "linear_argmax",
    "rms_norm",
    "rms_norm_backward",
    "verify_greedy",
    "verify_sample",
]
