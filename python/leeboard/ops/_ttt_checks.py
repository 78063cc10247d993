"""What `ttt_loss` asks of its arguments."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from leeboard.ops import _check
from leeboard.ops._check import FLOAT_DTYPES
from leeboard.ops._library import check_out

LOSSES = ("kl", "lk_alpha", "lk_lambda")


def check_arguments(
    hidden: Tensor,
    weight: Tensor,
    teacher: Tensor,
    teacher_weight: Tensor,
    row_weight: Tensor,
    teacher_logsumexp: Tensor | None,
) -> None:
    """The tensors: kinds, dtypes, devices and shapes that go together."""
    width = _check.rows("hidden", hidden)
    if hidden.dim() != 3:
        raise ValueError(f"hidden: shape {list(hidden.shape)} was given; expected [S, N, H]")
    steps, count, _ = hidden.shape
    head("weight", weight, "hidden", hidden)
    vocabulary = weight.shape[0]
    _check.shape("weight", weight, (vocabulary, width), "V and the last dimension of hidden")
    target_width = _check.rows("teacher", teacher)
    _check.companion("teacher", teacher, "hidden", hidden, FLOAT_DTYPES)
    _check.shape("teacher", teacher, (count, target_width), "N of hidden and Ht")
    head("teacher_weight", teacher_weight, "teacher", teacher)
    expected = (vocabulary, target_width)
    _check.shape("teacher_weight", teacher_weight, expected, "V of weight and Ht of teacher")
    _check.values("row_weight", row_weight, hidden)
    _check.shape("row_weight", row_weight, (steps, count), "S and N of hidden")
    if teacher_logsumexp is not None:
        _check.values("teacher_logsumexp", teacher_logsumexp, hidden)
        _check.shape("teacher_logsumexp", teacher_logsumexp, (count,), "N of hidden")


def head(name: str, weight: Tensor, like_name: str, like: Tensor) -> None:
    """A matrix with a row at least, of the dtype of `like` or, for a 16-bit one, float32."""
    wider = (torch.float32,) if like.dtype.itemsize == 2 else ()
    _check.companion(name, weight, like_name, like, wider)
    if weight.dim() != 2 or weight.shape[0] == 0:
        raise ValueError(
            f"{name}: shape {list(weight.shape)} was given; "
            f"expected [V, {like.shape[-1]}] with V >= 1"
        )


def check_options(loss: object, eta: object, softcap: object) -> tuple[float, float | None]:
    """The loss by its name; eta and softcap as floats."""
    if loss not in LOSSES:
        raise ValueError(f"loss: {loss!r} was given; expected one of {', '.join(LOSSES)}")
    _check.number("eta", eta)
    if not 0 <= float(eta) < float("inf"):  # type: ignore[arg-type]
        raise ValueError(f"eta: {eta} was given; expected a finite number >= 0")
    if softcap is None:
        return float(eta), None  # type: ignore[arg-type]
    _check.number("softcap", softcap)
    if not 0 < float(softcap) < float("inf"):  # type: ignore[arg-type]
        raise ValueError(f"softcap: {softcap} was given; expected a finite number > 0 or None")
    return float(eta), float(softcap)  # type: ignore[arg-type]


def check_result(hidden: Tensor, out: Sequence[Tensor]) -> None:
    """`out=`: four tensors that can take the result."""
    _check.several("out", out, 4)
    rows = hidden.shape[:2]
    for i, (size, meaning) in enumerate(
        (((), "one number"), (rows, "S and N"), (rows, "S and N"), (rows, "S and N"))
    ):
        name = f"out[{i}]"
        if i == 2:
            if out[i].dtype != torch.bool:
                raise ValueError(f"{name}: dtype {out[i].dtype} was given; expected torch.bool")
            _check.companion(name, out[i], "hidden", hidden, (torch.bool,))
        else:
            _check.values(name, out[i], hidden)
        _check.shape(name, out[i], size, meaning)
        _check.memory(name, out[i])
    check_out("ttt_loss", **{f"out[{i}]": t for i, t in enumerate(out)})
