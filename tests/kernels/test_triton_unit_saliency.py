"""The Triton saliency against the reference: widths, strides, runs of tokens."""

from __future__ import annotations

import pytest
import torch

from leeboard import reference
from leeboard.kernels import unit_saliency
from rows import assert_gaps_untouched, poisoned, rows
from tolerances import assert_close_to_reference


def samples(B, T, C, dtype, device):
    """Normal values [B, T, C]; NaNs between the rows and after each sample."""
    storage = torch.full((B, T + 2, C + 3), float("nan"), dtype=dtype, device=device)
    storage[:, :T, :C] = rows(B * T, C, dtype, device).view(B, T, C)
    return storage[:, :T, :C]


def check(B, T, C, width, dtype, device):
    a, g = (samples(B, T, C, dtype, device) for _ in range(2))
    out = poisoned(B, C // width, torch.float32, device, gap=2)
    unit_saliency.forward(a, g, out, width)
    low = reference.unit_saliency(a, g, width=width)
    exact = reference.unit_saliency(a.double(), g.double(), width=width)
    assert_close_to_reference(out, low, exact)
    assert_gaps_untouched(out)
    return out


@pytest.mark.parametrize(
    ("B", "T", "C", "width"),
    [(1, 1, 1, 1), (2, 3, 24, 4), (3, 40, 33, 11), (2, 70, 300, 1), (1, 9, 1100, 1100)],
    ids=lambda n: str(n),
)
def test_random(B, T, C, width, dtype, device):
    check(B, T, C, width, dtype, device)


def test_many_runs_and_blocks(dtype, device, monkeypatch):
    """Runs of 16 tokens, channels in several blocks, units wider than a tile."""
    config = unit_saliency.config
    monkeypatch.setattr(
        unit_saliency, "config", lambda *sizes: config(*sizes) | {"TILES": 2, "BLOCK": 64}
    )
    check(1, 300, 140, 35, dtype, device)
    check(1, 300, 140, 1, dtype, device)


def test_no_tokens_and_no_samples(device):
    empty = torch.empty(2, 0, 6, device=device)
    out = poisoned(2, 3, torch.float32, device)
    unit_saliency.forward(empty, empty, out, 2)
    assert (out == 0).all()
    unit_saliency.forward(empty[:0], empty[:0], out[:0], 2)


def test_repeats_bit_for_bit(device):
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(check(2, 90, 48, 8, torch.float32, device))
    assert torch.equal(*results)


def test_tiles_cover_every_token():
    for T in (0, 1, 8, 9, 31, 33, 500, 100_000):
        for C in (1, 100, 4096):
            tile = unit_saliency.config(T, C, 2)
            assert tile["TILES"] in (1, 2, 4, 8, 16)
            assert tile["ROWS"] * tile["BLOCK"] <= 8192
    for runs in (1, 7, 800):
        for width in (1, 3, 64, 5000):
            tile = unit_saliency.join_config(runs, width)
            assert tile["UNITS"] * tile["CHANNELS"] * tile["ROWS"] == 512
