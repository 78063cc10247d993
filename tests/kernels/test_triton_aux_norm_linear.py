"""The fused norm, concatenation and projection against the reference, on both paths."""

from __future__ import annotations

import pytest
import torch

from leeboard import reference
from leeboard.kernels import aux_norm_linear
from leeboard.kernels._common import STREAM_ROWS
from rows import assert_gaps_untouched, poisoned, rows
from tolerances import assert_close_to_reference

EPS = 1e-5


def check(N, H, F, states, dtype, device, *, with_gammas=True, scale=1.0):
    hiddens = [rows(N, H, dtype, device, gap=i) * scale for i in range(states)]
    hiddens[0] = torch.cat([hiddens[0], torch.full_like(hiddens[0], float("nan"))], 1)[:, :H]
    gammas = [rows(1, H, dtype, device)[0] for _ in range(states)] if with_gammas else None
    weight = rows(F, states * H, dtype, device, gap=3)
    out = poisoned(N, F, dtype, device, gap=5)
    aux_norm_linear.forward(hiddens, gammas, weight, out, EPS)
    low = reference.aux_norm_linear(hiddens, gammas, weight, EPS)
    exact = reference.aux_norm_linear(
        [h.double() for h in hiddens],
        None if gammas is None else [g.double() for g in gammas],
        weight.double(),
        EPS,
    )
    assert_close_to_reference(out, low, exact)
    assert_gaps_untouched(out)


# 1 and STREAM_ROWS rows take the streaming path, 3 and 17 the two smaller `tl.dot` tiles.
@pytest.mark.parametrize("N", [1, STREAM_ROWS, 3, 17], ids=lambda n: f"N{n}")
@pytest.mark.parametrize(("H", "F"), [(1, 1), (7, 3), (100, 37), (257, 33)])
def test_forward(N, H, F, dtype, device):
    check(N, H, F, 3, dtype, device)


@pytest.mark.parametrize("states", [1, 2, 8])
@pytest.mark.parametrize("N", [1, 5], ids=lambda n: f"N{n}")
def test_number_of_states(N, states, dtype, device):
    check(N, 50, 20, states, dtype, device)


@pytest.mark.parametrize("N", [2, 5], ids=lambda n: f"N{n}")
def test_without_gammas(N, dtype, device):
    check(N, 100, 37, 3, dtype, device, with_gammas=False)


@pytest.mark.parametrize("N", [1, 5], ids=lambda n: f"N{n}")
@pytest.mark.parametrize("scale", [2.0**-10, 2.0**12], ids=["tiny", "huge"])
def test_states_far_from_one(N, scale, device):
    """In float16 a product taken before the normalisation would overflow, or lose its bits."""
    check(N, 100, 37, 3, torch.float16, device, scale=scale)


def test_many_rows_take_the_large_tile(device):
    check(130, 70, 130, 2, torch.float16, device)


def test_no_rows(device):
    h = rows(0, 7, torch.float32, device)
    weight = rows(5, 21, torch.float32, device)
    aux_norm_linear.forward([h] * 3, None, weight, poisoned(0, 5, torch.float32, device), EPS)
