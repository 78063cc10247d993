"""sparse_gqa: patterns beside SDPA, compiled FlexAttention and eager ProbSparse attention.

Heads of a language model for dense and causal attention; an encoder's for the patterns that leave
something out; and short sequences, whose time is overhead.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.attention import attend, flex, is_prob_sparse, sdpa
from bench.cases import (
    Aim,
    Case,
    Direction,
    Inputs,
    Prepared,
    Subject,
    Variant,
    tensors_of,
    within,
)
from bench.grid import Measure, Point, grid
from leeboard.ops.patterns import Band, Causal, Dense, Modality, Pattern, TopU

FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
# (query heads, key-value heads)
MODEL, ENCODER = (32, 8), (8, 2)
# A forward has two matrix products, its backward five.
TRAINING = 7 / 2
# Scores that a check may hold at a time: of few heads, where they are long.
SCORES = 1 << 23


def _modalities(length: int) -> Modality:
    """Five of them: half the tokens, a quarter, an eighth, and twice a sixteenth."""
    parts = [length // 2, length // 4, length // 8, length // 16]
    return Modality.of_lengths((*parts, length - sum(parts)), window=length // 8, summary=1)


PATTERNS: dict[str, Callable[[int], Pattern]] = {
    "dense": lambda _: Dense(),
    "padded": lambda _: Dense(),
    "causal": lambda _: Causal(),
    "band": lambda length: Band(length // 8),
    "band-both": lambda length: Band(length // 8, causal=False),
    "modality": _modalities,
    "topu": lambda _: TopU(5, seed=0),
}


def _pattern(case: Case) -> Pattern:
    return PATTERNS[case.label](case.shape["L"])


def _case(
    label: str,
    length: int,
    width: int,
    dtype: torch.dtype,
    heads: tuple[int, int] = ENCODER,
    *,
    direction: Direction = "forward",
    aim: Aim | None = None,
    quick: bool = False,
    memory: bool = False,
) -> Case:
    queries, groups = heads
    keys = length - _padding(label, length)

    def flops(pattern: Pattern) -> int:
        done = pattern.flops(length, keys, head_dim=width, heads=queries)
        return round(done * TRAINING) if direction == "training" else done

    pattern = PATTERNS[label](length)
    q_bytes, kv_bytes = (n * length * width * dtype.itemsize for n in (queries, 2 * groups))
    training = direction == "training"
    return Case(
        op="sparse_gqa",
        shape={"L": length, "H": queries, "G": groups, "D": width},
        dtype=dtype,
        direction=direction,
        # Training reads the gradient of the output as well, and writes those of the inputs.
        read=q_bytes + kv_bytes + training * q_bytes,
        written=q_bytes + training * (q_bytes + kv_bytes),
        flops=flops(pattern),
        streams=(4, 2) if training else (3, 1),
        aim=aim,
        quick=quick,
        label=label,
        products=True,
        dense_flops=flops(Dense()) if label in LOCAL and not training else None,
        memory=memory,
    )


LOCAL = ("band", "band-both", "modality")


def _padding(label: str, length: int) -> int:
    return length // 4 if label == "padded" else 0


def _dense_cases() -> list[Case]:
    return [
        _case(
            label,
            length,
            width,
            dtype,
            MODEL,
            aim=Aim(share=0.7, ratios={"sdpa": 1.0}),
            quick=length == 2048 and width == 128,
        )
        for label in ("dense", "causal")
        for length in (512, 2048, 4096)
        for width in (64, 128)
        for dtype in (FLOAT32, BFLOAT16)
    ]


def _local_cases() -> list[Case]:
    shapes = [(label, length) for label in ("band", "modality") for length in (256, 1024, 4096)]
    return [
        _case(
            label,
            length,
            64,
            dtype,
            aim=Aim(ratios={"best": 3.0 if dtype == BFLOAT16 else 1.5}, overhead=1.3),
            quick=length == 1024 and label != "band-both",
            memory=length == 4096,
        )
        for label, length in [*shapes, ("band-both", 1024)]
        for dtype in (FLOAT32, BFLOAT16)
    ]


def _top_u_cases() -> list[Case]:
    return [
        _case(
            "topu",
            length,
            width,
            dtype,
            aim=Aim(ratios={"sdpa": 2.0}) if length >= 256 else None,
            quick=length == 512 and width == 64,
            memory=length == 1024 and width == 64,
        )
        for length in (128, 512, 1024)
        for width, dtype in ((16, FLOAT32), (64, FLOAT32), (64, BFLOAT16))
    ]


def _short_cases() -> list[Case]:
    return [
        _case(
            label,
            length,
            16,
            dtype,
            aim=Aim(ratios={"eager": 2.0}),
            quick=length == 64 and dtype == FLOAT32,
        )
        for label, dtype in (("padded", FLOAT32), ("padded", BFLOAT16), ("band", FLOAT32))
        for length in (32, 64, 128)
    ]


def _training_cases() -> list[Case]:
    return [
        _case(
            label,
            1024,
            64,
            dtype,
            direction="training",
            quick=label == "band" and dtype == FLOAT32,
            memory=True,
        )
        for label in ("dense", "band")
        for dtype in (FLOAT32, BFLOAT16)
    ]


def _gpu_cases() -> list[Case]:
    return [
        _case(label, length, 128, BFLOAT16, MODEL)
        for label in ("dense", "causal", "band", "modality")
        for length in (1024, 4096, 16384)
    ]


def _variants(case: Case) -> tuple[Variant, ...]:
    if case.direction == "training":
        return ("leeboard", "sdpa")
    if case.shape["D"] == 16 and case.label != "topu":
        return ("leeboard", "leeboard-out", "sdpa", "eager")
    if case.label in LOCAL:
        return ("leeboard", "leeboard-dense", "sdpa", "flex")
    if case.label == "topu":
        return ("leeboard", "sdpa", "eager")
    # Compiling takes seconds, so FlexAttention meets one causal shape; nobody needs it for dense.
    if case.label == "causal" and (case.shape["L"], case.shape["D"]) == (2048, 128):
        return ("leeboard", "sdpa", "flex")
    return ("leeboard", "sdpa")


def _inputs(case: Case, device: torch.device) -> Inputs:
    length, width = case.shape["L"], case.shape["D"]

    def rows(heads: int) -> Tensor:
        return torch.randn(1, heads, length, width, device=device).to(case.dtype)

    options = {}
    padding = _padding(case.label, length)
    if padding:
        options["key_padding"] = torch.arange(length, device=device)[None] >= length - padding
    q, k, v = rows(case.shape["H"]), rows(case.shape["G"]), rows(case.shape["G"])
    return Inputs((q, k, v, _pattern(case)), options)


def _own_dense(prepared: Prepared) -> Callable[..., Any]:
    """The op with nothing left out: what its own time of a pattern is measured by."""

    def run(q: Tensor, k: Tensor, v: Tensor, _: Pattern, **options: Any) -> Any:
        return prepared.spec.function(q, k, v, Dense(), **options)

    return run


def _expected(prepared: Prepared, pattern: Pattern) -> tuple[list[int], Tensor, Tensor]:
    """(query heads, their float64 result, the reference's own errors); not all heads if long."""
    if pattern not in prepared.kept:
        q, k, v, _ = prepared.inputs.args
        per_group = q.shape[1] // k.shape[1]
        groups = list(range(k.shape[1]))
        if q.shape[1] * q.shape[2] * k.shape[2] > SCORES:
            groups = [groups[0], groups[-1]]
        heads = [g * per_group + i for g in groups for i in range(per_group)]
        if len(heads) * q.shape[2] * k.shape[2] > SCORES:
            heads = [heads[0], heads[-1]]
        some = (q[:, heads], k[:, groups], v[:, groups])
        attention = functools.partial(prepared.spec.reference, **prepared.inputs.kwargs)
        exact = attention(*(t.detach().double() for t in some), pattern)
        own = attention(*some, pattern).double() - exact
        prepared.kept[pattern] = heads, exact, own
    return prepared.kept[pattern]


def _check(prepared: Prepared, variant: Variant, result: Any) -> None:
    q, k, v, pattern = prepared.inputs.args
    if prepared.case.direction != "forward":
        prepared.check_all(variant, result)
        return
    (out,) = tensors_of(result)
    assert out.dtype == prepared.case.dtype
    assert out.shape == q.shape
    if isinstance(pattern, TopU) and variant == "eager":
        # It samples otherwise, so other rows may be chosen.
        assert is_prob_sparse(out, q, k, v, pattern.queries(q.shape[2]))
        return
    asked = pattern
    if variant == "leeboard-dense" or (isinstance(pattern, TopU) and variant == "sdpa"):
        asked = Dense()
    heads, exact, own = _expected(prepared, asked)
    assert bool(out.isfinite().all())
    within(variant, out[:, heads], exact, float(own.abs().max()), "output")


SUBJECT = Subject(
    op="sparse_gqa",
    cases=[
        *_dense_cases(),
        *_local_cases(),
        *_top_u_cases(),
        *_short_cases(),
        *_training_cases(),
    ],
    inputs=_inputs,
    eager=attend,
    check=_check,
    peers={"sdpa": sdpa, "flex": flex, "leeboard-dense": _own_dense},
    choose=_variants,
    gpu=_gpu_cases(),
    warm=lambda case: replace(case, shape={**case.shape, "L": 64}),
)


@pytest.mark.parametrize("point", grid(SUBJECT))
def test_sparse_gqa(measure: Measure, point: Point) -> None:
    measure(SUBJECT, point)
