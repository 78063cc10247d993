"""chain_loss against a row-by-row restatement."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from drafter_models import make_target, tiny_drafter
from leeboard.draft import Batch, DrafterConfig, Eagle3Drafter, chain_loss, count_rows, observe

# Documents of 9 tokens, and of 4 and 5.
PLACES = torch.tensor([[*range(9)], [*range(4), *range(5)], [*range(9)]])


def data(vocab: int = 37, positions: Tensor = PLACES) -> tuple[Batch, Tensor]:
    """A batch, and the target's head."""
    torch.manual_seed(3)
    final, head = torch.randn(3, 9, 18), 0.7 * torch.randn(vocab, 18)
    logits = final @ head.T
    batch = Batch(
        ids=torch.randint(vocab, (3, 9)),
        loss_mask=torch.rand(3, 9) < 0.7,
        positions=positions,
        hiddens=tuple(torch.randn(3, 9, 18) for _ in range(3)),
        final=final,
        best=logits.argmax(-1),
        logsumexp=logits.logsumexp(-1),
    )
    return batch, head


def restated_row(kind: str, p_full: Tensor, words: list[int], q: Tensor, eta: float) -> float:
    p = p_full[words]
    restricted = p / p.sum()
    divergence = float((restricted * (restricted / q).log()).sum())
    overlap = float(torch.minimum(p, q).sum())
    # Outside the draft vocabulary q is zero.
    variation = 0.5 * float((p - q).abs().sum() + (1 - p.sum()))
    if kind == "kl":
        return divergence
    if kind == "lk_alpha":
        return -math.log(overlap)
    lam = math.exp(-eta * overlap)
    return lam * divergence + (1 - lam) * variation


@pytest.mark.parametrize("kind", ["kl", "lk_alpha", "lk_lambda"])
@pytest.mark.parametrize("draft_vocab", [37, 20])
def test_equals_the_definition(draft_vocab: int, kind: Any) -> None:
    drafter = tiny_drafter(draft_vocab_size=draft_vocab)
    batch, head = data()
    weights = [1.0, 0.5, 0.25, 2.0]
    result = chain_loss(drafter, batch, head[drafter.t2d], step_weights=weights, loss=kind, eta=2.0)
    words = drafter.t2d.nonzero()[:, 0].tolist()
    total = 0.0
    unrolled = drafter.unroll(batch.ids, batch.hiddens, 4, positions=batch.positions)
    for j, (hidden, _) in enumerate(unrolled):
        losses, overlaps, hits, marked = [], [], 0, 0
        for b in range(3):
            for t in range(9):
                p = t + 2 + j
                if p >= 9 or not batch.loss_mask[b, p]:
                    continue
                if batch.positions[b, p] != batch.positions[b, t] + 2 + j:
                    continue
                marked += 1
                teacher = (head @ batch.final[b, p - 1]).softmax(0)
                best = int(teacher.argmax())
                if best not in words:
                    continue
                q = drafter.logits(hidden[b, t]).softmax(0).detach()
                losses.append(restated_row(kind, teacher, words, q, 2.0))
                overlaps.append(float(torch.minimum(teacher[words], q).sum()))
                hits += words[int(q.argmax())] == best
        mean = sum(losses) / len(losses)
        total += weights[j] * mean
        assert result.step_losses[j].item() == pytest.approx(mean, rel=1e-4)
        assert result.step_overlaps[j].item() == pytest.approx(
            sum(overlaps) / len(overlaps), rel=1e-4
        )
        assert result.step_rows[j].item() == marked
        assert result.step_valid[j].item() == len(losses)
        assert result.step_accuracies[j].item() == pytest.approx(hits / marked)
    assert result.loss.item() == pytest.approx(total, rel=1e-4)
    assert torch.equal(result.step_valid, count_rows(drafter, batch, 4))


def test_counts_from_outside() -> None:
    """Two halves with the halves' mean counts average to the whole: what data parallelism needs."""
    drafter = tiny_drafter(draft_vocab_size=20)
    batch, head = data()
    head = head[drafter.t2d]
    whole = chain_loss(drafter, batch, head, step_weights=[1.0, 0.5])
    halves = [
        Batch(
            **{
                field.name: tuple(h[part] for h in batch.hiddens)
                if field.name == "hiddens"
                else getattr(batch, field.name)[part]
                for field in dataclasses.fields(batch)
            }
        )
        for part in (slice(0, 1), slice(1, 3))
    ]
    counts = torch.stack([count_rows(drafter, half, 2) for half in halves]).float().mean(0)
    parts = [
        chain_loss(drafter, half, head, step_weights=[1.0, 0.5], counts=counts) for half in halves
    ]
    torch.testing.assert_close((parts[0].loss + parts[1].loss) / 2, whole.loss)
    torch.testing.assert_close((parts[0].step_losses + parts[1].step_losses) / 2, whole.step_losses)


