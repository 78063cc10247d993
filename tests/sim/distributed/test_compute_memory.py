"""What tensors take: storages from the op that makes them until they are gone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses import FakeTensorMode

from compute_core import metered
from leeboard.sim import Platform
from leeboard.sim.distributed.compute import RooflineMeter, meter
from leeboard.sim.distributed.compute.memory import _watched
from leeboard.sim.distributed.launch import launch

STAR = Platform.star(2, bandwidth="1 Gbit/s")


def chain() -> None:
    x = torch.ones(1000)
    y = x + 1
    del x
    z = y.view(10, 100)[2:].t()
    y = z * 2
    del z
    del y


def in_place() -> None:
    x = torch.empty(1000)
    x.add_(1).mul_(2)
    torch.add(x, x, out=x)
    x.resize_(2000)


def resized() -> None:
    x = torch.ones(100)
    x.untyped_storage().resize_(0)
    x.untyped_storage().resize_(800)


@pytest.mark.parametrize("fake", [False, True])
@pytest.mark.parametrize(
    ("program", "expected"),
    [
        # Both ones and the sum; the product of the 800 elements that the view has; all gone.
        (chain, [8000, -4000, 3200, -7200]),
        (in_place, [8000, -8000]),
        (resized, [400, -400, 800, -800]),
        (lambda: torch.ones(10).view(2, 5).sum(), [44, -44]),
    ],
)
def test_storages(program: Callable[[], object], expected: list[int], fake: bool) -> None:
    """New storages count once, views and in-place ops do not; real and fake."""
    with ExitStack() as stack:
        if fake:
            stack.enter_context(FakeTensorMode())
        rank = metered(RooflineMeter(memory=True), program)
    assert rank.memory == expected
    assert sum(rank.memory) == 0
    assert not _watched


def test_a_training_step_holds_weights_gradients_and_activations() -> None:
    """The peak of a step of two layers, by hand."""
    rows, width = 64, 32

    def program() -> None:
        model = nn.Sequential(nn.Linear(width, width, bias=False), nn.ReLU())
        out = model(torch.ones(rows, width))
        out.sum().backward()

    rank = metered(RooflineMeter(memory=True), program)
    held = peak = 0
    for change in rank.memory:
        held += change
        peak = max(peak, held)
    weights, activations = 4 * width * width, 4 * rows * width
    assert weights + 3 * activations <= peak <= 2 * weights + 5 * activations


def test_not_asked_for() -> None:
    """Without `memory` nothing is followed, and resize_ is torch's own."""
    before = torch.UntypedStorage.resize_
    assert metered(RooflineMeter(), chain).memory == []
    metered(RooflineMeter(memory=True), chain)
    assert torch.UntypedStorage.resize_ is before
    for mode in ("measured", "none"):
        with pytest.raises(ValueError, match="memory: given with compute"):
            meter(mode, STAR, 0, memory=True)


def hungry() -> None:
    dist.init_process_group("gloo")
    x = torch.zeros(1 << (16 + 4 * dist.get_rank()))
    dist.barrier()
    del x


def test_a_device_that_is_too_small() -> None:
    """The run says which rank asked for too much, and each rank's peak."""
    small = STAR.with_devices("*", memory="1 MiB")
    result = launch(hungry, small, compute="roofline", memory=True).result
    assert result.ranks["peak_memory"].tolist() == [4 << 16, 4 << 20]
    assert [lack.rank for lack in result.out_of_memory] == [1]
