"""speculate on batches and at temperatures above 0."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from test_speculate import Scripted, greedy_of, prompt_of
from torch import Tensor

from drafter_models import FAMILIES, make_target
from leeboard.draft import DrafterConfig, Eagle3Drafter, SpeculateResult, speculate


def padded(prompts: list[Tensor], pad: int = 0) -> tuple[Tensor, Tensor]:
    """Prompts [1, T_b] as one left-padded batch and its mask."""
    width = max(p.shape[1] for p in prompts)
    ids = torch.full((len(prompts), width), pad)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - prompt.shape[1] :] = prompt[0]
        mask[row, width - prompt.shape[1] :] = 1
    return ids, mask


def check_rows(result: SpeculateResult, ids: Tensor, truths: list[Tensor], fill: int = 0) -> None:
    """truths: the new tokens of each row."""
    width = ids.shape[1]
    assert torch.equal(result.tokens[:, :width], ids)
    assert result.lengths.tolist() == [len(truth) for truth in truths]
    assert result.tokens.shape[1] == width + max(map(len, truths))
    assert result.new_tokens == sum(map(len, truths))
    for row, truth in enumerate(truths):
        assert torch.equal(result.tokens[row, width : width + len(truth)], truth)
        assert (result.tokens[row, width + len(truth) :] == fill).all()
    assert sum(result.accepted_by_depth) == sum(result.accepted_per_round)
    assert len(result.accepted_by_sequence) == len(truths)
    for accepted, truth in zip(result.accepted_by_sequence, truths, strict=True):
        assert len(truth) <= 1 + sum(accepted) + len(accepted) <= len(truth) + 1
    # The batch goes on as long as its longest sequence.
    assert result.target_forwards == 1 + max(map(len, result.accepted_by_sequence))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ragged_batch_equals_generate(family: str, seed: int) -> None:
    target = make_target(family)
    prompts = [prompt_of(n, seed=10 * seed + n) for n in (7, 1, 12, 4)]
    wholes = [greedy_of(target, p, 24) for p in prompts]
    ids, mask = padded(prompts)
    config = DrafterConfig.for_target(target.config)
    drafters = [Eagle3Drafter(config), Scripted(config, [w[0] for w in wholes], range(9, 60, 4))]
    for drafter in drafters:
        result = speculate(target, drafter, ids, attention_mask=mask, max_new_tokens=24, depth=5)
        check_rows(result, ids, [w[0, p.shape[1] :] for w, p in zip(wholes, prompts, strict=True)])
    assert len({tuple(accepted) for accepted in result.accepted_by_sequence}) > 1


def test_ends_at_different_times(llama: Any) -> None:
    """Every choice of an end token; sequences leave at once, late or never."""
    prompts = [prompt_of(n, seed=n) for n in (3, 9, 5)]
    wholes = [greedy_of(llama, p, 16) for p in prompts]
    ids, mask = padded(prompts)
    config = DrafterConfig.for_target(llama.config)
    lengths = set()
    for eos in torch.cat([w[0, -16:] for w in wholes]).unique().tolist():
        truths = [greedy_of(llama, p, 16, eos)[0, p.shape[1] :] for p in prompts]
        for wrong in ((), range(6, 60, 3)):
            drafter = Scripted(config, [w[0] for w in wholes], wrong)
            result = speculate(
                llama,
                drafter,
                ids,
                attention_mask=mask,
                max_new_tokens=16,
                depth=4,
                eos_token_id=eos,
                collect_states=True,
            )
            check_rows(result, ids, truths, fill=eos)
            lengths.add(tuple(result.lengths.tolist()))
    assert any(1 in row for row in lengths)
    assert len(lengths) > 5


def test_batch_without_padding_equals_its_rows(llama: Any) -> None:
    prompts = [prompt_of(6, seed) for seed in range(3)]
    drafter = Eagle3Drafter(DrafterConfig.for_target(llama.config))
    drafter.copy_from_target(llama)
    together = speculate(llama, drafter, torch.cat(prompts), max_new_tokens=20, depth=3)
    for row, prompt in enumerate(prompts):
        alone = speculate(llama, drafter, prompt, max_new_tokens=20, depth=3)
        assert torch.equal(together.tokens[row], alone.tokens[0])
        assert together.accepted_by_sequence[row] == alone.accepted_per_round


def test_padding_of_one_sequence(llama: Any) -> None:
    """Padding ids need not be in the vocabulary, and cost no positions."""
    prompt = prompt_of(5)
    ids, mask = padded([prompt, prompt_of(130)], pad=-100)
    ids, mask = ids[:1], mask[:1]
    drafter = Eagle3Drafter(DrafterConfig.for_target(llama.config))
    result = speculate(llama, drafter, ids, attention_mask=mask, max_new_tokens=9, depth=3)
    check_rows(result, ids, [greedy_of(llama, prompt, 9)[0, 5:]])


def test_up_to_the_last_position(llama: Any) -> None:
    """The longest sequence fills all positions while a shorter one still drafts."""
    prompts = [prompt_of(98, 3), prompt_of(5, 4)]
    ids, mask = padded(prompts)
    truths = [greedy_of(llama, p, 30)[0, p.shape[1] :] for p in prompts]
    drafter = Eagle3Drafter(DrafterConfig.for_target(llama.config))
    result = speculate(llama, drafter, ids, attention_mask=mask, max_new_tokens=30, depth=7)
    check_rows(result, ids, truths)


@pytest.mark.parametrize("window", [1, 3, 8])
@pytest.mark.parametrize("sinks", [0, 2])
def test_windowed_drafter(llama: Any, window: int, sinks: int) -> None:
    """Contexts far longer than the window."""
    prompts = [prompt_of(n, n) for n in (40, 11)]
    ids, mask = padded(prompts)
    drafter = Eagle3Drafter(
        DrafterConfig.for_target(llama.config, sliding_window=window, attention_sinks=sinks)
    )
    result = speculate(llama, drafter, ids, attention_mask=mask, max_new_tokens=20, depth=4)
    check_rows(result, ids, [greedy_of(llama, p, 20)[0, p.shape[1] :] for p in prompts])


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(1, 4), r"attention_mask: got \(1, 4\), expected a tensor \(2, 4\)"),
        ([[1, 1, 1, 1]] * 2, "attention_mask: got list"),
        (torch.tensor([[1, 1, 1, 1], [0, 2, 1, 1]]), "attention_mask: got other values"),
        (torch.tensor([[1, 1, 1, 1], [0, 1, 0, 1]]), "row 1 has padding at position 2"),
        (torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]]), "row 0 has padding at position 3"),
        (torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]]), "row 1 has padding at position 0"),
    ],
)
def test_bad_masks(llama: Any, mask: Any, message: str) -> None:
    drafter = Eagle3Drafter(DrafterConfig.for_target(llama.config))
    ids = torch.cat([prompt_of(4), prompt_of(4)])
    with pytest.raises(ValueError, match=message):
        speculate(llama, drafter, ids, attention_mask=mask, max_new_tokens=4, depth=2)


def test_ids_of_a_batch_are_checked_where_there_are_tokens(llama: Any) -> None:
    drafter = Eagle3Drafter(DrafterConfig.for_target(llama.config))
    ids = torch.tensor([[1, 2, 3], [99, 61, 4]])
    mask = torch.tensor([[1, 1, 1], [0, 1, 1]])
    with pytest.raises(ValueError, match="got id 61 at position 1 of row 1, expected 0 to 60"):
        speculate(llama, drafter, ids, attention_mask=mask, max_new_tokens=4, depth=2)


def test_temperature_of_another_kind(llama: Any) -> None:
    drafter = Eagle3Drafter(DrafterConfig.for_target(llama.config))
    for bad in ("0.5", True, None):
        with pytest.raises(TypeError, match="temperature: got"):
            speculate(llama, drafter, prompt_of(3), max_new_tokens=2, depth=1, temperature=bad)


def test_numbers_that_are_not_finite() -> None:
    target = make_target("llama")
    drafter = Eagle3Drafter(DrafterConfig.for_target(target.config))
    with torch.no_grad():
        drafter.fc.weight[0, 0] = math.inf
    with pytest.raises(ValueError, match="target: its hidden states are not finite, or overflow"):
        speculate(target, drafter, prompt_of(3), max_new_tokens=4, depth=2)
    with torch.no_grad():
        target.model.layers[0].self_attn.o_proj.weight[3, 4] = math.nan
    with pytest.raises(ValueError, match="target: the largest of its logits is nan"):
        speculate(target, drafter, prompt_of(3), max_new_tokens=4, depth=2)


def small_target() -> Any:
    """Few ids, and distributions that are neither flat nor sharp."""
    return make_target("llama", vocab_size=5, initializer_range=0.15)


def probabilities(target: Any, prompt: Tensor, temperature: float) -> Tensor:
    """The target's own distribution of the next three tokens, [V, V, V]."""
    ids = torch.arange(target.config.vocab_size)
    triples = torch.cartesian_prod(ids, ids, ids)
    with torch.no_grad():
        whole = torch.cat((prompt.expand(len(triples), -1), triples), dim=1)
        logits = target(whole).logits[:, prompt.shape[1] - 1 : -1].double()
    each = (logits / temperature).softmax(-1).gather(2, triples[:, :, None])
    return each.prod(dim=1).view(len(ids), len(ids), len(ids))


