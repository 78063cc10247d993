"""The most likely token of a head: the public function and its registration."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from leeboard.ops import _head
from leeboard.ops._library import define
from leeboard.reference import Weight


def linear_argmax(
    x: Tensor,
    weight: Weight,
    *,
    d2t: Tensor | None = None,
    logsumexp: bool = False,
    out: tuple[Tensor, ...] | None = None,
) -> tuple[Tensor, ...]:
    """Greedy token of a language-model head, without writing its logits.

    index = argmax_v x . weight[v], value = max_v x . weight[v]. Products are accumulated in float32
    and compared unrounded; ties go to the lowest v; a NaN counts as the maximum, as in torch.max.
    With `d2t` the index becomes v + d2t[v], the target's token of draft token v (the offset table
    of EAGLE-3 checkpoints). With `logsumexp` also lse = log sum_v exp(x . weight[v]): the token's
    probability is exp(value - lse).

    Args:
        x: [..., H], H >= 1; float32, bfloat16, float16 (float64 by the reference).
        weight: [V, H], V >= 1, of x's dtype, or bfloat16 with float32 x, or a `QuantizedWeight` (int8
            and int4 on CPUs; fp8 there by the reference).
        d2t: int64 [V] on x's device, or None.
        logsumexp: Whether to return lse.
        out: (index, value) to write and return: int64 and float32 of shape [...]; with `logsumexp`
            a third, float32 [...].

    Returns:
        (index int64 [...], value float32 [...]), with `logsumexp` also lse float32 [...]; float64
        for float64 inputs. Inference only. A row's result does not depend on the other rows, nor on
        the thread count.

    Raises:
        TypeError, ValueError: For an argument that does not fit; the message names it.
        RuntimeError: If an input requires grad while grad mode is on, or a forced backend cannot
            run.
    """
    return _head.call("linear_argmax", x, weight, None, d2t, logsumexp, out)


def _forward(
    x: Tensor, weight: Sequence[Tensor], text: str, d2t: Tensor | None, logsumexp: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _head.compute("linear_argmax", x, weight, text, None, d2t, logsumexp)


def _fake(
    x: Tensor, weight: Sequence[Tensor], text: str, d2t: Tensor | None, logsumexp: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _head.described(x, None, logsumexp)


define(
    "linear_argmax(Tensor x, Tensor[] weight, str format, Tensor? d2t, bool logsumexp) "
    "-> (Tensor, Tensor, Tensor)",
    _forward,
    _fake,
    row_arguments=(0,),
)
