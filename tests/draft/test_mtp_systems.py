"""MTP heads in what all drafters go through: speculate, chain_loss, probe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from leeboard.draft import chain_loss, load_drafter, observe, probe, speculate
from leeboard.draft.mtp import MTPConfig, MTPHead
from leeboard.draft.training import Rows, TrainSettings, train_drafter
from mtp_models import make_head, make_mtp_target, roughen, tokens

pytest.importorskip("transformers")

# Of the targets that speculate can run, each with a head of another convention and number.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("qwen3_next", {"heads": 1, "recycle": "pre"}),
    "Qwen2": ("mimo", {"heads": 2}),
    "DeepseekV3": ("deepseek_v3", {"heads": 2, "target_state": "raw"}),
}


@torch.no_grad()
def greedy(target: Any, prompt: Tensor, new: int) -> Tensor:
    ids = prompt
    for _ in range(new):
        best = target(input_ids=ids, use_cache=False).logits[:, -1].argmax(-1)
        ids = torch.cat((ids, best[:, None]), dim=1)
    return ids


@pytest.mark.parametrize("family", CASES)
def test_speculate_gives_the_targets_own_text(family: str) -> None:
    # Of few tokens a random head guesses some right.
    target = make_mtp_target(family, seed=4, vocab_size=4)
    convention, options = CASES[family]
    head = MTPHead(MTPConfig.for_target(target.config, convention, **options)).eval()  # type: ignore[arg-type]
    roughen(head)
    head.copy_from_target(target)
    prompts = [tokens(head, 1, rows, seed=rows) for rows in (5, 2, 8)]
    texts = [greedy(target, prompt, 20) for prompt in prompts]
    widest = max(prompt.shape[1] for prompt in prompts)
    ids = torch.zeros(3, widest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, widest - prompt.shape[1] :] = prompt
        mask[row, widest - prompt.shape[1] :] = 1
    result = speculate(
        target,
        head,
        ids,
        attention_mask=mask,
        max_new_tokens=20,
        depth=4,
        eos_token_id=[],
        collect_states=True,
    )
    for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        assert torch.equal(result.tokens[row, widest:], text[0, prompt.shape[1] :])
    # Sequences accepted their own counts, so that the cache held uneven rows.
    assert result.mean_accepted > 0.1, result.accepted_by_sequence
    assert len({tuple(rounds) for rounds in result.accepted_by_sequence}) > 1
    assert result.state_rms_by_depth is not None
    assert len(result.state_rms_by_depth) == 4


def test_speculate_refuses_targets_that_cannot_go_back() -> None:
    """Qwen3-Next's linear attention keeps a state, not the past that was rejected."""
    target = make_mtp_target("Qwen3Next")
    head = make_head("qwen3_next")
    ids = tokens(head, 1, 5)
    with pytest.raises(ValueError, match="expected a model with attention layers only"):
        speculate(target, head, ids, max_new_tokens=4, depth=2)
    # The head itself runs on what the target yields.
    with head.capture(target) as aux:
        following = target(input_ids=ids).logits[:, -1].argmax(-1)
    new = torch.cat((ids[:, 1:], following[:, None]), dim=1)
    drafts, _ = head.draft(aux.hiddens, new, [5], head.new_cache(0), 3)
    assert drafts.shape == (1, 3)


@pytest.mark.parametrize("heads", [1, 2])
def test_training_teaches_heads(heads: int) -> None:
    """A few steps on one batch: the frozen matrices stay, every step's loss falls."""
    target = make_mtp_target("Qwen2")
    torch.manual_seed(0)
    head = MTPHead(MTPConfig.for_target(target.config, "mimo", heads=heads))
    head.copy_from_target(target)
    ids = tokens(head, 4, 24)
    batch = observe(target, head, ids, torch.ones_like(ids))
    learnt = [p for p in head.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=3e-3)
    before = head.head_weight.clone(), head.embedding.weight.clone()

    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        result = chain_loss(head, batch, target.lm_head.weight, step_weights=[1.0, 0.8, 0.64])
        result.loss.backward()
        optimizer.step()
        losses.append(result.step_losses)
    assert bool((losses[-1] < 0.6 * losses[0]).all()), (losses[0], losses[-1])
    assert torch.equal(head.head_weight, before[0])
    assert torch.equal(head.embedding.weight, before[1])


def test_probe() -> None:
    target = make_mtp_target("Llama")
    prompts = [
        tokens(make_head("mimo", family="Llama"), 1, 6, seed=s)[0].tolist() for s in range(3)
    ]
    for heads in (1, 2):
        head = make_head("mimo", family="Llama", heads=heads)
        head.copy_from_target(target)
        result = probe(
            target,
            head,
            prompts,
            depth=3,
            new_tokens=12,
            force={"recycle": "pre"},
            train_length=30,
            lengths=(1,),
            eos_token_id=[],
        )
        shown = result.table()
        assert ("attention left out, it has several heads" in shown) == (heads == 2)
        assert "recycle=pre" in shown
        assert list(result.drafters["drafter"].context) == ["full"]
        assert ("attention on the sink" in shown) == (heads == 1)


def test_bfloat16_training_has_the_router_of_decoding() -> None:
    """It stays in float32 there, and so it does here."""
    from leeboard.draft.training.unrolled import InBfloat16

    head = make_head("deepseek_v3", heads=2)
    unrolled: Any = torch.nn.ModuleDict({"drafter": head})
    rounded = InBfloat16(unrolled)._rounded()
    low = {name for name, p in head.bfloat16().named_parameters() if p.dtype == torch.bfloat16}
    assert rounded.keys() == {f"drafter.{name}" for name in low}
    assert {tensor.dtype for tensor in rounded.values()} == {torch.bfloat16}
    assert not any("gate.weight" in name for name in rounded)


@pytest.mark.parametrize("given", ["drafter", "config"])
def test_train_drafter(tmp_path: Path, given: str) -> None:
    """The same trainer, killed and resumed, and what it writes."""
    target = make_mtp_target("Qwen2")
    config = MTPConfig.for_target(target.config, "mimo", heads=2)
    ids = torch.randint(0, config.vocab_size, (12, 20), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(20).expand(12, 20) % 10
    rows = Rows(ids=ids, loss_mask=torch.ones_like(ids).bool(), positions=positions)
    settings = TrainSettings(
        steps=6, batch=4, ttt=3, lr=1e-2, heldout_share=0.0, checkpoint_every=2
    )

    def train(folder: Path, **more: Any) -> Any:
        how: dict[str, Any] = {"config": config}
        if given == "drafter":
            torch.manual_seed(0)
            how = {"drafter": MTPHead(config)}
            how["drafter"].copy_from_target(target)
        return train_drafter(
            target, rows, settings=settings, out=folder, progress=False, **how, **more
        )

    whole = train(tmp_path / "whole")
    assert isinstance(whole.drafter, MTPHead)
    assert whole.history.loss[-1] < whole.history.loss[0]

    def kill(step: int, _: Any) -> None:
        if step == 3:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path / "parts", on_step=kill)
    resumed = train(tmp_path / "parts")
    for name, tensor in whole.drafter.state_dict().items():
        assert torch.equal(resumed.drafter.state_dict()[name], tensor), name
    loaded = load_drafter(tmp_path / "whole" / "drafter", target=target)
    assert loaded.config == config
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(whole.drafter.state_dict()[name], tensor), name
