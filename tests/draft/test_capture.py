"""capture: the states of the named layers, at the named end, and nothing left behind."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn

from drafter_models import make_target
from leeboard.draft import DrafterConfig, capture

IDS = torch.randint(61, (2, 5), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_states_are_the_residual_stream(family: str) -> None:
    target = make_target(family)
    truth = target(IDS, output_hidden_states=True).hidden_states
    config = DrafterConfig.for_target(target.config, aux_layer_ids=(0, 3, 5))
    with capture(target, config) as aux:
        target(IDS)
    for i, hidden in zip((0, 3, 5), aux.hiddens, strict=True):
        assert torch.equal(hidden, truth[i])


def test_output_of_a_layer_is_input_of_the_next(llama: Any) -> None:
    before = DrafterConfig.for_target(llama.config, aux_layer_ids=(1, 3, 5))
    after = DrafterConfig.for_target(
        llama.config, aux_layer_ids=(0, 2, 4), aux_layer_convention="output"
    )
    with capture(llama, before) as inputs, capture(llama, after) as outputs:
        llama(IDS)
    for one, other in zip(inputs.hiddens, outputs.hiddens, strict=True):
        assert torch.equal(one, other)
    last = DrafterConfig.for_target(llama.config, aux_layer_ids=(5,), aux_layer_convention="output")
    with capture(llama, last) as aux:
        logits = llama(IDS).logits
    # The last layer's output is caught before the final norm.
    torch.testing.assert_close(llama.lm_head(llama.model.norm(aux.hiddens[0])), logits)


def test_latest_pass_wins_and_hooks_go(llama: Any) -> None:
    config = DrafterConfig.for_target(llama.config)
    with capture(llama, config) as aux:
        with pytest.raises(RuntimeError, match=r"\[1, 3, 5\]: run the target first"):
            _ = aux.hiddens
        llama(IDS)
        llama(IDS[:, :2])
        assert aux.hiddens[0].shape == (2, 2, 32)
    llama(IDS)
    assert aux.hiddens[0].shape == (2, 2, 32)
    aux.clear()
    with pytest.raises(RuntimeError, match="run the target first"):
        _ = aux.hiddens


def test_hooks_go_when_the_target_fails(llama: Any) -> None:
    config = DrafterConfig.for_target(llama.config)
    with pytest.raises(IndexError), capture(llama, config):
        llama(torch.tensor([[61]]))
    assert not any(layer._forward_pre_hooks for layer in llama.model.layers)


@pytest.mark.parametrize("convention", ["input", "output"])
def test_passes_of_other_threads_do_not_count(llama: Any, convention: str) -> None:
    config = DrafterConfig.for_target(llama.config, aux_layer_convention=convention)
    with capture(llama, config) as aux, ThreadPoolExecutor(1) as other:
        other.submit(llama, IDS).result()
        with pytest.raises(RuntimeError, match="run the target first"):
            _ = aux.hiddens
        llama(IDS)
        before = aux.hiddens
        other.submit(llama, IDS[:, :2]).result()
        assert [id(hidden) for hidden in aux.hiddens] == [id(hidden) for hidden in before]


def test_layers_of_other_families() -> None:
    transformers = pytest.importorskip("transformers")
    shape = {"vocab_size": 61, "num_hidden_layers": 4}
    targets = [
        transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=61, n_embd=32, n_head=4, n_layer=4)
        ),
        transformers.GPTNeoXForCausalLM(
            transformers.GPTNeoXConfig(
                hidden_size=32, num_attention_heads=4, intermediate_size=48, **shape
            )
        ),
        transformers.OPTForCausalLM(
            transformers.OPTConfig(
                hidden_size=32, word_embed_proj_dim=32, num_attention_heads=4, ffn_dim=48, **shape
            )
        ),
    ]
    for target in targets:
        target.eval()
        with capture(target, DrafterConfig.for_target(target.config)) as aux:
            truth = target(IDS, output_hidden_states=True).hidden_states
        for i, hidden in zip((1, 2, 3), aux.hiddens, strict=True):
            assert torch.equal(hidden, truth[i]), type(target).__name__


def test_errors(llama: Any) -> None:
    deep = DrafterConfig.for_target(make_target("llama", num_hidden_layers=9).config)
    with (
        pytest.raises(ValueError, match=r"\(2, 4, 6\): the target has 6 decoder layers"),
        capture(llama, deep),
    ):
        pass
    with (
        pytest.raises(ValueError, match="no decoder layers in Linear"),
        capture(nn.Linear(2, 2), deep),
    ):
        pass
