"""The exact shortcut: one teacher-forced unroll on greedy text tells what decoding does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from drafter_models import VARIANTS, make_target
from leeboard.draft import DrafterConfig, Eagle3Drafter, speculate
from leeboard.draft.probe import (
    Chains,
    Texts,
    accepted_rounds,
    attention,
    greedy_texts,
    measure_chains,
)
from leeboard.draft.probe.attention import RECENT
from mtp_models import make_head, make_mtp_target

pytest.importorskip("transformers")
DEPTH, NEW = 5, 24
PROMPTS = [[5, 9, 2, 44, 7], [1, 2, 3], [30, 31, 32, 33, 34, 35, 36, 37, 38], [60, 0, 60, 0]]


@pytest.fixture(scope="module")
def target() -> Any:
    return make_target("llama")


@pytest.fixture(scope="module")
def texts(target: Any) -> Texts:
    # Token 7 ends a text: lengths differ.
    return greedy_texts(target, PROMPTS, NEW, batch=3, eos_token_id=7)


TRAINED: dict[str, Eagle3Drafter] = {}


def drafter_for(target: Any, texts: Texts, **overrides: Any) -> Eagle3Drafter:
    """A drafter that is right often: trained a little on these texts."""
    key = repr(overrides)
    if key not in TRAINED:
        TRAINED[key] = train(target, texts, **overrides)
    return TRAINED[key]


def train(target: Any, texts: Texts, **overrides: Any) -> Eagle3Drafter:
    torch.manual_seed(5)
    config = DrafterConfig.for_target(
        target.config, aux_layer_ids=(1, 3, 5), aux_layer_convention="input", **overrides
    )
    drafter = Eagle3Drafter(config)
    drafter.copy_from_target(target)
    hiddens = captured(target, drafter, texts)
    optimizer = torch.optim.Adam([p for p in drafter.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(25):
        loss = torch.zeros(())
        for j, (hidden, _) in enumerate(drafter.unroll(texts.ids, hiddens, 3)):
            scores = drafter.logits(hidden[:, : -2 - j])
            loss = loss + torch.nn.functional.cross_entropy(
                scores.flatten(0, 1), texts.ids[:, 2 + j :].flatten()
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return drafter.requires_grad_(False)


def captured(target: Any, drafter: Eagle3Drafter, texts: Texts) -> tuple[Tensor, ...]:
    with torch.no_grad(), drafter.capture(target) as aux:
        target(input_ids=texts.ids)
        return aux.hiddens


def chains_of(target: Any, drafter: Eagle3Drafter, texts: Texts, **options: Any) -> Chains:
    hiddens = captured(target, drafter, texts)
    return measure_chains(
        drafter, texts.ids, hiddens, DEPTH, first=texts.first, lengths=texts.lengths, **options
    )


def test_texts_are_the_targets_own(target: Any, texts: Texts) -> None:
    assert len(set(texts.lengths.tolist())) > 1, "one text ends early"
    for b, prompt in enumerate(PROMPTS):
        ids = torch.tensor([prompt])
        alone = target.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW,
            do_sample=False,
            eos_token_id=7,
            pad_token_id=0,
        )[0].tolist()
        assert prompt + texts.continuation(b) == alone


@pytest.mark.parametrize("name", [*VARIANTS, "window", "draft vocabulary"])
def test_equals_decoding(target: Any, texts: Texts, name: str) -> None:
    """Accepted per round, tested and accepted by depth, and the states of surviving rows."""
    overrides: dict[str, Any] = {
        "window": {"sliding_window": 6, "attention_sinks": 1},
        "draft vocabulary": {"draft_vocab_size": 61},
    }.get(name, VARIANTS.get(name, {}))
    drafter = drafter_for(target, texts, **overrides)
    if name == "draft vocabulary":
        half = Eagle3Drafter(DrafterConfig(**{**vars(drafter.config), "draft_vocab_size": 31}))
        kept = {k: v for k, v in drafter.state_dict().items() if "lm_head" not in k}
        half.load_state_dict(
            {k: v for k, v in kept.items() if k not in ("d2t", "t2d")}, strict=False
        )
        half.set_draft_vocabulary(torch.arange(0, 61, 2))
        half.lm_head.weight.data = drafter.lm_head.weight[::2].clone()
        drafter = half.requires_grad_(False)
    chains = chains_of(target, drafter, texts, attention=False)
    rounds = chains.rounds()
    drafted = drafter.draft
    for b, prompt in enumerate(PROMPTS):
        states: list[Tensor] = []

        def draft(*given: Any, states: list[Tensor] = states) -> Any:
            found = drafted(*given)
            states.append(found[1][0])
            return found

        drafter.draft = draft  # type: ignore[method-assign]
        real = speculate(
            target,
            drafter,
            torch.tensor([prompt]),
            max_new_tokens=NEW,
            depth=DEPTH,
            eos_token_id=7,
        )
        assert rounds[b] == real.accepted_per_round
        t = len(prompt) - 1
        for accepted, chain in zip(rounds[b], states, strict=True):
            for j in range(min(accepted + 1, len(chain))):
                if chains.tested[j, b, t]:
                    expected = chain[j].square().mean().sqrt()
                    torch.testing.assert_close(chains.rms[j, b, t], expected)
                    assert chains.surviving[j, b, t]
            t += accepted + 1
    drafter.draft = drafted  # type: ignore[method-assign]
    assert len({a for found in rounds for a in found}) > 1, "rounds of several lengths"


@pytest.mark.parametrize(
    ("convention", "more"),
    [
        ("mimo", {}),
        ("mimo", {"recycle": "pre", "heads": 2}),
        ("deepseek_v3", {"target_state": "raw"}),
    ],
)
def test_equals_decoding_with_mtp_heads(convention: str, more: dict[str, Any]) -> None:
    """Also where keys are wider than values, and where heads take turns."""
    family = {"deepseek_v3": "DeepseekV3"}.get(convention, "Qwen2")
    target = make_mtp_target(family)
    head = make_head(convention, family=family, **more).requires_grad_(False)
    head.copy_from_target(target)
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8], [9, 1]]
    texts = greedy_texts(target, prompts, NEW, eos_token_id=[])
    with torch.no_grad(), head.capture(target) as aux:
        target(input_ids=texts.ids)
    several = "heads" in more
    chains = measure_chains(
        head, texts.ids, aux.hiddens, DEPTH, first=texts.first, lengths=texts.lengths,
        attention=not several,
    )  # fmt: skip
    for b, prompt in enumerate(prompts):
        real = speculate(
            target, head, torch.tensor([prompt]), max_new_tokens=NEW, depth=DEPTH, eos_token_id=[],
            collect_states=True,
        )  # fmt: skip
        assert chains.rounds()[b] == real.accepted_per_round
        starts = [int(texts.first[b]) + sum(n + 1 for n in real.accepted_per_round[:i])
                  for i in range(real.rounds)]  # fmt: skip
        assert real.state_rms_by_depth is not None
        assert float(chains.rms[0, b, starts].mean()) == pytest.approx(
            real.state_rms_by_depth[0], rel=1e-4
        )
    assert any(n for found in chains.rounds() for n in found), "a draft is accepted"
    if chains.attention is not None:
        whole = chains.attention.prompt + chains.attention.own
        assert bool((whole[chains.tested] <= 1 + 1e-5).all())


def test_equals_decoding_of_a_batch(target: Any, texts: Texts) -> None:
    """The counts by depth are those of `speculate`, and the mean RMS of every first step."""
    from leeboard.draft.probe.tally import tally

    drafter = drafter_for(target, texts)
    chains = chains_of(target, drafter, texts, attention=False)
    width = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in PROMPTS])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in PROMPTS])
    real = speculate(
        target,
        drafter,
        ids,
        attention_mask=mask,
        max_new_tokens=NEW,
        depth=DEPTH,
        eos_token_id=7,
        collect_states=True,
    )
    figures = tally(chains).figures()
    assert chains.rounds() == real.accepted_by_sequence
    assert figures["reached_by_depth"] == real.reached_by_depth
    assert figures["accepted_by_depth"] == real.accepted_by_depth
    assert figures["mean_accepted"] == pytest.approx(real.mean_accepted)
    assert figures["tau"] == pytest.approx(real.tau)
    roots = []
    for b, found in enumerate(chains.rounds()):
        t = int(chains.first[b])
        for accepted in found:
            roots.append(chains.rms[0, b, t])
            t += accepted + 1
    assert real.state_rms_by_depth is not None
    assert float(torch.stack(roots).mean()) == pytest.approx(real.state_rms_by_depth[0], rel=1e-5)


def test_nothing_is_cut_silently(target: Any, texts: Texts) -> None:
    """Every token of a continuation but the first is the prediction of one row at each depth."""
    chains = chains_of(target, drafter_for(target, texts), texts)
    for j in range(DEPTH):
        for b, prompt in enumerate(PROMPTS):
            rows = chains.tested[j, b].nonzero()[:, 0].tolist()
            new = len(texts.continuation(b))
            assert rows == list(range(len(prompt) - 1, len(prompt) + new - 2 - j))
    assert bool(chains.rms[~chains.tested].isnan().all())
    assert bool(chains.rms[chains.tested].isfinite().all())
    assert not bool(chains.match[~chains.tested].any())


@pytest.mark.parametrize("overrides", [{}, {"sliding_window": 6, "attention_sinks": 1}])
def test_attention_against_plain_softmax(
    target: Any, texts: Texts, overrides: dict[str, Any]
) -> None:
    """Every share of one row, computed from q and k with nothing clever."""
    drafter = drafter_for(target, texts, **overrides)
    hiddens = captured(target, drafter, texts)
    chains = chains_of(target, drafter, texts, sink=1)
    assert chains.attention is not None
    seen: list[Any] = []
    for _ in drafter.iter_unroll(texts.ids, hiddens, DEPTH, watch=seen.append):
        pass
    b = 2
    prompt = len(PROMPTS[b])
    near: dict[tuple[int, int], Tensor] = {}
    for t in range(prompt - 1, int(texts.lengths[b]) - 2):
        for j in range(DEPTH):
            step = seen[j]
            group = step.q.shape[1] // step.keys[0].shape[1]
            columns = list(range(t + 1))
            if overrides:
                columns = [c for c in columns if t + j - c < 6 or c < 1]
            keys = [step.keys[0][b, :, c] for c in columns]
            keys += [step.keys[i][b, :, t] for i in range(1, j + 1)]
            places = torch.tensor([*columns, *range(t + 1, t + j + 1)])
            stacked = torch.stack(keys, dim=1).repeat_interleave(group, dim=0)
            scores = (stacked * step.q[b, :, t, None]).sum(-1) * step.scale
            p = scores.softmax(-1)
            mean, far = p.mean(0), t + j - places
            if j == 0:
                for d in range(DEPTH):
                    near[t, d] = mean[far == d].sum()
            if not chains.tested[j, b, t]:
                continue
            context = torch.arange(len(places)) < len(columns)
            expected = {
                "sink": mean[places == 1].sum() if 1 in columns else torch.zeros(()),
                "prompt": mean[context & (places < prompt)].sum(),
                "own": mean[~context].sum(),
                "recent": mean[far < RECENT].sum(),
                "entropy": -(p * p.log()).sum(-1).mean(),
                "distance": (mean * far).sum(),
            }
            for name, value in expected.items():
                got = getattr(chains.attention, name)[j, b, t]
                torch.testing.assert_close(got, value, rtol=1e-4, atol=1e-6)
    for t in range(prompt - 1, int(texts.lengths[b]) - 2 - DEPTH):
        for j in range(DEPTH):
            expected = sum((near[t + j, d] for d in range(j)), torch.zeros(()))
            got = chains.attention.matched[j, b, t]
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


def test_chunks_and_blocks_change_nothing(
    target: Any, texts: Texts, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafter = drafter_for(target, texts)
    whole = chains_of(target, drafter, texts)
    monkeypatch.setattr(attention, "_BLOCK", 600)
    parts = chains_of(target, drafter, texts, chunk=40)
    assert whole.attention is not None
    assert parts.attention is not None
    assert whole.sink == parts.sink
    assert torch.equal(whole.match, parts.match)
    for name, values in vars(whole.attention).items():
        torch.testing.assert_close(
            getattr(parts.attention, name), values, rtol=1e-4, atol=1e-6, equal_nan=True
        )


def test_the_sink_is_found() -> None:
    """A key that every query points at is the sink, wherever it stands."""
    from leeboard.draft.probe.attention import ColumnMass, Rows
    from leeboard.draft.protocol import Attended

    torch.manual_seed(0)
    keys = 0.1 * torch.randn(2, 2, 9, 4)
    q = torch.zeros(2, 4, 9, 4)
    q[..., 0], keys[:, :, 3, 0] = 5.0, 5.0
    mass = ColumnMass(5)
    at = torch.arange(4, 9).expand(2, -1)
    mass.rows = Rows(at, torch.ones_like(at, dtype=torch.bool), torch.zeros_like(at))
    mass(Attended(0, q, [keys], [keys], 0.5, None, 0, None))
    assert mass.sink == 3
    assert mass.share > 0.9
    assert mass.uniform == pytest.approx(1 / 7)


def test_rounds_walk() -> None:
    match = torch.tensor(
        [[[1, 1, 0, 1, 1, 0]], [[0, 1, 1, 0, 1, 0]], [[1, 1, 1, 1, 0, 0]]], dtype=torch.bool
    )
    # Row 1 accepts three; the next round drafts from row 5.
    assert accepted_rounds(match, [1], [5]) == [[3, 0]]
    assert accepted_rounds(match, [0], [4]) == [[1, 0, 1]]
    assert accepted_rounds(match, [5], [4]) == [[]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"first": [1, 2]}, "first: got shape"),
        ({"first": [99, 1, 1, 1]}, "first: got 99, expected 0 to"),
        ({"lengths": [0, 1, 1, 1]}, "lengths: got 0, expected 1 to"),
        ({"depth": 0}, "depth: got 0"),
    ],
)
def test_refuses(target: Any, texts: Texts, options: dict[str, Any], message: str) -> None:
    drafter = Eagle3Drafter(DrafterConfig.for_target(target.config, aux_layer_ids=(1, 3, 5)))
    given: dict[str, Any] = {"depth": 2, "first": texts.first, **options}
    hiddens = captured(target, drafter, texts)
    with pytest.raises(ValueError, match=message):
        measure_chains(drafter, texts.ids, hiddens, given.pop("depth"), **given)
