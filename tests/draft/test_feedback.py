"""What the training unroll feeds back is what decoding feeds back, for every norm flag.

Every prompt length of a text is one sequence of a batch: `draft` enters its rows and drafts a
chain. Taught that very chain, the unroll has to arrive at the same states and name the same tokens
at the row where the prompt ends; so has `step`, token by token on the cache.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import leeboard.ops
from drafter_models import tiny_drafter
from leeboard.draft import DrafterCache, Eagle3Drafter

STEPS = 5
LENGTH = 8
FLAGS = [
    {
        "norm_output": norm_output,
        "norm_before_residual": norm_before_residual,
        "fc_norm": fused == "fc_norm",
        "norm_before_fc": fused == "norm_before_fc",
    }
    for norm_output in (True, False)
    for norm_before_residual in (True, False)
    for fused in ("plain", "fc_norm", "norm_before_fc")
]
CLOSE: dict[str, float] = {"rtol": 1e-4, "atol": 2e-5}

flags = pytest.mark.parametrize(
    "flags", FLAGS, ids=lambda f: "+".join(name for name, on in f.items() if on) or "none"
)


def text_of(drafter: Eagle3Drafter, batch: int = 1) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(2)
    config = drafter.config
    ids = torch.randint(config.vocab_size, (batch, LENGTH))
    return ids, [
        scale * torch.randn(batch, LENGTH, config.target_hidden_size) for scale in (0.3, 2.0, 9.0)
    ]


@torch.no_grad()
def decoded(
    drafter: Eagle3Drafter, ids: Tensor, hiddens: list[Tensor]
) -> tuple[Tensor, Tensor, DrafterCache]:
    """(drafts, states, cache) of the prompts of 1..T - 1 rows."""
    prompts, cache = LENGTH - 1, drafter.new_cache(0)
    drafts, states = drafter.draft(
        [h[:, :-1].expand(prompts, -1, -1) for h in hiddens],
        ids[:, 1:].expand(prompts, -1),
        range(1, LENGTH),
        cache,
        STEPS,
    )
    assert cache.lengths.tolist() == list(range(1, LENGTH))
    return drafts, states, cache


@torch.no_grad()
def unrolled(
    drafter: Eagle3Drafter, ids: Tensor, hiddens: list[Tensor], drafts: Tensor
) -> tuple[Tensor, Tensor]:
    """(tokens, states) of the unroll on each prompt followed by its drafts, at its last row."""
    prompts = LENGTH - 1
    each = torch.arange(prompts)
    taught = torch.zeros(prompts, LENGTH + STEPS, dtype=torch.int64)
    taught[:, :LENGTH] = ids
    for j in range(STEPS):
        taught[each, each + 2 + j] = drafts[:, j]
    # States beyond a prompt's last row must not matter to it.
    states = [torch.randn(prompts, LENGTH + STEPS, h.shape[2]) for h in hiddens]
    for state, h in zip(states, hiddens, strict=True):
        known = torch.arange(LENGTH)[None] <= each[:, None]
        state[:, :LENGTH] = torch.where(known[..., None], h, state[:, :LENGTH])
    steps = drafter.unroll(taught, states, STEPS)
    tokens = torch.stack([drafter.greedy(hidden[each, each]) for hidden, _ in steps], dim=1)
    return tokens, torch.stack([state[each, each] for _, state in steps], dim=1)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@flags
def test_training_feeds_back_what_decoding_feeds_back(flags: dict[str, Any], backend: Any) -> None:
    drafter = tiny_drafter(draft_vocab_size=23, **flags)
    ids, hiddens = text_of(drafter)
    with leeboard.ops.backend(backend):
        drafts, states, cache = decoded(drafter, ids, hiddens)
    tokens, ours = unrolled(drafter, ids, hiddens, drafts)
    assert_close(ours, states, **CLOSE)
    assert torch.equal(tokens, drafts)
    # Token by token on the cache, from the state that the first row fed back.
    state = states[:, :1]
    with torch.no_grad(), leeboard.ops.backend(backend):
        for j in range(1, STEPS):
            hidden, state = drafter.step(drafts[:, j - 1 : j], state, cache=cache)
            assert_close(state[:, 0], ours[:, j], **CLOSE)
            assert torch.equal(drafter.greedy(hidden[:, 0]), drafts[:, j])


@pytest.mark.parametrize("flags", FLAGS[::3])
def test_triton_feeds_it_back_too(flags: dict[str, Any]) -> None:
    """The chain alone, by Triton's interpreter."""
    pytest.importorskip("triton")
    drafter = tiny_drafter(draft_vocab_size=23, **flags)
    ids, hiddens = text_of(drafter)
    drafts, _, cache = decoded(drafter, ids, hiddens)
    tokens, states = unrolled(drafter, ids, hiddens, drafts)
    some = [1, 6]
    cache.select(some)
    with leeboard.ops.backend("triton"):
        chain = drafter.chain(states[some, 0], tokens[some, 0], cache, 2)
    assert torch.equal(chain.tokens, tokens[some, 1:3])
    assert_close(chain.states, states[some, 1:3], **CLOSE)


