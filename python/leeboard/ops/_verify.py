"""What the two verification ops share: shapes of drafts and outputs, checks of values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from leeboard import _C
from leeboard.ops import _check
from leeboard.ops._library import check_out
from leeboard.ops._state import state
from leeboard.reference._verify import UNIT, masses

Outputs = tuple[Tensor, ...]


def check_tree(draft_tokens: object, parents: object) -> tuple[int, int]:
    """Draft tokens [B, N] and parents [N] or [B, N], both int64; returns B and N."""
    _check.tensor("draft_tokens", draft_tokens)
    assert isinstance(draft_tokens, Tensor)
    _check.integers("draft_tokens", draft_tokens, "draft_tokens", draft_tokens)
    if draft_tokens.dim() != 2:
        raise ValueError(
            f"draft_tokens: shape {list(draft_tokens.shape)} was given; expected [B, N]"
        )
    sequences, nodes = draft_tokens.shape
    if parents is not None:
        _check.integers("parents", parents, "draft_tokens", draft_tokens)
        assert isinstance(parents, Tensor)
        if tuple(parents.shape) not in ((nodes,), (sequences, nodes)):
            raise ValueError(
                f"parents: shape {list(parents.shape)} was given; expected [{nodes}] or "
                f"[{sequences}, {nodes}] to go with draft_tokens [B, N]"
            )
    return sequences, nodes


def check_outputs(op: str, out: object, draft_tokens: Tensor, with_path: bool) -> None:
    """The tensors to write: accepted [B], next_token [B] and, for a tree, path [B, N]."""
    shapes = [draft_tokens.shape[:1], draft_tokens.shape[:1]]
    if with_path:
        shapes.append(draft_tokens.shape)
    _check.several("out", out, len(shapes))
    assert isinstance(out, Sequence)
    for i, (tensor, shape) in enumerate(zip(out, shapes, strict=True)):
        _check.integers(f"out[{i}]", tensor, "draft_tokens", draft_tokens)
        _check.shape(f"out[{i}]", tensor, shape, "the shape of the result")
        _check.memory(f"out[{i}]", tensor)
    check_out(op)


def write(out: Outputs, results: Outputs) -> Outputs:
    """Copies results into the tensors of `out=`, which it returns."""
    for given, result in zip(out, results, strict=True):
        given.copy_(result)
    return tuple(out)


def empty(draft_tokens: Tensor, with_path: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Fresh outputs of a registered op; the path of a chain has no columns."""
    sequences, nodes = draft_tokens.shape
    sizes = ((sequences,), (sequences,), (sequences, nodes if with_path else 0))
    first, second, third = (
        torch.empty(size, dtype=torch.int64, device=draft_tokens.device) for size in sizes
    )
    return first, second, third


def check_parents(parents: Tensor) -> None:
    """Every node's parent precedes it; -1 is the root."""
    places = torch.arange(parents.shape[-1], device=parents.device)
    wrong = (parents < -1) | (parents >= places)
    _check.refuse_first("parents", parents, wrong, "-1 or an earlier node")


def check_uniforms(uniforms: Tensor) -> None:
    """Every number is one of [0, 1)."""
    inside = (uniforms >= 0) & (uniforms < 1)
    _check.refuse_first("uniforms", uniforms, ~inside, "a number of [0, 1)")


def tolerance(dtype: torch.dtype, vocabulary: int) -> float:
    """How far the sum of a row may be from one.

    Two roundings of every probability to its dtype (a softmax and a renormalisation, say), the
    largest error of a softmax's float32 sum in eight lanes, V / 8 additions of half an epsilon
    each, and what values below the normal range lose. float64 rows may come from float32 ones.
    """
    single = torch.finfo(torch.float32)
    info = single if dtype == torch.float64 else torch.finfo(dtype)
    subnormal = info.smallest_normal * info.eps
    return 2 * info.eps + vocabulary * (single.eps / 16 + subnormal)


def check_distributions(name: str, probs: Tensor) -> None:
    """Rows [..., V] of numbers >= 0 that sum to one."""
    allowed = tolerance(probs.dtype, probs.shape[-1])
    row = None
    if probs.device.type == "cpu" and not probs.is_neg():
        row = _C.first_bad_distribution(probs, allowed, state().level)
    if row is None:
        row = first_bad_row(probs, allowed)
    if row < 0:
        return
    place = [int(i) for i in torch.unravel_index(torch.tensor(row), probs.shape[:-1])]
    values = probs[tuple(place)]
    wrong = ~((values >= 0) & values.isfinite())
    if bool(wrong.any()):
        token = int(wrong.nonzero()[0])
        raise ValueError(
            f"{name}: {values[token].item()} was given at {[*place, token]}; "
            "expected a finite number >= 0"
        )
    raise ValueError(
        f"{name}: row {place} sums to {values.double().sum().item():.9g}; "
        f"expected 1 within {allowed:.3g} ({probs.dtype}, V = {probs.shape[-1]})"
    )


def first_bad_row(probs: Tensor, allowed: float) -> int:
    """The rule of `_C.first_bad_distribution`, for any device, dtype and layout."""
    off = masses(probs).sum(dim=-1).double() / UNIT - 1.0
    bad = ~(probs >= 0).all(dim=-1) | (off.abs() > allowed)
    found = bad.flatten().nonzero()
    return int(found[0]) if found.numel() else -1
