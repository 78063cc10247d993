"""Inputs of sparse attention for the contract tests, valid and not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import leeboard.ops
from harness import Sample
from leeboard.ops.patterns import Band, Blocks, Causal, Dense, Modality, Pattern, TopU


def normal(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype)


def heads_of(
    dtype: torch.dtype, batch: int, heads: tuple[int, int], rows: tuple[int, int], channels: int
) -> list[Tensor]:
    """q, k and v of (query, key-value) heads and (query, key) rows."""
    sizes = [(heads[0], rows[0]), (heads[1], rows[1]), (heads[1], rows[1])]
    return [normal(dtype, batch, count, length, channels) for count, length in sizes]


def sinks_of(dtype: torch.dtype, heads: int) -> Tensor:
    return normal(torch.promote_types(dtype, torch.float32), heads)


def peaked(q: Tensor, pattern: TopU, segments: Sequence[tuple[int, int]] | None = None) -> Tensor:
    """Queries whose choice no rounding can change: a thousand times the others in the rows to be
    chosen, which are random ones of each head and segment.
    """
    rows = q.shape[2]
    scale = torch.full(q.shape[:3], 1e-3, dtype=torch.float64)
    for begin, end in segments or [(0, rows)]:
        order = torch.rand(*q.shape[:2], end - begin).argsort(-1)
        scale[:, :, begin:end].scatter_(2, order[..., : pattern.queries(end - begin)], 1.0)
    return (q.double() * scale[..., None]).to(q.dtype)


def call(
    batch: int,
    heads: tuple[int, int],
    rows: tuple[int, int],
    channels: int,
    pattern: Pattern,
    padded: Sequence[Sequence[int]] = (),
    sinks: bool = False,
    **options: Any,
) -> Callable[[torch.dtype], Sample]:
    """A sample's builder; `padded` names the keys of each batch that are padding."""

    def build(dtype: torch.dtype) -> Sample:
        q, k, v = heads_of(dtype, batch, heads, rows, channels)
        if isinstance(pattern, TopU):
            q = peaked(q, pattern)
        more: dict[str, Any] = {}
        if padded:
            more["key_padding"] = torch.zeros(batch, rows[1], dtype=torch.bool)
            for b, keys in enumerate(padded):
                more["key_padding"][b, list(keys)] = True
        if sinks:
            more["sink_logits"] = sinks_of(dtype, heads[0])
        return Sample((q, k, v, pattern), {**options, **more})

    return build


def packed(dtype: torch.dtype) -> Sample:
    """Sequences in a row, one of them empty, with more keys than queries and fewer."""
    q, k, v = heads_of(dtype, 1, (6, 2), (41, 47), 24)
    return Sample(
        (q, k, v, Band(7, sinks=1)),
        {
            "cu_seqlens": torch.tensor([0, 13, 13, 33, 41], dtype=torch.int32),
            "cu_seqlens_k": torch.tensor([0, 17, 20, 36, 47], dtype=torch.int32),
            "return_lse": True,
        },
    )


def samples() -> dict[str, Callable[[torch.dtype], Sample]]:
    blocks = Blocks([[0, 1], [], [1, 2, 3], [3], [0, 2]], block=16)
    return {
        # Floating-point tensors alone: transforms of torch.func differentiate in all of them.
        "plain": call(2, (4, 2), (7, 11), 16, Causal()),
        "many": call(1, (8, 2), (300, 300), 32, Band(64, sinks=3)),
        # Many heads: the error of a sink's gradient is one number for each, and a ratio of errors
        # means nothing over a few.
        "everything": call(
            1,
            (30, 5),
            (17, 40),
            40,
            Dense(),
            sinks=True,
            active_heads=(*range(8), *range(10, 30)),
            softcap=1.5,
            scale=0.3,
            return_lse=True,
        ),
        # A batch without any key in sight, and rows without one.
        "padded": call(
            3,
            (4, 4),
            (37, 37),
            80,
            Band(5, sinks=2, causal=False),
            [[3, 4], range(37), range(9, 30)],
        ),
        "more-queries": call(1, (3, 1), (21, 13), 17, Causal(), return_lse=True),
        "modality": call(1, (4, 1), (63, 63), 64, Modality.of_lengths((20, 13, 30), window=4)),
        "blocks": call(2, (2, 2), (70, 50), 33, blocks),
        "composed": call(1, (4, 2), (70, 70), 16, Causal() & (blocks | Band(3, sinks=5))),
        "top-u": call(
            2, (4, 2), (45, 50), 24, TopU(2, seed=7), [[], range(3, 21)], return_lse=True
        ),
        "packed": packed,
        "wide": call(1, (2, 1), (19, 19), 256, Dense()),
        "one": call(1, (1, 1), (1, 1), 1, Band(1)),
        "no-rows": call(2, (4, 2), (0, 5), 8, Dense()),
        "no-keys": call(2, (4, 2), (5, 0), 8, Dense(), sinks=True, return_lse=True),
    }


