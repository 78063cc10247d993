"""The plain Llama: its sizes, its arithmetic, and shares of it that add up."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from leeboard.sim.strategies.llama import SIZES, Cache, Config, Llama, Share, config_of
from leeboard.sim.strategies.weights import build, tokens, uniform

TINY = SIZES["tiny"]

# Weights of the published models, as their cards round them (1.23, 3.21, 8.03 and 70.6 billion).
PUBLISHED = {"1b": 1_235_814_400, "3b": 3_212_749_824, "8b": 8_030_261_248, "70b": 70_553_706_496}


@pytest.mark.parametrize("name", sorted(SIZES))
def test_sizes(name: str) -> None:
    config = SIZES[name]
    model = build(config, device="meta")
    assert sum(weight.numel() for weight in model.parameters()) == config.parameters
    assert config.parameters == PUBLISHED.get(name, config.parameters)


@pytest.mark.parametrize("tied", [False, True])
def test_logits_are_those_of_transformers(tied: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = pytest.importorskip("transformers")
    config = Config("odd", 3, 48, 6, 2, 8, 80, 97, tied=tied)
    model = build(config, seed=5)
    other = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab,
            hidden_size=config.width,
            intermediate_size=config.hidden,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            head_dim=config.head_width,
            rms_norm_eps=config.eps,
            rope_theta=config.theta,
            tie_word_embeddings=tied,
        )
    ).eval()
    names = {
        "embedding": "model.embed_tokens",
        "layers": "model.layers",
        "attention_norm": "input_layernorm",
        "feed_forward_norm": "post_attention_layernorm",
        "attention": "self_attn",
        "feed_forward": "mlp",
        "query": "q_proj",
        "key": "k_proj",
        "value": "v_proj",
        "output": "o_proj",
        "gate": "gate_proj",
        "up": "up_proj",
        "down": "down_proj",
        "norm": "model.norm",
        "head": "lm_head",
    }
    theirs = {
        ".".join(names.get(part, part) for part in name.split(".")): weight
        for name, weight in model.state_dict().items()
    }
    other.load_state_dict(theirs)
    prompt = tokens(config, 2, 11, 3, "cpu")
    with torch.no_grad():
        expected = other(prompt).logits
        found = model(prompt, Cache(11), keep=11)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_cache_changes_nothing() -> None:
    model = build(TINY)
    prompt = tokens(TINY, 2, 9, 0, "cpu")
    at_once = model(prompt, Cache(9), keep=9)
    cache = Cache(12)
    parts = [model(prompt[:, a:b], cache, keep=b - a) for a, b in ((0, 4), (4, 5), (5, 9))]
    torch.testing.assert_close(torch.cat(parts, dim=1), at_once, rtol=1e-4, atol=1e-5)
    # Set back, as after proposals that were refused.
    cache.length = 5
    torch.testing.assert_close(model(prompt[:, 5:], cache, keep=4), at_once[:, 5:])


def test_stages_make_up_the_model() -> None:
    prompt = tokens(TINY, 1, 6, 0, "cpu")
    x = prompt
    for layers in (range(3), range(3, 4)):
        x = build(TINY, layers=layers)(x, Cache(6))
    torch.testing.assert_close(x, build(TINY)(prompt, Cache(6)))


@pytest.mark.parametrize("name", ["tiny", "tied"])
def test_shares_are_cut_from_the_undivided_weights(name: str) -> None:
    config = TINY if name == "tiny" else Config("tied", 1, 32, 4, 2, 8, 64, 96, tied=True)
    undivided = dict(build(config, seed=2).named_parameters())
    halves = [dict(build(config, seed=2, share=Share(i, 2)).named_parameters()) for i in range(2)]
    for key, weight in undivided.items():
        if weight.dim() == 1:
            assert torch.equal(weight, halves[1][key])
            continue
        cut = 1 if key.split(".")[-2] in ("output", "down") else 0
        assert torch.equal(weight, torch.cat([half[key] for half in halves], dim=cut))


def test_weights_are_uniform_and_independent() -> None:
    block = uniform("x", range(400), range(500), 500, seed=1)
    assert abs(block.mean()) < 4 / math.sqrt(3 * block.numel())
    assert abs(block.std() * math.sqrt(3) - 1) < 0.01
    assert -1 <= block.min() < -0.99
    assert 0.99 < block.max() < 1
    assert len(block.unique()) > 0.98 * block.numel()
    for other in (
        uniform("y", range(400), range(500), 500, seed=1),
        uniform("x", range(400), range(500), 500, seed=2),
        uniform("x", range(1, 401), range(500), 500, seed=1),
        uniform("x", range(400), range(1, 501), 501, seed=1),
    ):
        correlation = (block * other).mean() * 3
        assert abs(correlation) < 5 / math.sqrt(block.numel())
    assert torch.equal(uniform("x", range(30, 40), range(7, 9), 500, seed=1), block[30:40, 7:9])


def test_weights_keep_their_kind() -> None:
    model = build(TINY, dtype=torch.bfloat16)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    with FakeTensorMode():
        fake = build(SIZES["8b"], share=Share(1, 8))
        assert all(isinstance(weight, FakeTensor) for weight in fake.parameters())
        assert fake(torch.zeros(1, 3, dtype=torch.int64), Cache(3)).shape == (1, 1, 128_256 // 8)
    assert not any(weight.requires_grad for weight in fake.parameters())


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"model: got '9b'; expected one of tiny, small, 1b"):
        config_of("9b")
    with pytest.raises(ValueError, match="layers: got 0"):
        config_of("tiny", 0)
    with pytest.raises(ValueError, match="tiny: heads = 8 does not divide over 3 devices"):
        Llama(TINY, share=Share(0, 3))
