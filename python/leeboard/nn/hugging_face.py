"""Sparse attention behind the attention interface of Hugging Face transformers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from leeboard.ops import sparse_gqa
from leeboard.ops.patterns import And, Band, Blocks, Causal, Dense, Or, Pattern

# Attributes of an attention module that the attention function reads.
PATTERN = "leeboard_pattern"
ACTIVE_HEADS = "leeboard_active_heads"

# What transformers passes along that changes the result and that no kernel here takes.
_UNSERVED = ("position_bias", "head_mask", "layer_head_mask", "block_table")


def register_attention(name: str = "leeboard", pattern: Pattern | None = None) -> None:
    """Makes `attn_implementation=name` known to transformers, on `leeboard.ops.sparse_gqa`.

    The pattern of a layer comes from the layer: `Causal` where it is causal, `Band` where it has a
    sliding window, `Dense` otherwise. A `pattern` of the user takes away from that (`&`): a causal
    model stays causal. Softcap, learned sinks, padding on either side, packed sequences (by
    `cu_seq_lens_q` or restarting `position_ids`), gradients, and dynamic, sliding and static
    key-value caches are served. The mask that the model makes is the 2-D one, or none where nothing
    is padded; queries that see no key give zeros.

    Nothing is registered on import. Call it once in each process, before the model is built or
    `model.set_attn_implementation(name)` is called; it imports transformers.

    Args:
        name: The name to register. A second call with the same pattern changes nothing.
        pattern: For every layer whose module has no attribute `leeboard_pattern` of its own
            (`leeboard.nn.replace` sets it). `leeboard_active_heads`, a sequence of query heads, is
            read from the module, too.

    Sinks of a `Band` are the first keys there are: the function raises ValueError for them where
    sequences are padded on the left, or a sliding window's cache has dropped keys.

    Raises:
        TypeError: If `name` is no string or `pattern` no pattern.
        ValueError: If `name` is taken: by another implementation, or with another pattern.
        ImportError: Without transformers.

    The registered function raises ValueError for what cannot be served: masks with more than two
    dimensions, dropout in training, position biases, head masks, `output_attentions`. The
    registered mask function does so for mask functions other than causal, bidirectional, sliding
    and packed ones.
    """
    if not isinstance(name, str):
        raise TypeError(f"name: got {name!r}, expected a string")
    if pattern is not None and not isinstance(pattern, Pattern):
        raise TypeError(f"pattern: got {type(pattern).__name__}, expected a leeboard Pattern")
    from transformers import AttentionInterface, AttentionMaskInterface

    known = AttentionInterface()
    if name == "eager" or name in known.valid_keys():
        found = None if name == "eager" else known[name]
        if not isinstance(found, partial) or found.func is not attention:
            raise ValueError(f"name: {name!r} is an attention implementation of transformers")
        if found.keywords["pattern"] != pattern:
            raise ValueError(
                f"name: {name!r} is registered with the pattern {found.keywords['pattern']}; "
                f"expected another name for {pattern}"
            )
        return
    AttentionInterface.register(name, partial(attention, pattern=pattern))
    AttentionMaskInterface.register(name, mask)


def is_registered(name: str) -> bool:
    """Whether `name` means leeboard's attention, under any pattern; imports transformers."""
    from transformers import AttentionInterface

    known = AttentionInterface()
    found = known[name] if name in known.valid_keys() else None
    return isinstance(found, partial) and found.func is attention


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    *,
    pattern: Pattern | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The attention function: [B, L, Hq, D] and no weights, of query [B, Hq, L, D].

    `attention_mask` is what `mask` returns. Raises ValueError for what cannot be served.
    """
    if dropout:
        raise ValueError(
            f"dropout: {dropout} was given; expected 0: leeboard drops no attention weights. Set "
            "the config's attention dropout to 0, or use model.eval()"
        )
    if others.get("output_attentions"):
        raise ValueError("output_attentions: got True, but leeboard never makes the weights")
    for name in _UNSERVED:
        if others.get(name) is not None:
            raise ValueError(f"{name}: leeboard's attention does not serve it; expected None")
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    seen = _own_pattern(bool(is_causal), sliding_window)
    extra = getattr(module, PATTERN, pattern)
    if extra is not None:
        seen = extra & seen
    key, value, padding, cu_seqlens = _read_mask(key, value, attention_mask)
    if extra is not None:
        _check_positions(extra, query.shape[2], key.shape[2], sliding_window, padding)
    if cu_seq_lens_q is not None:
        cu_seqlens = cu_seq_lens_q
    batch, _, length, _ = query.shape
    if cu_seqlens is not None and batch > 1:
        query, key, value = (_one_row(t) for t in (query, key, value))
    if s_aux is not None:
        s_aux = s_aux.to(torch.promote_types(query.dtype, torch.float32))
    out = sparse_gqa(
        query,
        key,
        value,
        seen,
        scale=scaling,
        active_heads=getattr(module, ACTIVE_HEADS, None),
        key_padding=padding,
        cu_seqlens=cu_seqlens,
        cu_seqlens_k=cu_seq_lens_k,
        softcap=softcap,
        sink_logits=s_aux,
    )
    out = out.transpose(1, 2)
    return out.reshape(batch, length, *out.shape[2:]).contiguous(), None


def mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int | Tensor = 0,
    mask_function: Callable[..., Any] | None = None,
    attention_mask: Tensor | None = None,
    *,
    allow_is_bidirectional_skip: bool = True,
    device: torch.device | str = "cpu",
    **_: Any,
) -> Tensor | None:
    """The mask function: what is left to say beside the pattern.

    Returns:
        None where every key is a token; bool [B, n], true for tokens, where some are padding or
        only the first n slots of the cache are filled; int64 [n + 1], the bounds of all sequences
        in all rows, where several are packed into a row.

    Raises:
        ValueError: For a mask function that says more than a pattern does.
    """
    packed = None if mask_function is None else _packed(mask_function)
    if not allow_is_bidirectional_skip:
        raise ValueError("mask: the model builds on a 4-D mask, which leeboard never makes")
    if packed is not None:
        return _bounds(packed.expand(batch_size, -1))
    first = int(kv_offset)
    filled = min(int(q_offset) + q_length - first, kv_length)
    if attention_mask is None:
        if filled == kv_length:
            return None
        return torch.ones(batch_size, filled, dtype=torch.bool, device=device)
    missing = first + filled - attention_mask.shape[1]
    if missing > 0:
        attention_mask = nn.functional.pad(attention_mask, (0, missing))
    attention_mask = attention_mask[:, first : first + filled]
    return None if filled == kv_length and attention_mask.all() else attention_mask


def _own_pattern(is_causal: bool, sliding_window: int | None) -> Pattern:
    if sliding_window is not None:
        return Band(sliding_window, causal=is_causal)
    return Causal() if is_causal else Dense()


def _check_positions(
    pattern: Pattern,
    queries: int,
    keys: int,
    sliding_window: int | None,
    padding: Tensor | None,
) -> None:
    """ValueError where keys do not stand at the positions that the pattern counts."""
    if isinstance(pattern, And | Or):
        for part in pattern.parts:
            _check_positions(part, queries, keys, sliding_window, padding)
    elif isinstance(pattern, Blocks) and keys != queries:
        raise ValueError(
            f"pattern: {pattern} was given for {queries} queries over {keys} keys; expected a "
            "causal pattern with a key-value cache"
        )
    elif isinstance(pattern, Band) and pattern.sinks:
        if sliding_window is not None and sliding_window <= keys > queries:
            raise ValueError(
                f"pattern: {pattern} was given for a layer with a sliding window of "
                f"{sliding_window}, whose cache drops the first keys; expected sinks=0"
            )
        if padding is not None and (padding[:, : pattern.sinks] & ~padding[:, -1:]).any():
            raise ValueError(
                f"pattern: {pattern} was given for sequences that are padded on the left, where "
                "the sinks would be padding; expected sinks=0, or padding on the right"
            )


def _read_mask(
    key: Tensor, value: Tensor, attention_mask: object
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Keys and values without unfilled slots, the padding, the bounds of packed sequences."""
    if attention_mask is None:
        return key, value, None, None
    if not isinstance(attention_mask, Tensor) or attention_mask.dim() > 2:
        what = getattr(attention_mask, "shape", type(attention_mask).__name__)
        raise ValueError(
            f"attention_mask: got {what}; expected the 2-D padding mask [B, L]: leeboard takes no "
            "4-D masks, a pattern says who sees whom"
        )
    if attention_mask.dim() == 1:
        return key, value, None, attention_mask
    count = attention_mask.shape[1]
    return key[:, :, :count], value[:, :, :count], ~attention_mask.bool(), None


