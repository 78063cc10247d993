"""What an MTP head is made of: the target's own layer, and every choice in which engines differ."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Literal, get_args

from leeboard.draft.checks import positive_int

Convention = Literal["deepseek_v3", "qwen3_next", "mimo"]
ConcatOrder = Literal["embed_first", "hidden_first"]
Recycle = Literal["pre", "post"]
TargetState = Literal["normed", "raw"]

# In the order in which each convention's projection was trained to read its inputs.
_CONCAT: dict[str, ConcatOrder] = {
    "deepseek_v3": "embed_first",
    "qwen3_next": "embed_first",
    "mimo": "hidden_first",
}
_CHOICES: dict[str, Any] = {
    "convention": Convention,
    "concat_order": ConcatOrder,
    "recycle": Recycle,
    "target_state": TargetState,
}
# Of a Hugging Face config, what says nothing about the model.
_NOISE = frozenset(
    (
        "_name_or_path",
        "architectures",
        "auto_map",
        "dtype",
        "id2label",
        "label2id",
        "quantization_config",
        "torch_dtype",
        "transformers_version",
    )
)
# Targets that are another model of transformers in all that matters here.
_SAME_AS = {"mimo": "qwen2"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MTPConfig:
    """Shape and conventions of an MTP head.

    `MTPConfig.for_target(target.config)` fills in everything from a Hugging Face config.

    Args:
        block: The target's Hugging Face config as JSON-ready fields, `model_type` among them: the
            head's decoder layer is the target's own.
        convention: Whose structure and names of tensors: "deepseek_v3", "qwen3_next" or "mimo".
        heads: Heads there are; step j of a chain uses head j % heads. With "qwen3_next" they share
            all but the decoder layer.
        concat_order: What the projection reads first, the token's embedding or the state; None for
            the convention's own order.
        recycle: The state fed back to the next step: what leaves the decoder layer ("pre") or
            what leaves the head's final norm ("post").
        target_state: The target's state that enters step 0: behind its final norm ("normed", what
            its own head multiplies) or before ("raw", the residual stream).

    Raises:
        ValueError: A field is out of range or missing in `block`; the message names it.
    """

    block: Mapping[str, Any] = dataclasses.field(hash=False)
    convention: Convention
    heads: int = 1
    concat_order: ConcatOrder | None = None
    recycle: Recycle = "post"
    target_state: TargetState = "normed"

    def __post_init__(self) -> None:
        positive_int("heads", self.heads)
        if self.convention in _CONCAT and self.concat_order is None:
            object.__setattr__(self, "concat_order", _CONCAT[self.convention])
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in get_args(choices):
                raise ValueError(
                    f"{name}: got {getattr(self, name)!r}, expected one of {get_args(choices)}"
                )
        fields = {name: value for name, value in self.block.items() if name not in _NOISE}
        try:
            # As config.json gives them back.
            object.__setattr__(self, "block", json.loads(json.dumps(fields)))
        except (TypeError, ValueError) as error:
            raise ValueError(f"block: got fields that JSON cannot hold: {error}") from error
        kind = fields.get("model_type")
        if type(kind) is not str:
            raise ValueError(
                f"block: model_type: got {kind!r}, expected the name of a model in transformers"
            )
        for name in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "max_position_embeddings",
        ):
            positive_int(f"block: {name}", fields.get(name))

    @property
    def vocab_size(self) -> int:
        """V, the target's vocabulary."""
        return int(self.block["vocab_size"])

    @property
    def draft_vocab_size(self) -> int:
        """V: a head drafts from the whole vocabulary."""
        return self.vocab_size

    @property
    def hidden_size(self) -> int:
        """H, the target's width and the head's."""
        return int(self.block["hidden_size"])

    @property
    def target_hidden_size(self) -> int:
        """H."""
        return self.hidden_size

    @property
    def num_hidden_layers(self) -> int:
        """The target's decoder layers; DeepSeek's heads are numbered from here."""
        return int(self.block["num_hidden_layers"])

    @property
    def max_position_embeddings(self) -> int:
        """Longest sequence."""
        return int(self.block["max_position_embeddings"])

    @classmethod
    def for_target(
        cls,
        target_config: Any,
        convention: Convention = "deepseek_v3",
        *,
        heads: int = 1,
        concat_order: ConcatOrder | None = None,
        recycle: Recycle = "post",
        target_state: TargetState = "normed",
    ) -> MTPConfig:
        """A head that fits a target, from the target's Hugging Face config.

        Args:
            target_config: Of a decoder-only model with rotary embeddings; of a multimodal one its
                text part is used.
            convention, heads, concat_order, recycle, target_state: As in `MTPConfig`.

        Raises:
            ValueError: The config lacks a needed field, or an argument is out of range.
        """
        config = target_config
        if hasattr(config, "get_text_config"):
            config = config.get_text_config()
        return cls(
            block=config.to_dict(),
            convention=convention,
            heads=heads,
            concat_order=concat_order,
            recycle=recycle,
            target_state=target_state,
        )

    def layer_config(self) -> Any:
        """A Hugging Face config of the target's kind with `heads` layers of full attention.

        Where the target's layers are of several kinds, these are the kind of its last ones: experts
        where it has any. Windows and attention dropout are off.

        Raises:
            ImportError: transformers is not installed.
            ValueError: transformers has no such model, or it takes none of these fields.
        """
        try:
            from transformers.models.auto.configuration_auto import CONFIG_MAPPING
        except ImportError as error:
            raise ImportError('MTP heads need transformers: pip install "leeboard[hf]"') from error
        given = self.block["model_type"]
        kind = _SAME_AS.get(given, given)
        if kind not in CONFIG_MAPPING:
            raise ValueError(
                f"block: model_type: got {given!r}, expected a model that this version of "
                "transformers has: the head's decoder layer comes from there"
            )
        # Experts stand in every layer from the first dense ones on, and in every one of the last.
        alone = {
            "num_hidden_layers": self.heads,
            "layer_types": ["full_attention"] * self.heads,
            "first_k_dense_replace": 0,
            "mlp_only_layers": [],
            "decoder_sparse_step": 1,
            "attention_dropout": 0.0,
            "use_sliding_window": False,
            "sliding_window": None,
            # The embedding is not the layer's.
            "vocab_size": 1,
            "pad_token_id": None,
            "bos_token_id": None,
            "eos_token_id": None,
        }
        made = CONFIG_MAPPING[kind]
        try:
            # What config.json leaves out has the family's own default.
            whole = made.from_dict({**self.block, "model_type": kind}).to_dict()
            if whole.get("mlp_layer_types"):
                alone["mlp_layer_types"] = [whole["mlp_layer_types"][-1]] * self.heads
            known = {name: value for name, value in alone.items() if name in whole}
            return made.from_dict({**whole, **known})
        except Exception as error:
            raise ValueError(f"block: no config of a {given!r} layer: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-ready values; `from_dict` reads them back."""
        return {**{f.name: getattr(self, f.name) for f in dataclasses.fields(self)}}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> MTPConfig:
        """The config that `to_dict` wrote.

        Raises:
            ValueError: A field is unknown, missing or invalid; the message names it.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(fields.keys() - known):
            raise ValueError(f"unknown MTPConfig field(s) {unknown}; known: {sorted(known)}")
        if missing := sorted({"block", "convention"} - fields.keys()):
            raise ValueError(f"missing MTPConfig field(s) {missing}")
        return cls(**fields)
