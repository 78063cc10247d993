"""The Triton panel_linear against the reference: widths, ragged panels, padding, both directions."""

from __future__ import annotations

import pytest
import torch
from weights import weight

from leeboard import reference
from leeboard.kernels import _panels, panel_linear
from leeboard.reference.panel_linear import panel_indices
from rows import assert_gaps_untouched, poisoned, rows
from tolerances import assert_close_to_reference


def index(entries, device):
    return None if entries is None else torch.tensor(entries, dtype=torch.int32, device=device)


def wide(t):
    return None if t is None else t.double()


def check(M, N, K, entries, panel, over, dtype, device, *, extras=True):
    """`entries` of a weight [N, K]; x has NaN where the list is padding."""
    w, panels = weight(N, K, "plain", dtype, device), index(entries, device)
    size = N if over == "outputs" else K
    n = -(-size // panel) if entries is None else len(entries)
    x = rows(M, K if over == "outputs" else n * panel, dtype, device, gap=3)
    if over == "inputs":
        _, there = panel_indices(panels, size, panel, torch.device(device))
        x[:, ~there] = float("nan")
    columns = n * panel if over == "outputs" else N
    bias = rows(1, N, dtype, device)[0] if extras else None
    residual = rows(M, columns, dtype, device, gap=1) if extras else None
    out = poisoned(M, columns, dtype, device, gap=2)
    panel_linear.forward(x, w, panels, bias, residual, out, panel=panel, over=over)
    options = {"panel": panel, "over": over}
    low = reference.panel_linear(x, w, panels, bias, residual=residual, **options)
    exact = reference.panel_linear(
        x.double(), w.double(), panels, wide(bias), residual=wide(residual), **options
    )
    assert_close_to_reference(out, low, exact)
    assert_gaps_untouched(out)
    return out


# Sizes: a ragged last panel of each width. 1 and 2 rows are streamed, the others go through tl.dot.
LISTS = {
    "all": None,
    "some": [3, 0, 2],
    "last": [1, 4],
    "padded": [2, -1, 4, 0, -1, -1],
    "outside": [9, 1, -7],
    "none": [-1, -1],
    "empty": [],
}


@pytest.mark.parametrize("over", ["outputs", "inputs"])
@pytest.mark.parametrize("M", [1, 20], ids=lambda m: f"M{m}")
@pytest.mark.parametrize("entries", LISTS.values(), ids=LISTS)
def test_lists(entries, M, over, dtype, device):
    size = 70
    N, K = (size, 100) if over == "outputs" else (37, size)
    check(M, N, K, entries, 16, over, dtype, device)


@pytest.mark.parametrize("over", ["outputs", "inputs"])
@pytest.mark.parametrize("panel", [1, 3, 8, 24, 32, 64])
@pytest.mark.parametrize("M", [2, 5], ids=lambda m: f"M{m}")
def test_widths(M, panel, over, dtype, device):
    size = 2 * panel + (panel + 1) // 2
    N, K = (size, 40) if over == "outputs" else (21, size)
    check(M, N, K, [2, -1, 0], panel, over, dtype, device, extras=False)


@pytest.mark.parametrize("M", [2, 5], ids=lambda m: f"M{m}")
def test_long_lists(M, device):
    """The end of the list is found over several blocks."""
    entries = [*range(0, 1500, 7), *[-1] * 900, 3, *[-1] * 300]
    check(M, 5, 1500, entries, 1, "inputs", torch.float32, device)


@pytest.mark.parametrize("over", ["outputs", "inputs"])
def test_padding_changes_no_bit(over, device):
    """A list behind which there is padding is the list: one CUDA graph serves both."""
    results = []
    for padding in ([], [-1] * 7):
        torch.manual_seed(5)
        w = weight(80, 80, "plain", torch.float32, device)
        x = rows(5, 80, torch.float32, device)
        panels = index([4, 1, 2, *padding], device)
        n = panels.shape[0]
        if over == "inputs":
            x = torch.nn.functional.pad(x[:, :48], (0, 16 * len(padding)), value=float("nan"))
        out = poisoned(5, 16 * n if over == "outputs" else 80, torch.float32, device)
        panel_linear.forward(x, w, panels, None, None, out, panel=16, over=over)
        results.append(out)
    width = results[0].shape[1]
    assert torch.equal(results[1][:, :width], results[0])
    assert not results[1][:, width:].any()


@pytest.mark.parametrize("M", [2, 5], ids=lambda m: f"M{m}")
def test_wider_rows(M, device):
    """float32 rows on a float16 weight, as the hidden values of panel_ffn are."""
    w, panels = weight(33, 64, "plain", torch.float16, device), index([3, 0], device)
    x = rows(M, 32, torch.float32, device)
    out = poisoned(M, 33, torch.float16, device, gap=2)
    panel_linear.join(x, w, panels, None, None, out, panel=16)
    exact = reference.panel_linear(x.double(), w.double(), panels, over="inputs")
    low = reference.panel_linear(x, w, panels, over="inputs").half()
    assert_close_to_reference(out, low, exact)


@pytest.mark.parametrize("over", ["outputs", "inputs"])
def test_nothing_to_do(over, device):
    x, w = rows(0, 32, torch.float32, device), rows(32, 32, torch.float32, device)
    panel_linear.forward(x, w, None, None, None, torch.empty_like(x), panel=16, over=over)


def test_runs_are_what_stays_together():
    for panel, run in ((1, 1), (2, 2), (3, 1), (16, 16), (24, 8), (32, 16), (48, 16), (100, 4)):
        assert _panels.run_of(panel) == run
