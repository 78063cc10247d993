"""Online states: those of each document alone, and the target's own distribution."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from drafter_models import make_target
from leeboard.draft import DrafterConfig, Eagle3Drafter, capture
from leeboard.draft.training import OnlineStates, Rows, pack_rows, teacher_of
from training_data import random_documents, random_rows


def drafter_for(target: Any, **overrides: Any) -> Eagle3Drafter:
    fields = {"hidden_size": 8, "intermediate_size": 8, "head_dim": 2, **overrides}
    return Eagle3Drafter(DrafterConfig.for_target(target.config, **fields))


def documents_of(rows: Rows) -> Iterator[tuple[int, int, int]]:
    for r, positions in enumerate(rows.positions):
        begins = (positions == 0).nonzero()[:, 0].tolist()
        for begin, end in zip(begins, [*begins[1:], len(positions)], strict=True):
            yield r, begin, end


# Sliding windows of 6 in mistral and gemma2: shorter than the documents.
@pytest.mark.parametrize(
    ("family", "attention"),
    [
        ("llama", "sdpa"),
        ("llama", "eager"),
        ("mistral", "sdpa"),
        ("qwen2", "sdpa"),
        ("gemma2", "eager"),
    ],
)
def test_packed_documents_do_not_see_each_other(family: str, attention: str) -> None:
    target = make_target(family, attn_implementation=attention)
    drafter = drafter_for(target)
    rows = random_rows()
    states = OnlineStates(target, drafter, rows)
    assert states.isolation == "positions"
    assert rows.packed
    batch = states.batch(range(len(rows)))
    for r, begin, end in documents_of(rows):
        alone = rows.ids[r : r + 1, begin:end]
        with capture(target, drafter.config) as aux:
            logits = target(alone).logits
        for got, expected in zip(batch.hiddens, aux.hiddens, strict=True):
            torch.testing.assert_close(got[r, begin:end], expected[0], rtol=1e-4, atol=1e-4)
        assert torch.equal(batch.best[r, begin:end], logits[0].argmax(-1))
        torch.testing.assert_close(
            batch.logsumexp[r, begin:end], logits[0].logsumexp(-1), rtol=1e-5, atol=1e-5
        )


# transformers 5.24 gives its masks no position_ids, other versions may: right either way.
@pytest.mark.filterwarnings("ignore:GptOssForCausalLM does not keep documents apart:UserWarning")
def test_gpt_oss() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(2)
    none = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    config = transformers.GptOssConfig(
        vocab_size=61, hidden_size=32, intermediate_size=16, num_hidden_layers=4, head_dim=8,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
        sliding_window=6, initializer_range=0.4, max_position_embeddings=128,
        rope_scaling=None, **none,
    )  # fmt: skip
    target = transformers.GptOssForCausalLM(config).eval().requires_grad_(False)
    rows = random_rows()
    batch = OnlineStates(target, drafter_for(target), rows).batch(range(len(rows)))
    for r, begin, end in documents_of(rows):
        logits = target(rows.ids[r : r + 1, begin:end]).logits[0]
        torch.testing.assert_close(
            batch.logsumexp[r, begin:end], logits.logsumexp(-1), rtol=1e-4, atol=1e-4
        )


def make_bloom(**overrides: Any) -> Any:
    """Takes no position_ids: its biases follow from the place in the row."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(2)
    config = transformers.BloomConfig(
        vocab_size=61, hidden_size=32, n_layer=4, n_head=4, initializer_range=0.4,
        bos_token_id=None, eos_token_id=None, pad_token_id=None, **overrides,
    )  # fmt: skip
    return transformers.BloomForCausalLM(config).eval().requires_grad_(False)


