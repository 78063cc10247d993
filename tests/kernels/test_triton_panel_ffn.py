"""The Triton panel_ffn against the reference: activations, gates, norms, lists of panels."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from weights import weight

from leeboard import reference
from leeboard.kernels import panel_ffn
from leeboard.reference import FeedForwardWeights
from rows import assert_gaps_untouched, poisoned, rows
from tolerances import assert_close_to_reference

ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu", "identity")


def index(entries, device):
    return None if entries is None else torch.tensor(entries, dtype=torch.int32, device=device)


def doubled(weights):
    tensors = {
        f.name: getattr(weights, f.name).double()
        for f in dataclasses.fields(weights)
        if isinstance(getattr(weights, f.name), torch.Tensor)
    }
    return dataclasses.replace(weights, **tensors)


def same(t):
    return t


def wide(t):
    return None if t is None else t.double()


def block(d, inner, d_out, dtype, device, *, gated=False, biases=True, norm=None, **options):
    """A block whose hidden values are of the size of one."""

    def vector(size):
        return rows(1, size, dtype, device)[0]

    return FeedForwardWeights(
        up=weight(inner, d, "plain", dtype, device, scale=d**-0.5),
        down=weight(d_out, inner, "plain", dtype, device, scale=inner**-0.5),
        up_bias=vector(inner) if biases else None,
        down_bias=vector(d_out) if biases else None,
        gate=weight(inner, d, "plain", dtype, device, scale=d**-0.5) if gated else None,
        gate_bias=vector(inner) if biases and gated else None,
        norm=norm,
        norm_weight=vector(d) if norm and biases else None,
        norm_bias=vector(d) if norm == "layer_norm" and biases else None,
        **options,
    )


def check(x, weights, entries=None, gates=None, samples=1, residual=None, bias=None):
    """`gates` [F] or [B, F] go with x [M, d] of `samples` samples."""
    M, device = x.shape[0], x.device
    panels = index(entries, device)
    out = poisoned(M, weights.down.shape[0], x.dtype, device, gap=2)
    w = weights
    panel_ffn.forward(
        x,
        w.up,
        w.gate,
        w.down,
        w.up_bias,
        w.gate_bias,
        panels,
        None if gates is None else gates.view(-1, w.up.shape[0]),
        M // samples,
        w.down_bias if bias is None else bias,
        residual,
        out,
        activation=w.activation,
        norm=w.norm,
        norm_weight=w.norm_weight,
        norm_bias=w.norm_bias,
        eps=w.eps,
        panel=w.panel,
    )

    low, exact = (
        reference.panel_ffn(
            change(x).view(samples, M // samples, x.shape[1]),
            w if change is same else doubled(w),
            panels,
            bias=change(bias),
            gates=change(gates),
            residual=None if residual is None else change(residual)[None],
        ).flatten(0, 1)
        for change in (same, wide)
    )
    assert_close_to_reference(out, low, exact)
    assert_gaps_untouched(out)
    return out


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("M", [2, 6], ids=lambda m: f"M{m}")
def test_activations(M, activation, gated, dtype, device):
    w = block(40, 38, 21, dtype, device, gated=gated, activation=activation)
    check(rows(M, 40, dtype, device, gap=3), w, [2, 0])


LISTS = {
    "all": None,
    "padded": [2, -1, 4, 0, -1, -1],
    "none": [-1, -1],
    "empty": [],
}


@pytest.mark.parametrize("norm", [None, "layer_norm", "rms_norm"])
@pytest.mark.parametrize("entries", LISTS.values(), ids=LISTS)
@pytest.mark.parametrize("M", [1, 20], ids=lambda m: f"M{m}")
def test_lists_and_norms(M, entries, norm, dtype, device):
    """Norm, residual and a bias of the call's own over every kind of list."""
    w = block(40, 70, 33, dtype, device, norm=norm)
    x = 3.0 * rows(M, 40, dtype, device, gap=3) + 2.0
    bias = rows(1, 33, dtype, device)[0]
    check(x, w, entries, residual=rows(M, 33, dtype, device, gap=1), bias=bias)


@pytest.mark.parametrize("norm", [None, "layer_norm"])
@pytest.mark.parametrize("M", [2, 6], ids=lambda m: f"M{m}")
def test_nothing_optional(M, norm, dtype, device):
    w = block(24, 48, 24, dtype, device, gated=True, biases=False, norm=norm, activation="silu")
    check(rows(M, 24, dtype, device), w, [2, 0])


@pytest.mark.parametrize("M", [2, 6], ids=lambda m: f"M{m}")
@pytest.mark.parametrize("per_sample", [False, True], ids=["one", "per-sample"])
def test_gates(M, per_sample, dtype, device):
    w = block(24, 70, 24, dtype, device)
    gates = rows(2, 70, dtype, device, gap=5)
    gates[0, 17] = 0.0
    check(rows(M, 24, dtype, device), w, [1, 4], gates if per_sample else gates[1], samples=2)


@pytest.mark.parametrize("panel", [1, 3, 24, 32])
@pytest.mark.parametrize("M", [2, 5], ids=lambda m: f"M{m}")
def test_widths(M, panel, dtype, device):
    w = block(24, 2 * panel + (panel + 1) // 2, 24, dtype, device, panel=panel)
    check(rows(M, 24, dtype, device), w, [2, -1, 0])


def test_wide_rows_of_a_norm(device):
    """More columns than a block of the moments' kernel."""
    w = block(5000, 16, 8, torch.float32, device, norm="layer_norm")
    check(rows(2, 5000, torch.float32, device) + 4.0, w)


def test_repeats_bit_for_bit_and_padding_changes_none(device):
    results = []
    for entries in ([3, 1], [3, 1], [3, 1, -1, -1]):
        torch.manual_seed(3)
        w = block(24, 70, 24, torch.float32, device)
        results.append(check(rows(5, 24, torch.float32, device), w, entries))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_nothing_to_do(device):
    w = block(8, 16, 8, torch.float32, device, norm="layer_norm")
    check(rows(0, 8, torch.float32, device), w)
