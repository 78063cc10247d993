"""The only place where a test's tolerance is stated.

A result is held against the reference run in the same dtype, and both against the reference run in
float64. What rounding to the dtype costs is thereby measured for every case, not guessed: no
constant here belongs to an op or a shape.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# A kernel may sum in another order than the reference, and may round once where the reference
# does too at another place: two independent errors of one size differ by at most about this much.
FACTOR = 2.0


def floors(exact: Tensor, dtype: torch.dtype) -> tuple[float, float]:
    """(RMS, maximum) error that is allowed though the reference happens to be exact.

    Rounding to nearest leaves up to half a unit in the last place, eps / 2 of a value at most,
    and 0.2 eps of it on average: a quarter of eps for the RMS and eps for the maximum, at the
    scale of the tensor. The RMS over few elements is itself uncertain, by 1 / sqrt(n); equal
    elements carry the same error and count once.
    """
    info = torch.finfo(dtype)
    rms = exact.square().mean().sqrt().item()
    peak = exact.abs().max().item()
    uncertain = 0.25 + 1.0 / math.sqrt(exact.float().unique().numel())
    tiny = info.smallest_normal * info.eps
    return info.eps * uncertain * rms + tiny, info.eps * peak + tiny


def nudged(t: Tensor) -> Tensor:
    """In float64, off by up to one unit in the last place of the accumulation dtype."""
    eps = torch.finfo(torch.promote_types(t.dtype, torch.float32)).eps
    noise = torch.empty(t.shape, dtype=torch.float64, device=t.device).uniform_(-eps, eps)
    return t.detach().double() * (1.0 + noise)


def assert_close_to_reference(
    actual: Tensor,
    low: Tensor,
    exact: Tensor,
    factor: float = FACTOR,
    what: str = "result",
    nearby: Tensor | None = None,
) -> None:
    """Fails unless `actual` is about as close to `exact` as `low` is.

    Args:
        actual: The result under test.
        low: The reference's result in the same dtype and of the same shape.
        exact: The reference's result in float64, from the same (rounded) inputs.
        factor: How many times the error of `low` is allowed, as RMS and as maximum.
        what: Named in the message.
        nearby: The reference's result in float64 from inputs that are off by about one unit in the
            last place of the accumulation dtype. For arbitrary inputs: where terms cancel, an
            exact `low` is luck, and an error that such inputs would explain is allowed too.

    Raises:
        AssertionError: For another shape or dtype, NaN or infinity elsewhere than in `low`, or
            more error.
    """
    assert actual.shape == low.shape == exact.shape, (
        f"{what}: shape {tuple(actual.shape)}; the reference has {tuple(low.shape)} "
        f"and in float64 {tuple(exact.shape)}"
    )
    assert actual.dtype == low.dtype, f"{what}: dtype {actual.dtype}, the reference has {low.dtype}"
    assert exact.dtype == torch.float64, f"{what}: exact is {exact.dtype}, not float64"
    got, expected, truth = (t.detach().double() for t in (actual, low, exact))
    for name, test in (("NaN", torch.isnan), ("inf", torch.isposinf), ("-inf", torch.isneginf)):
        differs = test(got) != test(expected)
        assert not differs.any(), (
            f"{what}: {name} where the reference has none, or none where it has: "
            f"{int(differs.sum())} of {got.numel()} elements, first at "
            f"{tuple(differs.nonzero()[0].tolist())}"
        )
    finite = torch.isfinite(expected) & torch.isfinite(truth)
    if not finite.any():
        return
    got, expected, truth = got[finite], expected[finite], truth[finite]
    error, allowed = (got - truth).abs(), (expected - truth).abs()
    if nearby is not None:
        allowed = torch.maximum(allowed, (nearby.detach()[finite] - truth).abs().nan_to_num(0.0))
    rms_floor, max_floor = floors(truth, actual.dtype)
    rms, rms_low = error.square().mean().sqrt().item(), allowed.square().mean().sqrt().item()
    worst, worst_low = error.max().item(), allowed.max().item()
    assert rms <= factor * rms_low + rms_floor, (
        f"{what}: RMS error {rms:.3g}, the reference in {actual.dtype} has {rms_low:.3g}; "
        f"allowed {factor:g} times that + {rms_floor:.3g}"
    )
    assert worst <= factor * worst_low + max_floor, (
        f"{what}: maximum error {worst:.3g} (value {truth[error.argmax()]:.6g}), the reference in "
        f"{actual.dtype} has {worst_low:.3g}; allowed {factor:g} times that + {max_floor:.3g}"
    )
