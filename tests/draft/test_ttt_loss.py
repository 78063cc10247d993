"""ttt_loss against a row-by-row restatement."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from drafter_models import tiny_drafter
from leeboard.draft import ttt_loss


def data(vocab: int = 37) -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
    torch.manual_seed(3)
    ids = torch.randint(vocab, (3, 9))
    logits = 3 * torch.randn(3, 9, vocab)
    hiddens = [torch.randn(3, 9, 18) for _ in range(3)]
    return logits, ids, hiddens, torch.rand(3, 9) < 0.7


@pytest.mark.parametrize("draft_vocab", [37, 20])
def test_equals_the_definition(draft_vocab: int) -> None:
    drafter = tiny_drafter(draft_vocab_size=draft_vocab)
    logits, ids, hiddens, mask = data()
    result = ttt_loss(drafter, logits, ids, hiddens, mask, 4, decay=0.5)
    words = drafter.t2d.nonzero()[:, 0].tolist()
    total = 0.0
    for j, (hidden, _) in enumerate(drafter.unroll(ids, hiddens, 4)):
        divergences, hits, marked = [], 0, 0
        for b in range(3):
            for t in range(9):
                if t + 2 + j >= 9 or not mask[b, t + 2 + j]:
                    continue
                marked += 1
                teacher = logits[b, t + 1 + j]
                best = int(teacher.argmax())
                if best not in words:
                    continue
                p = teacher[words].softmax(0)
                q = drafter.logits(hidden[b, t]).softmax(0)
                divergences.append(float((p * (p / q).log()).sum().detach()))
                hits += words[int(q.argmax())] == best
        mean = sum(divergences) / len(divergences)
        total += 0.5**j * mean
        assert result.step_losses[j].item() == pytest.approx(mean, rel=1e-4)
        assert result.step_rows[j].item() == marked
        assert result.step_accuracies[j].item() == pytest.approx(hits / marked)
    assert result.loss.item() == pytest.approx(total, rel=1e-4)


def test_a_perfect_drafter_has_no_loss() -> None:
    """With the teacher's logits equal to the drafter's own at every row, KL is zero."""
    drafter = tiny_drafter()
    _, ids, hiddens, mask = data()
    with torch.no_grad():
        own = drafter.logits(drafter.unroll(ids, hiddens, 1)[0][0])
    teacher = torch.cat((own[:, :1], own[:, :-1]), dim=1)
    result = ttt_loss(drafter, teacher, ids, hiddens, mask, 1)
    assert result.loss.item() == pytest.approx(0.0, abs=1e-5)
    assert result.step_accuracies.item() == 1.0


def test_gradient_stays_off_teacher_and_masked_rows() -> None:
    drafter = tiny_drafter()
    logits, ids, hiddens, mask = data()
    mask[:, 6:] = False
    logits.requires_grad_()
    hiddens = [h.requires_grad_() for h in hiddens]
    ttt_loss(drafter, logits, ids, hiddens, mask, 3).loss.backward()
    assert logits.grad is None
    for h in hiddens:
        assert h.grad is not None
        # The last marked token x_5 is predicted by row 3 at the latest.
        assert h.grad[:, :4].abs().sum() > 0
        assert h.grad[:, 4:].abs().sum() == 0


def test_nothing_to_learn() -> None:
    drafter = tiny_drafter()
    logits, ids, hiddens, mask = data()
    result = ttt_loss(drafter, logits, ids, hiddens, torch.zeros_like(mask), 2)
    result.loss.backward()
    assert result.loss.item() == 0.0
    assert result.step_rows.tolist() == [0, 0]
    # A chain longer than the sequence has no rows in its last steps.
    long = ttt_loss(drafter, logits, ids, hiddens, torch.ones_like(mask), 9)
    assert long.step_rows.tolist() == [3 * max(7 - j, 0) for j in range(9)]
    assert torch.isfinite(long.loss)


def test_training_lowers_the_loss(variant: dict[str, Any]) -> None:
    drafter = tiny_drafter(**variant)
    logits, ids, hiddens, mask = data()
    optimizer = torch.optim.AdamW(drafter.parameters(), lr=1e-2)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        result = ttt_loss(drafter, logits, ids, hiddens, mask, 3)
        result.loss.backward()
        optimizer.step()
        losses.append(result.loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_errors() -> None:
    drafter = tiny_drafter()
    logits, ids, hiddens, mask = data()
    with pytest.raises(ValueError, match="target_logits: got shape"):
        ttt_loss(drafter, logits[..., :-1], ids, hiddens, mask, 2)
    with pytest.raises(ValueError, match="loss_mask: got shape"):
        ttt_loss(drafter, logits, ids, hiddens, mask[:, 1:], 2)
    with pytest.raises(ValueError, match="steps: got 0"):
        ttt_loss(drafter, logits, ids, hiddens, mask, 0)


def test_import_leaves_transformers_alone() -> None:
    code = "import sys, leeboard.draft; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
