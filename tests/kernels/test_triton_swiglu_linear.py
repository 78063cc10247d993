"""The gated feed-forward block against the reference, on every weight format."""

from __future__ import annotations

import pytest
import torch
from weights import FORMATS, doubled, weight

from leeboard import reference
from leeboard.kernels import swiglu_linear
from rows import assert_gaps_untouched, poisoned, rows
from tolerances import assert_close_to_reference

EPS = 1e-5


def check(N, H, inner, forms, dtype, device, norm, residual):
    x = rows(N, H, dtype, device, gap=3)
    sizes = ((inner, H), (inner, H), (H, inner))
    matrices = [weight(*size, f, dtype, device) for size, f in zip(sizes, forms, strict=True)]
    options = {
        "norm_weight": rows(1, H, dtype, device)[0] if norm else None,
        "residual": rows(N, H, dtype, device, gap=1) if residual else None,
    }
    out = poisoned(N, H, dtype, device, gap=2)
    swiglu_linear.forward(x, *matrices, out, options["norm_weight"], EPS, options["residual"])
    low = reference.swiglu_linear(x, *matrices, eps=EPS, **options)
    exact = reference.swiglu_linear(
        x.double(),
        *[doubled(m) for m in matrices],
        eps=EPS,
        **{name: None if t is None else t.double() for name, t in options.items()},
    )
    assert_close_to_reference(out, low, exact)
    assert_gaps_untouched(out)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("N", [1, 2, 20], ids=lambda n: f"N{n}")
@pytest.mark.parametrize("options", [(False, False), (True, True)], ids=["plain", "norm-residual"])
def test_random(N, form, options, dtype, device):
    check(N, 70, 131, (form,) * 3, dtype, device, *options)


@pytest.mark.parametrize("N", [1, 3], ids=lambda n: f"N{n}")
def test_formats_of_two_launches_may_differ(N, device):
    check(N, 70, 131, ("int4", "int4", "plain"), torch.float32, device, True, True)
    check(N, 70, 131, ("int8", "int8", "int4"), torch.float32, device, True, False)


def test_nothing_to_do(device):
    check(0, 7, 9, ("plain",) * 3, torch.float32, device, True, True)
