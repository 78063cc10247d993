"""Runs an op and its reference on the same sample, in any layout, and compares them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import leeboard.ops
from leeboard import _C
from leeboard.ops.registry import OPS
from tolerances import assert_close_to_reference, nudged


@dataclass(frozen=True)
class Sample:
    """Arguments of a public op; `wanted` are the positions of the tensors that it has a gradient
    in, None for all that are floating-point.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    wanted: Sequence[int] | None = None

    def tensors(self) -> list[Tensor]:
        """Every tensor, in the order of the arguments."""
        leaves = pytree.tree_leaves((self.args, self.kwargs))
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    def replaced(self, tensors: Sequence[Any]) -> Sample:
        """The same call on other tensors."""
        leaves, spec = pytree.tree_flatten((self.args, self.kwargs))
        others = iter(tensors)
        args, kwargs = pytree.tree_unflatten(
            [next(others) if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec
        )
        return Sample(args, kwargs, self.wanted)

    def mapped(self, function: Callable[[Tensor], Any]) -> Sample:
        return self.replaced([function(t) for t in self.tensors()])

    def in_double(self) -> Sample:
        return self.mapped(lambda t: t.detach().double() if t.is_floating_point() else t)

    def nearby(self) -> Sample:
        """In float64, off by up to one unit in the last place of the accumulation dtype."""

        def off(t: Tensor) -> Tensor:
            if not t.is_floating_point():
                return t
            if t.itemsize == 1:
                # Values of a quantised weight are what they are; its scales move.
                return t.detach().double()
            return nudged(t)

        return self.mapped(off)

    def copied(self) -> Sample:
        """On plain contiguous copies."""
        return self.mapped(lambda t: t.detach().as_subclass(Tensor).resolve_neg().clone())


def many(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Outputs as a tuple, however many there are."""
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def run(name: str, sample: Sample, **extra: Any) -> tuple[Tensor, ...]:
    """The outputs of a public op."""
    return many(OPS[name].function(*sample.args, **sample.kwargs, **extra))


def run_reference(name: str, sample: Sample) -> tuple[Tensor, ...]:
    """The outputs of its reference."""
    return many(OPS[name].reference(*sample.args, **sample.kwargs))


def assert_matches(
    name: str,
    sample: Sample,
    actual: Sequence[Tensor],
    check_index: Callable[[Sample, Tensor], None] | None = None,
    *,
    arbitrary: bool = False,
) -> None:
    """Outputs within the budget; an index output by the op's own rule.

    `arbitrary` inputs may cancel: what inputs nearby would give is allowed too.
    """
    plain = sample.copied()
    low, exact = run_reference(name, plain), run_reference(name, plain.in_double())
    nearby = run_reference(name, plain.nearby()) if arbitrary else [None] * len(exact)
    assert len(actual) == len(low)
    for i, (got, in_dtype, in_double, near) in enumerate(
        zip(actual, low, exact, nearby, strict=True)
    ):
        if got.is_floating_point():
            assert_close_to_reference(
                got, in_dtype, in_double, what=f"{name} output {i}", nearby=near
            )
        else:
            assert got.shape == in_dtype.shape
            assert got.dtype == in_dtype.dtype
            if check_index is None:
                assert torch.equal(got, in_dtype), f"{name} output {i}"
            else:
                check_index(plain, got)


def assert_same(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Bit for bit, NaN included."""
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        if a.is_floating_point() and a.itemsize == 1:
            a, b = a.float(), b.float()
        assert torch.equal(a.isnan(), b.isnan())
        assert torch.equal(a.nan_to_num(nan=0.0), b.nan_to_num(nan=0.0))


def rows_beyond_the_cache(row: Tensor) -> int:
    """How many such rows make an output that kernels write with streaming stores."""
    return _C.STREAM_BYTES // (row.numel() * row.itemsize) + 1


def all_rows_equal(t: Tensor, row: Tensor) -> bool:
    """Whether every row of [N, H] is `row`, without a copy of all of them."""
    return all(bool((part == row).all()) for part in t.split(4096))


def wants_gradient(sample: Sample, which: Sequence[int] | None = None) -> Sample:
    """The tensors with a gradient (or those at `which` positions) as leaves that require grad."""
    which = sample.wanted if which is None else which
    return sample.replaced(
        [
            t.detach().requires_grad_(t.is_floating_point() and (which is None or i in which))
            for i, t in enumerate(sample.tensors())
        ]
    )


def gradients(
    function: Callable[..., Any], sample: Sample, grads: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Gradients of the tensors of `sample` that require grad, from those of the outputs that have
    one.
    """
    outputs = many(function(*sample.args, **sample.kwargs))
    outputs, grads = with_gradient(outputs, grads)
    return torch.autograd.grad(outputs, leaves(sample), grads)


def leaves(sample: Sample) -> list[Tensor]:
    """Its tensors that require grad."""
    return [t for t in sample.tensors() if t.requires_grad]


def with_gradient(
    outputs: Sequence[Tensor], grads: Sequence[Tensor]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The outputs that a gradient comes back from, and theirs of `grads`."""
    chosen = [(y, g) for y, g in zip(outputs, grads, strict=True) if y.requires_grad]
    return tuple(y for y, _ in chosen), tuple(g for _, g in chosen)


# Their backward starts from what the forward left (a log-sum-exp, a rounded result): its rounding
# is an error of the method, which the closed form in plain PyTorch has, too. That of the log-sum-exp
# falls on a whole row, as an error of the row's query does; how large it is, is chance.
FROM_STORED_RESULTS = {"sparse_gqa", "ttt_attention"}


def assert_gradients_match(
    name: str,
    sample: Sample,
    grads: Sequence[Tensor],
    actual: Sequence[Tensor],
    *,
    arbitrary: bool = False,
) -> None:
    """Gradients within the budget of autograd through the reference."""
    reference, plain = OPS[name].reference, sample.copied()
    plain_grads = [g.detach().as_subclass(Tensor).resolve_neg().clone() for g in grads]
    low = gradients(reference, wants_gradient(plain), plain_grads)
    exact = gradients(
        reference, wants_gradient(plain.in_double()), [g.double() for g in plain_grads]
    )
    nearby: Sequence[Tensor | None] = [None] * len(exact)
    if arbitrary or name in FROM_STORED_RESULTS:
        near_grads = Sample(tuple(plain_grads)).nearby().tensors()
        nearby = gradients(reference, wants_gradient(plain.nearby()), near_grads)
    if name in FROM_STORED_RESULTS:
        with leeboard.ops.backend("reference"):
            closed = gradients(OPS[name].function, wants_gradient(plain), plain_grads)
        nearby = [
            right + torch.maximum((of_form - right).abs(), (near - right).abs())
            for right, of_form, near in zip(exact, closed, nearby, strict=True)
        ]
    assert len(actual) == len(low)
    for i, (got, in_dtype, in_double, near) in enumerate(
        zip(actual, low, exact, nearby, strict=True)
    ):
        assert_close_to_reference(
            got, in_dtype, in_double, what=f"{name} gradient {i}", nearby=near
        )


class Plain(Tensor):
    """A subclass that adds nothing."""


def _padded(t: Tensor) -> Tensor:
    wide = t.new_empty((*t.shape[:-1], t.shape[-1] + 3))
    view = wide[..., 1 : 1 + t.shape[-1]]
    view.copy_(t)
    return view


def _every_other(t: Tensor, dim: int) -> Tensor:
    size = list(t.shape)
    size[dim] *= 2
    view = t.new_empty(size)[(slice(None),) * (dim % t.dim()) + (slice(None, None, 2),)]
    view.copy_(t)
    return view


def _swapped(t: Tensor, a: int, b: int) -> Tensor:
    return t.transpose(a, b).contiguous().transpose(a, b)


def _offset(t: Tensor) -> Tensor:
    view = t.new_empty(t.numel() + 1)[1:].view(t.shape)
    view.copy_(t)
    return view


def _negative(t: Tensor) -> Tensor:
    if t.dtype == torch.float32:
        view = torch.imag(torch.complex(t, -t).conj())
    else:
        view = torch._neg_view(-t)
    assert view.is_neg()
    return view


# Each takes a contiguous tensor and gives one of the same shape in another layout; the two
# `expanded` ones change its values. The number is the least dimension that it applies to.
LAYOUTS: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    "sliced": (1, _padded),
    "rows-strided": (2, lambda t: _every_other(t, 0)),
    "last-strided": (1, lambda t: _every_other(t, -1)),
    "transposed": (2, lambda t: _swapped(t, -1, -2)),
    "leading-swapped": (3, lambda t: _swapped(t, 0, 1)),
    "expanded-rows": (2, lambda t: t[:1].expand_as(t)),
    "expanded-all": (1, lambda t: t.reshape(-1)[:1].reshape([1] * t.dim()).expand_as(t)),
    "offset": (1, _offset),
    "negative": (1, _negative),
    "parameter": (1, lambda t: torch.nn.Parameter(t, requires_grad=False)),
    "subclass": (1, lambda t: t.as_subclass(Plain)),
}


def relayout(layout: str, t: Tensor) -> Tensor:
    """The tensor in another layout, or itself where the layout does not apply."""
    least, make = LAYOUTS[layout]
    integral = not t.is_floating_point()
    nothing_to_repeat = t.numel() == 0 and layout.startswith("expanded")
    if t.dim() < least or (integral and layout == "negative") or nothing_to_repeat:
        return t
    view = make(t)
    assert view.shape == t.shape
    return view
