"""Lossless verification: one program walks the draft of one sequence and draws its last token.

The nodes live in registers. Every visited row of the target is read once for its sum; the last
one again for the draw: blocks are summed until one holds the drawn mass, and only there
cumulative masses are made. Sums are of integers (see `_verify`): equal bits for any block size.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from leeboard.kernels._common import PINNED, device_of, is_hip
from leeboard.kernels._verify import (
    divisor,
    draw,
    first_of,
    load_tree,
    mass,
    residual_mass,
    row_mass,
)


@triton.jit
def _distinct_children(tokens, parents, token, parent, node, index, N):
    """Children of `node`, without those whose token an earlier child has."""
    child = (parent == node) & (index > node)
    repeated = index < 0
    for j in range(N):
        other = tl.load(tokens + j)
        follows = j - 1 == node
        if parents is not None:
            follows = (tl.load(parents + j) == node) & (j > node)
        repeated = repeated | ((token == other) & (index > j) & follows)
    return child & (repeated == 0)


@triton.jit
def _try_children(tokens, parents, uniforms, row, total, token, parent, node, index, N, V):
    """(masses of the distinct children of `node`, the first that is accepted or N)."""
    child = _distinct_children(tokens, parents, token, parent, node, index, N)
    masses = mass(tl.load(row + token, child & (token >= 0) & (token < V), other=0.0))
    u = tl.load(uniforms + index, masses > 0, other=0.0)
    # Each child meets what the children before it leave of the row, all of them rejected.
    left = total - (tl.cumsum(masses, 0) - masses)
    return masses, first_of((masses > 0) & (draw(u, left) < masses), index, N)


@triton.jit
def _verify_target_kernel(
    tokens,
    probs,
    parents,
    uniforms,
    accepted,
    next_token,
    path,
    N,
    V,
    tokens_stride,
    probs_stride,
    parents_stride,
    uniforms_stride,
    NODES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sequence = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, NODES)
    tokens += sequence * tokens_stride
    uniforms += sequence * uniforms_stride
    if parents is not None:
        parents += sequence * parents_stride
    token, parent = load_tree(tokens, parents, index, N)

    row = probs + sequence * (N + 1) * probs_stride
    node = tl.full([], -1, tl.int64)
    count = tl.full([], 0, tl.int64)
    total = row_mass(row, V, BLOCK)
    masses, chosen = _try_children(
        tokens, parents, uniforms, row, total, token, parent, node, index, N, V
    )
    while chosen < N:
        if path is not None:
            tl.store(path + sequence * N + count, chosen.to(tl.int64))
        node = chosen.to(tl.int64)
        count += 1
        row = probs + (sequence * (N + 1) + node + 1) * probs_stride
        total = row_mass(row, V, BLOCK)
        masses, chosen = _try_children(
            tokens, parents, uniforms, row, total, token, parent, node, index, N, V
        )
    tl.store(accepted + sequence, count)

    bound = draw(tl.load(uniforms + N), total - tl.sum(masses, 0))
    found = tl.full([], 0, tl.int32)
    passed = tl.full([], 0, tl.int64)
    below = tl.full([], 0, tl.int64)
    for start in range(0, V, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        here = tl.sum(mass(tl.load(row + cols, cols < V, other=0.0)), 0)
        here -= tl.sum(tl.where((token >= start) & (token < start + BLOCK), masses, 0), 0)
        holds = (bound >= passed) & (bound < passed + here)
        found = tl.where(holds, start, found)
        below = tl.where(holds, passed, below)
        passed += here
    cols = found + tl.arange(0, BLOCK)
    left = mass(tl.load(row + cols, cols < V, other=0.0))
    for j in range(N):
        follows = j - 1 == node
        if parents is not None:
            follows = (tl.load(parents + j) == node) & (j > node)
        left = tl.where((cols == tl.load(tokens + j)) & follows, 0, left)
    at = found + tl.sum((tl.cumsum(left, 0) + below <= bound).to(tl.int32), 0)
    tl.store(next_token + sequence, tl.minimum(at, V - 1).to(tl.int64))


@triton.jit
def _mass_of(row, token, V):
    """The mass of one token as a double; an id outside of the vocabulary has none."""
    known = (token >= 0) & (token < V)
    return mass(tl.load(row + token, known, other=0.0)).to(tl.float64)


@triton.jit
def _verify_ratio_kernel(
    tokens,
    probs,
    draft_probs,
    uniforms,
    accepted,
    next_token,
    N,
    V,
    tokens_stride,
    probs_stride,
    draft_stride,
    uniforms_stride,
    BLOCK: tl.constexpr,
):
    sequence = tl.program_id(0).to(tl.int64)
    tokens += sequence * tokens_stride
    uniforms += sequence * uniforms_stride
    p_row = probs + sequence * (N + 1) * probs_stride
    q_row = draft_probs + sequence * N * draft_stride
    count = tl.full([], 0, tl.int64)
    rejected = tl.full([], 0, tl.int32)
    total = row_mass(p_row, V, BLOCK)
    q_total = tl.full([], 1, tl.int64)
    while (count < N) & (rejected == 0):
        q_total = row_mass(q_row, V, BLOCK)
        token = tl.load(tokens + count)
        p = _mass_of(p_row, token, V) / divisor(total)
        q = _mass_of(q_row, token, V) / divisor(q_total)
        hit = ((p >= q) & (p > 0.0)) | (tl.load(uniforms + count) * q < p)
        if hit:
            count += 1
            p_row += probs_stride
            q_row += draft_stride
            total = row_mass(p_row, V, BLOCK)
        else:
            rejected += 1
    tl.store(accepted + sequence, count)

    # Without a rejection q counts as zero: its row is not there.
    p_total = divisor(total)
    scale = divisor(q_total)
    rest = tl.zeros([BLOCK], tl.int64)
    if rejected > 0:
        for start in range(0, V, BLOCK):
            cols = start + tl.arange(0, BLOCK)
            p_block = tl.load(p_row + cols, cols < V, other=0.0)
            q_block = tl.load(q_row + cols, cols < V, other=0.0)
            rest += residual_mass(p_block, q_block, p_total, scale)
    rest_total = tl.sum(rest, 0)
    residual = rest_total > 0
    q_end = tl.where(residual, V, 0)
    bound = draw(tl.load(uniforms + N), tl.where(residual, rest_total, total))
    found = tl.full([], 0, tl.int32)
    passed = tl.full([], 0, tl.int64)
    below = tl.full([], 0, tl.int64)
    for start in range(0, V, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        p_block = tl.load(p_row + cols, cols < V, other=0.0)
        q_block = tl.load(q_row + cols, cols < q_end, other=0.0)
        other = residual_mass(p_block, q_block, p_total, scale)
        here = tl.sum(tl.where(residual, other, mass(p_block)), 0)
        holds = (bound >= passed) & (bound < passed + here)
        found = tl.where(holds, start, found)
        below = tl.where(holds, passed, below)
        passed += here
    cols = found + tl.arange(0, BLOCK)
    p_block = tl.load(p_row + cols, cols < V, other=0.0)
    q_block = tl.load(q_row + cols, cols < q_end, other=0.0)
    other = residual_mass(p_block, q_block, p_total, scale)
    left = tl.where(residual, other, mass(p_block))
    at = found + tl.sum((tl.cumsum(left, 0) + below <= bound).to(tl.int32), 0)
    tl.store(next_token + sequence, tl.minimum(at, V - 1).to(tl.int64))


def config(nodes: int, vocabulary: int, *, hip: bool) -> dict[str, int]:
    """Tile sizes and warps.

    A program reads a row alone, so it wants many loads in flight: 4096 columns, 8 a thread, whose
    masses are 64-bit and take 16 registers; more would spill in the p/q rule. There are as many
    programs as sequences: a bound of 128 registers keeps ptxas from spilling for the sake of more
    programs on a multiprocessor.
    """
    return {
        "NODES": max(16, triton.next_power_of_2(nodes)),
        "BLOCK": min(4096, max(16, triton.next_power_of_2(vocabulary))),
        "num_warps": 16,
        **({} if hip else {"maxnreg": 128}),
        **PINNED,
    }


def forward(
    tokens: torch.Tensor,
    probs: torch.Tensor,
    draft_probs: torch.Tensor | None,
    parents: torch.Tensor | None,
    uniforms: torch.Tensor,
    accepted: torch.Tensor,
    next_token: torch.Tensor,
    path: torch.Tensor,
) -> None:
    """Verifies `tokens` [B, N] int64 against `probs` [B * (N + 1), V].

    `draft_probs` is [B * N, V] or None; `parents` [1, N], [B, N] or None (a chain, and then `path`
    is not written), never together with `draft_probs`; `uniforms` is float64 [B, N + 1];
    `accepted` and `next_token` are int64 [B], `path` [B, N]. Inputs may have any row stride.
    """
    B, N = tokens.shape
    V = probs.shape[1]
    if B == 0:
        return
    tile = config(N, V, hip=is_hip())
    with device_of(tokens):
        path.fill_(-1)
        if draft_probs is not None and N > 0:
            del tile["NODES"]
            _verify_ratio_kernel[(B,)](
                tokens,
                probs,
                draft_probs,
                uniforms,
                accepted,
                next_token,
                N,
                V,
                tokens.stride(0),
                probs.stride(0),
                draft_probs.stride(0),
                uniforms.stride(0),
                **tile,
            )
            return
        shared = parents is None or parents.shape[0] == 1
        _verify_target_kernel[(B,)](
            tokens,
            probs,
            parents,
            uniforms,
            accepted,
            next_token,
            None if parents is None else path,
            N,
            V,
            tokens.stride(0),
            probs.stride(0),
            0 if shared else parents.stride(0),
            uniforms.stride(0),
            **tile,
        )
