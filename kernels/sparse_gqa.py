"""Grouped-query attention under a pattern, in tiles: what no row sees is neither read nor computed.

q, out, grad_out and grad_q are [B, Hq, Lq, D]; k, v, grad_k and grad_v [B, Hkv, Lk, D]; channels
are contiguous, other strides free. lse and grad_lse are contiguous float32 [B, Hq, Lq], padding is
bool [B, Lk] with contiguous rows, sink_logits contiguous float32 [Hq]. `heads` are the active query
heads, or None for all; outputs of the others are zero, their log-sum-exp -inf. `plans` is one plan
for all batches, or with cu_q and cu_k (first row and key of each segment, and the end) one for each
segment. A softcap of 0 is none.

Products and sums are float32, without tf32. 16-bit types use tensor cores: weights, and in the
backward the gradients of the scores, are rounded to the storage type there.
"""

from __future__ import annotations

from leeboard.kernels._gqa_backward import backward
from leeboard.kernels._gqa_forward import forward
from leeboard.kernels._gqa_top_u import top_u

__all__ = ["backward", "forward", "top_u"]
