"""Quantised drafters: the arithmetic of their rounded weights, and no training."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from test_eagle3 import inputs
from test_speculate import greedy_of, prompt_of

from drafter_models import tiny_config, tiny_drafter
from leeboard.draft import (
    DrafterCache,
    DrafterConfig,
    Eagle3Drafter,
    QuantizedDrafter,
    quantize,
    save_drafter,
    speculate,
)
from leeboard.nn import QuantizedLinear
from leeboard.ops import quantize_weight

FORMATS = ("int8", "int4", "fp8")
MATRICES = {"fc", "lm_head", *(f"{p}_proj" for p in ("q", "k", "v", "o", "gate", "up", "down"))}


def rounded(drafter: Eagle3Drafter, fmt: Any, skip: tuple[str, ...] = ()) -> Eagle3Drafter:
    """The drafter with every matrix replaced by what its quantised form stands for."""
    result = copy.deepcopy(drafter)
    for path, module in result.named_modules():
        if isinstance(module, torch.nn.Linear) and path.split(".")[-1] not in skip:
            weight = quantize_weight(module.weight, fmt).dequantize()
            module.weight.data = weight.to(module.weight.dtype)
    return result


@pytest.mark.parametrize("fmt", FORMATS)
def test_drafts_as_the_rounded_weights_do(fmt: Any, variant: dict[str, Any]) -> None:
    drafter = tiny_drafter(draft_vocab_size=23, **variant)
    small, plain = quantize(drafter, fmt), rounded(drafter, fmt)
    ids, hiddens = inputs(drafter.config)
    with torch.no_grad():
        fused = small.fuse(hiddens)
        torch.testing.assert_close(fused, plain.fuse(hiddens), rtol=1e-4, atol=1e-5)
        caches = DrafterCache(), DrafterCache()
        (h, s), (h2, s2) = (
            d.step(ids, fused, cache=c) for d, c in zip((small, plain), caches, strict=True)
        )
        torch.testing.assert_close(h, h2, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(s, s2, rtol=1e-4, atol=1e-5)
        assert torch.equal(small.greedy(h), plain.greedy(h2))
        ours = small.chain(s[:, -1], ids[:, 0], caches[0], 4)
        theirs = plain.chain(s2[:, -1], ids[:, 0], caches[1], 4)
        assert torch.equal(ours.tokens, theirs.tokens)
        torch.testing.assert_close(ours.states, theirs.states, rtol=1e-3, atol=1e-4)
        # Without a cache, and unrolled.
        torch.testing.assert_close(
            small.unroll(ids, hiddens, 2)[1][0],
            plain.unroll(ids, hiddens, 2)[1][0],
            rtol=1e-3,
            atol=1e-4,
        )
        exact, _ = drafter.step(ids, drafter.fuse(hiddens))
        assert not torch.allclose(h, exact, atol=1e-5)


@pytest.mark.parametrize("fmt", FORMATS)
def test_long_prompts(fmt: Any) -> None:
    """Products of many rows take another way to the same result."""
    drafter = tiny_drafter()
    small, plain = quantize(drafter, fmt), rounded(drafter, fmt)
    ids, hiddens = inputs(drafter.config, batch=1, length=40)
    with torch.no_grad():
        fused = plain.fuse(hiddens)
        whole, _ = small.step(ids, fused, cache=DrafterCache())
        cache = DrafterCache()
        parts = [
            small.step(ids[:, i : i + 8], fused[:, i : i + 8], cache=cache)[0]
            for i in range(0, 40, 8)
        ]
        torch.testing.assert_close(whole, torch.cat(parts, dim=1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(whole, plain.step(ids, fused)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fmt", FORMATS)
def test_the_original_is_untouched(fmt: Any) -> None:
    drafter = tiny_drafter(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in drafter.state_dict().items()}
    small = quantize(drafter, fmt, skip=("lm_head",))
    for name, tensor in drafter.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert drafter.fc.weight.requires_grad
    assert not any(p.requires_grad for p in small.parameters())
    with torch.no_grad():
        drafter.norm.weight.zero_()
        drafter.embed_tokens.weight.zero_()
    assert torch.equal(small.norm.weight, before["norm.weight"])
    assert torch.equal(small.embed_tokens.weight, before["embed_tokens.weight"])
    assert small.lm_head.weight is not None
    assert (small.dtype, small.format, small.skipped) == (torch.bfloat16, fmt, ("lm_head",))
    quantised = {p.split(".")[-1] for p, m in small.named_modules() if type(m) is QuantizedLinear}
    assert quantised == MATRICES - {"lm_head"}
    # A cast is no second rounding.
    scales = small.fc.scales.clone()
    data = small.fc.data.clone()
    wide = small.float()
    assert wide.norm.weight.dtype == torch.float32
    assert torch.equal(wide.fc.scales, scales)
    assert torch.equal(wide.fc.data.view(torch.uint8), data.view(torch.uint8))


def test_a_frozen_embedding_is_shared() -> None:
    drafter = tiny_drafter()
    drafter.embed_tokens.weight.requires_grad_(False)
    small = quantize(drafter, "int8")
    assert small.embed_tokens.weight.data_ptr() == drafter.embed_tokens.weight.data_ptr()


def test_bytes() -> None:
    config = tiny_config(hidden_size=256, intermediate_size=512, target_hidden_size=256)
    drafter = Eagle3Drafter(config).bfloat16()
    matrices = 256 * 40 * 2 * 2 + 256 * 2 * 20 * 2 - 256 * 40 + 3 * 256 * 512 + 37 * 256
    norms = 4 * 256
    assert drafter.step_nbytes() == 2 * (matrices + norms)
    for fmt, most in (("int8", 1.05), ("fp8", 1.05), ("int4", 0.6)):
        small = quantize(drafter, fmt)  # type: ignore[arg-type]
        assert matrices * most / 1.2 < small.step_nbytes() < matrices * most + 2 * norms
        assert small.nbytes() < drafter.nbytes()
        assert f"QuantizedDrafter({fmt}, {small.nbytes() / 1e6:.1f} MB)" == repr(small)


def test_no_training(tmp_path: Path) -> None:
    small = quantize(tiny_drafter(), "int8")
    ids, hiddens = inputs(small.config)
    assert not small.training
    assert small.eval() is small
    for call in (lambda: small.train(), lambda: small.unroll(ids, hiddens, 1)):
        with pytest.raises(RuntimeError, match="quantised drafter does not train"):
            call()
    with pytest.raises(RuntimeError, match="inference-only"):
        small.lm_head(torch.randn(2, 24, requires_grad=True))
    with pytest.raises(TypeError, match="drafter: got one quantised to int8, expected the orig"):
        save_drafter(small, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_errors_name_the_argument() -> None:
    drafter = tiny_drafter()
    with pytest.raises(ValueError, match="format: got 'int2', expected one of"):
        quantize(drafter, "int2")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"skip: got \['head'\], expected names among"):
        quantize(drafter, "int8", skip=("head",))
    with pytest.raises(TypeError, match="drafter: got Linear"):
        quantize(torch.nn.Linear(2, 2), "int8")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="quantised to int4 already"):
        quantize(quantize(drafter, "int4"), "int8")
    with pytest.raises(ValueError, match="linear: it has a bias"):
        QuantizedLinear.from_linear(torch.nn.Linear(2, 2), "int8")
    with torch.no_grad():
        drafter.midlayer.mlp.up_proj.weight[1, 2] = torch.nan
    with pytest.raises(ValueError, match=r"drafter: midlayer\.mlp\.up_proj: weight: .* NaN"):
        quantize(drafter, "int8")


@pytest.mark.parametrize("fmt", FORMATS)
def test_speculation_stays_lossless(llama: Any, fmt: Any) -> None:
    torch.manual_seed(0)
    drafter = Eagle3Drafter(DrafterConfig.for_target(llama.config))
    drafter.copy_from_target(llama)
    small = quantize(drafter, fmt)
    assert isinstance(small, QuantizedDrafter)
    prompt = prompt_of(7)
    result = speculate(llama, small, prompt, max_new_tokens=20, depth=3)
    assert torch.equal(result.tokens, greedy_of(llama, prompt, 20))
