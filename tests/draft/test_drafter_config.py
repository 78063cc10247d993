"""DrafterConfig: validation, derivation from a target, round trip."""

from __future__ import annotations

import copy
import json
import pickle
from types import SimpleNamespace
from typing import Any

import pytest

from drafter_models import make_target, tiny_config
from leeboard.draft import DrafterConfig

LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"hidden_size": 0}, "hidden_size: got 0"),
        ({"head_dim": 7}, "head_dim: got 7, expected an even"),
        ({"vocab_size": True}, "vocab_size: got True"),
        ({"draft_vocab_size": 38}, "draft_vocab_size: got 38, expected at most vocab_size = 37"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: got 3, expected a divisor"),
        ({"norm_before_fc": True}, "norm_before_fc: got True with fc_norm"),
        ({"norm_output": 1}, "norm_output: got 1"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps: got 0.0"),
        ({"rope_theta": float("nan")}, "rope_theta: got nan"),
        ({"aux_layer_convention": "before"}, "aux_layer_convention: got 'before'"),
        ({"aux_layer_ids": (1, 2)}, "expected num_aux_hidden_states = 3 ids"),
        ({"aux_layer_ids": (2, 1, 3)}, "expected distinct ascending"),
        ({"aux_layer_ids": (-1, 1, 3)}, "expected integers from 0 up"),
        ({"aux_layer_ids": range(9), "num_aux_hidden_states": 9}, "expected at most 8"),
        ({"sliding_window": 0}, "sliding_window: got 0, expected a positive"),
        ({"sliding_window": True}, "sliding_window: got True"),
        ({"attention_sinks": -1, "sliding_window": 4}, "attention_sinks: got -1"),
        ({"attention_sinks": None, "sliding_window": 4}, "attention_sinks: got None"),
        ({"attention_sinks": 2}, "attention_sinks: got 2 with sliding_window = None"),
        ({"rope_scaling": "linear"}, "rope_scaling: got 'linear', expected a mapping"),
        ({"rope_scaling": {}}, "rope_scaling: got {}"),
        ({"rope_scaling": {"factor": 2.0}}, "expected one name as its rope_type"),
        ({"rope_scaling": {"rope_type": 3}}, "expected one name as its rope_type"),
        (
            {"rope_scaling": {"rope_type": "linear", "type": "yarn", "factor": 2.0}},
            "expected one name as its rope_type",
        ),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "rope_type 'dynamic', expected one of .*'default', 'linear', 'llama3', 'yarn'",
        ),
        ({"rope_scaling": {"rope_type": "linear"}}, r"missing key\(s\) \['factor'\]"),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "low_freq_factor": 1}},
            r"unknown key\(s\) \['low_freq_factor'\] for rope_type 'linear'",
        ),
        (
            {"rope_scaling": {"rope_type": "default", "mrope_section": [1, 2, 2]}},
            r"unknown key\(s\) \['mrope_section'\]",
        ),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0.5}}, "factor 0.5, expected a number"),
        ({"rope_scaling": {"rope_type": "linear", "factor": True}}, "factor True, expected"),
        (
            {"rope_scaling": {**LLAMA3, "low_freq_factor": 4.0}},
            "low_freq_factor 4.0, expected less",
        ),
        (
            {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 1.5}},
            "original_max_position_embeddings 1.5, expected a positive integer",
        ),
        ({"rope_scaling": {**YARN, "truncate": 1}}, "truncate 1, expected True or False"),
        ({"rope_scaling": {**YARN, "beta_fast": -1}}, "beta_fast -1, expected a positive"),
        ({"rope_scaling": {**YARN, "rope_theta": 7.0}}, "rope_theta 7.0 in it, expected"),
    ],
)
def test_invalid_field_is_named(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_config(**overrides)


def test_round_trip_through_json() -> None:
    config = tiny_config(norm_output=False, aux_layer_convention="output")
    assert DrafterConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_scaling_is_normalized_hashable_and_immutable() -> None:
    old = {"type": "llama3", "rope_theta": 100.0, "attention_factor": None}
    old |= {key: value for key, value in reversed(LLAMA3.items()) if key != "rope_type"}
    config = tiny_config(rope_scaling=old, sliding_window=8, attention_sinks=2)
    assert config.rope_scaling == LLAMA3
    assert config == tiny_config(rope_scaling=LLAMA3, sliding_window=8, attention_sinks=2)
    assert hash(config) == hash(
        tiny_config(rope_scaling=LLAMA3, sliding_window=8, attention_sinks=2)
    )
    assert DrafterConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert type(config.to_dict()["rope_scaling"]) is dict
    for other in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert other == config
        assert hash(other) == hash(config)
    # What the caller does with its dict afterwards is no concern of the config's.
    old["factor"] = 2.0
    assert config.rope_scaling["factor"] == 8.0
    for change in (
        lambda scaling: scaling.update(factor=2.0),
        lambda scaling: scaling.pop("factor"),
        lambda scaling: scaling.__setitem__("factor", 2.0),
    ):
        with pytest.raises(TypeError, match="does not change"):
            change(config.rope_scaling)
    assert tiny_config(rope_scaling={"rope_type": "default"}) == tiny_config()


def test_from_dict_fails_closed() -> None:
    fields = tiny_config().to_dict()
    with pytest.raises(ValueError, match=r"unknown.*'norm_outputs'"):
        DrafterConfig.from_dict({**fields, "norm_outputs": True})
    del fields["head_dim"]
    with pytest.raises(ValueError, match=r"missing.*'head_dim'"):
        DrafterConfig.from_dict(fields)


def target_config(**fields: Any) -> SimpleNamespace:
    shape = {"hidden_size": 64, "num_attention_heads": 4, "vocab_size": 100}
    return SimpleNamespace(**{**shape, "num_hidden_layers": 32, **fields})


@pytest.mark.parametrize(
    ("layers", "inputs"),
    [
        (3, (0, 1, 2)),
        (4, (1, 2, 3)),
        (5, (1, 2, 4)),
        (6, (1, 3, 5)),
        (7, (2, 3, 4)),
        (8, (2, 4, 5)),
        (32, (2, 16, 29)),
    ],
)
def test_default_layers(layers: int, inputs: tuple[int, ...]) -> None:
    config = target_config(num_hidden_layers=layers)
    assert DrafterConfig.for_target(config).aux_layer_ids == inputs
    outputs = DrafterConfig.for_target(config, aux_layer_convention="output").aux_layer_ids
    if layers > 3:
        # The same states under the other name.
        assert outputs == tuple(i - 1 for i in inputs)


def test_too_few_layers_needs_ids() -> None:
    config = target_config(num_hidden_layers=2)
    with pytest.raises(ValueError, match="give aux_layer_ids"):
        DrafterConfig.for_target(config)
    assert DrafterConfig.for_target(config, aux_layer_ids=(0, 1)).num_aux_hidden_states == 2
    with pytest.raises(ValueError, match="the target has 2 decoder layers"):
        DrafterConfig.for_target(config, aux_layer_ids=(0, 2))


def test_plain_attributes_and_fallbacks() -> None:
    config = DrafterConfig.for_target(target_config())
    assert (config.head_dim, config.num_key_value_heads) == (16, 4)
    assert (config.intermediate_size, config.rope_theta) == (256, 10000.0)
    assert config.norm_output
    assert config.fc_norm
    explicit = DrafterConfig.for_target(
        target_config(head_dim=32, num_key_value_heads=2, intermediate_size=100, rope_theta=5e5),
        norm_output=False,
        fc_norm=False,
    )
    assert (explicit.head_dim, explicit.num_key_value_heads) == (32, 2)
    assert (explicit.intermediate_size, explicit.rope_theta) == (100, 5e5)
    assert not explicit.norm_output


def test_gpt2_names() -> None:
    transformers = pytest.importorskip("transformers")
    config = DrafterConfig.for_target(
        transformers.GPT2Config(n_embd=48, n_head=4, n_layer=8, n_positions=77, vocab_size=50)
    )
    assert (config.hidden_size, config.head_dim, config.intermediate_size) == (48, 12, 192)
    assert (config.max_position_embeddings, config.aux_layer_ids) == (77, (2, 4, 5))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_hugging_face_configs(family: str) -> None:
    theirs = make_target(family).config
    ours = DrafterConfig.for_target(theirs, draft_vocab_size=20)
    assert (ours.vocab_size, ours.draft_vocab_size, ours.hidden_size) == (61, 20, 32)
    assert ours.head_dim == (16 if family != "llama" else 8)
    assert ours.rms_norm_eps == theirs.rms_norm_eps


def test_rotary_base_of_each_layer_kind() -> None:
    config = target_config(
        rope_parameters={
            "sliding_attention": {"rope_theta": 1e4},
            "full_attention": {"rope_theta": 1e6},
        }
    )
    assert DrafterConfig.for_target(config).rope_theta == 1e6


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_theta": 5e5, "rope_scaling": LLAMA3},
        {"rope_theta": 5e5, "rope_scaling": {**LLAMA3, "type": "llama3"}},
        {"rope_parameters": {**LLAMA3, "rope_theta": 5e5}},
        {
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                "full_attention": {**LLAMA3, "rope_theta": 5e5, "partial_rotary_factor": 0.5},
            }
        },
    ],
)
def test_rotary_scaling_of_the_target(fields: dict[str, Any]) -> None:
    config = DrafterConfig.for_target(target_config(**fields))
    assert config.rope_theta == 5e5
    assert config.rope_scaling == LLAMA3


def test_unsupported_scaling_of_the_target_needs_an_override() -> None:
    config = target_config(rope_scaling={"rope_type": "longrope", "short_factor": [1.0]})
    with pytest.raises(ValueError, match="rope_type 'longrope'"):
        DrafterConfig.for_target(config)
    assert DrafterConfig.for_target(config, rope_scaling=None).rope_scaling is None
    plain = target_config(rope_parameters={"rope_type": "default", "rope_theta": 7.0})
    assert DrafterConfig.for_target(plain).rope_scaling is None
    assert DrafterConfig.for_target(plain).rope_theta == 7.0


def test_scaling_of_a_hugging_face_llama() -> None:
    target = make_target("llama", rope_scaling=dict(LLAMA3), rope_theta=500.0)
    config = DrafterConfig.for_target(target.config)
    assert (config.rope_theta, config.rope_scaling) == (500.0, LLAMA3)


def test_for_target_errors() -> None:
    with pytest.raises(TypeError, match="hidden_dim"):
        DrafterConfig.for_target(target_config(), hidden_dim=3)
    with pytest.raises(ValueError, match="has no vocab_size"):
        DrafterConfig.for_target(target_config(vocab_size=None))
