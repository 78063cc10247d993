"""ProbSparse attention: the most peaked queries attend to all keys, the others take a mean.

A program per block of query rows and active head finds the peakedness of its rows over the sampled
keys, without writing their scores. The chosen rows are gathered and attend as any others do.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from leeboard.kernels._common import device_of, is_hip
from leeboard.kernels._gqa_forward import config, forward
from leeboard.kernels._gqa_scores import channels, product
from leeboard.kernels._gqa_tiles import clear_idle, dense, head_lists


@triton.jit
def _sparse_gqa_peakedness_dot_kernel(
    q,
    k,
    sample,
    heads,
    peakedness,
    scale,
    active,
    queries,
    sampled,
    q_batch,
    q_head,
    q_row,
    k_batch,
    k_head,
    k_row,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
):
    FULL: tl.constexpr = D == WIDTH
    blocks = tl.cdiv(queries, ROWS)
    pair = tl.program_id(0) // blocks
    batch, head = (pair // active).to(tl.int64), (pair % active).to(tl.int64)
    if heads is not None:
        head = tl.load(heads + head).to(tl.int64)
    cols = tl.arange(0, WIDTH)
    row = tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)
    place = tl.minimum(row, queries - 1).to(tl.int64)
    at_q = q + batch * q_batch + head * q_head + place * q_row
    query = channels(at_q[:, None] + cols[None, :], (cols < D)[None, :], FULL)
    k += batch * k_batch + head // GROUP * k_head
    most = tl.full([ROWS], -float("inf"), tl.float32)
    sums = tl.zeros([ROWS], tl.float32)
    counts = tl.zeros([BLOCK], tl.int32)
    for start in range(0, sampled, BLOCK):
        at = start + tl.arange(0, BLOCK)
        key = tl.load(sample + batch * sampled + at, at < sampled, other=-1).to(tl.int64)
        real = key >= 0
        at_k = k + tl.maximum(key, 0) * k_row
        block = channels(at_k[:, None] + cols[None, :], (cols < D)[None, :], FULL)
        scores = product(query, block, at_q, at_k, D, CHUNK) * tl.cast(scale, tl.float32)
        most = tl.maximum(most, tl.max(tl.where(real[None, :], scores, -float("inf")), 1))
        sums += tl.sum(tl.where(real[None, :], scores, 0.0), 1)
        counts += real.to(tl.int32)
    mean = sums / tl.maximum(tl.sum(counts, 0), 1).to(tl.float32)
    tl.store(peakedness + pair.to(tl.int64) * queries + row, most - mean, row < queries)


def _peakedness(
    q: torch.Tensor,
    k: torch.Tensor,
    sample: torch.Tensor,
    heads: tuple[int, ...] | None,
    scale: float,
    tile: dict[str, int] | None,
) -> torch.Tensor:
    """float32 [B, active heads, Lq]: largest less mean score over the sampled keys."""
    B, Hq, Lq, D = q.shape
    groups = k.shape[1]
    active, listed, _ = head_lists(heads, Hq, groups, q.device)
    result = torch.empty((B, active, Lq), dtype=torch.float32, device=q.device)
    options = config(D, q.dtype, hip=is_hip(), spans=1) | (tile or {})
    with device_of(q):
        _sparse_gqa_peakedness_dot_kernel[(triton.cdiv(Lq, options["ROWS"]) * active * B,)](
            q,
            k,
            sample,
            listed,
            result,
            scale,
            active,
            Lq,
            sample.shape[1],
            *q.stride()[:3],
            *k.stride()[:3],
            GROUP=Hq // groups,
            D=D,
            **options,
        )
    return result


def _together(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    chosen: torch.Tensor,
    sample: torch.Tensor,
    count: int,
    heads: tuple[int, ...] | None,
    padding: torch.Tensor | None,
    sink_logits: torch.Tensor | None,
    scale: float,
    softcap: float,
    tile: dict[str, int] | None,
) -> None:
    """Batches of one length, of which each chooses `count` queries, or none if it sees no key."""
    B, Hq, _, D = q.shape
    group = Hq // k.shape[1]
    active: slice | torch.Tensor = slice(None)
    if heads is not None:
        active = torch.tensor(heads, dtype=torch.int64).to(q.device)

    # Means of the values in sight, for every active head.
    if padding is None:
        totals = v.sum(2, dtype=torch.float32)
        seen = torch.full((B,), k.shape[2], dtype=torch.float32, device=q.device)
    else:
        totals = v.masked_fill(padding[:, None, :, None], 0.0).sum(2, dtype=torch.float32)
        seen = (~padding).sum(1, dtype=torch.float32)
    means = (totals / seen.clamp(min=1.0)[:, None, None]).to(out.dtype)
    out[:, active] = means.repeat_interleave(group, 1)[:, active, None]
    lse[:, active] = seen.log()[:, None, None]
    if count == 0:
        return

    order = _peakedness(q, k, sample, heads, scale, tile).argsort(
        dim=-1, descending=True, stable=True
    )
    best = order[..., :count].sort(-1).values
    # Where no key is sampled none is in sight.
    best = best.masked_fill((sample[:, :1] < 0)[..., None], -1)
    chosen[:, active, :count] = best
    index = torch.zeros((B, Hq, count), dtype=torch.int64, device=q.device)
    index[:, active] = best.clamp(min=0)
    wide = index[..., None].expand(B, Hq, count, D)
    rows = q.gather(2, wide)
    some_out = torch.empty_like(rows)
    some_lse = torch.empty((B, Hq, count), dtype=torch.float32, device=q.device)
    forward(
        rows,
        k,
        v,
        some_out,
        some_lse,
        [dense(int(count), k.shape[2])],
        None,
        None,
        heads,
        padding,
        sink_logits,
        scale,
        softcap,
        tile,
    )
    if padding is not None:
        # Rows that stand for none all name row 0, which gets what all of them hold.
        nothing = (seen == 0)[:, None, None]
        some_out = some_out.masked_fill(nothing[..., None], 0.0)
        some_lse = some_lse.masked_fill(nothing, -float("inf"))
    out.scatter_(2, wide, some_out)
    lse.scatter_(2, index, some_lse)


def top_u(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    chosen: torch.Tensor,
    sample: torch.Tensor,
    counts: list[int],
    cu_q: list[int] | None,
    cu_k: list[int] | None,
    heads: tuple[int, ...] | None,
    padding: torch.Tensor | None,
    sink_logits: torch.Tensor | None,
    scale: float,
    softcap: float,
    tile: dict[str, int] | None = None,
) -> None:
    """Writes the attention of q, its log-sum-exp and the chosen rows.

    Shapes and strides: see `leeboard.kernels.sparse_gqa`. `tile` replaces sizes of the tile.
    """
    chosen.fill_(-1)
    if heads == ():
        counts = [0] * len(counts)
    sample = sample.to(q.device)
    whole = (heads, padding, sink_logits, scale, softcap, tile)
    if cu_q is None or cu_k is None:
        _together(q, k, v, out, lse, chosen, sample, max(counts, default=0), *whole)
    else:
        for s, count in enumerate(counts):
            rows, keys = slice(cu_q[s], cu_q[s + 1]), slice(cu_k[s], cu_k[s + 1])
            if rows.start == rows.stop:
                continue
            mine = None if padding is None else padding[:, keys]
            _together(
                q[:, :, rows],
                k[:, :, keys],
                v[:, :, keys],
                out[:, :, rows],
                lse[:, :, rows],
                chosen[s : s + 1],
                sample[s : s + 1],
                count,
                heads,
                mine,
                *whole[2:],
            )
    clear_idle(out, heads, 0.0)
    clear_idle(lse, heads, -float("inf"))
