"""The two layouts of EAGLE-3 checkpoints: names of tensors, and config.json <-> DrafterConfig.

"eagle" is what EAGLE and SpecForge write and SGLang and vLLM read; "speculators" is that of
vllm-project/speculators. Nothing here touches a tensor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from leeboard.draft.config import AuxLayerConvention, DrafterConfig
from leeboard.draft.rope import rope_fields

Layout = Literal["eagle", "speculators"]

# What the public fields cannot say, in every config.json that we write.
_RECORD = "leeboard"
_IDS = "eagle_aux_hidden_state_layer_ids"
_FLAGS: dict[str, tuple[str, ...]] = {
    "norm_output": ("norm_output",),
    "fc_norm": ("fc_norm", "use_aux_norm"),
    "norm_before_fc": ("norm_before_fc",),
    "norm_before_residual": ("norm_before_residual",),
}
_ARCHITECTURES = (
    "LlamaForCausalLMEagle3",
    "Eagle3LlamaForCausalLM",
    "LlamaForCausalLM",
    "Eagle3DraftModel",
    "Eagle3Speculator",
)
_ALIASES = {
    f"aux_norm_{part}.weight": f"fc_norm.{i}.weight"
    for i, part in enumerate(("low", "mid", "high"))
}
# Of the target, kept by speculators while it trains; drafting does not use them.
IGNORED = {"speculators": frozenset({"verifier_lm_head.weight", "verifier_norm.weight"})}


def canonical_name(key: str) -> str:
    """The drafter's own name of a checkpoint's tensor: without NeMo's prefix `model.`, `midlayer`
    for `layers.0`, `fc_norm.{i}` for `aux_norm_{low,mid,high}`."""
    key = re.sub(r"^model\.", "", key)
    key = re.sub(r"^layers\.0\.", "midlayer.", key)
    return _ALIASES.get(key, key)


def layout_name(name: str, layout: Layout) -> str:
    """What a layout calls one of the drafter's tensors."""
    return re.sub(r"^midlayer\.", "layers.0.", name) if layout == "speculators" else name


def check_layout(layout: object) -> None:
    """Raise ValueError unless `layout` is the name of one."""
    if layout not in get_args(Layout):
        raise ValueError(f"layout: got {layout!r}, expected one of {list(get_args(Layout))}")


def layout_of(raw: Mapping[str, Any], file: str) -> Layout:
    """The layout of a config.json."""
    kind = raw.get("speculators_model_type")
    if kind is None:
        return "eagle"
    if kind != "eagle3":
        raise ValueError(f"{file}: speculators_model_type: got {kind!r}, expected 'eagle3'")
    return "speculators"


class _Fields:
    """Fields of a JSON object; errors name the file, the field, what it is, and what it may be."""

    def __init__(self, values: Mapping[str, Any], file: str, path: str = "") -> None:
        self.values, self.file, self.path = values, file, path

    def error(self, name: str, found: object, expected: str) -> ValueError:
        return ValueError(f"{self.file}: {self.path}{name}: got {found!r}, expected {expected}")

    def integer(self, name: str, default: int | None = None) -> int:
        value = self.values.get(name)
        value = default if value is None else value
        if type(value) is not int or value < 1:
            raise self.error(name, value, "a positive integer")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self.values.get(name)
        value = default if value is None else value
        if type(value) not in (int, float):
            raise self.error(name, value, "a number")
        return value  # type: ignore[return-value]

    def switch(self, name: str) -> bool | None:
        value = self.values.get(name)
        if value is not None and not isinstance(value, bool):
            raise self.error(name, value, "true or false")
        return value

    def ids(self, name: str) -> tuple[int, ...] | None:
        value = self.values.get(name)
        if value is None or value == []:
            return None
        if not isinstance(value, list) or any(type(i) is not int for i in value):
            raise self.error(name, value, "a list of integers")
        return tuple(value)

    def section(self, name: str, *, required: bool = False) -> _Fields:
        value = self.values.get(name)
        if value is None and not required:
            value = {}
        if not isinstance(value, dict):
            raise self.error(name, value, "an object")
        return _Fields(value, self.file, f"{self.path}{name}.")


