"""Triton kernels, one module per op. Importing this package imports neither torch nor triton.

Each module has the launch functions that the ops layer calls (`forward`, `backward`) and a
`config` function that names its tile sizes. Arguments arrive checked, with rows flattened and the
last dimension contiguous; tensors live on one CUDA or ROCm device, or on the CPU under
`TRITON_INTERPRET=1`, where float32 and float16 are exact and bfloat16 is not.
"""

from __future__ import annotations

__all__ = [
    "add_rms_norm",
    "aux_norm_linear",
    "decode_attention",
    "draft_chain",
    "drafter_glue",
    "linear_argmax",
    "linear_topk",
    "panel_ffn",
    "panel_linear",
    "qlinear",
    "rms_norm",
    "sparse_gqa",
    "swiglu_linear",
    "ttt_attention",
    "ttt_loss",
    "unit_saliency",
    "verify_greedy",
    "verify_sample",
]
