"""leeboard.nn.replace(model, attention=pattern): torch's layers and Hugging Face's models."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import leeboard.nn
from leeboard.nn import SparseMultiheadAttention, multihead
from leeboard.ops.patterns import Band, Causal, Dense, Modality, Pattern, TopU

BAND = Band(3, causal=False)


@pytest.fixture
def calls() -> Iterator[mock.Mock]:
    """Counts the calls of the op."""
    with mock.patch.object(multihead, "sparse_gqa", wraps=multihead.sparse_gqa) as counted:
        yield counted


def encoder(**options: Any) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(
        16, 4, 24, **{"dropout": 0.0, "batch_first": True, **options}
    )
    nested = layer.self_attn.batch_first and not layer.norm_first
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def names(entries: tuple[leeboard.nn.Entry, ...]) -> list[str]:
    return [entry.name for entry in entries]


@pytest.mark.parametrize("options", [{}, {"batch_first": False}, {"norm_first": True}], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_encoder(options: dict[str, Any], training: bool, calls: mock.Mock) -> None:
    model = encoder(**options).train(training)
    x = torch.randn(3, 9, 16) if options.get("batch_first", True) else torch.randn(9, 3, 16)
    padding = torch.zeros(3, 9, dtype=torch.bool)
    padding[1, 6:] = True
    hidden = ~BAND.dense_mask(9)
    expected = model(x, mask=hidden, src_key_padding_mask=padding)
    parameters, keys = list(model.parameters()), list(model.state_dict())
    olds = [layer.self_attn for layer in model.layers]
    report = leeboard.nn.replace(model, attention=BAND)
    assert names(report.replaced) == ["layers.0.self_attn", "layers.1.self_attn"]
    assert report.replaced[0].reason == f"attends by {BAND}"
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == keys
    assert isinstance(model.layers[0].self_attn, nn.MultiheadAttention)
    visible = ~padding if options.get("batch_first", True) else ~padding.T
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            calls.reset_mock()
            found = model(x, src_key_padding_mask=padding)
            assert calls.call_count == 2
            torch.testing.assert_close(found[visible], expected[visible])
            # A mask that says the same is taken.
            found = model(x, mask=hidden, src_key_padding_mask=padding)
            torch.testing.assert_close(found[visible], expected[visible])
    report.undo()
    assert [layer.self_attn for layer in model.layers] == olds
    torch.testing.assert_close(
        model(x, mask=hidden, src_key_padding_mask=padding)[visible], expected[visible]
    )


def test_gradients_and_causal_masks(calls: mock.Mock) -> None:
    model = encoder()
    ours = copy.deepcopy(model)
    leeboard.nn.replace(ours, attention=Band(4))
    x = torch.randn(2, 9, 16)
    causal = nn.Transformer.generate_square_subsequent_mask(9)
    expected = model(x, mask=~Band(4).dense_mask(9))
    found = ours(x, mask=causal, is_causal=True)
    torch.testing.assert_close(found, expected)
    assert calls.call_args.args[3] == Band(4) & Causal()
    expected.square().sum().backward()
    found.square().sum().backward()
    for a, b in zip(ours.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=2e-4, rtol=2e-4)


def test_weights_that_change_afterwards_survive_undo() -> None:
    model, other = encoder(), encoder()
    x = torch.randn(2, 5, 16)
    report = leeboard.nn.replace(model, attention=Dense())
    model.load_state_dict(other.state_dict(), assign=True)
    model.eval()
    report.undo()
    assert not model.layers[0].self_attn.training
    torch.testing.assert_close(model(x), other.eval()(x))
    assert model.use_nested_tensor


def test_copies_and_pickles() -> None:
    model = encoder().eval()
    leeboard.nn.replace(model, attention=BAND)
    x = torch.randn(2, 7, 16)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        torch.testing.assert_close(other(x), model(x))
        assert other.layers[0].self_attn.pattern == BAND


@pytest.mark.parametrize("pattern", [Modality.of_lengths((4, 5)), TopU(2)], ids=str)
def test_other_patterns(pattern: Pattern, calls: mock.Mock) -> None:
    model = encoder().eval()
    leeboard.nn.replace(model, attention=pattern)
    assert model(torch.randn(2, 9, 16)).isfinite().all()
    assert calls.call_args.args[3] == pattern


class Own(nn.MultiheadAttention):
    """A subclass may do anything."""


def test_what_is_left() -> None:
    model = nn.ModuleDict(
        {
            "decoder": nn.TransformerDecoderLayer(16, 4, 24),
            "zero": nn.MultiheadAttention(16, 4, add_zero_attn=True),
            "extra": nn.MultiheadAttention(16, 4, add_bias_kv=True),
            "sizes": nn.MultiheadAttention(16, 4, kdim=8),
            "own": Own(16, 4),
            "hooked": nn.MultiheadAttention(16, 4),
            "out": nn.MultiheadAttention(16, 4),
        }
    )
    model["hooked"].register_forward_hook(lambda *_: None)
    report = leeboard.nn.replace(
        model, norms=False, attention=lambda name, _: None if name == "out" else BAND
    )
    assert names(report.replaced) == ["decoder.self_attn"]
    reasons = {entry.name: entry.reason for entry in report.left}
    assert reasons.pop("decoder.multihead_attn") == "cross-attention"
    assert "add_zero_attn" in reasons.pop("zero")
    assert "add_bias_kv" in reasons.pop("extra")
    assert "kdim" in reasons.pop("sizes")
    assert "subclass" in reasons.pop("own")
    assert reasons.pop("hooked") == "has hooks (forward_hooks)"
    assert reasons == {"out": "no pattern given by `attention`"}
    again = leeboard.nn.replace(model, norms=False, attention=BAND, only="out")
    assert names(again.replaced) == ["out"]
    model["out"] = nn.Identity()
    with pytest.raises(RuntimeError, match="out: holds another module now"):
        again.undo()
    report.undo()
    assert type(model["decoder"].self_attn) is nn.MultiheadAttention


def test_norms_are_as_before() -> None:
    model = nn.ModuleDict({"norm": nn.RMSNorm(8), "attention": nn.MultiheadAttention(8, 2)})
    report = leeboard.nn.replace(model)
    assert names(report.replaced) == ["norm"]
    assert report.left == ()
    report.undo()
    assert names(leeboard.nn.replace(model, attention=BAND).replaced) == ["norm", "attention"]


def test_calls_that_cannot_be_served() -> None:
    model = nn.Sequential(nn.MultiheadAttention(8, 2, dropout=0.25, batch_first=True))
    leeboard.nn.replace(model, attention=BAND)
    attention = model[0]
    assert isinstance(attention, SparseMultiheadAttention)
    x = torch.randn(2, 5, 8)
    with pytest.raises(ValueError, match=r"dropout: it is 0\.25"):
        attention(x, x, x)
    attention.eval()
    y, weights = attention(x, x, x)
    assert weights is None
    row = x[1]
    torch.testing.assert_close(attention(row, row, row)[0], y[1])
    with pytest.raises(ValueError, match="key: expected the query"):
        attention(x, x.clone(), x)
    with pytest.raises(ValueError, match="attn_mask: it says something else than the pattern"):
        attention(x, x, x, attn_mask=~Causal().dense_mask(5))
    with pytest.raises(ValueError, match=r"attn_mask: got shape \[4, 5, 5\]"):
        attention(x, x, x, attn_mask=torch.zeros(4, 5, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="key_padding_mask: got other values than 0 and -inf"):
        attention(x, x, x, key_padding_mask=torch.ones(2, 5))
    with pytest.raises(TypeError, match="attention: got str"):
        leeboard.nn.replace(model, attention="band")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="model: got a MultiheadAttention"):
        leeboard.nn.replace(nn.MultiheadAttention(8, 2), attention=BAND)


def hidden_states(model: Any, **inputs: Any) -> Tensor:
    return model(**inputs).last_hidden_state  # type: ignore[no-any-return]


def test_hugging_face_encoder() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=61,
    )
    model = transformers.BertModel._from_config(config, attn_implementation="sdpa").eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    inputs = {
        "input_ids": torch.randint(61, (2, 9)),
        "attention_mask": torch.ones(2, 9, dtype=torch.long),
    }
    inputs["attention_mask"][1, 6:] = 0
    seen = BAND.dense_mask(9) & inputs["attention_mask"].bool()[:, None, None]
    before = hidden_states(model, **inputs)
    expected = hidden_states(model, input_ids=inputs["input_ids"], attention_mask=seen)
    real = inputs["attention_mask"].bool()
    keys = list(model.state_dict())
    report = leeboard.nn.replace(model, attention=BAND)
    assert names(report.replaced) == [f"encoder.layer.{n}.attention.self" for n in range(2)]
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(hidden_states(model, **inputs)[real], expected[real])
    torch.testing.assert_close(hidden_states(copy.deepcopy(model), **inputs)[real], expected[real])
    report.undo()
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(hidden_states(model, **inputs), before)
    # One layer alone: the others attend as their model says.
    report = leeboard.nn.replace(model, attention=BAND, only="encoder.layer.1.*")
    found = hidden_states(model, **inputs)
    assert not torch.allclose(found[real], before[real], atol=1e-3)
    assert not torch.allclose(found[real], expected[real], atol=1e-3)
    model.set_attn_implementation("eager")
    with pytest.raises(RuntimeError, match="_attn_implementation_internal is 'eager' now"):
        report.undo()


def test_hugging_face_calls_are_undone_in_reverse() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    model = transformers.LlamaModel(config).eval()
    before = config._attn_implementation
    first, second = (
        leeboard.nn.replace(model, norms=False, only=f"layers.{n}.*", attention=Band(3))
        for n in range(2)
    )
    with pytest.raises(RuntimeError, match=r"layers\.1\.self_attn: .*undo the later call first"):
        first.undo()
    second.undo()
    first.undo()
    assert config._attn_implementation == before


def test_hugging_face_models_of_other_kinds() -> None:
    transformers = pytest.importorskip("transformers")
    small = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16}
    llama = transformers.LlamaModel(
        transformers.LlamaConfig(**small, intermediate_size=16, vocab_size=31)
    )
    report = leeboard.nn.replace(llama, attention=Band(3, sinks=1))
    assert "layers.0.self_attn" in names(report.replaced)
    assert llama.config._attn_implementation == "leeboard"
    vision = {**small, "intermediate_size": 16, "image_size": 8, "patch_size": 4}
    vit = transformers.ViTModel(transformers.ViTConfig(**vision))
    report = leeboard.nn.replace(vit, attention=TopU(1))
    assert len(report.replaced) == 1
    assert vit.eval()(torch.randn(1, 3, 8, 8)).last_hidden_state.isfinite().all()
    text = {**small, "intermediate_size": 16, "vocab_size": 61}
    clip = transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    )
    report = leeboard.nn.replace(clip, attention=Dense(), only="vision_model.*")
    assert len(report.replaced) == 1
    assert clip.config.vision_config._attn_implementation == "leeboard"
    assert clip.config.text_config._attn_implementation != "leeboard"
    bart = transformers.BartModel(
        transformers.BartConfig(
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            vocab_size=31,
        )
    )
    report = leeboard.nn.replace(bart, norms=False, attention=Dense())
    assert report.replaced == ()
    assert "part of an encoder-decoder" in report.left[0].reason