def read_config(
    raw: Mapping[str, Any],
    file: str,
    convention: AuxLayerConvention | None,
    target_layers: Callable[[], int | None],
) -> DrafterConfig:
    """The DrafterConfig that a config.json describes.

    Args:
        raw: Its content.
        file: Its name, for messages.
        convention: What its layer ids mean, in place of what the layout says.
        target_layers: Gives the target's number of decoder layers, None where it is not known;
            asked only if the file has no layer ids.

    Raises:
        ValueError: A field is missing, of the wrong type, or asks for what the drafter does not
            do.
    """
    layout = layout_of(raw, file)
    top = _Fields(raw, file)
    layer = top if layout == "eagle" else top.section("transformer_layer_config", required=True)
    eagle = top.section("eagle_config") if layout == "eagle" else _Fields({}, file)
    record = top.section(_RECORD)
    _refuse_unsupported(top, layer, eagle)
    heads, hidden = layer.integer("num_attention_heads"), layer.integer("hidden_size")
    vocab = layer.integer("vocab_size")
    ids, meaning = _aux_layers(top, eagle, record, convention, target_layers)
    fields: dict[str, Any] = {
        "vocab_size": vocab,
        "draft_vocab_size": top.integer("draft_vocab_size", vocab),
        "hidden_size": hidden,
        "intermediate_size": layer.integer("intermediate_size"),
        "num_attention_heads": heads,
        "num_key_value_heads": layer.integer("num_key_value_heads", heads),
        "head_dim": layer.integer("head_dim", hidden // heads),
        "target_hidden_size": top.integer("target_hidden_size", hidden),
        "aux_layer_ids": ids,
        "aux_layer_convention": meaning,
        "num_aux_hidden_states": top.integer("num_aux_hidden_states", len(ids)),
        "rms_norm_eps": layer.number("rms_norm_eps"),
        "max_position_embeddings": layer.integer("max_position_embeddings"),
        "sliding_window": _window(layer),
        "attention_sinks": record.values.get("attention_sinks", 0),
        **rope_fields(layer.values),
        **{name: _flag(name, aliases, top, eagle) for name, aliases in _FLAGS.items()},
    }
    try:
        return DrafterConfig(**fields)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _refuse_unsupported(top: _Fields, layer: _Fields, eagle: _Fields) -> None:
    architectures = top.values.get("architectures")
    known = isinstance(architectures, list) and set(map(str, architectures)) <= set(_ARCHITECTURES)
    if architectures is not None and not known:
        raise top.error("architectures", architectures, f"one of {list(_ARCHITECTURES)}")
    kind = layer.values.get("model_type", "llama")
    if layer is not top and kind != "llama":
        raise layer.error("model_type", kind, "'llama'")
    layers = layer.integer("num_hidden_layers")
    if layers != 1:
        raise layer.error("num_hidden_layers", layers, "1: a drafter is one decoder layer")
    act = layer.values.get("hidden_act", "silu")
    if act not in ("silu", "swish"):
        raise layer.error("hidden_act", act, "'silu'")
    for name in ("attention_bias", "mlp_bias", "qkv_bias", "bias"):
        if layer.switch(name):
            raise layer.error(name, True, "false: the drafter's projections have no bias")
    if eagle.switch("use_aux_hidden_state") is False:
        raise eagle.error(
            "use_aux_hidden_state", False, "true: the drafter fuses several of the target's states"
        )
    parameters = layer.section("rope_parameters")
    for fields in (layer, parameters, parameters.section("full_attention")):
        part = fields.values.get("partial_rotary_factor")
        if part is not None and part != 1.0:
            raise fields.error("partial_rotary_factor", part, "1.0: every channel turns")
    scale = layer.values.get("logit_scale")
    if scale is not None and scale != 1.0:
        raise layer.error("logit_scale", scale, "1.0: the drafter's logits are not scaled")


def _flag(name: str, aliases: tuple[str, ...], top: _Fields, eagle: _Fields) -> bool:
    """A switch under any of its names, at the top or in eagle_config; False where it is absent."""
    found = {
        f"{fields.path}{alias}": value
        for alias in aliases
        for fields in (top, eagle)
        if (value := fields.switch(alias)) is not None
    }
    if len(set(found.values())) > 1:
        raise ValueError(f"{top.file}: {name}: got {found}, expected one value")
    return any(found.values())


def _window(layer: _Fields) -> int | None:
    """The attention window, where it is in use."""
    window = layer.values.get("sliding_window")
    if window is not None:
        window = layer.integer("sliding_window")
    kinds = layer.values.get("layer_types")
    if kinds is None:
        return None if layer.switch("use_sliding_window") is False else window
    if kinds == ["full_attention"]:
        return None
    if kinds != ["sliding_attention"]:
        raise layer.error("layer_types", kinds, "['full_attention'] or ['sliding_attention']")
    if window is None:
        raise layer.error("sliding_window", None, "a positive integer for layer_types in use")
    return window


def _as_inputs(ids: tuple[int, ...], convention: AuxLayerConvention) -> tuple[int, ...]:
    """Ids of the same states as inputs of layers."""
    return ids if convention == "input" else tuple(i + 1 for i in ids)


def _aux_layers(
    top: _Fields,
    eagle: _Fields,
    record: _Fields,
    convention: AuxLayerConvention | None,
    target_layers: Callable[[], int | None],
) -> tuple[tuple[int, ...], AuxLayerConvention]:
    if convention is not None and convention not in get_args(AuxLayerConvention):
        raise ValueError(
            f"aux_layer_convention: got {convention!r}, expected 'input', 'output' or None"
        )
    # In eagle_config, SpecForge and SGLang mean outputs; at the top, vLLM and speculators mean
    # inputs.
    readings: dict[str, tuple[tuple[int, ...], AuxLayerConvention]] = {}
    if (nested := eagle.ids(_IDS)) is not None:
        readings[f"{eagle.path}{_IDS}"] = nested, "output"
    if (flat := top.ids(_IDS)) is not None:
        readings[_IDS] = flat, "input"
    own = record.values.get("aux_layer_convention")
    if own is not None:
        return _own_aux_layers(record, own, readings, convention)
    if not readings:
        return _fallback_aux_layers(top, convention, target_layers)
    if len({_as_inputs(*reading) for reading in readings.values()}) == 1:
        if len(readings) == 1:
            ((ids, meaning),) = readings.values()
            return ids, convention or meaning
        return next(r for r in readings.values() if r[1] == (convention or "output"))
    if convention is not None and len({ids for ids, _ in readings.values()}) == 1:
        return flat or (), convention
    found = {name: list(ids) for name, (ids, _) in readings.items()}
    raise ValueError(
        f"{top.file}: got {found}, which name different states: expected outputs of layers in "
        "eagle_config and inputs of layers at the top; if both lists are one and the same, say "
        "what it means with aux_layer_convention"
    )


def _own_aux_layers(
    record: _Fields,
    own: Any,
    readings: Mapping[str, tuple[tuple[int, ...], AuxLayerConvention]],
    convention: AuxLayerConvention | None,
) -> tuple[tuple[int, ...], AuxLayerConvention]:
    """The ids of a file that states their convention."""
    if own not in get_args(AuxLayerConvention):
        raise record.error("aux_layer_convention", own, "'input' or 'output'")
    if convention not in (None, own):
        raise ValueError(
            f"aux_layer_convention: got {convention!r}, expected {own!r}: {record.file} states it"
        )
    ids = record.ids("aux_layer_ids")
    if ids is None:
        raise record.error("aux_layer_ids", None, "a list of integers")
    for name, reading in readings.items():
        if _as_inputs(*reading) != _as_inputs(ids, own):
            raise ValueError(
                f"{record.file}: {name}: got {list(reading[0])} ({reading[1]}s of layers), "
                f"expected the states of {record.path}aux_layer_ids = {list(ids)} ({own}s)"
            )
    return ids, own


def _fallback_aux_layers(
    top: _Fields, convention: AuxLayerConvention | None, target_layers: Callable[[], int | None]
) -> tuple[tuple[int, ...], AuxLayerConvention]:
    """The rule that every engine falls back to: inputs of layers 2, N//2 and N-3."""
    count = top.integer("num_aux_hidden_states", 3)
    layers = target_layers()
    if layers is None or count != 3:
        raise ValueError(
            f"{top.file}: {_IDS}: it is missing (num_aux_hidden_states = {count}), expected a list "
            "of layer ids; for 3 states, target= gives the number of layers N that the usual rule "
            "(inputs of layers 2, N//2 and N-3) needs"
        )
    ids = (2, layers // 2, layers - 3)
    if not ids[0] < ids[1] < ids[2]:
        raise ValueError(
            f"{top.file}: {_IDS}: it is missing, and the usual rule gives {list(ids)} for a target "
            f"of {layers} layers, expected distinct ascending ids"
        )
    meaning = convention or "input"
    return (ids if meaning == "input" else tuple(i - 1 for i in ids)), meaning


def write_config(config: DrafterConfig, layout: Layout, dtype: str) -> dict[str, Any]:
    """The config.json of a drafter, with weights of `dtype` ("bfloat16", ...).

    Raises:
        ValueError: The layout has no way to say it.
    """
    inputs = list(_as_inputs(config.aux_layer_ids, config.aux_layer_convention))
    window = config.sliding_window
    layer: dict[str, Any] = {
        "model_type": "llama",
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": 1,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None if config.rope_scaling is None else dict(config.rope_scaling),
        "max_position_embeddings": config.max_position_embeddings,
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "layer_types": ["full_attention" if window is None else "sliding_attention"],
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
    }
    shared: dict[str, Any] = {
        "draft_vocab_size": config.draft_vocab_size,
        "target_hidden_size": config.target_hidden_size,
        "num_aux_hidden_states": config.num_aux_hidden_states,
        _IDS: inputs,
        **{name: getattr(config, name) for name in _FLAGS},
        _RECORD: {
            "aux_layer_ids": list(config.aux_layer_ids),
            "aux_layer_convention": config.aux_layer_convention,
            "attention_sinks": config.attention_sinks,
        },
    }
    if layout == "eagle":
        if inputs[0] == 0:
            raise ValueError(
                "layout: got 'eagle' for a drafter that fuses the input of layer 0, the "
                "embedding, expected 'speculators': eagle_config names outputs of layers, and "
                "that state is none"
            )
        return {
            "architectures": ["LlamaForCausalLMEagle3"],
            **layer,
            **shared,
            "eagle_config": {
                "use_aux_hidden_state": True,
                _IDS: [i - 1 for i in inputs],
                **{name: getattr(config, name) for name in _FLAGS},
            },
        }
    return {
        "architectures": ["Eagle3DraftModel"],
        "speculators_model_type": "eagle3",
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [
                {
                    "proposal_type": "greedy",
                    "speculative_tokens": 3,
                    "accept_tolerance": 0.0,
                    "verifier_accept_k": 1,
                }
            ],
            "verifier": {"name_or_path": None, "architectures": []},
        },
        "transformer_layer_config": layer,
        "embed_requires_grad": False,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        **shared,
    }
