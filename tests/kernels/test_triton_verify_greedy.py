"""The greedy walk against the reference: chains, trees, gaps between rows."""

from __future__ import annotations

import pytest
import torch

from leeboard import reference
from leeboard.kernels import verify_greedy
from verify_inputs import apart, assert_equal_outputs, integers, outputs, trees


@pytest.mark.parametrize("kind", ["chain", "shared", "own"])
@pytest.mark.parametrize(("B", "N"), [(1, 1), (7, 16), (5, 17), (3, 70), (4, 0)])
def test_random(B, N, kind, device):
    tokens, target = integers(B, N, 2, device), integers(B, N + 1, 2, device)
    parents = trees(B, N, kind, device)
    found = outputs(B, N, device)
    table = parents[None] if kind == "shared" else parents
    verify_greedy.forward(apart(tokens), apart(target), table, *found)
    assert_equal_outputs(found, reference.verify_greedy(tokens, target, parents=parents))


def test_no_sequences(device):
    tokens = torch.empty((0, 3), dtype=torch.int64, device=device)
    found = outputs(0, 3, device)
    verify_greedy.forward(tokens, tokens.new_empty((0, 4)), None, *found)
    assert found[0].shape == (0,)


def test_config():
    assert verify_greedy.config(0)["NODES"] == 16
    assert verify_greedy.config(60) == {"NODES": 64, "num_warps": 1, "enable_fp_fusion": True}
    assert verify_greedy.config(5000)["NODES"] == 8192
