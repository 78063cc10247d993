"""Sizes of a multimodal backbone."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor

_ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu", "identity")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


class Stream(NamedTuple):
    """One modality: `length` steps of `channels` numbers, `patch` steps to a token.

    Attributes:
        name: Letters, digits, "_" and "-"; part of the names of its parameters.
        channels: Numbers of a step.
        length: Steps of a window.
        patch: Steps of a token, a divisor of `length`.
    """

    name: str
    channels: int
    length: int = 1
    patch: int = 1

    @property
    def tokens(self) -> int:
        """Tokens of a window."""
        return self.length // self.patch


@dataclass(frozen=True)
class BackboneConfig:
    """What the three backbones are made of.

    Attributes:
        modalities: In the model's order; plain tuples will do.
        num_classes: Of the classifier.
        d_model: Channels of a token.
        heads: Query heads, a divisor of `d_model`.
        kv_heads: Key-value heads with "gqa" and "sparse" attention, a divisor of `heads`.
        layers: Encoder blocks: of the shared encoder, or of each modality's.
        hidden: Channels of the feed-forward blocks.
        attention: "dense": every head has keys and values of its own. "gqa": groups of heads share
            them. "sparse": also, tokens see a band of their own modality, and its first token,
            which sees and is seen by all.
        activation: Of the feed-forward blocks, see `leeboard.nn.FeedForward`.
        window: Of the band of "sparse" attention: least distance of tokens out of sight.
        fusion_tokens: Learned tokens in which modalities meet (`CrossFusion`, `LateFusion`).
        fusion_layers: Blocks over them.
        seed: Of the first weights: the same seed gives the same model.

    Raises:
        TypeError, ValueError: For a value that does not fit; the message names it.
    """

    modalities: tuple[Stream, ...]
    num_classes: int
    d_model: int = 48
    heads: int = 6
    kv_heads: int = 2
    layers: int = 2
    hidden: int = 192
    attention: Literal["dense", "gqa", "sparse"] = "dense"
    activation: str = "gelu"
    window: int = 2
    fusion_tokens: int = 4
    fusion_layers: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        streams = tuple(_stream(m) for m in self.modalities)
        object.__setattr__(self, "modalities", streams)
        if not streams:
            raise ValueError("modalities: got none, expected at least one")
        for stream in streams:
            _check_stream(stream)
        names = [stream.name for stream in streams]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"modalities: got {twice[0]!r} twice, expected different names")
        for field in dataclasses.fields(self):
            if field.type == "int" and field.name != "seed":
                _positive(field.name, getattr(self, field.name))
        if self.d_model % self.heads:
            raise ValueError(
                f"heads: got {self.heads}, expected a divisor of d_model, {self.d_model}"
            )
        if self.heads % self.kv_heads:
            raise ValueError(
                f"kv_heads: got {self.kv_heads}, expected a divisor of heads, {self.heads}"
            )
        if self.attention not in ("dense", "gqa", "sparse"):
            raise ValueError(f"attention: got {self.attention!r}, expected dense, gqa or sparse")
        if self.activation not in _ACTIVATIONS:
            raise ValueError(
                f"activation: got {self.activation!r}, expected one of {', '.join(_ACTIVATIONS)}"
            )

    @staticmethod
    def for_inputs(
        inputs: Mapping[str, Tensor], num_classes: int, *, tokens: int = 8, **sizes: Any
    ) -> BackboneConfig:
        """A config for these inputs, each [N, T, C], or [N, C] for a single step.

        Args:
            inputs: By name of the modality, in the model's order.
            num_classes: Of the classifier.
            tokens: At most so many tokens for a modality: the patch is the smallest divisor of T
                that gives no more.
            **sizes: Other fields of the config.
        """
        _positive("tokens", tokens)
        streams = []
        for name, x in inputs.items():
            if x.dim() not in (2, 3):
                raise ValueError(
                    f"inputs[{name!r}]: got shape {list(x.shape)}, expected [N, T, C] or [N, C]"
                )
            length = x.shape[1] if x.dim() == 3 else 1
            patch = next(
                p for p in range(1, length + 1) if length % p == 0 and length // p <= tokens
            )
            streams.append(Stream(name, x.shape[-1], length, patch))
        return BackboneConfig(tuple(streams), num_classes, **sizes)

    def replace(self, **changes: Any) -> BackboneConfig:
        """The same with other values in some fields."""
        return dataclasses.replace(self, **changes)


def _stream(fields: Any) -> Stream:
    try:
        return Stream(*fields)
    except TypeError as error:
        raise TypeError(
            f"modalities: got {fields!r}, expected (name, channels, length, patch)"
        ) from error


def _check_stream(stream: Stream) -> None:
    name: object = stream.name
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"modalities: got the name {name!r}, expected letters, digits, _ and -, and no "
            "digit first"
        )
    for field in ("channels", "length", "patch"):
        _positive(f"modalities: {field} of {stream.name}", getattr(stream, field))
    if stream.length % stream.patch:
        raise ValueError(
            f"modalities: patch of {stream.name}: got {stream.patch}, expected a divisor of its "
            f"length, {stream.length}"
        )


def _positive(name: str, value: object) -> None:
    if type(value) is not int or value < 1:
        raise ValueError(f"{name}: got {value!r}, expected a positive integer")