@pytest.mark.parametrize(("window", "sinks"), [(1, 0), (2, 1), (4, 0), (4, 2)])
def test_windows_and_sinks(window: int, sinks: int) -> None:
    drafter = tiny_drafter(sliding_window=window, attention_sinks=sinks)
    ids, hiddens = text_of(drafter)
    drafts, states, _ = decoded(drafter, ids, hiddens)
    tokens, ours = unrolled(drafter, ids, hiddens, drafts)
    assert_close(ours, states, **CLOSE)
    assert torch.equal(tokens, drafts)
    # The window hides something, or this test could not fail.
    everything = tiny_drafter()
    assert not torch.allclose(unrolled(everything, ids, hiddens, drafts)[1], states, atol=1e-3)


def test_a_difference_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training that feeds back the other state, as one training framework long did."""
    drafter = tiny_drafter()
    ids, hiddens = text_of(drafter)
    drafts, states, _ = decoded(drafter, ids, hiddens)
    monkeypatch.setattr("leeboard.draft.model.feedback", lambda normed, residual, post: residual)
    _, ours = unrolled(drafter, ids, hiddens, drafts)
    assert not torch.allclose(ours, states, atol=1e-2)


@pytest.mark.parametrize(
    "options",
    [{}, {"sliding_window": 2, "attention_sinks": 1}, {"sliding_window": 3}],
    ids=["full", "window-2-sink-1", "window-3"],
)
@flags
def test_packed_documents_are_the_documents_alone(
    flags: dict[str, Any], options: dict[str, Any]
) -> None:
    drafter = tiny_drafter(**flags, **options)
    lengths = [(3, 5), (1, 6, 1), (8,)]
    ids, hiddens = text_of(drafter, batch=3)
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in lengths])
    with torch.no_grad():
        packed = drafter.unroll(ids, hiddens, 4, positions=positions)
        for b, row in enumerate(lengths):
            start = 0
            for n in row:
                part = slice(start, start + n)
                alone = drafter.unroll(
                    ids[b : b + 1, part], [h[b : b + 1, part] for h in hiddens], 4
                )
                for j, (ours, theirs) in enumerate(zip(packed, alone, strict=True)):
                    # The last 1 + j rows of a document lack an input token.
                    rows = max(n - 1 - j, 0)
                    for mine, other in zip(ours, theirs, strict=True):
                        assert_close(mine[b, start : start + rows], other[0, :rows], **CLOSE)
                start += n


def test_feed_and_watch() -> None:
    drafter = tiny_drafter(sliding_window=3, attention_sinks=1)
    ids, hiddens = text_of(drafter, batch=2)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6, 7]])
    plain = drafter.unroll(ids, hiddens, 3, positions=positions)
    fed: list[int] = []
    seen = []

    def feed(j: int, state: Tensor) -> Tensor:
        fed.append(j)
        assert_close(state, plain[j - 1][1])
        # From here on the chain differs.
        return state if j == 1 else 2 * state.roll(1, dims=-1)

    def watch(attended: Any) -> None:
        seen.append((attended.step, attended.q.shape, len(attended.keys), len(attended.values)))
        assert attended.keys[0].shape == (2, 2, LENGTH, 10)
        assert attended.scale == pytest.approx(10**-0.5)
        assert (attended.window, attended.sinks) == (3, 1)
        assert attended.cu_seqlens.tolist() == [0, 4, 8, 16]

    other = drafter.unroll(ids, hiddens, 3, positions=positions, feed=feed, watch=watch)
    assert fed == [1, 2]
    assert seen == [(j, (2, 4, LENGTH, 10), j + 1, j + 1) for j in range(3)]
    for ours, theirs in zip(other[:2], plain[:2], strict=True):
        assert_close(ours[0], theirs[0])
    assert not torch.allclose(other[2][0], plain[2][0], atol=1e-2)
    with pytest.raises(ValueError, match=r"positions: got shape \(2, 7\)"):
        drafter.unroll(ids, hiddens, 1, positions=positions[:, 1:])