def test_a_perfect_drafter_has_no_loss() -> None:
    """A target whose head is the drafter's, and whose states are the drafter's own."""
    drafter = tiny_drafter(target_hidden_size=24)
    batch, _ = data()
    batch = dataclasses.replace(
        batch,
        hiddens=tuple(torch.randn(3, 9, 24) for _ in range(3)),
        positions=PLACES[:1].expand(3, 9),
    )
    with torch.no_grad():
        own = drafter.unroll(batch.ids, batch.hiddens, 1)[0][0]
    final = torch.cat((own[:, :1], own[:, :-1]), dim=1)
    best = drafter.logits(final).argmax(-1)
    batch = dataclasses.replace(batch, final=final, best=best)
    result = chain_loss(drafter, batch, drafter.lm_head.weight, step_weights=[1.0])
    assert result.loss.item() == pytest.approx(0.0, abs=1e-5)
    assert result.step_accuracies.item() == 1.0
    assert result.step_overlaps.item() == pytest.approx(1.0, abs=1e-5)


def test_gradient_stays_off_teacher_and_masked_rows() -> None:
    drafter = tiny_drafter()
    batch, head = data(positions=PLACES[:1].expand(3, 9))
    batch.loss_mask[:, 6:] = False
    batch.final.requires_grad_()
    head.requires_grad_()
    for h in batch.hiddens:
        h.requires_grad_()
    chain_loss(drafter, batch, head, step_weights=[1.0, 1.0, 1.0]).loss.backward()
    assert batch.final.grad is None
    assert head.grad is None
    for h in batch.hiddens:
        assert h.grad is not None
        # The last marked token x_5 is predicted by row 3 at the latest.
        assert h.grad[:, :4].abs().sum() > 0
        assert h.grad[:, 4:].abs().sum() == 0


def test_nothing_to_learn() -> None:
    drafter = tiny_drafter()
    batch, head = data(positions=PLACES[:1].expand(3, 9))
    nothing = dataclasses.replace(batch, loss_mask=torch.zeros(3, 9, dtype=torch.bool))
    result = chain_loss(drafter, nothing, head, step_weights=[1.0, 1.0])
    result.loss.backward()
    assert result.loss.item() == 0.0
    assert result.step_rows.tolist() == [0, 0]
    # Every parameter that the unroll uses has a gradient all the same: data parallelism waits.
    assert all(p.grad is not None for p in drafter.parameters())
    # A chain longer than the sequence has no rows in its last steps.
    everything = dataclasses.replace(batch, loss_mask=torch.ones(3, 9, dtype=torch.bool))
    long = chain_loss(drafter, everything, head, step_weights=[1.0] * 9)
    assert long.step_rows.tolist() == [3 * max(7 - j, 0) for j in range(9)]
    assert torch.isfinite(long.loss)


def test_training_lowers_the_loss(variant: dict[str, Any]) -> None:
    drafter = tiny_drafter(**variant)
    batch, head = data()
    optimizer = torch.optim.AdamW(drafter.parameters(), lr=1e-2)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        result = chain_loss(drafter, batch, head, step_weights=[1.0, 0.8, 0.64])
        result.loss.backward()
        optimizer.step()
        losses.append(result.loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_what_the_target_computes() -> None:
    target = make_target("llama")
    drafter = Eagle3Drafter(DrafterConfig.for_target(target.config))
    ids = torch.randint(61, (2, 7))
    batch = observe(target, drafter, ids, torch.ones_like(ids))
    logits = target(ids).logits
    torch.testing.assert_close(target.lm_head(batch.final), logits)
    assert torch.equal(batch.best, logits.argmax(-1))
    torch.testing.assert_close(batch.logsumexp, logits.logsumexp(-1))
    with drafter.capture(target) as aux:
        target(ids)
    for ours, theirs in zip(batch.hiddens, aux.hiddens, strict=True):
        assert torch.equal(ours, theirs)


def test_errors() -> None:
    drafter = tiny_drafter()
    batch, head = data()
    with pytest.raises(ValueError, match="step_weights: got none"):
        chain_loss(drafter, batch, head, step_weights=[])
    with pytest.raises(ValueError, match="loss: got 'mse'"):
        chain_loss(drafter, batch, head, step_weights=[1.0], loss="mse")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="counts: got shape"):
        chain_loss(drafter, batch, head, step_weights=[1.0], counts=torch.ones(2))
    with pytest.raises(ValueError, match="teacher_weight: got shape"):
        chain_loss(drafter, batch, head[:-1], step_weights=[1.0])
    with pytest.raises(ValueError, match="loss_mask: got shape"):
        dataclasses.replace(batch, loss_mask=batch.loss_mask[:, 1:])
    with pytest.raises(ValueError, match="hiddens: got shape"):
        dataclasses.replace(batch, hiddens=(batch.hiddens[0][:, 1:],))


def test_import_leaves_transformers_alone() -> None:
    code = "import sys, leeboard.draft; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
