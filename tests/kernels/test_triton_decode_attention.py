"""The split-key attention kernels against the reference, in the interpreter."""

from __future__ import annotations

import math

import pytest
import torch

from leeboard import reference
from leeboard.kernels import decode_attention
from tolerances import assert_close_to_reference


def table(rows, width, device):
    angles = torch.outer(
        torch.arange(rows).double(), 100.0 ** (-torch.arange(0, width, 2).double() / width)
    )
    return angles.cos().float().to(device), angles.sin().float().to(device)


def call(dtype, device, heads, tokens, width, lengths, room=0, rotate=True, **options):
    """(positional, keyword) arguments of the reference; what lies behind the cache is NaN."""
    groups = heads[1]
    C = max(lengths) + tokens + room

    def rows(count, n):
        # Rows that are further apart than they are long.
        values = torch.randn(len(lengths), count, n, width + 3).to(dtype).to(device)
        return values[..., :width]

    args = [rows(heads[0], tokens), rows(groups, tokens), rows(groups, tokens)]
    args += [rows(groups, C), rows(groups, C)]
    for cache in args[3:]:
        for b, length in enumerate(lengths):
            cache[b, :, length:] = math.nan
    args.append(torch.tensor(lengths, device=device))
    if rotate:
        options["cos"], options["sin"] = table(C + 5, width, device)
    return args, options


def run(args, options, append=False):
    q = args[0]
    out = torch.full(q.shape, math.nan, dtype=q.dtype, device=q.device)
    names = ("cos", "sin", "positions", "mask")
    scale = options.get("scale", q.shape[-1] ** -0.5)
    window = options.get("window")
    small = [options.get(name) for name in names]
    decode_attention.forward(
        *args, *small, out, scale, -1 if window is None else window, options.get("sinks", 0), append
    )
    return out


def double(value):
    floating = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.double() if floating else value


def check(args, options):
    low = reference.decode_attention(*args, **options)
    exact = reference.decode_attention(
        *[double(t) for t in args], **{name: double(t) for name, t in options.items()}
    )
    out = run(args, options)
    assert_close_to_reference(out, low, exact)
    return out


@pytest.mark.parametrize("width", [16, 34, 64, 80, 128])
@pytest.mark.parametrize("heads", [(2, 2), (4, 1), (6, 2)], ids=str)
def test_ratios_and_widths(heads, width, dtype, device):
    check(*call(dtype, device, heads, 1, width, (40, 21)))


def test_odd_width(dtype, device):
    check(*call(dtype, device, (2, 1), 2, 17, (40,), rotate=False))


@pytest.mark.parametrize("length", [0, 1, 31, 32, 33, 255, 256, 257, 600])
def test_borders_of_blocks_and_chunks(length, dtype, device):
    check(*call(dtype, device, (2, 1), 2, 16, (length, length // 2), room=3))


@pytest.mark.parametrize(
    "options",
    [
        {"window": 1},
        {"window": 7, "sinks": 3},
        {"window": 100, "sinks": 40},
        {"sinks": 4, "scale": 0.3},
        {"window": 33, "mask": True, "sinks": 2},
        {"mask": True, "positions": True},
    ],
    ids=lambda options: "-".join(options),
)
def test_sights(options, dtype, device):
    for tokens in (1, 5):
        given = dict(options)
        if "mask" in given:
            shape = (2, tokens, tokens) if "window" in given else (tokens, tokens)
            given["mask"] = (torch.rand(shape) < 0.5) | torch.eye(tokens, dtype=torch.bool)
        if "positions" in given:
            given["positions"] = torch.randint(0, 9, (2, tokens))
        check(*call(dtype, device, (4, 2), tokens, 32, (300, 33), **given))


@pytest.mark.parametrize("tokens", [20, 70, 110])
def test_many_tokens(tokens, dtype, device):
    """Several blocks of rows; beyond SPLIT_ROWS one chunk."""
    check(*call(dtype, device, (3, 1), tokens, 16, (40,)))
    check(*call(dtype, device, (1, 1), tokens, 16, (40,), window=50, sinks=2))


@pytest.mark.parametrize("tokens", [1, 5, 25])
def test_appending(tokens, dtype, device):
    args, options = call(dtype, device, (6, 2), tokens, 32, (300, 33), room=4, window=60)
    expected = check(args, options)
    before = [t.clone() for t in args]
    assert torch.equal(run(args, options, append=True), expected)
    exact = [t.clone() for t in before]
    reference.decode_attention_(*exact, **options)
    for b, length in enumerate((300, 33)):
        new = slice(length, length + tokens)
        assert torch.equal(args[4][b, :, new], exact[4][b, :, new])
        torch.testing.assert_close(args[3][b, :, new], exact[3][b, :, new])
        for cache, old in ((args[3], before[3]), (args[4], before[4])):
            assert torch.equal(cache[b, :, :length], old[b, :, :length])
            assert cache[b, :, new.stop :].isnan().all()


def test_a_row_that_sees_a_nan(device):
    args, options = call(torch.float32, device, (2, 2), 1, 16, (300,), rotate=False)
    args[3][0, 0, 7, 3] = math.nan
    out = run(args, options)
    assert out[0, 0].isnan().all()
    assert out[0, 1].isfinite().all()


@pytest.mark.parametrize("length", [-3, 9, 50])
def test_a_wrong_length_leaves_other_memory_alone(length, device):
    """Rows behind the cache are neither written nor read: they hold NaN, and stay."""
    args, options = call(torch.float32, device, (2, 1), 2, 16, (8,))
    caches = [torch.full((1, 1, 90, 16), math.nan, device=device) for _ in range(2)]
    for cache in caches:
        cache[:, :, :10] = 1.0
    args[3:5] = [cache[:, :, :10] for cache in caches]
    args[5] = torch.tensor([length], device=device)
    options["cos"], options["sin"] = (t[:4] for t in (options["cos"], options["sin"]))
    out = run(args, options, append=True)
    assert out.isfinite().all()
    for cache in caches:
        assert cache[:, :, 10:].isnan().all()
        assert cache[:, :, :10].isfinite().all()


def test_no_tokens(device):
    args, options = call(torch.float32, device, (2, 1), 0, 16, (9,))
    assert run(args, options).shape == (1, 2, 0, 16)