def test_a_target_that_cannot_isolate_runs_each_document_alone() -> None:
    target = make_bloom()
    drafter = drafter_for(target)
    rows = random_rows()
    with pytest.warns(UserWarning, match="BloomForCausalLM does not keep documents apart"):
        states = OnlineStates(target, drafter, rows)
    assert states.isolation == "documents"
    batch = states.batch([3, 1])
    for r, begin, end in documents_of(rows.take([3, 1])):
        with capture(target, drafter.config) as aux:
            logits = target(batch.ids[r : r + 1, begin:end]).logits[0]
        torch.testing.assert_close(
            batch.hiddens[2][r, begin:end], aux.hiddens[2][0], rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(batch.logsumexp[r, begin:end], logits.logsumexp(-1))
    # Nothing to isolate: run as they are, and nothing is said.
    single = OnlineStates(target, drafter, random_rows(packed=False))
    assert single.isolation == "rows"
    logits = target(single.rows.ids[:2]).logits
    torch.testing.assert_close(single.batch([0, 1]).logsumexp, logits.logsumexp(-1))


def test_a_leak_is_found(monkeypatch: pytest.MonkeyPatch, llama: Any) -> None:
    """A target that takes position_ids and attends across documents all the same."""
    forward = llama.forward

    def leaking(input_ids: Any, position_ids: Any = None, use_cache: bool = False) -> Any:
        ones = torch.ones_like(input_ids)
        return forward(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=ones,
            use_cache=use_cache,
        )

    monkeypatch.setattr(llama, "forward", leaking)
    with pytest.warns(UserWarning, match="does not keep documents apart"):
        states = OnlineStates(llama, drafter_for(llama), random_rows())
    assert states.isolation == "documents"


FACTORS = {
    "llama": ("LlamaConfig", {}, 1.0, None),
    "gemma2": ("Gemma2Config", {"final_logit_softcapping": 3.0, "head_dim": 8}, 1.0, 3.0),
    "cohere": ("CohereConfig", {"logit_scale": 0.3}, 0.3, None),
    "granite": ("GraniteConfig", {"logits_scaling": 8.0}, 0.125, None),
    "phi": ("PhiConfig", {}, 1.0, None),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FACTORS)
def test_teacher_gives_the_targets_logits(name: str, dtype: torch.dtype) -> None:
    transformers = pytest.importorskip("transformers")
    config, extra, scale, softcap = FACTORS[name]
    torch.manual_seed(0)
    shape = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    none = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    config = getattr(transformers, config)(
        **shape, **none, **extra, num_attention_heads=4, num_key_value_heads=2,
        initializer_range=0.4, max_position_embeddings=64,
    )  # fmt: skip
    target = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    if name == "phi":
        target.lm_head.bias.normal_()
    target = target.to(dtype)
    teacher = teacher_of(target)
    assert (teacher.scale, teacher.softcap) == (scale, softcap)
    rows = random_rows()
    batch = OnlineStates(target, drafter_for(target), rows).batch([0, 1])
    logits = target(batch.ids, position_ids=batch.positions, use_cache=False).logits
    # The same operations in the same order, so bit by bit: the target's own greedy token.
    assert torch.equal(batch.best, logits.argmax(-1))
    torch.testing.assert_close(batch.logsumexp, logits.float().logsumexp(-1))
    t2d = torch.zeros(61, dtype=torch.bool)
    t2d[[3, 8, 9, 60]] = True
    for chosen in (t2d, torch.ones_like(t2d)):
        weight = teacher.rows(chosen)
        assert weight.shape == (int(chosen.sum()), teacher.width)
        z = batch.final.float() @ weight.float().T
        z = z if softcap is None else softcap * (z / softcap).tanh()
        expected = logits[..., chosen].float()
        bound = 1e-5 if dtype == torch.float32 else 2**-7 * float(expected.abs().max())
        torch.testing.assert_close(z, expected, rtol=0, atol=max(bound, 1e-5))
    whole = teacher.rows(torch.ones_like(t2d))
    assert (whole.data_ptr() == target.get_output_embeddings().weight.data_ptr()) == (name != "phi")


def test_summary_in_chunks(llama: Any) -> None:
    teacher = teacher_of(llama)
    inputs = torch.randn(3, 5, 32)
    logits = inputs @ llama.lm_head.weight.T
    for chunk in (1, 4, 100, None):
        best, sums = teacher.summary(inputs, chunk=chunk)
        assert torch.equal(best, logits.argmax(-1))
        torch.testing.assert_close(sums, logits.logsumexp(-1))
    assert teacher.summary(inputs[:0])[0].shape == (0, 5)


def test_head_sees_one_position_and_the_target_is_left_as_it_was(llama: Any) -> None:
    seen: list[int] = []
    handle = llama.lm_head.register_forward_hook(lambda m, a, out: seen.append(out.shape[1]))
    llama.train()
    llama.model.norm.eval()
    try:
        states = OnlineStates(llama, drafter_for(llama), random_rows())
        seen.clear()
        with torch.autocast("cpu", torch.bfloat16):
            batch = states.batch([0])
        assert seen == [1]
        assert llama.training
        assert not llama.model.norm.training
        assert batch.final.dtype == torch.float32
        assert not batch.final.requires_grad
        assert not batch.final.is_inference()
    finally:
        handle.remove()
        llama.eval()
    assert not llama.lm_head._forward_pre_hooks
    torch.testing.assert_close(batch.final, states.batch([0]).final)


def test_errors(llama: Any) -> None:
    rows = random_rows()
    with pytest.raises(ValueError, match="vocab_size is 62, expected 61"):
        OnlineStates(llama, drafter_for(llama, vocab_size=62), rows)
    with pytest.raises(ValueError, match="target_hidden_size is 16, expected 32"):
        OnlineStates(llama, drafter_for(llama, target_hidden_size=16), rows)
    foreign = dataclasses.replace(rows, ids=rows.ids + 40)
    with pytest.raises(ValueError, match="below 61: is it the target's own tokenizer"):
        OnlineStates(llama, drafter_for(llama), foreign)
    with pytest.raises(ValueError, match=r"positions up to 13\d, expected at most 127"):
        OnlineStates(
            llama, drafter_for(llama), pack_rows(random_documents(1), 140, 0, packed=False)
        )


def test_heads_that_are_not_understood(monkeypatch: pytest.MonkeyPatch, llama: Any) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(llama, "get_output_embeddings", lambda: torch.nn.ReLU())
        with pytest.raises(ValueError, match="an output head ReLU, expected one with a weight"):
            teacher_of(llama)
    handle = llama.lm_head.register_forward_hook(lambda m, a, out: out * 1.7)
    try:
        with pytest.raises(
            ValueError, match="logits of LlamaForCausalLM are not its head's product"
        ):
            teacher_of(llama)
    finally:
        handle.remove()
    twice = llama.model.register_forward_hook(
        lambda m, a, out: [out, llama.lm_head(out.last_hidden_state)][0]
    )
    try:
        with pytest.raises(ValueError, match="expected one call on"):
            teacher_of(llama)
    finally:
        twice.remove()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert teacher_of(llama).scale == 1.0