def _one_row(t: Tensor) -> Tensor:
    """[1, H, B L, D] of [B, H, L, D]; a view where tokens lie one after the other."""
    return t.transpose(1, 2).flatten(0, 1).transpose(0, 1)[None]


def _packed(function: Callable[..., Any]) -> Tensor | None:
    """The sequence numbers [B, L] in a mask function, or None; ValueError for an unknown one."""
    from transformers import masking_utils

    if function in (
        masking_utils.causal_mask_function,
        masking_utils.bidirectional_mask_function,
    ):
        return None
    module = getattr(function, "__module__", "")
    maker = getattr(function, "__qualname__", "").partition(".")[0]
    if module == masking_utils.__name__:
        if maker in ("sliding_window_overlay", "sliding_window_bidirectional_overlay"):
            return None
        inner = inspect.getclosurevars(function).nonlocals
        if maker == "packed_sequence_mask_function":
            found: Tensor = inner["packed_sequence_mask"]
            return found
        if maker == "remap_positions_for_packed_sequence":
            return _packed(inner["mask_function"])
        if maker == "and_masks":
            parts = [_packed(part) for part in inner["mask_functions"]]
            return next((part for part in parts if part is not None), None)
    raise ValueError(
        f"mask_function: {module}.{maker} is no causal, bidirectional, sliding or packed mask, the "
        "ones that leeboard's attention serves"
    )


def _bounds(sequence: Tensor) -> Tensor:
    """Where sequences begin and end, int64 [n + 1], with the rows of [B, L] one after the other."""
    starts = torch.ones_like(sequence, dtype=torch.bool)
    starts[:, 1:] = sequence[:, 1:] != sequence[:, :-1]
    first = starts.flatten().nonzero().flatten()
    return nn.functional.pad(first, (0, 1), value=sequence.numel())
