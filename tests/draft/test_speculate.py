"""speculate: the target's own greedy tokens, whatever the drafter says."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from drafter_models import FAMILIES, make_target
from leeboard.draft import (
    DrafterConfig,
    Eagle3Drafter,
    SpeculateResult,
    capture,
    chain_loss,
    observe,
    speculate,
)

NEW = 40


class Scripted(Eagle3Drafter):
    """A real drafter whose guesses are dictated: the truth, but wrong at chosen positions.

    The sequences of a batch are told apart by their tokens.
    """

    def __init__(self, config: DrafterConfig, truth: Any, wrong: Sequence[int] = ()) -> None:
        super().__init__(config)
        self.truth = [[*row.tolist(), *[0] * 64] for row in truth]
        self.wrong = set(wrong)
        self.seen: list[list[int]] = []

    def step(
        self,
        input_ids: Tensor,
        state: Tensor,
        position_ids: Any = None,
        cache: Any = None,
        *,
        counts: Any = None,
    ) -> Any:
        hidden, fed = super().step(input_ids, state, position_ids, cache, counts=counts)
        # Rows enter with the tokens that they should: the sequence, shifted by one.
        ends = cache.lengths.tolist()
        counts = counts or [input_ids.shape[1]] * len(ends)
        self.at = []
        for row, count, end in zip(input_ids.tolist(), counts, ends, strict=True):
            entered = row[:count]
            told = [t for t in self.truth if t[end + 1 - count : end + 1] == entered]
            assert told, "rows of tokens that no sequence has at these positions"
            self.at.append((told[0], end))
        return hidden, fed

    def told(self, row: list[int], position: int) -> int:
        return (row[position] + (position in self.wrong)) % self.config.vocab_size

    def greedy(self, hidden: Tensor) -> Tensor:
        return torch.tensor([self.told(row, end + 1) for row, end in self.at])

    def chain(self, state: Tensor, token: Tensor, cache: Any, depth: int, **more: Any) -> Any:
        draft = super().chain(state, token, cache, depth, **more)
        rows = [[self.told(row, end + 2 + j) for j in range(depth)] for row, end in self.at]
        return draft._replace(tokens=torch.tensor(rows))


def prompt_of(length: int, seed: int = 0) -> Tensor:
    return torch.randint(61, (1, length), generator=torch.Generator().manual_seed(seed))


def greedy_of(target: Any, prompt: Tensor, new: int = NEW, eos: Any = None) -> Tensor:
    tokens: Tensor = target.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=new,
        eos_token_id=eos,
        pad_token_id=0,
    )
    return tokens


def check_books(result: SpeculateResult, prompt: Tensor, depth: int) -> None:
    """The counts must agree with each other and with the output."""
    assert result.tokens.shape == (1, prompt.shape[1] + result.new_tokens)
    assert result.target_forwards == 1 + result.rounds
    assert sum(result.accepted_by_depth) == sum(result.accepted_per_round)
    assert len(result.reached_by_depth) == len(result.accepted_by_depth) == depth
    # One token from the prompt's pass, then the accepted and a bonus token each round; the last
    # round may end before its bonus.
    most = 1 + sum(result.accepted_per_round) + result.rounds
    assert most - 1 <= result.new_tokens <= most
    for j in range(depth):
        reached = sum(a >= j for a in result.accepted_per_round)
        assert result.accepted_by_depth[j] == sum(a > j for a in result.accepted_per_round)
        assert result.reached_by_depth[j] <= reached
    assert result.tau == result.mean_accepted + 1


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_generate(family: str) -> None:
    target = make_target(family)
    for length, depth in ((1, 1), (5, 4), (12, 16)):
        prompt = prompt_of(length)
        truth = greedy_of(target, prompt)
        config = DrafterConfig.for_target(target.config)
        assert len(set(truth[0, length:].tolist())) > 3
        drafters = [
            Eagle3Drafter(config),
            Scripted(config, truth, wrong=range(length + 3, 99, 7)),
            Scripted(config, truth),
        ]
        for drafter in drafters:
            result = speculate(target, drafter, prompt, max_new_tokens=NEW, depth=depth)
            assert torch.equal(result.tokens, truth)
            check_books(result, prompt, depth)
        assert result.mean_accepted == pytest.approx((NEW - 1) / result.rounds - 1, abs=1)
        assert result.acceptance_by_depth == [1.0] * min(depth, NEW - 1)


@pytest.mark.parametrize("new", [1, 2, 3, 11, 12])
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_any_length(llama: Any, new: int, depth: int) -> None:
    prompt = prompt_of(4)
    truth = greedy_of(llama, prompt, new)
    scripted = Scripted(
        DrafterConfig.for_target(llama.config), greedy_of(llama, prompt), wrong=(9,)
    )
    result = speculate(llama, scripted, prompt, max_new_tokens=new, depth=depth)
    assert torch.equal(result.tokens, truth)
    check_books(result, prompt, depth)


def test_counts_by_hand(llama: Any) -> None:
    prompt = prompt_of(4)
    truth = greedy_of(llama, prompt)
    # x_4 comes from the prompt's pass. Round 1 drafts x_5..x_8, wrong at x_7: 2 accepted, x_7 is
    # the bonus. Round 2 drafts x_8..x_11, all right: x_12 is the bonus. Round 3 may yield one
    # more token, x_13, and drafts no more than that.
    scripted = Scripted(DrafterConfig.for_target(llama.config), truth, wrong=(7,))
    result = speculate(llama, scripted, prompt, max_new_tokens=10, depth=4)
    assert torch.equal(result.tokens, truth[:, :14])
    assert result.accepted_per_round == [2, 4, 1]
    assert result.reached_by_depth == [3, 2, 2, 1]
    assert result.accepted_by_depth == [3, 2, 1, 1]
    assert result.acceptance_by_depth == [1.0, 1.0, 0.5, 1.0]
    assert (result.target_forwards, result.new_tokens) == (4, 10)
    assert result.mean_accepted == pytest.approx(7 / 3)
    assert "10 tokens" in str(result)
    assert "2.33 accepted" in str(result)
    assert json.loads(json.dumps(result.to_dict()))["accepted_per_round"] == [2, 4, 1]


@pytest.mark.parametrize("depth", [1, 3, 8])
def test_end_of_sequence_anywhere(llama: Any, depth: int) -> None:
    """Every token of the output in turn ends it: as first token, draft or bonus."""
    prompt = prompt_of(6)
    full = greedy_of(llama, prompt, 14)
    config = DrafterConfig.for_target(llama.config)
    for eos in full[0, 6:].unique().tolist():
        truth = greedy_of(llama, prompt, 14, eos)
        for wrong in ((), range(9, 40, 3)):
            scripted = Scripted(config, full, wrong)
            result = speculate(
                llama, scripted, prompt, max_new_tokens=14, depth=depth, eos_token_id=eos
            )
            assert torch.equal(result.tokens, truth)
            check_books(result, prompt, depth)


def test_end_of_sequence_inside_a_draft_by_hand(llama: Any) -> None:
    prompt = prompt_of(6)
    full = greedy_of(llama, prompt)
    scripted = Scripted(DrafterConfig.for_target(llama.config), full)
    new = full[0, 6:].tolist()
    at = next(i for i in range(2, 6) if new[i] not in new[:i])
    result = speculate(
        llama, scripted, prompt, max_new_tokens=NEW, depth=8, eos_token_id=(99, new[at])
    )
    # Drafts after the end were never on trial.
    assert result.accepted_per_round == [at]
    assert result.reached_by_depth == [1] * at + [0] * (8 - at)
    assert result.new_tokens == at + 1


def test_end_of_sequence_from_the_generation_config() -> None:
    target = make_target("llama")
    prompt = prompt_of(6)
    full = greedy_of(target, prompt)
    drafter = Eagle3Drafter(DrafterConfig.for_target(target.config))
    stop = int(full[0, 9])
    target.generation_config.eos_token_id = [stop]
    result = speculate(target, drafter, prompt, max_new_tokens=NEW, depth=2)
    assert int(result.tokens[0, -1]) == stop
    assert result.new_tokens <= 4
    endless = speculate(target, drafter, prompt, max_new_tokens=NEW, depth=2, eos_token_id=[])
    assert torch.equal(endless.tokens, full)


@pytest.fixture(scope="module")
def trained(llama: Any) -> Eagle3Drafter:
    """A drafter that has learnt some of the target's output, so that it is right at times."""
    torch.manual_seed(0)
    drafter = Eagle3Drafter(DrafterConfig.for_target(llama.config))
    drafter.copy_from_target(llama)
    prompts = torch.cat([prompt_of(3, seed) for seed in range(64)])
    ids = greedy_of(llama, prompts, 21)
    mask = torch.ones_like(ids)
    mask[:, :3] = 0
    batch = observe(llama, drafter, ids, mask)
    optimizer = torch.optim.AdamW([p for p in drafter.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        chain_loss(drafter, batch, llama.lm_head.weight, step_weights=[1.0, 0.8]).loss.backward()
        optimizer.step()
    return drafter


def test_trained_drafter(llama: Any, trained: Eagle3Drafter) -> None:
    accepted = []
    for seed in range(4):
        prompt = prompt_of(3, seed)
        result = speculate(llama, trained, prompt, max_new_tokens=23, depth=5, collect_states=True)
        assert torch.equal(result.tokens, greedy_of(llama, prompt, 23))
        check_books(result, prompt, 5)
        accepted += result.accepted_per_round
        assert result.state_rms_by_depth is not None
        assert len(result.state_rms_by_depth) == 5
        # Post-norm: every state has the RMS of the final norm's gain.
        assert max(result.state_rms_by_depth) < 1.5 * min(result.state_rms_by_depth)
    assert 0 < sum(accepted) < 5 * len(accepted)


def test_rows_of_kept_tokens_stand_on_target_states(
    llama: Any, trained: Eagle3Drafter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache in the middle of decoding equals one built from the target's states at once."""
    held: list[Any] = []
    chain = Eagle3Drafter.chain

    def watched(
        self: Eagle3Drafter, state: Tensor, token: Tensor, cache: Any, *rest: Any, **more: Any
    ) -> Any:
        position = cache.length
        held.append((cache, position))
        draft = chain(self, state, token, cache, *rest, **more)
        assert cache.length == position
        return draft

    monkeypatch.setattr(Eagle3Drafter, "chain", watched)
    prompt = prompt_of(3, seed=1)
    result = speculate(llama, trained, prompt, max_new_tokens=21, depth=4)
    assert sum(result.accepted_per_round) > 0
    cache, position = held[-1]
    ids = result.tokens[:, : position + 1]
    fresh = type(cache)()
    with torch.no_grad(), capture(llama, trained.config) as aux:
        llama(ids)
        state = trained.fuse(aux.hiddens)[:, :position]
        trained.step(ids[:, 1:], state, torch.arange(position), fresh)
    torch.testing.assert_close(
        cache.keys[:, :, :position], fresh.keys[:, :, :position], rtol=1e-3, atol=1e-3
    )
    torch.testing.assert_close(
        cache.values[:, :, :position], fresh.values[:, :, :position], rtol=1e-3, atol=1e-3
    )


def test_small_draft_vocabulary(llama: Any) -> None:
    prompt = prompt_of(5)
    drafter = Eagle3Drafter(DrafterConfig.for_target(llama.config, draft_vocab_size=9))
    drafter.set_draft_vocabulary(torch.arange(7, 61, 6)[:9])
    result = speculate(llama, drafter, prompt, max_new_tokens=NEW, depth=3)
    assert torch.equal(result.tokens, greedy_of(llama, prompt))


def test_pre_norm_and_output_convention(llama: Any) -> None:
    prompt = prompt_of(5)
    config = DrafterConfig.for_target(
        llama.config, norm_output=False, fc_norm=False, aux_layer_convention="output"
    )
    result = speculate(llama, Eagle3Drafter(config), prompt, max_new_tokens=NEW, depth=3)
    assert torch.equal(result.tokens, greedy_of(llama, prompt))


def test_progress_bar_counts_tokens(llama: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    drafter = Eagle3Drafter(DrafterConfig.for_target(llama.config))
    speculate(llama, drafter, prompt_of(3), max_new_tokens=7, depth=2, progress=True)
    assert "7/7" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 0}, "depth: got 0"),
        ({"depth": 2.0}, "depth: got 2.0"),
        ({"max_new_tokens": 0}, "max_new_tokens: got 0"),
        ({"temperature": -0.7}, "temperature: got -0.7, expected 0.0"),
        ({"temperature": float("nan")}, "temperature: got nan, expected 0.0"),
        ({"temperature": float("inf")}, "temperature: got inf, expected 0.0"),
        ({"input_ids": torch.ones(1, 3)}, "input_ids: got torch.float32"),
        ({"input_ids": [[1, 2]]}, "input_ids: got list"),
        ({"input_ids": torch.tensor([1, 2])}, r"input_ids: got shape \(2,\)"),
        ({"input_ids": torch.ones(1, 0, dtype=torch.int64)}, "B, T at least 1"),
        ({"input_ids": torch.ones(0, 3, dtype=torch.int64)}, "B, T at least 1"),
        (
            {"input_ids": torch.tensor([[5, 61]])},
            "input_ids: got id 61 at position 1, expected 0 to 60",
        ),
        ({"input_ids": torch.tensor([[-3, 61]])}, "input_ids: got id -3 at position 0"),
        ({"max_new_tokens": 126}, "prompt of 3 .* = 129 tokens, expected at most 128"),
    ],
)
def test_bad_arguments(llama: Any, change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "input_ids": prompt_of(3),
        "max_new_tokens": 4,
        "depth": 2,
        **change,
    }
    drafter = Eagle3Drafter(DrafterConfig.for_target(llama.config))
    with pytest.raises(ValueError, match=message):
        speculate(llama, drafter, **arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": torch.nn.Linear(2, 2)}, "target: got Linear, expected a Hugging Face causal"),
        ({"target": None}, "target: got NoneType"),
        ({"drafter": None}, "drafter: got NoneType, expected a leeboard.draft.Drafter"),
        ({"drafter": torch.nn.Linear(2, 2)}, "drafter: got Linear"),
        ({"eos_token_id": "</s>"}, "eos_token_id: got '</s>' of type str, expected an integer"),
        ({"eos_token_id": 2.5}, "eos_token_id: got 2.5 of type float"),
        ({"eos_token_id": True}, "eos_token_id: got True of type bool"),
        ({"eos_token_id": [3, None]}, "eos_token_id: got None of type NoneType"),
        ({"eos_token_id": torch.tensor([1.5])}, "eos_token_id: got 1.5 of type float"),
    ],
)
def test_arguments_of_another_kind(llama: Any, change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "target": llama,
        "drafter": Eagle3Drafter(DrafterConfig.for_target(llama.config)),
        "input_ids": prompt_of(3),
        "max_new_tokens": 4,
        "depth": 2,
        **change,
    }
    with pytest.raises(TypeError, match=message):
        speculate(**arguments)


