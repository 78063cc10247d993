"""Attention of new tokens over a key-value cache, split over the keys (flash-decoding).

First kernel: a program per block of query rows, key-value head and chunk of keys rotates its
queries and keeps a running softmax (largest score, sum of weights, weighted values) over its chunk.
Chunks of the cache come first, then those of the new tokens, whose keys are rotated and rounded
here and, when appending, written behind the cache; no program reads what another one writes.
Second kernel: a program per query row joins the chunks in order and rounds once.

The queries of all heads that share a key-value head are the rows of one tile, so a key is read once
for all of them. 16-bit products use tensor cores: queries and weights, which are float32, enter as
two 16-bit terms each, which leaves an error like that of float32 sums.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from leeboard.kernels._common import PINNED, device_of, is_hip, split_product

# Keys of a chunk. More programs for short caches, fewer states to join for long ones.
CHUNK = 256
WHOLE = 1 << 30
# With more query rows than this the rows alone fill the device: keys are not split.
SPLIT_ROWS = 64


def config(rows: int, width: int, dtype: torch.dtype, *, hip: bool) -> dict[str, int]:
    """Tile of the first kernel for `rows` queries to a key-value head.

    16 rows are the least that `tl.dot` takes, and what decoding has; verification of a tree and
    prompts fill more. float32 and wide heads keep 16, so that sums and queries stay in registers.
    Blocks of keys are 8 KB; on AMD the shortest, because every mask there takes scalar registers.
    """
    wide = max(16, triton.next_power_of_2(width))
    small = rows <= 16 or dtype.itemsize > 2 or wide > 128
    warps = 4 if small and wide * dtype.itemsize < 512 else 8
    if hip and wide <= 64:
        # Wavefronts are twice as wide as warps: enough elements for 128-bit loads in each thread.
        warps //= 2
    return {
        "ROWS": 16 if small else 64,
        "BLOCK": 16 if hip else max(16, min(64, 8192 // (wide * dtype.itemsize))),
        "HALF": max(16, triton.next_power_of_2((width + 1) // 2)),
        "WIDTH": wide,
        "num_warps": warps,
        "num_stages": 1 if hip else 3,
        **PINNED,
    }


@triton.jit
def _channels(pointers, mask, FULL: tl.constexpr):
    """A load of whole rows; no mask where the channels fill the tile."""
    return tl.load(pointers) if FULL else tl.load(pointers, mask, other=0.0)


@triton.jit
def _rotated(near, far, cos, sin, at, positions, cols, D: tl.constexpr):
    """The halves of rows at `at` in the rotary table [positions, D / 2], in float32."""
    inside = (at >= 0) & (at < positions) & (cols < D // 2)
    c = tl.load(cos + at * (D // 2) + cols, inside, other=0.0)
    s = tl.load(sin + at * (D // 2) + cols, inside, other=0.0)
    a, b = near.to(tl.float32), far.to(tl.float32)
    return a * c - b * s, b * c + a * s


@triton.jit
def _softmax_step(scores, values, most, total, sums, SPLIT: tl.constexpr):
    """The running softmax after one more block of keys."""
    peak = tl.maximum(most, tl.max(scores, 1))
    # Nothing seen yet: any base does, but infinity less infinity is no number.
    base = tl.where(peak == -float("inf"), 0.0, peak)
    weights = tl.exp(scores - base[:, None])
    keep = tl.exp(most - base)
    total = total * keep + tl.sum(weights, 1)
    sums = split_product(sums * keep[:, None], weights, values, SPLIT)
    return peak, total, sums


@triton.jit
def _over_cache(
    left,
    right,
    keys,
    key_row,
    values,
    value_row,
    begin,
    length,
    own,
    first_own,
    window,
    sinks,
    CHUNK: tl.constexpr,
    D: tl.constexpr,
    SPLIT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    HALF: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The running softmax over a chunk of the cache; the tokens' own indices are `own`."""
    H: tl.constexpr = (D + 1) // 2
    FULL: tl.constexpr = (D == WIDTH) & (D == 2 * HALF)
    cols = tl.arange(0, HALF)
    wide = tl.arange(0, WIDTH)
    most = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, WIDTH], tl.float32)
    end = tl.minimum(begin + CHUNK, length)
    if window is not None:
        nearest = tl.maximum(begin, (first_own - window + 1) // BLOCK * BLOCK)
        begin = tl.where(begin >= sinks, nearest, begin)
    for start in range(begin, end, BLOCK):
        index = start + tl.arange(0, BLOCK)
        inside = index < end
        # The last key stands in for those beyond it: no row is masked.
        row = tl.minimum(index, end - 1)
        at_k = (keys + row * key_row)[None, :] + cols[:, None]
        near = _channels(at_k, (cols < H)[:, None], FULL)
        far = _channels(at_k + H, (cols + H < D)[:, None], FULL)
        scores = split_product(tl.zeros([ROWS, BLOCK], tl.float32), left, near, SPLIT)
        scores = split_product(scores, right, far, SPLIT)
        seen = inside[None, :]
        if window is not None:
            seen &= (own[:, None] - index[None, :] < window) | (index < sinks)[None, :]
        scores = tl.where(seen, scores, -float("inf"))
        at_v = (values + row * value_row)[:, None] + wide[None, :]
        block = _channels(at_v, (wide < D)[None, :], FULL)
        most, total, sums = _softmax_step(scores, block, most, total, sums, SPLIT)
    return most, total, sums


@triton.jit
def _over_new(
    left,
    right,
    k,
    k_row,
    v,
    v_row,
    k_cache,
    kc_row,
    v_cache,
    vc_row,
    cos,
    sin,
    table_rows,
    positions,
    mask,
    begin,
    tokens,
    capacity,
    length,
    token,
    first_token,
    last_token,
    window,
    sinks,
    CHUNK: tl.constexpr,
    D: tl.constexpr,
    APPEND: tl.constexpr,
    SPLIT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    HALF: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The running softmax over a chunk of the new tokens, which are appended here."""
    H: tl.constexpr = (D + 1) // 2
    FULL: tl.constexpr = (D == WIDTH) & (D == 2 * HALF)
    cols = tl.arange(0, HALF)
    wide = tl.arange(0, WIDTH)
    most = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, WIDTH], tl.float32)
    end = tl.minimum(begin + CHUNK, tokens)
    if mask is None:
        end = tl.minimum(end, last_token + 1)
    if mask is None and window is not None:
        nearest = tl.maximum(begin, (first_token - window + 1) // BLOCK * BLOCK)
        begin = tl.where(length + begin >= sinks, nearest, begin)
    for start in range(begin, end, BLOCK):
        other = start + tl.arange(0, BLOCK)
        inside = other < end
        row = tl.minimum(other, end - 1)
        at_k = (k + row * k_row)[None, :] + cols[:, None]
        near = _channels(at_k, (cols < H)[:, None], FULL)
        far = _channels(at_k + H, (cols + H < D)[:, None], FULL)
        if cos is not None:
            at = tl.load(positions + row) if positions is not None else length + row
            turned_near, turned_far = _rotated(
                near,
                far,
                cos,
                sin,
                at[None, :],
                table_rows,
                cols[:, None],
                D,
            )
            near = turned_near.to(k_cache.dtype.element_ty)
            far = turned_far.to(k_cache.dtype.element_ty)
        scores = split_product(tl.zeros([ROWS, BLOCK], tl.float32), left, near, SPLIT)
        scores = split_product(scores, right, far, SPLIT)
        if mask is not None:
            at_mask = mask + token[:, None] * tokens + row[None, :]
            seen = (tl.load(at_mask) != 0) & inside[None, :]
        else:
            seen = inside[None, :] & (other[None, :] <= token[:, None])
            if window is not None:
                seen &= (token[:, None] - other[None, :] < window) | (length + other < sinks)[
                    None, :
                ]
        scores = tl.where(seen, scores, -float("inf"))
        at_v = (v + row * v_row)[:, None] + wide[None, :]
        values = _channels(at_v, (wide < D)[None, :], FULL)
        if APPEND:
            # Every block of rows writes its own tokens, which it always reaches.
            index = length + other
            mine = inside & (other >= first_token) & (other <= last_token) & (index < capacity)
            to_k = k_cache + index * kc_row
            to_k = to_k[None, :] + cols[:, None]
            tl.store(to_k, near, (cols < H)[:, None] & mine[None, :])
            tl.store(to_k + H, far, (cols + H < D)[:, None] & mine[None, :])
            to_v = v_cache + index * vc_row
            tl.store(to_v[:, None] + wide[None, :], values, (wide < D)[None, :] & mine[:, None])
        most, total, sums = _softmax_step(scores, values, most, total, sums, SPLIT)
    return most, total, sums


# A step of a draft differs from the next in `first` alone: no kernel of its own for each.
@triton.jit(do_not_specialize=["first"])
def _decode_attention_chunk_dot_kernel(
    q,
    k,
    v,
    k_cache,
    v_cache,
    lengths,
    cos,
    sin,
    positions,
    mask,
    most_out,
    total_out,
    sums_out,
    scale,
    window,
    sinks,
    tokens,
    first,
    asked,
    cache_chunks,
    capacity,
    table_rows,
    q_batch,
    q_head,
    q_row,
    k_batch,
    k_head,
    k_row,
    v_batch,
    v_head,
    v_row,
    kc_batch,
    kc_head,
    kc_row,
    vc_batch,
    vc_head,
    vc_row,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    MASKS: tl.constexpr,
    CHUNK: tl.constexpr,
    D: tl.constexpr,
    APPEND: tl.constexpr,
    BY_PLACE: tl.constexpr,
    SPLIT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    HALF: tl.constexpr,
    WIDTH: tl.constexpr,
):
    # Odd widths are not rotated: the halves may differ.
    H: tl.constexpr = (D + 1) // 2
    FULL: tl.constexpr = (D == WIDTH) & (D == 2 * HALF)
    # Queries are those of `asked` tokens from `first` on.
    queries = asked * GROUP
    row_blocks = tl.cdiv(queries, ROWS)
    pair = (tl.program_id(0) // row_blocks).to(tl.int64)
    row_block = tl.program_id(0) % row_blocks
    part = tl.program_id(1)
    batch, head = pair // HEADS, pair % HEADS
    # Values are not checked here: what does not fit must not lead outside of the cache.
    length = tl.minimum(tl.maximum(tl.load(lengths + batch), 0), capacity)

    row = row_block * ROWS + tl.arange(0, ROWS)
    live = row < queries
    # The last query stands in for those beyond it.
    query = (tl.minimum(row, queries - 1) // GROUP).to(tl.int64)
    token = first + query
    first_token = first + (row_block * ROWS // GROUP).to(tl.int64)
    last_token = first + (row_block * ROWS + ROWS - 1) // GROUP
    last_token = tl.minimum(last_token, first + asked - 1).to(tl.int64)
    cols = tl.arange(0, HALF)
    wide = tl.arange(0, WIDTH)
    at_q = q + batch * q_batch + (head * GROUP + row % GROUP) * q_head + query * q_row
    at_q = at_q[:, None] + cols[None, :]
    left = _channels(at_q, (cols < H)[None, :], FULL).to(tl.float32)
    right = _channels(at_q + H, (cols + H < D)[None, :], FULL).to(tl.float32)
    if cos is not None:
        if positions is not None:
            place = tl.load(positions + batch * tokens + token)
        else:
            place = length + token
        left, right = _rotated(
            left,
            right,
            cos,
            sin,
            place[:, None],
            table_rows,
            cols[None, :],
            D,
        )
    own, first_own = length + token, length + first_token
    if BY_PLACE:
        # Queries of one call have one position: the distance from it is what a window counts.
        own = tl.load(positions + batch * tokens + token)
        first_own = tl.load(positions + batch * tokens + first_token)
    left *= tl.cast(scale, tl.float32)
    right *= tl.cast(scale, tl.float32)

    # A program has either a chunk of the cache or one of the new tokens.
    if part < cache_chunks:
        most, total, sums = _over_cache(
            left,
            right,
            k_cache + batch * kc_batch + head * kc_head,
            kc_row,
            v_cache + batch * vc_batch + head * vc_head,
            vc_row,
            part.to(tl.int64) * CHUNK,
            length,
            own,
            first_own,
            window,
            sinks,
            CHUNK,
            D,
            SPLIT,
            ROWS,
            BLOCK,
            HALF,
            WIDTH,
        )
    else:
        most, total, sums = _over_new(
            left,
            right,
            k + batch * k_batch + head * k_head,
            k_row,
            v + batch * v_batch + head * v_head,
            v_row,
            k_cache + batch * kc_batch + head * kc_head,
            kc_row,
            v_cache + batch * vc_batch + head * vc_head,
            vc_row,
            cos,
            sin,
            table_rows,
            None if positions is None else positions + batch * tokens,
            None if mask is None else mask + batch * MASKS * tokens * tokens,
            (part - cache_chunks).to(tl.int64) * CHUNK,
            tokens,
            capacity,
            length,
            token,
            first_token,
            last_token,
            window,
            sinks,
            CHUNK,
            D,
            APPEND,
            SPLIT,
            ROWS,
            BLOCK,
            HALF,
            WIDTH,
        )

    state = (pair * queries + row) * tl.num_programs(1) + part
    tl.store(most_out + state, most, live)
    tl.store(total_out + state, total, live)
    at_sums = sums_out + state[:, None] * D + wide[None, :]
    tl.store(at_sums, sums, live[:, None] & (wide < D)[None, :])


@triton.jit
def _decode_attention_merge_kernel(
    most_in,
    total_in,
    sums_in,
    out,
    heads,
    group,
    tokens,
    parts,
    out_batch,
    out_head,
    out_row,
    D: tl.constexpr,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64)
    row = at % (tokens * group)
    pair = at // (tokens * group)
    token, head = row // group, pair % heads * group + row % group
    wide = tl.arange(0, WIDTH)
    peaks = tl.full([PARTS], -float("inf"), tl.float32)
    for start in range(0, parts, PARTS):
        part = start + tl.arange(0, PARTS)
        most = tl.load(most_in + at * parts + part, part < parts, other=-float("inf"))
        peaks = tl.maximum(peaks, most)
    peak = tl.max(peaks, 0)
    base = tl.where(peak == -float("inf"), 0.0, peak)
    totals = tl.zeros([PARTS], tl.float32)
    sums = tl.zeros([PARTS, WIDTH], tl.float32)
    for start in range(0, parts, PARTS):
        part = start + tl.arange(0, PARTS)
        most = tl.load(most_in + at * parts + part, part < parts, other=-float("inf"))
        total = tl.load(total_in + at * parts + part, part < parts, other=0.0)
        # A part that saw no key; a sum of weights that is no number counts.
        used = total != 0.0
        weight = tl.where(used, tl.exp(most - base), 0.0)
        from_sums = sums_in + (at * parts + part)[:, None] * D + wide[None, :]
        each = tl.load(from_sums, used[:, None] & (wide < D)[None, :], other=0.0)
        totals += total * weight
        sums += each * weight[:, None]
    result = tl.sum(sums, 0) / tl.sum(totals, 0)
    batch = pair // heads
    to = out + batch * out_batch + head * out_head + token * out_row
    tl.store(to + wide, result.to(out.dtype.element_ty), wide < D)


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    positions: torch.Tensor | None,
    mask: torch.Tensor | None,
    out: torch.Tensor,
    scale: float,
    window: int,
    sinks: int,
    append: bool,
) -> None:
    """Writes the attention of q [B, Hq, T, D] to `out`, and with `append` the new rows to the caches.

    Channels are contiguous, other strides are free; lengths, tables, positions and mask are
    contiguous. `window` < 0 is none. A cache that would overflow, or a position beyond the table,
    touches no other memory; the result is then meaningless.
    """
    attend(
        q,
        k,
        v,
        k_cache,
        v_cache,
        lengths,
        cos,
        sin,
        positions,
        mask,
        out,
        scale,
        window,
        sinks,
        append=append,
    )


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    positions: torch.Tensor | None,
    mask: torch.Tensor | None,
    out: torch.Tensor,
    scale: float,
    window: int,
    sinks: int,
    *,
    append: bool = False,
    first: int | None = None,
) -> None:
    """`forward`, or with `first` attention of a draft's step to rows that stay out of the cache.

    Then q [B, Hq, Q, D] holds the queries of rows first .. first + Q - 1 of k and v [B, Hkv, T, D],
    the cache may be full, q and k may be wider than the cache (k is rounded to it after its
    rotation), and a window counts from the positions, which the Q rows share, if they are given.
    """
    B, heads_of_q, Q, D = q.shape
    heads, C = k_cache.shape[1:3]
    T = k.shape[2]
    if q.numel() == 0:
        return
    group = heads_of_q // heads
    rows = Q * group
    tile = config(rows, D, k_cache.dtype, hip=is_hip())
    chunk = CHUNK if rows <= SPLIT_ROWS else WHOLE
    # A cache that holds the new tokens too has at most C - T rows in use.
    cache_chunks = triton.cdiv(max(C - T, 0) if first is None else C, chunk)
    parts = cache_chunks + triton.cdiv(T, chunk)
    states = B * heads * rows * parts
    most = torch.empty(states, dtype=torch.float32, device=q.device)
    total = torch.empty_like(most)
    sums = torch.empty(states * D, dtype=torch.float32, device=q.device)
    masks = mask is not None and mask.dim() == 3
    with device_of(q):
        _decode_attention_chunk_dot_kernel[(B * heads * triton.cdiv(rows, tile["ROWS"]), parts)](
            q,
            k,
            v,
            k_cache,
            v_cache,
            lengths,
            cos,
            sin,
            positions,
            None if mask is None else mask.view(torch.uint8),
            most,
            total,
            sums,
            scale,
            None if window < 0 else window,
            sinks,
            T,
            first or 0,
            Q,
            cache_chunks,
            C,
            0 if cos is None else cos.shape[0],
            *q.stride()[:3],
            *k.stride()[:3],
            *v.stride()[:3],
            *k_cache.stride()[:3],
            *v_cache.stride()[:3],
            HEADS=heads,
            GROUP=group,
            MASKS=masks,
            CHUNK=chunk,
            D=D,
            APPEND=append,
            BY_PLACE=first is not None and positions is not None,
            SPLIT=k_cache.dtype.itemsize == 2,
            **tile,
        )
        _decode_attention_merge_kernel[(B * heads * rows,)](
            most,
            total,
            sums,
            out,
            heads,
            group,
            Q,
            parts,
            *out.stride()[:3],
            D=D,
            PARTS=min(16, triton.next_power_of_2(parts)),
            WIDTH=tile["WIDTH"],
            num_warps=4,
            **PINNED,
        )
