"""What a drafter is made of: every choice in which published drafters differ, as a field."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

from leeboard.draft.checks import positive_int
from leeboard.draft.rope import normalized_scaling, rope_fields

AuxLayerConvention = Literal["input", "output"]

_SIZES = (
    "vocab_size",
    "draft_vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "target_hidden_size",
    "num_aux_hidden_states",
    "max_position_embeddings",
)
_SWITCHES = ("norm_output", "fc_norm", "norm_before_fc", "norm_before_residual")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrafterConfig:
    """Shape and conventions of an EAGLE-3 drafter.

    `DrafterConfig.for_target(target.config)` fills in everything from a Hugging Face config. The
    defaults are the post-norm drafter; `norm_output=False, fc_norm=False` is EAGLE-3 as first
    published (pre-norm).

    Args:
        vocab_size: Size of the target's vocabulary; the ids that `speculate` sees.
        draft_vocab_size: Rows of the drafter's head, at most `vocab_size`.
        hidden_size: Width H of the drafter.
        intermediate_size: Width of its feed-forward network.
        num_attention_heads: Query heads.
        num_key_value_heads: Key/value heads; divides `num_attention_heads`.
        head_dim: Width D of one head; even. `num_attention_heads * head_dim` need not equal H.
        target_hidden_size: Width Ht of the target's hidden states.
        aux_layer_ids: The decoder layers whose states are fused, ascending, counted from 0.
        aux_layer_convention: What an id i means: "input" is the residual stream that enters
            decoder layer i, "output" the one that leaves it. Input of i = output of i - 1.
        num_aux_hidden_states: How many states are fused, 1 to 8; equals `len(aux_layer_ids)`.
        rms_norm_eps: Epsilon of every RMSNorm.
        rope_theta: Base of the rotary position embedding.
        rope_scaling: Its scaling as in Hugging Face configs: a mapping with `rope_type` "linear",
            "llama3" or "yarn" and that type's keys, None (or "default") for none. Normalized,
            hashable and immutable once it is in the config.
        max_position_embeddings: Longest sequence, prompt and new tokens together.
        norm_output: The state fed back to the next chain step is the final norm's output
            (post-norm) instead of the residual stream. A trained drafter has one or the other.
        fc_norm: One RMSNorm per fused state before `fc`.
        norm_before_fc: One RMSNorm over the concatenated states before `fc`; excludes `fc_norm`.
        norm_before_residual: The residual stream starts from the normed state.
        sliding_window: Rows that a row attends to, itself included; None for all before it.
        attention_sinks: The first rows that stay visible when a window has left them behind.

    Raises:
        ValueError: A field is out of range or two fields contradict; the message names them.
    """

    vocab_size: int
    draft_vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    target_hidden_size: int
    aux_layer_ids: tuple[int, ...]
    aux_layer_convention: AuxLayerConvention
    num_aux_hidden_states: int = 3
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    max_position_embeddings: int = 2048
    norm_output: bool = True
    fc_norm: bool = True
    norm_before_fc: bool = False
    norm_before_residual: bool = False
    rope_scaling: Mapping[str, Any] | None = None
    sliding_window: int | None = None
    attention_sinks: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "aux_layer_ids", tuple(self.aux_layer_ids))
        for name in _SIZES:
            positive_int(name, getattr(self, name))
        for name in _SWITCHES:
            value = getattr(self, name)
            if value is not True and value is not False:
                raise ValueError(f"{name}: got {value!r}, expected True or False")
        for name in ("rms_norm_eps", "rope_theta"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value < math.inf:
                raise ValueError(f"{name}: got {value!r}, expected a positive number")
        scaling = normalized_scaling(self.rope_scaling, self.rope_theta)
        object.__setattr__(self, "rope_scaling", scaling)
        self._check_window()
        if self.draft_vocab_size > self.vocab_size:
            raise ValueError(
                f"draft_vocab_size: got {self.draft_vocab_size}, expected at most "
                f"vocab_size = {self.vocab_size}"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads: got {self.num_key_value_heads}, expected a divisor of "
                f"num_attention_heads = {self.num_attention_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"head_dim: got {self.head_dim}, expected an even number, "
                "rotary embedding turns channels in pairs"
            )
        if self.norm_before_fc and self.fc_norm:
            raise ValueError(
                "norm_before_fc: got True with fc_norm = True, expected one of them: a norm of "
                "the concatenated states or of each state"
            )
        if self.aux_layer_convention not in get_args(AuxLayerConvention):
            raise ValueError(
                f"aux_layer_convention: got {self.aux_layer_convention!r}, expected 'input' (of the "
                "layer) or 'output'"
            )
        ids = self.aux_layer_ids
        if any(type(i) is not int or i < 0 for i in ids):
            raise ValueError(f"aux_layer_ids: got {ids}, expected integers from 0 up")
        if list(ids) != sorted(set(ids)):
            raise ValueError(f"aux_layer_ids: got {ids}, expected distinct ascending ids")
        if len(ids) != self.num_aux_hidden_states:
            raise ValueError(
                f"aux_layer_ids: got {ids}, expected num_aux_hidden_states = "
                f"{self.num_aux_hidden_states} ids"
            )
        if self.num_aux_hidden_states > 8:
            raise ValueError(
                f"num_aux_hidden_states: got {self.num_aux_hidden_states}, expected at most 8"
            )

    def _check_window(self) -> None:
        if self.sliding_window is not None:
            positive_int("sliding_window", self.sliding_window)
        sinks = self.attention_sinks
        if type(sinks) is not int or sinks < 0:
            raise ValueError(f"attention_sinks: got {sinks!r}, expected an integer from 0 up")
        if sinks and self.sliding_window is None:
            raise ValueError(
                f"attention_sinks: got {sinks} with sliding_window = None, expected 0: without a "
                "window every row stays visible"
            )

    @classmethod
    def for_target(cls, target_config: Any, **overrides: Any) -> DrafterConfig:
        """A drafter that fits a target, from the target's Hugging Face config.

        The drafter takes the target's width, heads, feed-forward width, rotary base and scaling
        (from `rope_scaling` or `rope_parameters`), epsilon and vocabulary, not its window. The fused states are the inputs of layers 2, N//2 and N-3 of the target's N
        layers (EAGLE-3's rule); where these collide (N < 7), the inputs of layers 1, N//2 and
        N-1, and of layers 0, 1 and 2 for N = 3.

        Args:
            target_config: A config of any decoder-only model (Llama, Mistral, Qwen, Gemma, GPT-2
                names are understood; for a multimodal one its text part is used).
            **overrides: Any field of `DrafterConfig`, taken as given. `aux_layer_ids` alone is
                read with `aux_layer_convention="input"`.

        Raises:
            TypeError: An override is not a field.
            ValueError: The config lacks a needed attribute, the target has fewer than three
                layers and `aux_layer_ids` is not given, the target scales its rotary embedding in
                a way that is not supported and `rope_scaling` is not given, or a field is invalid.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(overrides.keys() - known):
            raise TypeError(f"unknown DrafterConfig field(s) {unknown}; known: {sorted(known)}")
        config = target_config
        if hasattr(config, "get_text_config"):
            config = config.get_text_config()

        layers = int(_first(config, "num_hidden_layers", "n_layer", "num_layers"))
        hidden = int(_first(config, "hidden_size", "n_embd", "d_model"))
        heads = int(_first(config, "num_attention_heads", "n_head", "num_heads"))
        vocab = int(_first(config, "vocab_size"))
        fields: dict[str, Any] = {
            "vocab_size": vocab,
            "draft_vocab_size": vocab,
            "hidden_size": hidden,
            "intermediate_size": int(
                _first(config, "intermediate_size", "n_inner", "ffn_dim", default=4 * hidden)
            ),
            "num_attention_heads": heads,
            "num_key_value_heads": int(_first(config, "num_key_value_heads", default=heads)),
            "head_dim": int(_first(config, "head_dim", default=hidden // heads)),
            "target_hidden_size": hidden,
            "rms_norm_eps": float(_first(config, "rms_norm_eps", default=1e-6)),
            **_rope_fields(config),
            "max_position_embeddings": int(
                _first(config, "max_position_embeddings", "n_positions", default=2048)
            ),
            "aux_layer_convention": "input",
        }
        if "aux_layer_ids" not in overrides:
            fields["aux_layer_ids"] = _default_aux_layers(
                layers, overrides.get("aux_layer_convention", "input")
            )
        fields.update(overrides)
        if "num_aux_hidden_states" not in overrides:
            fields["num_aux_hidden_states"] = len(fields["aux_layer_ids"])
        result = cls(**fields)
        result.check_layers(layers)
        return result

    def check_layers(self, num_layers: int) -> None:
        """Raise ValueError unless every aux layer exists in a target of `num_layers` layers."""
        if self.aux_layer_ids[-1] >= num_layers:
            raise ValueError(
                f"aux_layer_ids: got {self.aux_layer_ids}: the target has {num_layers} decoder "
                f"layers, expected ids from 0 to {num_layers - 1}"
            )

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-ready values; `from_dict` reads them back."""
        fields = dataclasses.asdict(self)
        fields["aux_layer_ids"] = list(self.aux_layer_ids)
        if self.rope_scaling is not None:
            fields["rope_scaling"] = dict(self.rope_scaling)
        return fields

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> DrafterConfig:
        """The config that `to_dict` wrote.

        Raises:
            ValueError: A field is unknown, missing or invalid; the message names it.
        """
        known = {field.name: field for field in dataclasses.fields(cls)}
        if unknown := sorted(fields.keys() - known.keys()):
            raise ValueError(f"unknown DrafterConfig field(s) {unknown}; known: {sorted(known)}")
        needed = {name for name, f in known.items() if f.default is dataclasses.MISSING}
        if missing := sorted(needed - fields.keys()):
            raise ValueError(f"missing DrafterConfig field(s) {missing}")
        return cls(**fields)


_REQUIRED = object()


def _first(config: Any, *names: str, default: Any = _REQUIRED) -> Any:
    """The first of the named attributes that the config has and that is not None."""
    for name in names:
        value = getattr(config, name, None)
        if value is not None:
            return value
    if default is _REQUIRED:
        raise ValueError(
            f"target_config ({type(config).__name__}) has no {' or '.join(names)}: expected the "
            "config of a decoder-only language model; give the field as an override of "
            "DrafterConfig"
        )
    return default


def _rope_fields(config: Any) -> dict[str, Any]:
    """Rotary base and scaling, wherever this version of transformers keeps them."""
    names = ("rope_parameters", "rope_theta", "rope_scaling")
    fields = rope_fields({name: getattr(config, name, None) for name in names})
    fields["rope_theta"] = float(fields["rope_theta"])
    return fields


def _default_aux_layers(num_layers: int, convention: AuxLayerConvention) -> tuple[int, ...]:
    """Ids, in the given convention, of the states that EAGLE-3 fuses."""
    if num_layers < 3:
        raise ValueError(
            f"the target has {num_layers} decoder layer(s), too few for three distinct states: "
            "give aux_layer_ids"
        )
    if num_layers == 3:
        return (0, 1, 2)
    ids = (2, num_layers // 2, num_layers - 3)
    if not ids[0] < ids[1] < ids[2]:
        ids = (1, num_layers // 2, num_layers - 1)
    return ids if convention == "input" else tuple(i - 1 for i in ids)
