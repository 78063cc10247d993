"""Attention over a key-value cache: checks, dispatch and fake tensors, pure and in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from leeboard import _C, reference
from leeboard.ops import _check
from leeboard.ops._library import (
    check_out,
    choose,
    define,
    define_in_place,
    kernels,
    run_kernel,
    takes_reference,
)
from leeboard.ops._state import direct_level, state, transform_problem

# What the kernels are told where there is no window.
_NO_WINDOW = -1


def decode_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    *,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    positions: Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
    sinks: int = 0,
    mask: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Grouped-query attention of new tokens over a cache and over themselves.

    out[t] = softmax(scale * rotate(q[t]) . keys) values, over the cache rows 0 .. lengths[b] - 1
    and the new rows s, whose cache index is lengths[b] + s. Token t sees index j iff j is not
    beyond its own, lengths[b] + t, and either lengths[b] + t - j < window or j < sinks. A `mask`
    decides instead which new rows it sees; the window then rules the cache alone. Query head h
    reads key-value head h // (Hq / Hkv). Sources: see `leeboard.reference.decode_attention`.

    Products, softmax and sums are float32 (float64 for float64 inputs). Rotated queries are not
    rounded; rotated keys of the new tokens are rounded to the cache's dtype before they are used,
    so that this call and later ones, which read them from the cache, see the same keys. The result
    is rounded once.

    Args:
        q: [B, Hq, T, D], not yet rotated; float32, bfloat16, float16 (float64 by the reference).
            Hq is a multiple of Hkv, D >= 1.
        k: [B, Hkv, T, D] of q's dtype, not yet rotated.
        v: [B, Hkv, T, D] of q's dtype.
        k_cache: [B, Hkv, C, D] of q's dtype, rotated keys. Any strides; with contiguous channels
            no copy is made. What lies behind lengths[b] is not read.
        v_cache: [B, Hkv, C, D] of q's dtype.
        lengths: int64 [B], rows of the cache in use; lengths[b] + T <= C.
        cos: float32 [P, D / 2], the rotary table (float64 also goes with float64 inputs), or None
            for no rotation. Channel i is paired with channel i + D / 2.
        sin: As `cos`.
        positions: int64 [B, T], rows of the table; lengths[b] + t by default.
        scale: Of the scores; D ** -0.5 by default.
        window: Least distance that is out of sight, >= 1; None for no limit.
        sinks: Leading cache indices that stay in sight whatever the window, >= 0.
        mask: bool [T, T] or [B, T, T]: whether row t sees new row s. Its diagonal is true.
        out: Written and returned, if given: q's shape, dtype and device.

    Returns:
        Tensor [B, Hq, T, D] of q's dtype, contiguous unless `out` is given. The caches are only
        read. Inference only. Same inputs give bit-identical results whatever the thread count.

    Raises:
        TypeError, ValueError: For an argument that does not fit; the message names it. Values of
            `lengths`, `positions` and the mask's diagonal are checked on CPU tensors when the
            kernel runs; on other devices reading them would stall the queue, so there they are
            the caller's promise.
        RuntimeError: If an input requires grad while grad mode is on, or a forced backend cannot
            run.
    """
    tensors = (q, k, v, k_cache, v_cache, lengths, cos, sin, positions, mask)
    options = (scale, window, sinks)
    if out is None:
        y = _direct(tensors, options, append=False)
        if y is not None:
            return y
    _check_call("decode_attention", tensors, options)
    if out is not None:
        _check.output("out", out, "q", q, q.shape)
        check_out("decode_attention", q=q, k=k, v=v, out=out)
    if out is None and takes_reference("decode_attention"):
        return _reference(reference.decode_attention, tensors, options)
    y = torch.ops.leeboard.decode_attention(*tensors, *options)
    return y if out is None else out.copy_(y)


