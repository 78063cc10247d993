"""A plain decoder of the Llama architecture, whole or the share of one device.

RMSNorm before each half of a layer, rotary positions, grouped-query attention over cached keys and
values, a SwiGLU feed-forward. The published long-context rescaling of the rotary frequencies
(Llama 3.1 and later) is left out: it changes constants, not work.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of a model. `hidden` is the width inside of the feed-forward; `tied`: the head's
    weights are the embedding's."""

    name: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    hidden: int
    vocab: int
    tied: bool
    theta: float = 500_000.0
    eps: float = 1e-5

    @property
    def parameters(self) -> int:
        """Weights of the whole model; tied ones count once."""
        attention = 2 * self.width * (self.heads + self.kv_heads) * self.head_width
        layer = attention + 3 * self.width * self.hidden + 2 * self.width
        tables = self.vocab * self.width * (1 if self.tied else 2)
        return self.layers * layer + tables + self.width


# The last four are those of the config.json files that Meta published with Llama 3.2 1B and 3B and
# Llama 3.1 8B and 70B. The first two are for tests and for runs on a small host.
SIZES = {
    config.name: config
    for config in (
        Config("tiny", 4, 128, 8, 4, 16, 384, 512, tied=False),
        Config("small", 8, 512, 8, 4, 64, 1536, 4096, tied=False),
        Config("1b", 16, 2048, 32, 8, 64, 8192, 128_256, tied=True),
        Config("3b", 28, 3072, 24, 8, 128, 8192, 128_256, tied=True),
        Config("8b", 32, 4096, 32, 8, 128, 14_336, 128_256, tied=False),
        Config("70b", 80, 8192, 64, 8, 128, 28_672, 128_256, tied=False),
    )
}


def config_of(name: str, layers: int | None = None) -> Config:
    """The sizes called `name`, with another number of layers if one is given.

    Raises:
        ValueError: no such name, or less than one layer.
    """
    if name not in SIZES:
        raise ValueError(f"model: got {name!r}; expected one of {', '.join(SIZES)}")
    if layers is not None and layers < 1:
        raise ValueError(f"layers: got {layers}; expected at least 1")
    return dataclasses.replace(SIZES[name], layers=layers or SIZES[name].layers)


def whole(partial: Tensor) -> Tensor:
    """The sum over devices where there is one."""
    return partial


@dataclasses.dataclass(frozen=True)
class Share:
    """What one of `count` devices holds under tensor parallelism: heads, feed-forward columns and
    vocabulary rows `index` of `count`. `add` sums the devices' partial results, shape kept."""

    index: int = 0
    count: int = 1
    add: Callable[[Tensor], Tensor] = whole

    def check(self, config: Config) -> None:
        """Raises ValueError unless everything that is shared divides evenly."""
        for name in ("heads", "kv_heads", "hidden", "vocab"):
            if getattr(config, name) % self.count:
                raise ValueError(
                    f"{config.name}: {name} = {getattr(config, name)} does not divide over "
                    f"{self.count} devices"
                )


class Cache:
    """Keys and values of the positions so far, for rows that are all equally long.

    Args:
        capacity: Most positions. Memory is taken when a layer first writes.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def positions(self, count: int, device: torch.device) -> Tensor:
        """Of the next `count` tokens. [T]"""
        return torch.arange(self.length, self.length + count, device=device)

    def extend(
        self, layer: int, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Takes a layer's new keys and values. [B, H, T, D]

        Returns:
            All keys and values, [B, H, S, D], and which of them the new tokens may see, where that
            is not simply every one up to their own. [B, 1, T, S]
        """
        count = keys.shape[2]
        if layer not in self._layers:
            shape = (*keys.shape[:2], self.capacity, keys.shape[3])
            self._layers[layer] = keys.new_empty(shape), values.new_empty(shape)
        kept_keys, kept_values = self._layers[layer]
        end = self.length + count
        kept_keys[:, :, self.length : end] = keys
        kept_values[:, :, self.length : end] = values
        return kept_keys[:, :, :end], kept_values[:, :, :end], None

    def advance(self, count: int) -> None:
        """After the last layer: `count` more positions are there."""
        self.length += count


