"""The glue between two steps against the reference: one block and several, both feedbacks."""

from __future__ import annotations

import pytest
import torch

from leeboard import reference
from leeboard.kernels import drafter_glue
from rows import assert_gaps_untouched, poisoned, rows
from tolerances import assert_close_to_reference

EPS = 1e-5


def check(N, H, norm_output, dtype, device, wide=None):
    x, embedding = 3.0 * rows(N, H, wide or dtype, device, gap=3), rows(9, H, dtype, device, gap=2)
    gains = [rows(1, H, dtype, device)[0] for _ in range(3)]
    token = torch.randint(0, 9, (N,), device=device)
    joined = poisoned(N, 2 * H, x.dtype, device, gap=5)
    state = poisoned(N, H, x.dtype, device, gap=1)
    drafter_glue.forward(x, token, embedding, *gains, joined, state, EPS, norm_output)
    low = reference.drafter_glue(x, token, embedding, *gains, EPS, norm_output=norm_output)
    doubles = [t.double() for t in (embedding, *gains)]
    exact = reference.drafter_glue(x.double(), token, *doubles, EPS, norm_output=norm_output)
    assert_close_to_reference(joined, low[0], exact[0])
    assert_close_to_reference(state, low[1], exact[1])
    assert_gaps_untouched(joined)
    assert_gaps_untouched(state)


@pytest.mark.parametrize("norm_output", [True, False])
@pytest.mark.parametrize(("N", "H"), [(1, 1), (3, 100), (2, 513)])
def test_random(N, H, norm_output, dtype, device):
    check(N, H, norm_output, dtype, device)


def test_rows_wider_than_the_model(device):
    check(3, 100, True, torch.float16, device, wide=torch.float32)


@pytest.mark.parametrize("norm_output", [True, False])
def test_walks_wide_rows(norm_output, dtype, device, monkeypatch):
    monkeypatch.setattr(drafter_glue, "LIMIT", 4096)
    assert not drafter_glue.config(5000)["ONE_BLOCK"]
    check(2, 5000, norm_output, dtype, device)


def test_no_rows(device):
    check(0, 7, True, torch.float32, device)
