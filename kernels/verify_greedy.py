"""Greedy verification: one program walks the draft of one sequence, held in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from leeboard.kernels._common import PINNED, device_of
from leeboard.kernels._verify import first_of, load_tree


@triton.jit
def _verify_greedy_kernel(
    tokens,
    target,
    parents,
    accepted,
    next_token,
    path,
    N,
    tokens_stride,
    target_stride,
    parents_stride,
    NODES: tl.constexpr,
):
    sequence = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, NODES)
    target += sequence * target_stride
    if parents is not None:
        parents += sequence * parents_stride
    token, parent = load_tree(tokens + sequence * tokens_stride, parents, index, N)
    node = tl.full([], -1, tl.int64)
    count = tl.full([], 0, tl.int64)
    wanted = tl.load(target)
    # A parent precedes its child; a node for which that does not hold is no child.
    child = first_of((parent == node) & (token == wanted) & (index > node), index, N)
    while child < N:
        if path is not None:
            tl.store(path + sequence * N + count, child.to(tl.int64))
        node = child.to(tl.int64)
        count += 1
        wanted = tl.load(target + 1 + node)
        child = first_of((parent == node) & (token == wanted) & (index > node), index, N)
    tl.store(accepted + sequence, count)
    tl.store(next_token + sequence, wanted)


def config(nodes: int) -> dict[str, int]:
    """A power of two that holds the nodes, at most 16 of them a thread up to 8192."""
    size = max(16, triton.next_power_of_2(nodes))
    return {"NODES": size, "num_warps": max(1, min(16, size // 512)), **PINNED}


def forward(
    tokens: torch.Tensor,
    target: torch.Tensor,
    parents: torch.Tensor | None,
    accepted: torch.Tensor,
    next_token: torch.Tensor,
    path: torch.Tensor,
) -> None:
    """Walks `tokens` [B, N] along `target` [B, N + 1]; all tensors are int64.

    `parents` is [1, N], [B, N] or None (a chain, and then `path` is not written); `accepted` and
    `next_token` are [B], `path` [B, N]. Inputs may have any row stride.
    """
    B, N = tokens.shape
    if B == 0:
        return
    shared = parents is None or parents.shape[0] == 1
    with device_of(tokens):
        path.fill_(-1)
        _verify_greedy_kernel[(B,)](
            tokens,
            target,
            parents,
            accepted,
            next_token,
            None if parents is None else path,
            N,
            tokens.stride(0),
            target.stride(0),
            0 if shared else parents.stride(0),
            **config(N),
        )
