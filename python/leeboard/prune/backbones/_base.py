"""What the backbones share: the call, its checks, tokens and encoder blocks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from leeboard.nn import FeedForward, SparseGQA
from leeboard.ops.patterns import Band, Dense, Pattern
from leeboard.prune.backbones.config import BackboneConfig, Stream
from leeboard.prune.units import Tokens

# Standard deviation of embeddings at first, as in Devlin et al., 2019, arXiv:1810.04805.
_SPREAD = 0.02


def embedding(*size: int) -> nn.Parameter:
    """Learned vectors [*size]."""
    return nn.Parameter(torch.randn(size) * _SPREAD)


class Tokenizer(nn.Module):
    """Windows [B, length, channels] to tokens [B, length / patch, d_model].

    A linear map of each patch, plus an embedding of its place within the modality and one of the
    modality: what a token gets does not depend on which other modalities are there.
    """

    def __init__(self, stream: Stream, d_model: int) -> None:
        super().__init__()
        self.patch = stream.patch
        self.embed = nn.Linear(stream.patch * stream.channels, d_model)
        self.position = embedding(stream.tokens, d_model)
        self.modality = embedding(d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens of the windows."""
        patches = x.reshape(x.shape[0], x.shape[1] // self.patch, self.patch * x.shape[2])
        tokens: Tensor = self.embed(patches) + self.position + self.modality
        return tokens


class EncoderBlock(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)): [B, L, d] to [B, L, d]."""

    def __init__(self, config: BackboneConfig, pattern: Pattern) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.d_model)
        self.attention = SparseGQA(config.d_model, config.heads, kv_heads(config), pattern=pattern)
        self.feed_forward = FeedForward(config.d_model, config.hidden, activation=config.activation)

    def forward(
        self, x: Tensor, *, key_padding: Tensor | None = None, pattern: Pattern | None = None
    ) -> Tensor:
        """`key_padding` bool [B, L], true for tokens that nobody sees; a pattern for this call."""
        x = x + self.attention(self.norm(x), key_padding=key_padding, pattern=pattern)
        y: Tensor = self.feed_forward(x)
        return y


class Encoder(nn.Sequential):
    """Encoder blocks over the tokens of one modality."""

    def __init__(self, config: BackboneConfig) -> None:
        sparse = config.attention == "sparse"
        pattern = Band(config.window, sinks=1, causal=False) if sparse else Dense()
        super().__init__(*(EncoderBlock(config, pattern) for _ in range(config.layers)))


def kv_heads(config: BackboneConfig) -> int:
    """Key-value heads of the config's attention."""
    return config.heads if config.attention == "dense" else config.kv_heads