def decode_attention_(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    *,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    positions: Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
    sinks: int = 0,
    mask: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """`decode_attention` that appends: rotated k and v go to the caches' rows lengths[b] + t.

    The result is that of `decode_attention`, bit for bit; the rows written are the rounded keys
    that it used. `lengths` is not changed. Nothing is written when an argument does not fit.

    Args:
        q: As in `decode_attention`, like all that is not named here.
        k: As in `decode_attention`; does not share memory with the caches.
        v: As `k`.
        k_cache: [B, Hkv, C, D], written at rows lengths[b] .. lengths[b] + T - 1; may be a strided
            view, of which no two elements share memory.
        v_cache: As `k_cache`; shares no element with it.
        lengths: As in `decode_attention`.
        cos: As in `decode_attention`.
        sin: As in `decode_attention`.
        positions: As in `decode_attention`.
        scale: As in `decode_attention`.
        window: As in `decode_attention`.
        sinks: As in `decode_attention`.
        mask: As in `decode_attention`.
        out: As in `decode_attention`.

    Returns:
        Tensor [B, Hq, T, D], as `decode_attention`.

    Raises:
        TypeError, ValueError: As `decode_attention`; also for a cache whose elements share memory, or a
            negative view.
        RuntimeError: As `decode_attention`; also under a transform of torch.func or forward-mode
            AD.
    """
    tensors = (q, k, v, k_cache, v_cache, lengths, cos, sin, positions, mask)
    options = (scale, window, sinks)
    if out is None:
        y = _direct(tensors, options, append=True)
        if y is not None:
            increment_version((k_cache, v_cache))
            return y
    _check_call("decode_attention_", tensors, options)
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        _check.memory(name, cache)
        _check.distinct(name, cache)
    problem = transform_problem()
    if problem is not None:
        raise RuntimeError(
            f"leeboard.ops.decode_attention_: it writes to its caches, but {problem} is in force"
        )
    if out is not None:
        _check.output("out", out, "q", q, q.shape)
        check_out("decode_attention_", out=out)
    y = torch.ops.leeboard.decode_attention_(*tensors, *options)
    return y if out is None else out.copy_(y)


def _direct(tensors: tuple[Any, ...], options: tuple[Any, ...], *, append: bool) -> Tensor | None:
    """The result without torch's dispatcher and Python's checks, or None where they are needed."""
    q, k, v, k_cache, v_cache, lengths, cos, sin, positions, mask = tensors
    scale, window, sinks = options
    level = direct_level(q, k, v, k_cache, v_cache, lengths)
    if level is None or q.dim() != 4 or type(sinks) is not int:
        return None
    if cos is not None and direct_level(cos, sin) is None:
        return None
    if window is None:
        window = _NO_WINDOW
    elif type(window) is not int or window < 1:
        return None
    if scale is None:
        scale = q.shape[3] ** -0.5 if q.shape[3] else 1.0
    elif type(scale) is not float:
        return None
    if append and (_overlaps_itself(k_cache) or _overlaps_itself(v_cache)):
        return None
    out = torch.empty(q.shape, dtype=q.dtype)
    done = _C.decode_attention_forward(
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
        append,
        level,
    )
    return out if done else None


def _overlaps_itself(t: Tensor) -> bool:
    return not t.is_contiguous() and _check.shares_elements(t)


def _check_call(op: str, tensors: tuple[Any, ...], options: tuple[Any, ...]) -> None:
    """Everything but values that only a look into memory tells."""
    q, k, v, k_cache, v_cache, lengths, cos, sin, positions, mask = tensors
    width = _check.rows("q", q)
    if q.dim() != 4:
        raise ValueError(f"q: shape {list(q.shape)} was given; expected [B, Hq, T, D]")
    batch, heads, tokens, _ = q.shape
    for name, t in (("k", k), ("v", v), ("k_cache", k_cache), ("v_cache", v_cache)):
        _check.companion(name, t, "q", q)
        if t.dim() != 4:
            raise ValueError(f"{name}: shape {list(t.shape)} was given; expected 4 dimensions")
    groups, capacity = k.shape[1], k_cache.shape[2]
    if groups == 0 or heads == 0 or heads % groups:
        raise ValueError(
            f"k: {groups} heads were given; expected a divisor of the {heads} heads of q"
        )
    _check.shape("k", k, (batch, groups, tokens, width), "as q, but for the heads")
    _check.shape("v", v, k.shape, "the shape of k")
    _check.shape("k_cache", k_cache, (batch, groups, capacity, width), "as k, but for the rows")
    _check.shape("v_cache", v_cache, k_cache.shape, "the shape of k_cache")
    _check.integers("lengths", lengths, "q", q)
    _check.shape("lengths", lengths, (batch,), "the batch of q")
    _check_table(q, width, cos, sin)
    if positions is not None:
        _check.integers("positions", positions, "q", q)
        _check.shape("positions", positions, (batch, tokens), "batch and tokens of q")
    if mask is not None:
        _check.companion("mask", mask, "q", q, (torch.bool,))
        if mask.dtype != torch.bool:
            raise ValueError(f"mask: dtype {mask.dtype} was given; expected torch.bool")
        square = (tokens, tokens)
        _check.shape("mask", mask, square if mask.dim() == 2 else (batch, *square), "tokens of q")
    scale, window, sinks = options
    if scale is not None:
        _check.number("scale", scale)
    if window is not None:
        _check.integer("window", window, 1)
    _check.integer("sinks", sinks, 0)
    _check.no_grad(
        op, "is inference-only", q=q, k=k, v=v, k_cache=k_cache, v_cache=v_cache, cos=cos, sin=sin
    )


def _check_table(q: Tensor, width: int, cos: Tensor | None, sin: Tensor | None) -> None:
    if cos is None and sin is None:
        return
    for name, t, other in (("cos", cos, "sin"), ("sin", sin, "cos")):
        if t is None:
            raise ValueError(f"{name}: None was given; expected a table to go with {other}")
        _check.tensor(name, t)
        if t.dtype != torch.float32 and not t.dtype == q.dtype == torch.float64:
            raise ValueError(f"{name}: dtype {t.dtype} was given; expected torch.float32")
        _check.companion(name, t, "q", q, (torch.float32,))
    assert cos is not None
    assert sin is not None
    if width % 2:
        raise ValueError(f"q: {width} channels were given; expected an even number to rotate")
    if cos.dim() != 2 or cos.shape[1] * 2 != width:
        raise ValueError(
            f"cos: shape {list(cos.shape)} was given; expected [P, {width // 2}] (half of q's "
            "channels)"
        )
    _check.shape("sin", sin, cos.shape, "the shape of cos")


def _check_values(tensors: tuple[Any, ...]) -> None:
    """What must hold before a cache is read or written; on CPU tensors."""
    q, _, _, k_cache, _, lengths, cos, _, positions, mask = tensors
    tokens, capacity = q.shape[2], k_cache.shape[2]
    if q.device.type != "cpu" or tokens == 0:
        return
    for t in (lengths, positions, mask):
        if t is not None and t.numel() and t.untyped_storage().nbytes() == 0:
            raise RuntimeError("leeboard.ops.decode_attention: a tensor's storage is empty")
    for b, length in enumerate(lengths.tolist()):
        if length < 0:
            raise ValueError(f"lengths: {length} was given for batch {b}; expected at least 0")
        if length + tokens > capacity:
            raise ValueError(
                f"lengths: {length} was given for batch {b}; expected at most "
                f"{capacity - tokens}, for {tokens} new rows in a cache of {capacity}"
            )
        if cos is not None and positions is None and length + tokens > cos.shape[0]:
            raise ValueError(
                f"lengths: {length} was given for batch {b}; expected at most "
                f"{cos.shape[0] - tokens}, for {tokens} positions in a table of {cos.shape[0]} rows"
            )
    if cos is not None and positions is not None:
        for b, row in enumerate(positions.tolist()):
            for position in row:
                if not 0 <= position < cos.shape[0]:
                    raise ValueError(
                        f"positions: {position} was given for batch {b}; expected 0 to "
                        f"{cos.shape[0] - 1}, the rows of cos"
                    )
    if mask is not None:
        diagonal = mask.diagonal(dim1=-2, dim2=-1)
        if not diagonal.all():
            *batch, token = (~diagonal).nonzero()[0].tolist()
            where = f"batch {batch[0]}, row {token}" if batch else f"row {token}"
            raise ValueError(f"mask: false on the diagonal at {where}; expected true")


def _reference(function: Any, tensors: tuple[Any, ...], options: tuple[Any, ...]) -> Tensor:
    cos, sin, positions, mask = tensors[6:]
    scale, window, sinks = options
    return function(  # type: ignore[no-any-return]
        *tensors[:6],
        cos=cos,
        sin=sin,
        positions=positions,
        scale=scale,
        window=window,
        sinks=sinks,
        mask=mask,
    )


def _plain(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.as_subclass(Tensor).resolve_neg()


def _rows(t: Tensor) -> Tensor:
    """A plain tensor with contiguous channels; copies only where it must."""
    t = t.as_subclass(Tensor).resolve_neg()
    return t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()


def _run(tensors: tuple[Any, ...], options: tuple[Any, ...], *, append: bool) -> Tensor:
    name = "decode_attention_" if append else "decode_attention"
    scale, window, sinks = options
    tensors = tuple(_plain(t) for t in tensors)
    _check_values(tensors)
    q = tensors[0]
    backend = choose(name, tensors[:5])
    if backend == "reference":
        function = reference.decode_attention_ if append else reference.decode_attention
        return _reference(function, tensors, options).contiguous()
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if out.numel() == 0:
        return out
    rows = [_rows(t) for t in tensors[:5]]
    small = [None if t is None else t.contiguous() for t in tensors[5:]]
    arguments = (
        q.shape[-1] ** -0.5 if scale is None else scale,
        _NO_WINDOW if window is None else window,
        sinks,
        append,
    )
    if backend == "triton":
        kernels("decode_attention").forward(*rows, *small, out, *arguments)
    else:
        run_kernel(_C.decode_attention_forward, [*rows, *small], [out], *arguments, state().level)
    return out


def _forward(*arguments: Any) -> Tensor:
    return _run(arguments[:10], arguments[10:], append=False)


def _forward_in_place(*arguments: Any) -> Tensor:
    tensors, options = arguments[:10], arguments[10:]
    caches = tensors[3:5]
    copies = tuple(_rows(cache) for cache in caches)
    out = _run((*tensors[:3], *copies, *tensors[5:]), options, append=True)
    lengths, tokens = tensors[5], out.shape[2]
    for cache, copy in zip(caches, copies, strict=True):
        if copy.data_ptr() == cache.data_ptr():
            increment_version(cache)
            continue
        # A layout that no kernel writes: only the new rows go back.
        for b, length in enumerate(lengths.tolist()):
            cache[b, :, length : length + tokens] = copy[b, :, length : length + tokens]
    return out


def _fake(q: Tensor, *others: Any) -> Tensor:
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


_REST = (
    "Tensor lengths, Tensor? cos, Tensor? sin, Tensor? positions, Tensor? mask, float? scale, "
    "int? window, int sinks) -> Tensor"
)

define(
    f"decode_attention(Tensor q, Tensor k, Tensor v, Tensor k_cache, Tensor v_cache, {_REST}",
    _forward,
    _fake,
    # A cache per sample: no kernel shares work between them.
    row_arguments=(),
)
define_in_place(
    "decode_attention_(Tensor q, Tensor k, Tensor v, Tensor(a!) k_cache, Tensor(b!) v_cache, "
    + _REST,
    _forward_in_place,
    _fake,
)