@pytest.mark.parametrize("temperature", [2.0, 3.5])
@pytest.mark.parametrize("depth", [1, 3])
def test_samples_are_distributed_as_the_targets_own(temperature: float, depth: int) -> None:
    """Chi-square of tokens 1 and 2, and of 2 and 3: 24 degrees of freedom, at a level of 0.001."""
    target = small_target()
    prompts = [torch.tensor([[1, 4, 2]]), torch.tensor([[3]])]
    ids, mask = padded(prompts)
    torch.manual_seed(5)
    drafter = Eagle3Drafter(DrafterConfig.for_target(target.config))
    copies = 1500
    result = speculate(
        target,
        drafter,
        ids.repeat_interleave(copies, dim=0),
        attention_mask=mask.repeat_interleave(copies, dim=0),
        max_new_tokens=4,
        depth=depth,
        temperature=temperature,
        generator=torch.Generator().manual_seed(11),
    )
    assert 0 < sum(result.accepted_per_round) < depth * result.rounds
    for drawn, prompt in zip(result.tokens[:, -4:].view(2, copies, 4), prompts, strict=True):
        joint = probabilities(target, prompt, temperature)
        for at, pair in ((0, joint.sum(2)), (1, joint.sum(0))):
            expected = copies * pair.flatten()
            assert expected.min() > 5
            seen = torch.bincount(drawn[:, at] * 5 + drawn[:, at + 1], minlength=25)
            statistic = float(((seen - expected).square() / expected).sum())
            # The quantile 0.999 of chi-square with 24 degrees of freedom.
            assert statistic < 51.18