def arguments(sample: Sample) -> tuple[Any, ...]:
    """Of torch.ops.leeboard.sparse_gqa."""
    q, k, v, pattern = sample.args
    names = ("scale", "active_heads", "key_padding", "cu_seqlens", "cu_seqlens_k", "softcap")
    options = [sample.kwargs.get(name) for name in (*names, "sink_logits")]
    return (q, k, v, pattern.code, *options)


def bad_calls() -> dict[str, tuple[Callable[[], object], type[Exception], str]]:
    """Calls that must raise, the error and its message."""
    q, k = torch.ones(2, 4, 6, 8), torch.ones(2, 2, 6, 8)
    row = torch.ones(1, 4, 6, 8)
    row_k = torch.ones(1, 2, 6, 8)

    def bad(
        error: type[Exception], match: str, *given: Any, **options: Any
    ) -> tuple[Callable[[], object], type[Exception], str]:
        defaults = (q, k, k, Dense())
        args = (*given, *defaults[len(given) :])
        return lambda: leeboard.ops.sparse_gqa(*args, **options), error, match

    def cu(error: type[Exception], match: str, bounds: Any, *more: Any, **options: Any) -> Any:
        given = more or (row, row_k, row_k)
        return bad(error, match, *given, cu_seqlens=bounds, **options)

    whole = torch.tensor([0, 2, 6])
    padding = torch.zeros(2, 6, dtype=torch.bool)
    return {
        "q-list": bad(TypeError, r"q: expected a torch.Tensor, got list", [1.0]),
        "q-int": bad(ValueError, r"q: dtype torch.int64 .* expected float32", q.long()),
        "q-3d": bad(ValueError, r"q: shape \[4, 6, 8\] was given; expected \[B, Hq, Lq, D\]", q[0]),
        "q-D0": bad(ValueError, r"q: shape .* hidden dimension of 0", q[..., :0], k[..., :0]),
        "q-D257": bad(
            ValueError,
            r"q: a head dimension of 257 was given; expected 1 to 256",
            torch.ones(1, 2, 3, 257),
        ),
        "q-sparse": bad(ValueError, r"q: layout torch.sparse_coo", q.to_sparse()),
        "k-none": bad(TypeError, r"k: expected a torch.Tensor, got NoneType", q, None),
        "k-dtype": bad(
            ValueError, r"k: dtype torch.float16 .* expected torch.float32", q, k.half()
        ),
        "k-device": bad(ValueError, r"k: device meta was given; expected cpu", q, k.to("meta")),
        "k-3d": bad(ValueError, r"k: shape \[2, 6, 8\] was given; expected 4 dim", q, k[0]),
        "k-heads": bad(
            ValueError,
            r"k: 3 heads were given; expected a divisor of the 4 heads of q",
            q,
            *[torch.ones(2, 3, 6, 8)] * 2,
        ),
        "k-no-heads": bad(ValueError, r"k: 0 heads were given; expected a divisor", q, k[:, :0]),
        "k-batch": bad(ValueError, r"k: shape \[1, 2, 6, 8\] was given; expected \[2, 2", q, k[:1]),
        "k-channels": bad(ValueError, r"k: shape \[2, 2, 6, 7\] was given", q, k[..., :7]),
        "v-shape": bad(
            ValueError,
            r"v: shape \[2, 2, 5, 8\] was given; expected \[2, 2, 6, 8\]",
            q,
            k,
            k[:, :, 1:],
        ),
        "v-dtype": bad(
            ValueError, r"v: dtype torch.bfloat16 was given; expected", q, k, k.bfloat16()
        ),
        "pattern-name": bad(
            TypeError,
            r"pattern: expected a Pattern of leeboard.ops.patterns, got str",
            q,
            k,
            k,
            "dense",
        ),
        "pattern-class": bad(
            TypeError, r"pattern: expected a Pattern .*, got type", q, k, k, Causal
        ),
        "pattern-modality": bad(
            ValueError,
            r"pattern: Modality\(\(\(0, 3\), \(3, 8\)\).* for 6 queries and 6 keys; expected 8",
            q,
            k,
            k,
            Modality.of_lengths((3, 5)),
        ),
        "pattern-blocks": bad(
            ValueError,
            r"pattern: Blocks of 2 blocks of 2 queries was given for 6 queries; expected 3 to 4",
            q,
            k,
            k,
            Blocks([[0], [1]], block=2),
        ),
        "pattern-keys": bad(
            ValueError,
            r"pattern: index\[1\] of Blocks names key block 3; expected less than 3, the blocks of "
            "2 in 6 keys",
            q,
            k,
            k,
            Blocks([[0], [1, 3], [2]], block=2),
        ),
        "scale-text": bad(TypeError, r"scale: expected a number, got str", scale="1"),
        "heads-number": bad(
            TypeError, r"active_heads: expected a list of integers, got int", active_heads=2
        ),
        "heads-tensor": bad(
            TypeError,
            r"active_heads: expected a list of integers, got Tensor",
            active_heads=torch.tensor([0, 1]),
        ),
        "heads-range": bad(
            ValueError, r"active_heads\[1\]: 4 was given; expected 0 to 3", active_heads=[0, 4]
        ),
        "heads-negative": bad(
            ValueError, r"active_heads\[0\]: -1 was given; expected 0 to 3", active_heads=[-1]
        ),
        "heads-order": bad(
            ValueError,
            r"active_heads\[1\]: 0 was given after 2; expected ascending heads",
            active_heads=(2, 0),
        ),
        "heads-twice": bad(
            ValueError, r"active_heads\[2\]: 1 was given after 1", active_heads=(0, 1, 1)
        ),
        "heads-bool": bad(
            TypeError, r"active_heads\[0\]: expected an integer, got bool", active_heads=[True]
        ),
        "heads-float": bad(
            TypeError, r"active_heads\[1\]: expected an integer, got float", active_heads=[0, 1.0]
        ),
        "padding-dtype": bad(
            ValueError,
            r"key_padding: dtype torch.float32 .* torch.bool",
            key_padding=padding.float(),
        ),
        "padding-int": bad(
            ValueError, r"key_padding: dtype torch.uint8 .* torch.bool", key_padding=padding.byte()
        ),
        "padding-shape": bad(
            ValueError,
            r"key_padding: shape \[2, 5\] was given; expected \[2, 6\]",
            key_padding=padding[:, 1:],
        ),
        "padding-list": bad(
            TypeError, r"key_padding: expected a torch.Tensor", key_padding=[[True] * 6] * 2
        ),
        "softcap-zero": bad(
            ValueError, r"softcap: 0.0 was given; expected a finite number > 0", softcap=0.0
        ),
        "softcap-negative": bad(ValueError, r"softcap: -2.0 was given", softcap=-2),
        "softcap-nan": bad(ValueError, r"softcap: nan was given", softcap=float("nan")),
        "softcap-none-in-float32": bad(ValueError, r"softcap: 1e-50 was given", softcap=1e-50),
        "softcap-infinite": bad(ValueError, r"softcap: inf was given", softcap=float("inf")),
        "scale-nan": bad(
            ValueError, r"scale: nan was given; expected a finite", scale=float("nan")
        ),
        "softcap-bool": bad(TypeError, r"softcap: expected a number, got bool", softcap=True),
        "sinks-shape": bad(
            ValueError,
            r"sink_logits: shape \[2\] was given; expected \[4\]",
            sink_logits=torch.ones(2),
        ),
        "sinks-dtype": bad(
            ValueError,
            r"sink_logits: dtype torch.float16 was given; expected torch.float32",
            sink_logits=torch.ones(4).half(),
        ),
        "sinks-numpy": bad(
            TypeError,
            r"sink_logits: expected a torch.Tensor, got ndarray",
            sink_logits=np.ones(4, np.float32),
        ),
        "cu-list": cu(TypeError, r"cu_seqlens: expected a torch.Tensor, got list", [0, 6]),
        "cu-float": cu(
            ValueError, r"cu_seqlens: dtype torch.float32 .* expected torch.int32", whole.float()
        ),
        "cu-2d": cu(ValueError, r"cu_seqlens: shape \[1, 3\] .* \[segments \+ 1\]", whole[None]),
        "cu-empty": cu(ValueError, r"cu_seqlens: shape \[0\] was given", whole[:0]),
        "cu-batch": cu(ValueError, r"cu_seqlens: q has a batch of 2; expected 1", whole, q, k, k),
        "cu-start": cu(ValueError, r"cu_seqlens: starts at 1; expected 0", torch.tensor([1, 6])),
        "cu-end": cu(
            ValueError, r"cu_seqlens: ends at 5; expected 6, the rows of q", torch.tensor([0, 5])
        ),
        "cu-order": cu(
            ValueError,
            r"cu_seqlens: 2 was given after 4, at 2; expected",
            torch.tensor([0, 4, 2, 6]),
        ),
        "cu-keys": cu(
            ValueError,
            r"cu_seqlens: ends at 6; expected 5, the rows of k",
            whole,
            row,
            *[row_k[:, :, 1:]] * 2,
        ),
        "cu-k-alone": bad(
            ValueError, r"cu_seqlens_k: .* expected cu_seqlens to go with it", cu_seqlens_k=whole
        ),
        "cu-k-count": cu(
            ValueError,
            r"cu_seqlens_k: shape \[2\] was given; expected \[3\]",
            whole,
            cu_seqlens_k=torch.tensor([0, 6]),
        ),
        "cu-k-end": cu(
            ValueError,
            r"cu_seqlens_k: ends at 7; expected 6, the rows of k",
            whole,
            cu_seqlens_k=torch.tensor([0, 2, 7]),
        ),
        "cu-pattern": cu(
            ValueError,
            r"pattern: Modality.* for 4 queries .* \(segment 1 of cu_seqlens\)",
            whole,
            row,
            row_k,
            row_k,
            Modality.of_lengths((1, 1)),
        ),
    }
