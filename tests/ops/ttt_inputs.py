"""Inputs of train-time-test attention for the contract tests, valid and not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

import leeboard.ops
from harness import Sample


def normal(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype)


def steps_of(
    dtype: torch.dtype, steps: int, batch: int, heads: tuple[int, int], rows: int, channels: int
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Queries of the last step, keys and values of all, of (query, key-value) heads."""
    k, v = (
        [normal(dtype, batch, heads[1], rows, channels) for _ in range(steps)] for _ in range(2)
    )
    return normal(dtype, batch, heads[0], rows, channels), k, v


def call(
    steps: int,
    batch: int,
    heads: tuple[int, int],
    rows: int,
    channels: int,
    *,
    together: bool = False,
    cu: list[int] | None = None,
    **options: Any,
) -> Callable[[torch.dtype], Sample]:
    """A sample's builder; `together` calls all steps at once, on stacked tensors."""

    def build(dtype: torch.dtype) -> Sample:
        q, k, v = steps_of(dtype, steps, batch, heads, rows, channels)
        more = dict(options)
        if cu is not None:
            more["cu_seqlens"] = torch.tensor(cu, dtype=torch.int32)
        if not together:
            return Sample((q, k, v), more)
        every = normal(dtype, steps, *q.shape)
        return Sample((every, torch.stack(k), torch.stack(v)), more)

    return build


def samples() -> dict[str, Callable[[torch.dtype], Sample]]:
    return {
        "plain": call(3, 2, (4, 2), 7, 16),
        "many": call(3, 2, (8, 2), 300, 32, window=64, sinks=3),
        "first-step": call(1, 2, (4, 2), 33, 24),
        "together": call(4, 2, (4, 2), 21, 16, together=True, window=9, sinks=1, scale=0.3),
        "packed": call(
            4, 2, (6, 2), 40, 24, cu=[0, 13, 13, 40, 57, 79, 80], window=7, sinks=2, scale=0.25
        ),
        "packed-together": call(3, 2, (2, 2), 19, 17, cu=[0, 6, 19, 31, 38], together=True),
        "left-the-window": call(5, 1, (2, 1), 23, 33, window=3),
        "left-the-window-but-sinks": call(6, 1, (4, 1), 41, 80, window=2, sinks=3),
        "window-of-one": call(3, 1, (3, 3), 37, 40, window=1, sinks=40),
        "wide": call(2, 1, (2, 1), 19, 256),
        "one": call(2, 1, (1, 1), 1, 1),
        "no-rows": call(3, 2, (4, 2), 0, 8),
        "no-sequences": call(2, 0, (4, 2), 5, 8, cu=[0]),
    }


def arguments(sample: Sample) -> tuple[Any, ...]:
    """Of torch.ops.leeboard.ttt_attention, for a call of one step."""
    q, k, v = sample.args
    options = sample.kwargs
    return (
        q,
        list(k),
        list(v),
        options.get("window"),
        options.get("sinks", 0),
        options.get("cu_seqlens"),
        options.get("scale"),
    )