def test_samples_follow_the_generator(llama: Any) -> None:
    drafter = Eagle3Drafter(DrafterConfig.for_target(llama.config))
    ids, mask = padded([prompt_of(6, 1), prompt_of(3, 2)])

    def sample(seed: int, temperature: float = 1.0) -> Tensor:
        return speculate(
            llama,
            drafter,
            ids,
            attention_mask=mask,
            max_new_tokens=20,
            depth=3,
            temperature=temperature,
            generator=torch.Generator().manual_seed(seed),
        ).tokens

    assert torch.equal(sample(3), sample(3))
    assert not torch.equal(sample(3), sample(4))
    # So cold that the largest logit has all the probability; the division would overflow.
    greedy = speculate(llama, drafter, ids, attention_mask=mask, max_new_tokens=20, depth=3).tokens
    assert torch.equal(sample(3, 1e-38), greedy)


def test_sampling_one_sequence_ends(llama: Any) -> None:
    drafter = Eagle3Drafter(DrafterConfig.for_target(llama.config))
    result = speculate(
        llama,
        drafter,
        prompt_of(4),
        max_new_tokens=30,
        depth=2,
        temperature=2.0,
        eos_token_id=range(30),
        generator=torch.Generator().manual_seed(0),
    )
    assert int(result.tokens[0, -1]) < 30
    assert (result.tokens[0, 4:-1] >= 30).all()
