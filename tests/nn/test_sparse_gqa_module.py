"""leeboard.nn.SparseGQA: weights from elsewhere, and decoding with a cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import leeboard.nn
from leeboard.nn import SparseGQA
from leeboard.ops.patterns import Band, Causal, Dense, Modality, Pattern, TopU


@pytest.mark.parametrize("bias", [True, False])
def test_from_mha(bias: bool) -> None:
    mha = nn.MultiheadAttention(24, 4, bias=bias, batch_first=True)
    x, padding = torch.randn(2, 7, 24), torch.zeros(2, 7, dtype=torch.bool)
    padding[1, 5:] = True
    module = SparseGQA.from_mha(mha, pattern=Dense())
    expected = mha(x, x, x, key_padding_mask=padding)[0]
    torch.testing.assert_close(module(x, key_padding=padding), expected)
    band = Band(2, causal=False)
    module.pattern = band
    expected = mha(x, x, x, attn_mask=~band.dense_mask(7))[0]
    torch.testing.assert_close(module(x), expected)
    module.pattern = Dense()
    torch.testing.assert_close(module(x, pattern=band), expected)
    module(x).sum().backward()
    assert module.q_proj.weight.grad is not None


def test_grouped_heads_are_means() -> None:
    mha = nn.MultiheadAttention(24, 4, batch_first=True)
    nn.init.normal_(mha.in_proj_bias)
    module = SparseGQA.from_mha(mha, pattern=Causal(), num_kv_heads=2)
    x = torch.randn(1, 5, 24)
    pooled = mha.in_proj_weight[24:48].view(4, 6, 24)[2:].mean(0)
    bias = mha.in_proj_bias[24:48].view(4, 6)[2:].mean(0)
    torch.testing.assert_close(module.k_proj(x)[..., 6:], x @ pooled.T + bias)
    # Equal heads: nothing is lost.
    with torch.no_grad():
        mha.in_proj_weight[24:].view(2, 4, 6, 24).copy_(torch.randn(2, 1, 6, 24))
        mha.in_proj_bias[24:].view(2, 4, 6).copy_(torch.randn(2, 1, 6))
    module = SparseGQA.from_mha(mha, pattern=Dense(), num_kv_heads=1)
    torch.testing.assert_close(module(x), mha(x, x, x)[0])


def test_from_hugging_face() -> None:
    transformers = pytest.importorskip("transformers")
    options: dict[str, Any] = {
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "attn_logit_softcapping": 3.0,
        "num_hidden_layers": 1,
    }
    config = transformers.Gemma2Config(**options, attn_implementation="eager")
    from transformers.models.bert.modeling_bert import BertSelfAttention
    from transformers.models.gemma2.modeling_gemma2 import Gemma2Attention, Gemma2RotaryEmbedding

    attention = Gemma2Attention(config, 0).eval()
    x = torch.randn(2, 6, 32)
    positions = Gemma2RotaryEmbedding(config)(x, torch.arange(6)[None])
    hidden = torch.full((6, 6), -torch.inf).triu(1)[None, None]
    expected = attention(x, positions, hidden)[0]
    module = SparseGQA.from_hugging_face(attention, pattern=Causal())
    torch.testing.assert_close(module(x, position_embeddings=positions), expected)
    assert (
        SparseGQA.from_hugging_face(attention, pattern=Causal(), num_kv_heads=1).num_kv_heads == 1
    )

    bert = transformers.BertConfig(
        hidden_size=32, num_attention_heads=4, attn_implementation="eager"
    )
    inner = BertSelfAttention(bert).eval()
    module = SparseGQA.from_hugging_face(inner, pattern=Dense())
    torch.testing.assert_close(module(x), inner(x)[0])
    with pytest.raises(ValueError, match="attention: Linear has no linear q_proj or query"):
        SparseGQA.from_hugging_face(nn.Linear(2, 2), pattern=Dense())


PATTERNS = [Causal(), Band(4), Band(3, sinks=2), Band(2) | Band(5, sinks=1) & Causal()]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("extras", [False, True])
@torch.no_grad()
def test_decoding_equals_the_whole(pattern: Pattern, extras: bool) -> None:
    options: dict[str, Any] = {"softcap": 2.0, "sinks": True} if extras else {}
    module = SparseGQA(24, 6, 2, pattern=pattern, **options)
    if module.sink_logits is not None:
        module.sink_logits.normal_()
    x = torch.randn(2, 30, 24)
    lengths = (30, 27)
    expected = [module(row[None, :n])[0] for row, n in zip(x, lengths, strict=True)]
    cache = module.cache(2, 31)
    # The second sequence is three tokens shorter in the first piece.
    padding = torch.zeros(2, 20, dtype=torch.bool)
    padding[1, 17:] = True
    found = module(x[:, :20], cache=cache, key_padding=padding)
    assert cache.lengths.tolist() == [20, 17]
    pieces = [[found[0]], [found[1, :17]]]
    at = 20
    for count in (1, 6, 1, 2):
        new = torch.stack((x[0, at : at + count], x[1, at - 3 : at - 3 + count]))
        for piece, y in zip(pieces, module(new, cache=cache), strict=True):
            piece.append(y)
        at += count
    for piece, whole in zip(pieces, expected, strict=True):
        torch.testing.assert_close(torch.cat(piece), whole)
    with pytest.raises(ValueError, match="cache: 30 of 31 rows are in use, no room for 2 more"):
        module(x[:, :2], cache=cache)
    cache.reset()
    torch.testing.assert_close(module(x[:, :3], cache=cache)[0], expected[0][:3])


def test_active_heads_packing_and_lse() -> None:
    module = SparseGQA(24, 4, 2, pattern=Causal(), bias=False)
    x = torch.randn(1, 9, 24)
    y, lse = module(x, need_lse=True, active_heads=(1, 2))
    assert torch.isneginf(lse[:, [0, 3]]).all()
    module.active_heads = (1, 2)
    torch.testing.assert_close(module(x), y)
    module.active_heads = None
    packed = module(x, cu_seqlens=torch.tensor([0, 4, 9]))
    torch.testing.assert_close(packed, torch.cat((module(x[:, :4]), module(x[:, 4:])), 1))


def test_state_dict_and_repr() -> None:
    module = SparseGQA(16, 4, 2, pattern=Band(3), sinks=True)
    other = SparseGQA(16, 4, 2, pattern=Band(3), sinks=True)
    other.load_state_dict(module.state_dict())
    x = torch.randn(1, 5, 16)
    assert torch.equal(module(x), other(x))
    assert "num_kv_heads=2, head_dim=4, pattern=Band(window=3" in repr(module)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_kv_heads": 3}, "num_kv_heads: got 3, expected a divisor of num_heads, 4"),
        ({"num_heads": 5}, "num_heads: got 5, expected a divisor of embed_dim, 16"),
        ({"head_dim": 257}, "head_dim: got 257, expected 1 to 256"),
        ({"softcap": 0.0}, "softcap: got 0.0, expected a positive number"),
        ({"num_heads": 0}, "num_heads: got 0, expected a positive integer"),
    ],
)
def test_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SparseGQA(**{"embed_dim": 16, "num_heads": 4, **arguments})


def test_what_cannot_be_decoded() -> None:
    for pattern in (Dense(), TopU(), Band(3, causal=False), Modality.of_lengths((4, 4))):
        with pytest.raises(ValueError, match="cannot be decoded token by token"):
            SparseGQA(16, 4, pattern=pattern).cache(1, 8)
    module = SparseGQA(16, 4, pattern=Causal())
    cache = module.cache(1, 8)
    x = torch.randn(1, 2, 16)
    with pytest.raises(RuntimeError, match=r"cache: it takes no gradients; use torch.no_grad\(\)"):
        module(x, cache=cache)
    with torch.no_grad():
        with pytest.raises(ValueError, match="padding comes after all tokens"):
            module(x, cache=cache, key_padding=torch.tensor([[True, False]]))
        with pytest.raises(ValueError, match="cache: it is for 1 sequences, x has 2"):
            module(torch.randn(2, 2, 16), cache=cache)
    with pytest.raises(ValueError, match=r"x: got shape \[2, 3\], expected \[B, L, 16\]"):
        module(torch.randn(2, 3))
    with pytest.raises(ValueError, match="mha: it adds a key of zeros"):
        SparseGQA.from_mha(nn.MultiheadAttention(8, 2, add_zero_attn=True), pattern=Dense())
    with pytest.raises(ValueError, match="num_kv_heads: got 3, expected a divisor of the 2 heads"):
        SparseGQA.from_mha(nn.MultiheadAttention(8, 2), pattern=Dense(), num_kv_heads=3)
    assert leeboard.nn.SparseGQA is SparseGQA
