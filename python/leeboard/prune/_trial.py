"""Runs a sublayer by itself under the plan that its model runs, to time it."""

from __future__ import annotations

import bisect
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leeboard.ops import patterns
from leeboard.prune.planner import block_units
from leeboard.prune.units import Sublayer, Tokens

Trial = Callable[[], object]


def spread(sublayer: Sublayer, kept: int) -> tuple[int, ...]:
    """Units of whole blocks, as many as `kept` says (rounded up), spread over all of them."""
    size = block_units(sublayer)
    count, n = -(-sublayer.units // size), -(-kept // size)
    return tuple(
        u
        for b in (i * count // n for i in range(n))
        for u in range(b * size, min((b + 1) * size, sublayer.units))
    )


def trial(model: nn.Module, sublayer: Sublayer, tokens: Tokens) -> Trial:
    """A call of the sublayer on random inputs, under the plan that the model runs at that time.

    A block that can be called alone is. Of others the linear layers are, with torch's attention or
    an activation between them.
    """
    s = sublayer
    module: Any = _module(model, s.name)
    reader: Any = model.get_submodule(s.reader)
    like = {"device": reader.weight.device, "dtype": reader.weight.dtype}
    x = torch.randn(1, tokens.queries, s.in_features, **like)
    memory = x
    if tokens.keys != tokens.queries or s.key_features != s.in_features:
        memory = torch.randn(1, tokens.keys, s.key_features, **like)
    if s.family in ("feed_forward", "hugging_face_mlp"):
        return lambda: module(x)
    if s.family == "torch_layer":
        layer: Any = model.get_submodule(s.name.rpartition(".")[0])
        return lambda: layer._ff_block(x)
    if s.family == "sparse_gqa":
        pattern = _pattern(module.pattern, s.pairs, tokens)
        return lambda: module(x, pattern=pattern)
    if s.family == "cross_attention":
        return lambda: module(x, memory)
    if s.family in ("torch_mha", "sparse_mha"):
        if not module.batch_first:
            same = memory is x
            x = x.transpose(0, 1)
            memory = x if same else memory.transpose(0, 1)
        return lambda: module(x, memory, memory, need_weights=False)
    writers = [model.get_submodule(name) for name in s.writers]
    if s.kind == "feed_forward":
        return lambda: _between_feed_forward(x, writers, reader)
    return lambda: _between_attention(x, memory, writers, reader, s.width)


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


def _between_feed_forward(x: Tensor, writers: list[nn.Module], reader: nn.Module) -> Any:
    up = writers[0](x)
    hidden = F.gelu(up) if len(writers) == 1 else F.silu(writers[1](x)) * up
    return reader(hidden)


def _between_attention(
    x: Tensor, memory: Tensor, writers: list[nn.Module], reader: nn.Module, width: int
) -> Any:
    q, k, v = (
        writer(source).view(*source.shape[:2], -1, width).transpose(1, 2)
        for writer, source in zip(writers, (x, memory, memory), strict=True)
    )
    mixed = F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1])
    return reader(mixed.transpose(1, 2).flatten(2))


def _module(model: nn.Module, name: str) -> nn.Module | None:
    # A sublayer of some families is a part of a module, and has a name of its own.
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def _pattern(own: patterns.Pattern, pairs: float, tokens: Tokens) -> patterns.Pattern:
    """The module's own pattern; for lengths that it does not fit a band of as many pairs."""
    queries, keys = tokens
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