def rotations(positions: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """Cosines and sines of RoPE (Su et al., RoFormer, 2021), the halves of a head rotated.

    `positions` [T] or [B, T]; results [T, D/2] or [B, 1, T, D/2], float32.
    """
    half = config.head_width // 2
    steps = torch.arange(half, device=positions.device, dtype=torch.float32)
    angles = positions[..., None].float() * config.theta ** (-steps / half)
    if positions.dim() == 2:
        angles = angles[:, None]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """RoPE on [B, H, T, D]."""
    cos, sin = (part.to(x.dtype) for part in turn)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Grouped-query attention; the queries are the last T of S positions unless `mask` says else.

    `queries` [B, H, T, D], `keys` and `values` [B, G, S, D]; result [B, T, H * D].
    """
    batch, heads, count, width = queries.shape
    groups, length = keys.shape[1:3]
    if count == 1 and heads % groups == 0:
        # The heads of a group read the same keys: to it they are positions. Nothing is copied.
        folded = queries.reshape(batch, groups, heads // groups, width)
        mixed = F.scaled_dot_product_attention(folded, keys, values, attn_mask=mask)
        return mixed.reshape(batch, 1, heads * width)
    causal = mask is None and count == length
    if mask is None and not causal:
        ones = torch.ones(count, length, dtype=torch.bool, device=queries.device)
        mask = ones.tril(length - count)
    mixed = F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, is_causal=causal, enable_gqa=heads != groups
    )
    return mixed.transpose(1, 2).reshape(batch, count, heads * width)


class Linear(nn.Linear):
    """A projection without bias, whose weights are set later."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def reset_parameters(self) -> None:
        """Nothing: torch's would take as long as a good part of the run, on every rank."""


class Attention(nn.Module):
    """Self-attention over the heads of a share."""

    def __init__(self, config: Config, share: Share) -> None:
        super().__init__()
        queries = config.heads * config.head_width // share.count
        groups = config.kv_heads * config.head_width // share.count
        self.head_width = config.head_width
        self.share = share
        self.query = Linear(config.width, queries)
        self.key = Linear(config.width, groups)
        self.value = Linear(config.width, groups)
        self.output = Linear(queries, config.width)

    def heads(self, projected: Tensor) -> Tensor:
        """[B, T, H * D] as [B, H, T, D]; as many heads as there are."""
        batch, count, width = projected.shape
        heads = width // self.head_width
        return projected.view(batch, count, heads, self.head_width).transpose(1, 2)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], layer: int, cache: Cache) -> Tensor:
        queries = rotate(self.heads(self.query(x)), turn)
        keys = rotate(self.heads(self.key(x)), turn)
        seen = cache.extend(layer, keys, self.heads(self.value(x)))
        return self.share.add(self.output(attend(queries, *seen)))


class FeedForward(nn.Module):
    """SwiGLU (Shazeer, 2020) over the columns of a share."""

    def __init__(self, config: Config, share: Share) -> None:
        super().__init__()
        self.share = share
        self.gate = Linear(config.width, config.hidden // share.count)
        self.up = Linear(config.width, config.hidden // share.count)
        self.down = Linear(config.hidden // share.count, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.share.add(self.down(F.silu(self.gate(x)) * self.up(x)))


class Layer(nn.Module):
    """Attention and feed-forward, each added to what it was given."""

    def __init__(self, config: Config, share: Share) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width, config.eps)
        self.attention = Attention(config, share)
        self.feed_forward_norm = nn.RMSNorm(config.width, config.eps)
        self.feed_forward = FeedForward(config, share)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], layer: int, cache: Cache) -> Tensor:
        x = x + self.attention(self.attention_norm(x), turn, layer, cache)
        y: Tensor = x + self.feed_forward(self.feed_forward_norm(x))
        return y


class Embedding(nn.Embedding):
    """Rows of a share of the vocabulary: tokens of others give zeros, and the sum is whole."""

    def __init__(self, config: Config, share: Share) -> None:
        super().__init__(config.vocab // share.count, config.width)
        self.share = share

    def reset_parameters(self) -> None:
        """Nothing, as in Linear."""

    def forward(self, tokens: Tensor) -> Tensor:
        if self.share.count == 1:
            return super().forward(tokens)
        own = tokens - self.share.index * self.num_embeddings
        inside = (own >= 0) & (own < self.num_embeddings)
        rows = super().forward(own.where(inside, torch.zeros_like(own)))
        return self.share.add(rows * inside[..., None].to(rows.dtype))


class Llama(nn.Module):
    """The layers `layers` of a model, by default all; the first and the last stage of a pipeline
    hold the embedding and the head too. Weights are unset: see `weights.build`.

    Args:
        config: Sizes of the whole model.
        layers: Numbers of the layers here, one after another.
        share: What of each layer is here.
    """

    def __init__(
        self, config: Config, layers: Sequence[int] | None = None, share: Share | None = None
    ) -> None:
        super().__init__()
        here = range(config.layers) if layers is None else layers
        share = Share() if share is None else share
        share.check(config)
        self.config = config
        self.share = share
        self.first = 0 in here
        self.last = config.layers - 1 in here
        self.embedding = Embedding(config, share) if self.first else None
        self.layers = nn.ModuleDict({str(number): Layer(config, share) for number in here})
        self.norm = nn.RMSNorm(config.width, config.eps) if self.last else None
        self.head = Linear(config.width, config.vocab // share.count) if self.last else None
        self.tie()

    def tie(self) -> None:
        """The head's weights are the embedding's, where the model wants it and both are here."""
        if self.config.tied and self.embedding is not None and self.head is not None:
            self.head.weight = self.embedding.weight

    def forward(self, x: Tensor, cache: Cache, keep: int = 1) -> Tensor:
        """The next T positions.

        Args:
            x: Tokens [B, T] on the first stage, hidden states [B, T, W] on others.
            cache: Of the rows of x; grows by T.
            keep: The last stage gives the logits of this many last positions.

        Returns:
            Logits of this share's vocabulary rows [B, keep, V], or hidden states [B, T, W].
        """
        count = x.shape[1]
        turn = rotations(cache.positions(count, x.device), self.config)
        if self.embedding is not None:
            x = self.embedding(x)
        for name, layer in self.layers.items():
            x = layer(x, turn, int(name), cache)
        cache.advance(count)
        if self.norm is not None and self.head is not None:
            x = self.head(self.norm(x[:, count - keep :]))
        return x