def bad_calls() -> dict[str, tuple[Callable[[], object], type[Exception], str]]:
    """Calls that must raise, the error and its message."""
    q, k = torch.ones(2, 4, 6, 8), torch.ones(2, 2, 6, 8)
    every, stacked = torch.ones(3, 2, 4, 6, 8), torch.ones(3, 2, 2, 6, 8)

    def bad(
        error: type[Exception], match: str, *given: Any, **options: Any
    ) -> tuple[Callable[[], object], type[Exception], str]:
        defaults = (q, [k, k], [k, k])
        args = (*given, *defaults[len(given) :])
        return lambda: leeboard.ops.ttt_attention(*args, **options), error, match

    def cu(error: type[Exception], match: str, bounds: Any) -> Any:
        return bad(error, match, cu_seqlens=bounds)

    return {
        "q-list": bad(TypeError, r"q: expected a torch.Tensor, got list", [1.0]),
        "q-int": bad(ValueError, r"q: dtype torch.int64 .* expected float32", q.long()),
        "q-3d": bad(
            ValueError,
            r"q: shape \[4, 6, 8\] was given; expected \[B, Hq, T, D\] or \[S, B, Hq, T, D\]",
            q[0],
        ),
        "q-D0": bad(ValueError, r"q: shape .* hidden dimension of 0", q[..., :0]),
        "q-D257": bad(
            ValueError,
            r"q: a head dimension of 257 was given; expected 1 to 256",
            torch.ones(1, 2, 3, 257),
        ),
        "q-sparse": bad(ValueError, r"q: layout torch.sparse_coo", q.to_sparse()),
        "q-steps": bad(
            ValueError, r"k: 2 steps were given; expected 3, those of q", every, stacked[:2]
        ),
        "k-none": bad(TypeError, r"k: expected a tensor or a sequence .* got NoneType", q, None),
        "k-text": bad(TypeError, r"k: expected a tensor or a sequence .* got str", q, "keys"),
        "k-item": bad(TypeError, r"k\[1\]: expected a torch.Tensor, got int", q, [k, 1]),
        "k-no-steps": bad(ValueError, r"k: 0 steps were given; expected at least 1", q, []),
        "k-no-steps-stacked": bad(ValueError, r"k: 0 steps were given", q, stacked[:0]),
        "k-4d": bad(
            ValueError,
            r"k: shape \[2, 2, 6, 8\] was given; expected \[S, B, Hkv, T, D\], or a sequence",
            q,
            k,
        ),
        "k-3d": bad(
            ValueError,
            r"k\[1\]: shape \[2, 6, 8\] was given; expected \[B, Hkv, T, D\]",
            q,
            [k, k[0]],
        ),
        "k-dtype": bad(
            ValueError, r"k\[1\]: dtype torch.float16 .* expected torch.float32", q, [k, k.half()]
        ),
        "k-device": bad(
            ValueError, r"k\[0\]: device meta was given; expected cpu", q, [k.to("meta"), k]
        ),
        "k-heads": bad(
            ValueError,
            r"k: 3 heads were given; expected a divisor of the 4 heads of q",
            q,
            *[[torch.ones(2, 3, 6, 8)]] * 2,
        ),
        "k-no-heads": bad(ValueError, r"k: 0 heads were given", q, [k[:, :0]], [k[:, :0]]),
        "k-other-heads": bad(
            ValueError, r"k\[1\]: shape \[2, 1, 6, 8\] was given; expected \[2, 2", q, [k, k[:, :1]]
        ),
        "k-rows": bad(
            ValueError,
            r"k\[0\]: shape \[2, 2, 5, 8\] was given; expected \[2, 2, 6, 8\]",
            q,
            [k[:, :, 1:], k],
        ),
        "v-shape": bad(
            ValueError, r"v\[1\]: shape \[1, 2, 6, 8\] was given", q, [k, k], [k, k[:1]]
        ),
        "v-steps": bad(
            ValueError, r"v: 1 steps were given; expected 2, those of k", q, [k, k], [k]
        ),
        "v-dtype": bad(
            ValueError, r"v: dtype torch.bfloat16 .* expected", q, stacked, stacked.bfloat16()
        ),
        "window-zero": bad(ValueError, r"window: 0 was given; expected at least 1", window=0),
        "window-float": bad(TypeError, r"window: expected an integer, got float", window=2.0),
        "window-bool": bad(TypeError, r"window: expected an integer, got bool", window=True),
        "sinks-negative": bad(ValueError, r"sinks: -1 was given; expected at least 0", sinks=-1),
        "sinks-none": bad(TypeError, r"sinks: expected an integer, got NoneType", sinks=None),
        "scale-text": bad(TypeError, r"scale: expected a number, got str", scale="1"),
        "scale-nan": bad(
            ValueError, r"scale: nan was given; expected a finite", scale=float("nan")
        ),
        "cu-list": cu(TypeError, r"cu_seqlens: expected a torch.Tensor, got list", [0, 12]),
        "cu-numpy": cu(TypeError, r"cu_seqlens: expected .*, got ndarray", np.array([0, 12])),
        "cu-float": cu(
            ValueError, r"cu_seqlens: dtype torch.float32 .* torch.int32", torch.tensor([0.0, 12.0])
        ),
        "cu-2d": cu(
            ValueError, r"cu_seqlens: shape \[1, 2\] .* \[documents", torch.tensor([[0, 12]])
        ),
        "cu-empty": cu(
            ValueError, r"cu_seqlens: shape \[0\] was given", torch.tensor([], dtype=torch.int32)
        ),
        "cu-start": cu(
            ValueError, r"cu_seqlens: starts at 1; expected 0", torch.tensor([1, 6, 12])
        ),
        "cu-end": cu(
            ValueError,
            r"cu_seqlens: ends at 6; expected 12, the rows of q, B \* T",
            torch.tensor([0, 6]),
        ),
        "cu-order": cu(
            ValueError,
            r"cu_seqlens: 3 was given after 5, at 2; expected ascending",
            torch.tensor([0, 5, 3, 6, 12]),
        ),
        "cu-across": cu(
            ValueError,
            r"cu_seqlens: a document of the rows 4 to 9 .* within a sequence of 6 rows",
            torch.tensor([0, 4, 9, 12]),
        ),
    }
