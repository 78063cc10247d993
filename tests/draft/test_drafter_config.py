"""DrafterConfig: validation, derivation from a target, round trip."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from drafter_models import make_target, tiny_config
from leeboard.draft import DrafterConfig


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
    ],
)
def test_invalid_field_is_named(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_config(**overrides)


def test_round_trip_through_json() -> None:
    config = tiny_config(norm_output=False, aux_layer_convention="output")
    assert DrafterConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


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


def test_for_target_errors() -> None:
    with pytest.raises(TypeError, match="hidden_dim"):
        DrafterConfig.for_target(target_config(), hidden_dim=3)
    with pytest.raises(ValueError, match="has no vocab_size"):
        DrafterConfig.for_target(target_config(vocab_size=None))
