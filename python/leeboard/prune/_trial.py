"""Runs a sublayer's ops at a number of kept units, to time them."""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leeboard.ops import FeedForwardWeights, panel_ffn, panel_linear, patterns, sparse_gqa
from leeboard.prune.units import Sublayer, Tokens

Trial = Callable[[], object]

# Families whose q, k and v come of one weight, and whose attention is an op of leeboard.
_PACKED = ("torch_mha", "sparse_mha")
_OURS = ("sparse_gqa", "cross_attention", "sparse_mha")


def trial(model: nn.Module, sublayer: Sublayer, kept: int, tokens: Tokens, panel: int) -> Trial:
    """A call that does what the sublayer does with its units spread over their range.

    Weights have the sizes and the dtype of the model's, their values are random; a pattern is the
    module's own.
    """
    reader: Any = model.get_submodule(sublayer.reader)
    like = {"device": reader.weight.device, "dtype": reader.weight.dtype}
    x = torch.randn(1, tokens.queries, sublayer.in_features, **like)
    module = _module(model, sublayer.name)
    if sublayer.kind == "feed_forward":
        return _feed_forward(module, sublayer, kept, x, panel, like)
    memory = x
    if tokens.keys != tokens.queries or sublayer.key_features != sublayer.in_features:
        memory = torch.randn(1, tokens.keys, sublayer.key_features, **like)
    return _attention(module, sublayer, kept // sublayer.group, x, memory, like)


def timed(run: Trial, repeats: int, device: torch.device) -> float:
    """Median milliseconds of a call, once it is warm."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    with torch.inference_mode():
        for _ in range(2):
            run()
        wait()
        times = []
        for _ in range(repeats):
            start = perf_counter()
            run()
            wait()
            times.append(perf_counter() - start)
    return 1e3 * median(times)


def _module(model: nn.Module, name: str) -> nn.Module | None:
    # A sublayer of some families is a part of a module, and has a name of its own.
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def _pattern(own: object, pairs: float, queries: int, keys: int) -> patterns.Pattern:
    """The module's own pattern; for lengths that it does not fit a band of as many pairs."""
    if pairs == 1.0 or not isinstance(own, patterns.Pattern):
        return patterns.Dense()
    try:
        own.check(queries, keys)
    except ValueError:
        windows = range(1, queries + keys)
        wanted = pairs * queries * keys
        place = bisect.bisect_left(
            windows, wanted, key=lambda w: patterns.Band(w, causal=False).pairs(queries, keys)
        )
        return patterns.Band(windows[min(place, len(windows) - 1)], causal=False)
    return own


def _heads(x: Tensor, width: int) -> Tensor:
    """[1, L, heads * width] as [1, heads, L, width]."""
    return x.view(*x.shape[:2], -1, width).transpose(1, 2)


def _spread(kept: int, all_: int, device: torch.device) -> Tensor:
    chosen = [i * all_ // kept for i in range(kept)]
    return torch.tensor(chosen, dtype=torch.int32, device=device)


def _feed_forward(
    module: nn.Module | None,
    sublayer: Sublayer,
    kept: int,
    x: Tensor,
    panel: int,
    like: dict[str, Any],
) -> Trial:
    hidden, inner = sublayer.units, sublayer.in_features
    own = getattr(module, "weights", None)
    if callable(own):
        weights = replace(own(), panel=panel)
    else:
        weights = FeedForwardWeights(
            up=torch.randn(hidden, inner, **like),
            down=torch.randn(sublayer.out_features, hidden, **like),
            up_bias=torch.randn(hidden, **like),
            down_bias=torch.randn(sublayer.out_features, **like),
            gate=torch.randn(hidden, inner, **like) if sublayer.gated else None,
            gate_bias=torch.randn(hidden, **like) if sublayer.gated else None,
            activation="silu" if sublayer.gated else "gelu",
            panel=panel,
        )
    if kept == hidden and not callable(own):
        return lambda: _dense_feed_forward(x, weights)
    panels = None
    if kept < hidden:
        panels = _spread(-(-kept // panel), -(-hidden // panel), x.device)
    residual = x if getattr(module, "residual", False) is True else None
    return lambda: panel_ffn(x, weights, panels, residual=residual)


def _dense_feed_forward(x: Tensor, w: FeedForwardWeights) -> Tensor:
    """What torch's and transformers' blocks do when nothing is pruned."""
    up = F.linear(x, w.up, w.up_bias)
    hidden = F.gelu(up) if w.gate is None else F.silu(F.linear(x, w.gate, w.gate_bias)) * up
    return F.linear(hidden, w.down, w.down_bias)


def _attention(
    module: nn.Module | None,
    sublayer: Sublayer,
    blocks: int,
    x: Tensor,
    memory: Tensor,
    like: dict[str, Any],
) -> Trial:
    d, heads, groups = sublayer.width, sublayer.units, sublayer.blocks
    packed = sublayer.family in _PACKED and memory is x
    # Rows of each writer, and its inputs; one writer makes q, k and v where they are packed.
    sizes = [(heads * d, sublayer.in_features), *[(groups * d, sublayer.key_features)] * 2]
    if packed:
        sizes = [(3 * heads * d, sublayer.in_features)]
    weights = [torch.randn(size, **like) / size[1] ** 0.5 for size in sizes]
    offsets = [torch.randn(size[0], **like) for size in sizes]
    out = torch.randn(sublayer.out_features, heads * d, **like)
    out_bias = torch.randn(sublayer.out_features, **like)
    kept = _spread(blocks, groups, x.device)
    inside = torch.arange(sublayer.group, dtype=torch.int32, device=x.device)
    active = (kept[:, None] * sublayer.group + inside).flatten()
    lists: list[Tensor] = [active, kept, kept]
    if packed:
        lists = [torch.cat((active, active + heads, active + 2 * heads))]
    every = blocks == groups
    pattern = _pattern(
        getattr(module, "pattern", None), sublayer.pairs, x.shape[1], memory.shape[1]
    )
    plain = sublayer.family not in _OURS and (every or sublayer.family not in _PACKED)

    def project(source: Tensor, place: int) -> Tensor:
        w, b = weights[place], offsets[place]
        # Nothing is looked up in a list where all is kept: the module runs as it always did.
        return (
            F.linear(source, w, b) if every else panel_linear(source, w, lists[place], b, panel=d)
        )

    def run() -> Tensor:
        if packed:
            q, k, v = (_heads(part, d) for part in project(x, 0).chunk(3, -1))
        else:
            q, k, v = (_heads(project(t, i), d) for i, t in enumerate((x, memory, memory)))
        if plain:
            mixed = F.scaled_dot_product_attention(q, k, v, enable_gqa=sublayer.group > 1)
        else:
            mixed = sparse_gqa(q, k, v, pattern)
        merged = mixed.transpose(1, 2).flatten(2)
        if every:
            return F.linear(merged, out, out_bias)
        return panel_linear(merged, out, active, out_bias, panel=d, over="inputs")

    return run
