"""Gradients of the chain's loss on wanted rows alone, under autocast, and under data parallelism."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_chain_loss import data
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from drafter_models import tiny_drafter
from leeboard.draft import Batch, Drafter, Eagle3Drafter, chain_loss

WEIGHTS = [1.0, 0.8, 0.64]


def gradients(drafter: nn.Module) -> dict[str, Tensor]:
    found = {}
    for name, parameter in drafter.named_parameters():
        assert parameter.grad is not None, name
        found[name.removeprefix("module.drafter.")] = parameter.grad.clone()
    drafter.zero_grad()
    return found


@pytest.mark.parametrize(
    "options", [{}, {"sliding_window": 2, "attention_sinks": 1}], ids=["full", "window"]
)
def test_rows_without_a_loss_are_left_out(
    options: dict[str, Any], variant: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The unroll of the wanted rows has the loss and the gradients of the unroll of all."""
    drafter = tiny_drafter(draft_vocab_size=20, **variant, **options)
    batch, head = data()
    head = head[drafter.t2d]
    ours = chain_loss(drafter, batch, head, step_weights=WEIGHTS)
    ours.loss.backward()
    found = gradients(drafter)
    monkeypatch.setattr(Eagle3Drafter, "iter_rows", Drafter.iter_rows)
    whole = chain_loss(drafter, batch, head, step_weights=WEIGHTS)
    whole.loss.backward()
    torch.testing.assert_close(ours.loss, whole.loss)
    for name, gradient in gradients(drafter).items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


def test_gradients_under_autocast(variant: dict[str, Any]) -> None:
    drafter = tiny_drafter(**variant)
    batch, head = data()
    chain_loss(drafter, batch, head, step_weights=WEIGHTS).loss.backward()
    exact = gradients(drafter)
    with torch.autocast("cpu", torch.bfloat16):
        steps = drafter.unroll(batch.ids, batch.hiddens, 2, positions=batch.positions)
        rough = chain_loss(drafter, batch, head, step_weights=WEIGHTS)
    # The residual stream stays in the parameters' type.
    assert all(t.dtype == torch.float32 for step in steps for t in step)
    rough.loss.backward()
    for name, gradient in gradients(drafter).items():
        assert gradient.dtype == torch.float32
        error = (gradient - exact[name]).norm() / exact[name].norm()
        # Some ten roundings of 2^-9 each way and step.
        assert error < 0.1, (name, error)
    assert not torch.equal(rough.loss, torch.zeros(()))


class Objective(nn.Module):
    """What data parallelism wraps: a drafter whose forward pass is its loss."""

    def __init__(self, drafter: Eagle3Drafter) -> None:
        super().__init__()
        self.drafter = drafter

    def forward(self, batch: Batch, head: Tensor) -> Tensor:
        return chain_loss(self.drafter, batch, head, step_weights=WEIGHTS).loss


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("marked", [True, False], ids=["rows", "nothing-to-learn"])
def test_no_parameter_is_unused_in_data_parallelism(
    marked: bool, variant: dict[str, Any], one_process: None
) -> None:
    """DDP raises in the second pass if a parameter had no gradient in the first."""
    drafter = tiny_drafter(**variant)
    batch, head = data()
    batch = dataclasses.replace(batch, loss_mask=batch.loss_mask & marked)
    parallel = DistributedDataParallel(Objective(drafter))
    for _ in range(2):
        drafter.zero_grad()
        parallel(batch, head).backward()
    found = gradients(parallel)
    chain_loss(drafter, batch, head, step_weights=WEIGHTS).loss.backward()
    for name, gradient in gradients(drafter).items():
        torch.testing.assert_close(found[name], gradient)