class Backbone(nn.Module):
    """A classifier of several modalities, some of which may be missing.

    Call it with `inputs`, a dict from names to float windows [B, length, channels] (or
    [B, channels] for length 1). A modality that is not in the dict is missing for the whole batch:
    its tokens are dropped, they cost nothing. `present` (bool [B, M], columns in the order of
    `modalities`) marks what is missing for single samples, for training with modality dropout:
    their tokens are masked, which gives what dropping gives, up to rounding, and their values are
    not read. The result is logits [B, num_classes].

    Attributes:
        config: Its sizes.
        modalities: Names, in order.

    Raises:
        ValueError: For an unknown modality, none at all, a wrong shape, or NaN or infinity in a
            modality that is there (not checked while it is traced or compiled, or without values:
            on the device "meta").
        TypeError: For something that is no dict of float tensors of the parameters' dtype.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.modalities = tuple(stream.name for stream in config.modalities)
        # The caller's random numbers are left as they were.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            try:
                self.tokenizers = nn.ModuleDict(
                    {s.name: Tokenizer(s, config.d_model) for s in config.modalities}
                )
            except KeyError as error:
                raise ValueError(
                    f"modalities: {error.args[0]}; choose another name for it"
                ) from error
            self._build(config)
            self.norm = nn.LayerNorm(config.d_model)
            self.classifier = nn.Linear(config.d_model, config.num_classes)

    def _build(self, config: BackboneConfig) -> None:
        """Makes what lies between the tokens and the last norm."""
        raise NotImplementedError

    def _pooled(self, tokens: dict[str, Tensor], there: dict[str, Tensor] | None) -> Tensor:
        """One vector [B, d] for each sample.

        Args:
            tokens: Of the modalities that are not missing for the batch.
            there: For each of them bool [B, 1], or None where all samples have all of them.
        """
        raise NotImplementedError

    def leeboard_tokens(self, present: frozenset[str]) -> dict[str, Tokens]:
        """How many tokens each part works on when these modalities are there, by name prefix.

        A part without an entry does not run.
        """
        raise NotImplementedError

    def forward(self, inputs: Mapping[str, Tensor], present: Tensor | None = None) -> Tensor:
        """Logits [B, num_classes]; see the class."""
        windows = self._windows(inputs)
        there = None if present is None else self._there(windows, present)
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        if not (traced or self.classifier.weight.is_meta):
            _check_finite(windows, there)
        tokens = {}
        for name, x in windows.items():
            if there is not None:
                x = torch.where(there[name][..., None], x, 0)
            tokens[name] = self.tokenizers[name](x)
        logits: Tensor = self.classifier(self.norm(self._pooled(tokens, there)))
        return logits

    def lengths(self, present: Iterable[str]) -> dict[str, int]:
        """Tokens of each of these modalities, in the model's order.

        Raises:
            ValueError: For an unknown name, or none.
        """
        chosen = set(present)
        self._check_names("present", chosen)
        return {s.name: s.tokens for s in self.config.modalities if s.name in chosen}

    def _check_names(self, argument: str, names: Iterable[str]) -> None:
        known = ", ".join(self.modalities)
        unknown = sorted(set(names) - set(self.modalities))
        if unknown:
            raise ValueError(f"{argument}: got {unknown[0]!r}, expected modalities among {known}")
        if not set(names):
            raise ValueError(f"{argument}: got no modality, expected at least one of {known}")

    def _windows(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inputs as [B, length, channels], in the model's order."""
        if not isinstance(inputs, Mapping):
            raise TypeError(
                f"inputs: got {type(inputs).__name__}, expected a dict from modalities to tensors"
            )
        self._check_names("inputs", inputs)
        dtype = self.classifier.weight.dtype
        windows: dict[str, Tensor] = {}
        for stream in self.config.modalities:
            if stream.name not in inputs:
                continue
            x = inputs[stream.name]
            given = f"inputs[{stream.name!r}]: got"
            if not isinstance(x, Tensor):
                raise TypeError(f"{given} {type(x).__name__}, expected a tensor")
            if x.dtype != dtype:
                raise TypeError(f"{given} {x.dtype}, expected {dtype}")
            size = (stream.length, stream.channels)
            flat = stream.length == 1 and x.dim() == 2 and x.shape[1] == stream.channels
            if not flat and (x.dim() != 3 or tuple(x.shape[1:]) != size):
                raise ValueError(
                    f"{given} shape {list(x.shape)}, expected [B, {size[0]}, {size[1]}]"
                    + (f" or [B, {size[1]}]" if stream.length == 1 else "")
                )
            windows[stream.name] = x[:, None] if flat else x
        first, *others = windows
        batch = windows[first].shape[0]
        for name in others:
            if windows[name].shape[0] != batch:
                raise ValueError(
                    f"inputs[{name!r}]: got {windows[name].shape[0]} samples, expected {batch}, "
                    f"as many as of {first}"
                )
        return windows

    def _there(self, windows: dict[str, Tensor], present: Tensor) -> dict[str, Tensor]:
        batch = next(iter(windows.values())).shape[0]
        dtype = getattr(present, "dtype", None)
        if dtype != torch.bool:
            got = dtype or type(present).__name__
            raise TypeError(f"present: got {got}, expected a bool tensor")
        size = (batch, len(self.modalities))
        if tuple(present.shape) != size:
            raise ValueError(f"present: got shape {list(present.shape)}, expected {list(size)}")
        places = {name: self.modalities.index(name) for name in windows}
        return {name: present[:, place : place + 1] for name, place in places.items()}


def _check_finite(windows: dict[str, Tensor], there: dict[str, Tensor] | None) -> None:
    if there is not None:
        none = ~torch.cat(list(there.values()), 1).any(1)
        if none.any():
            raise ValueError(
                f"present: got no modality for {int(none.sum())} of {len(none)} samples, the first "
                f"of them {int(none.nonzero()[0])}; expected at least one, that inputs has"
            )
    for name, x in windows.items():
        if x.isfinite().all():
            continue
        broken = ~x.isfinite().flatten(1).all(1)
        if there is not None:
            broken &= there[name][:, 0]
        if broken.any():
            raise ValueError(
                f"inputs[{name!r}]: got NaN or infinity in {int(broken.sum())} of {len(broken)} "
                "samples; expected finite numbers, or the modality left out or marked as missing"
            )


def token_padding(
    tokens: Mapping[str, Tensor], there: Mapping[str, Tensor] | None
) -> Tensor | None:
    """bool [B, tokens of all], true for those that are missing; None where none are."""
    if there is None:
        return None
    return torch.cat([~there[name].expand(-1, t.shape[1]) for name, t in tokens.items()], 1)


def masked_mean(x: Tensor, padding: Tensor | None) -> Tensor:
    """The mean [B, d] over the tokens of x [B, L, d] that are no padding."""
    if padding is None:
        return x.mean(1)
    weight = (~padding).to(x.dtype)[..., None]
    return (x * weight).sum(1) / weight.sum(1)


def self_tokens(prefixes: Sequence[str], tokens: int) -> dict[str, Tokens]:
    """Entries of parts that attend from all of their tokens to all."""
    return {prefix: Tokens(tokens, tokens) for prefix in prefixes}


def replicate(parameter: Tensor, batch: Any) -> Tensor:
    """Learned tokens [n, d] as [batch, n, d]."""
    return parameter.expand(batch, -1, -1)