@pytest.mark.parametrize("kind", [int, np.int64, torch.tensor, lambda i: [np.int32(i)]])
def test_kinds_of_end_of_sequence_ids(llama: Any, kind: Any) -> None:
    prompt = prompt_of(6)
    stop = int(greedy_of(llama, prompt)[0, 9])
    drafter = Eagle3Drafter(DrafterConfig.for_target(llama.config))
    result = speculate(llama, drafter, prompt, max_new_tokens=NEW, depth=2, eos_token_id=kind(stop))
    assert int(result.tokens[0, -1]) == stop


def test_target_in_training_mode() -> None:
    target = make_target("llama").train()
    drafter = Eagle3Drafter(DrafterConfig.for_target(target.config))
    with pytest.raises(ValueError, match=r"target: .* training mode, .* call target\.eval\(\)"):
        speculate(target, drafter, prompt_of(3), max_new_tokens=4, depth=2)


def test_two_threads_on_one_target(llama: Any, trained: Eagle3Drafter) -> None:
    """Passes of the target alternate strictly between the threads."""
    prompts = [prompt_of(3, seed=0), prompt_of(9, seed=1)]
    expected = [greedy_of(llama, prompt, 20) for prompt in prompts]
    alone = [speculate(llama, trained, p, max_new_tokens=20, depth=3) for p in prompts]
    # Every pass waits for one of the other thread's, until that thread is done.
    meeting = threading.Barrier(2)

    def meet(*_: Any) -> None:
        with contextlib.suppress(threading.BrokenBarrierError):
            meeting.wait(10)

    def decode(prompt: Tensor) -> SpeculateResult:
        try:
            return speculate(llama, trained, prompt, max_new_tokens=20, depth=3)
        finally:
            meeting.abort()

    handle = llama.lm_head.register_forward_hook(meet)
    try:
        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(decode, prompts))
    finally:
        handle.remove()
    for result, truth, single in zip(results, expected, alone, strict=True):
        assert torch.equal(result.tokens, truth)
        assert result.accepted_per_round == single.accepted_per_round


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"vocab_size": 60, "draft_vocab_size": 60}, "vocab_size is 60, expected 61"),
        ({"target_hidden_size": 30}, "target_hidden_size is 30, expected 32"),
        ({"max_position_embeddings": 6}, "the drafter's max_position_embeddings"),
    ],
)
def test_drafter_for_another_target(llama: Any, overrides: dict[str, Any], message: str) -> None:
    drafter = Eagle3Drafter(DrafterConfig.for_target(llama.config, **overrides))
    with pytest.raises(ValueError, match=message):
        speculate(llama, drafter, prompt_of(3), max_new_tokens=4, depth=2)
