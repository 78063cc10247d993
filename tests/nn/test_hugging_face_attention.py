"""attn_implementation="leeboard": models of Hugging Face against their own attention."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import leeboard.nn
from leeboard.ops.patterns import Band, Blocks, Causal, Dense, Modality

transformers = pytest.importorskip("transformers")

DECODER: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
ENCODER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "mistral": ("Mistral", {"sliding_window": 5}),
    "gemma2": ("Gemma2", {"sliding_window": 5, "attn_logit_softcapping": 2.0}),
    "gpt-oss": ("GptOss", {"sliding_window": 5, "num_local_experts": 2, "num_experts_per_tok": 1}),
}


@pytest.fixture(autouse=True)
def registered() -> None:
    leeboard.nn.register_attention()


def decoder(name: str, peer: str = "eager") -> tuple[Any, Any]:
    """A model with its own attention, and with ours."""
    family, options = DECODERS[name]
    config = getattr(transformers, f"{family}Config")(**DECODER, **options)
    model = getattr(transformers, f"{family}ForCausalLM")._from_config(
        config, attn_implementation=peer
    )
    # Scores that are far from equal.
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours = copy.deepcopy(model)
    ours.set_attn_implementation("leeboard")
    assert ours.config._attn_implementation == "leeboard"
    return model.eval(), ours.eval()


def tokens(batch: int = 2, length: int = 13) -> Tensor:
    return torch.randint(2, 61, (batch, length))


@pytest.mark.parametrize("name", DECODERS)
def test_logits_gradients_and_padding_of_decoders(name: str) -> None:
    model, ours = decoder(name)
    ids = tokens()
    torch.testing.assert_close(ours(ids).logits, model(ids).logits)
    for rows in (slice(0, 4), slice(-4, None)):
        padding = torch.ones_like(ids)
        padding[1, rows] = 0
        results = [m(ids, attention_mask=padding).logits for m in (ours, model)]
        torch.testing.assert_close(*(r[padding.bool()] for r in results))
        for result, m in zip(results, (ours, model), strict=True):
            m.zero_grad()
            (result[padding.bool()] ** 2).sum().backward()
    for (key, a), (_, b) in zip(ours.named_parameters(), model.named_parameters(), strict=True):
        if b.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, atol=1e-3, rtol=1e-3, msg=key)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt-oss"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generate(name: str, cache: str) -> None:
    model, ours = decoder(name)
    ids = tokens(2, 9)
    padding = torch.ones_like(ids)
    padding[1, :3] = 0
    options = {
        "attention_mask": padding,
        "max_new_tokens": 8,
        "do_sample": False,
        "cache_implementation": cache,
        "disable_compile": True,
    }
    assert torch.equal(ours.generate(ids, **options), model.generate(ids, **options))


def test_prefill_in_pieces() -> None:
    model, ours = decoder("mistral")
    ids = tokens(1, 17)
    expected = model(ids).logits
    cache = transformers.DynamicCache(config=ours.config)
    pieces = [ours(part, cache=cache, use_cache=True).logits for part in ids.split([7, 6, 1, 3], 1)]
    torch.testing.assert_close(torch.cat(pieces, 1), expected)


def test_packed_sequences() -> None:
    model, ours = decoder("mistral", "sdpa")
    ids = tokens(2, 12)
    positions = torch.tensor([[*range(5), *range(7)], [*range(9), *range(3)]])
    expected = model(ids, position_ids=positions, use_cache=False).logits
    found = ours(ids, position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(found, expected)
    bounds = torch.tensor([0, 5, 12], dtype=torch.int32)
    found = ours(
        ids[:1],
        position_ids=positions[:1],
        use_cache=False,
        cu_seq_lens_q=bounds,
        cu_seq_lens_k=bounds,
    ).logits
    torch.testing.assert_close(found, expected[:1])


def test_bert_with_padding() -> None:
    config = transformers.BertConfig(**ENCODER, vocab_size=61)
    model = transformers.BertModel._from_config(config, attn_implementation="eager").eval()
    ours = copy.deepcopy(model)
    ours.set_attn_implementation("leeboard")
    ids, padding = tokens(), torch.ones(2, 13, dtype=torch.long)
    padding[1, 8:] = 0
    found = ours(ids, attention_mask=padding).last_hidden_state
    expected = model(ids, attention_mask=padding).last_hidden_state
    torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match=r"dropout: 0\.1 was given; expected 0"):
        ours.train()(ids)
    with pytest.raises(ValueError, match=r"attention_mask: got .*expected the 2-D padding mask"):
        ours.eval()(ids, attention_mask=torch.zeros(2, 1, 13, 13))


def test_vit_and_clip() -> None:
    vision = {**ENCODER, "image_size": 8, "patch_size": 4}
    model = transformers.ViTModel._from_config(
        transformers.ViTConfig(**vision), attn_implementation="sdpa"
    ).eval()
    pixels = torch.randn(2, 3, 8, 8)
    expected = model(pixels).last_hidden_state
    model.set_attn_implementation("leeboard")
    torch.testing.assert_close(model(pixels).last_hidden_state, expected)

    text = {**ENCODER, "vocab_size": 61, "eos_token_id": 60, "max_position_embeddings": 20}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    clip = transformers.CLIPModel._from_config(config, attn_implementation="eager").eval()
    padding = torch.ones(2, 13, dtype=torch.long)
    padding[0, 9:] = 0
    inputs = {"input_ids": tokens(), "attention_mask": padding, "pixel_values": pixels}
    expected = clip(**inputs)
    clip.set_attn_implementation("leeboard")
    found = clip(**inputs)
    for key in ("text_embeds", "image_embeds"):
        torch.testing.assert_close(found[key], expected[key])


def test_a_pattern_takes_away_from_the_models_own() -> None:
    leeboard.nn.register_attention("leeboard_test_band", Band(3, causal=False))
    leeboard.nn.register_attention("leeboard_test_band", Band(3, causal=False))
    model, ours = decoder("llama")
    narrow = Band(3, causal=False) & Causal()
    ids = tokens(1, 9)
    seen = narrow.dense_mask(9)[None, None]
    expected = model(ids, attention_mask=torch.zeros(1, 1, 9, 9).masked_fill(~seen, -1e30)).logits
    ours.set_attn_implementation("leeboard_test_band")
    torch.testing.assert_close(ours(ids).logits, expected)
    with pytest.raises(ValueError, match="is registered with the pattern Band"):
        leeboard.nn.register_attention("leeboard_test_band", Dense())


def test_what_cannot_be_served_is_an_error() -> None:
    with pytest.raises(ValueError, match="'sdpa' is an attention implementation"):
        leeboard.nn.register_attention("sdpa")
    with pytest.raises(TypeError, match="pattern: got str"):
        leeboard.nn.register_attention("leeboard_other", "band")  # type: ignore[arg-type]
    from transformers import masking_utils

    _, ours = decoder("llama")
    embeddings = torch.zeros(1, 6, 32)
    blocks = torch.tensor([[0, 0, 0, -1, -1, -1]])
    with pytest.raises(ValueError, match=r"mask_function: transformers.masking_utils.or_masks"):
        masking_utils.create_causal_mask(
            ours.config, embeddings, None, None, block_sequence_ids=blocks
        )
    for pattern in (Modality.of_lengths((4, 4)), Blocks(((0,),), block=8)):
        ours.model.layers[0].self_attn.leeboard_pattern = pattern
        ours(tokens(1, 8))
        with pytest.raises(ValueError, match=r"pattern: .* was given for"):
            ours(tokens(1, 9))
    ours.model.layers[0].self_attn.leeboard_pattern = None
    q = torch.randn(1, 4, 5, 8)
    with pytest.raises(ValueError, match="position_bias"):
        leeboard.nn.hugging_face.attention(
            ours.model.layers[0].self_attn, q, q, q, None, position_bias=q
        )


def test_sinks_must_be_the_first_tokens() -> None:
    with torch.no_grad():
        _, model = decoder("llama")
        leeboard.nn.replace(model, norms=False, attention=Band(4, sinks=2))
        padded = torch.ones(2, 13, dtype=torch.int64)
        padded[0, -3:] = 0
        model(tokens(), attention_mask=padded)
        with pytest.raises(ValueError, match="padded on the left"):
            model(tokens(), attention_mask=padded.flip(1))

        _, model = decoder("mistral")
        leeboard.nn.replace(model, norms=False, attention=Band(4, sinks=2))
        past = transformers.DynamicCache(config=model.config)
        model(tokens()[:, :4], cache=past, use_cache=True)
        with pytest.raises(ValueError, match="whose cache drops the first keys; expected sinks=0"):
            model(tokens()[:, 4:6], cache=past, use_cache=True)


def test_blocks_do_not_decode() -> None:
    _, model = decoder("llama")
    leeboard.nn.replace(model, norms=False, attention=Blocks([[0]], block=16))
    past = transformers.DynamicCache(config=model.config)
    model(tokens(), cache=past, use_cache=True)
    with pytest.raises(ValueError, match="expected a causal pattern with a key-value cache"):
        model(tokens()[:, :1], cache=past, use_cache=True)


def test_a_modules_own_pattern_counts_whatever_the_name_stands_for() -> None:
    script = (
        "import torch, transformers, leeboard.nn\n"
        "from leeboard.ops.patterns import Band\n"
        "leeboard.nn.register_attention('leeboard', Band(3))\n"
        "config = transformers.BertConfig(hidden_size=32, num_attention_heads=4,"
        " num_hidden_layers=1, intermediate_size=40)\n"
        "model = transformers.BertModel(config)\n"
        "report = leeboard.nn.replace(model, norms=False, attention=Band(5, causal=False))\n"
        "assert len(report.replaced) == 1, report\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_heads_that_are_not_active_cost_nothing_and_give_zeros() -> None:
    _, ours = decoder("llama")
    attention = ours.model.layers[0].self_attn
    attention.leeboard_active_heads = (0, 3)
    q = torch.randn(1, 4, 5, 8)
    out, weights = leeboard.nn.hugging_face.attention(attention, q, q[:, :2], q[:, :2], None)
    assert weights is None
    assert out.shape == (1, 5, 4, 8)
    assert not out[:, :, 1:3].any()
    assert out[:, :, [0, 3]].all()


def test_import_does_not_load_transformers() -> None:
    code = "import sys, leeboard.nn; sys.exit('transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
