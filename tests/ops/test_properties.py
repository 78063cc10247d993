"""Random shapes, strides, dtypes and options through every op, against the reference."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from cases import CASES
from harness import (
    Sample,
    assert_gradients_match,
    assert_matches,
    assert_same,
    gradients,
    run,
    wants_gradient,
)
from leeboard.ops import quantize_weight
from leeboard.ops._check import shares_elements
from leeboard.ops.registry import OPS

NAMES = sorted(name for name in OPS if OPS[name].rowwise)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
WIDTHS = st.one_of(st.integers(1, 70), st.sampled_from([127, 128, 129, 257, 1000]))

ops = pytest.mark.parametrize("name", NAMES)


@st.composite
def strided(draw: st.DrawFn, shape: tuple[int, ...], make: Callable[..., Tensor]) -> Tensor:
    """A tensor of this shape, cut out of a larger one: any order of dimensions, offsets, steps,
    and dimensions of stride 0.
    """
    order = draw(st.permutations(range(len(shape))))
    base_shape, cuts, expanded = [], [], []
    for dim in order:
        size = shape[dim]
        if draw(st.integers(0, 9)) == 0:
            base_shape.append(1)
            cuts.append(slice(None))
            expanded.append(size)
            continue
        step, start, end = (draw(st.integers(low, 2)) for low in (1, 0, 0))
        base_shape.append(start + size * step + end)
        cuts.append(slice(start, start + size * step, step))
        expanded.append(size)
    view = make(base_shape)[tuple(cuts)].expand(expanded)
    inverse = [order.index(dim) for dim in range(len(shape))]
    result = view.permute(inverse)
    kind = draw(st.integers(0, 11))
    if result.is_floating_point() and result.itemsize > 1 and kind == 0:
        result = torch._neg_view(-result)
    elif result.is_floating_point() and kind == 1:
        result = torch.nn.Parameter(result, requires_grad=False)
    assert tuple(result.shape) == shape
    return result


def normal(dtype: torch.dtype, scale: float = 1.0) -> Callable[[list[int]], Tensor]:
    return lambda size: (torch.randn(size, dtype=torch.float64) * scale).to(dtype)


def leading(draw: st.DrawFn) -> tuple[int, ...]:
    return tuple(draw(st.lists(st.integers(0, 5), max_size=4)))


def draw_norm(draw: st.DrawFn, rows: int, dtype: torch.dtype) -> Sample:
    shape = (*leading(draw), draw(WIDTHS))
    args: list[Any] = [draw(strided(shape, normal(dtype))) for _ in range(rows)]
    args.append(draw(strided(shape[-1:], normal(dtype))) if draw(st.booleans()) else None)
    options = {
        "eps": draw(st.sampled_from([1e-6, 1e-5, 0.5, 1])),
        "weight_offset": draw(st.sampled_from([0.0, 1.0, -0.25, 2])),
        "rounding": draw(st.sampled_from(["after_weight", "before_weight"])),
    }
    return Sample(tuple(args), options)


def draw_aux(draw: st.DrawFn, dtype: torch.dtype) -> Sample:
    shape = (*leading(draw), draw(WIDTHS))
    states, features = draw(st.integers(1, 8)), draw(st.integers(1, 40))
    hiddens = [draw(strided(shape, normal(dtype))) for _ in range(states)]
    gammas = None
    if draw(st.booleans()):
        gammas = [draw(strided(shape[-1:], normal(dtype))) for _ in range(states)]
    total = states * shape[-1]
    weight = draw(strided((features, total), normal(dtype, total**-0.5)))
    return Sample((hiddens, gammas, weight), {"eps": draw(st.sampled_from([1e-6, 0.5]))})


def draw_weight(draw: st.DrawFn, dtype: torch.dtype, rows: int, columns: int) -> Any:
    """A weight [rows, columns] in any format that goes with activations of `dtype`."""
    kinds = [None, None, "int8", "int4", "fp8"] + (["bfloat16"] if dtype == torch.float32 else [])
    kind = draw(st.sampled_from(kinds))
    if kind == "bfloat16":
        dtype, kind = torch.bfloat16, None
    if kind is None:
        return draw(strided((rows, columns), normal(dtype, columns**-0.5)))
    whole = quantize_weight(torch.randn(rows, columns) * columns**-0.5, kind)
    parts = {
        part: draw(strided(tuple(t.shape), lambda size, t=t: t.new_zeros(size)))
        for part, t in (("data", whole.data), ("scales", whole.scales))
    }
    # Repeated rows or columns hold what was written last, the same number everywhere.
    for part, view in parts.items():
        if not shares_elements(view):
            view.copy_(getattr(whole, part))
        else:
            parts[part] = getattr(whole, part)
    return replace(whole, **parts)


def draw_head(draw: st.DrawFn, dtype: torch.dtype, top: bool) -> Sample:
    shape = (*leading(draw), draw(WIDTHS))
    vocabulary = draw(st.one_of(st.integers(1, 40), st.sampled_from([127, 129, 300])))
    x = draw(strided(shape, normal(dtype)))
    weight = draw_weight(draw, dtype, vocabulary, shape[-1])
    options: dict[str, Any] = {"logsumexp": draw(st.booleans())}
    if top:
        options["k"] = draw(st.integers(1, min(vocabulary, 70)))
    if not draw(st.booleans()):
        return Sample((x, weight), options)
    # Increasing, so that an index tells its token; stored with any stride.
    steps = torch.randint(0, 4, (vocabulary,)).cumsum(0)
    d2t = draw(strided((vocabulary,), lambda size: torch.zeros(size, dtype=torch.int64)))
    return Sample(
        (x, weight), {"d2t": d2t if d2t.stride() == (0,) else d2t.copy_(steps), **options}
    )


def draw_surroundings(
    draw: st.DrawFn, dtype: torch.dtype, shape: tuple[int, ...], features: int
) -> dict[str, Any]:
    """The norm before a layer and the residual after it."""
    options: dict[str, Any] = {}
    if draw(st.booleans()):
        half = dtype.itemsize == 2
        norm_dtype = torch.float32 if half and draw(st.booleans()) else dtype
        options["norm_weight"] = draw(strided(shape[-1:], normal(norm_dtype)))
        options["eps"] = draw(st.sampled_from([1e-6, 0.5, 1]))
    if draw(st.booleans()):
        options["residual"] = draw(strided((*shape[:-1], features), normal(dtype)))
    return options


def draw_qlinear(draw: st.DrawFn, dtype: torch.dtype) -> Sample:
    shape = (*leading(draw), draw(WIDTHS))
    features = draw(st.integers(1, 40))
    x = draw(strided(shape, normal(dtype)))
    weight = draw_weight(draw, dtype, features, shape[-1])
    return Sample((x, weight), draw_surroundings(draw, dtype, shape, features))


def draw_swiglu(draw: st.DrawFn, dtype: torch.dtype) -> Sample:
    shape = (*leading(draw), draw(WIDTHS))
    inner, features = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    x = draw(strided(shape, normal(dtype)))
    sizes = [(inner, shape[-1]), (inner, shape[-1]), (features, inner)]
    weights = [draw_weight(draw, dtype, *size) for size in sizes]
    return Sample((x, *weights), draw_surroundings(draw, dtype, shape, features))


def draw_glue(draw: st.DrawFn, dtype: torch.dtype) -> Sample:
    shape, vocabulary = (*leading(draw), draw(WIDTHS)), draw(st.integers(1, 9))
    x = draw(strided(shape, normal(dtype)))
    token = draw(strided(shape[:-1], lambda size: torch.randint(0, vocabulary, size)))
    embedding = draw(strided((vocabulary, shape[-1]), normal(dtype)))
    gains = [draw(strided(shape[-1:], normal(dtype))) for _ in range(3)]
    options = {"eps": draw(st.sampled_from([1e-6, 0.5])), "norm_output": draw(st.booleans())}
    return Sample((x, token, embedding, *gains), options)


DRAW: dict[str, Callable[[st.DrawFn, torch.dtype], Sample]] = {
    "rms_norm": lambda draw, dtype: draw_norm(draw, 1, dtype),
    "add_rms_norm": lambda draw, dtype: draw_norm(draw, 2, dtype),
    "aux_norm_linear": draw_aux,
    "drafter_glue": draw_glue,
    "linear_argmax": lambda draw, dtype: draw_head(draw, dtype, top=False),
    "linear_topk": lambda draw, dtype: draw_head(draw, dtype, top=True),
    "qlinear": draw_qlinear,
    "swiglu_linear": draw_swiglu,
}


@st.composite
def samples(draw: st.DrawFn, name: str) -> Sample:
    torch.manual_seed(draw(st.integers(0, 1 << 16)))
    return DRAW[name](draw, draw(st.sampled_from(DTYPES)))


def test_every_rowwise_op_is_drawn() -> None:
    assert set(DRAW) == set(NAMES)


@ops
@given(data=st.data())
def test_any_valid_call_matches_the_reference(name: str, data: st.DataObject) -> None:
    call = data.draw(samples(name))
    before = call.copied()
    actual = run(name, call)
    assert_matches(name, before, actual, CASES[name].check_index, arbitrary=True)
    outs = tuple(torch.empty_like(y) for y in actual)
    run(name, call, out=outs[0] if len(outs) == 1 else outs)
    assert_same(outs, actual)
    assert_same(call.copied().tensors(), before.tensors())


@pytest.mark.parametrize("name", [n for n in NAMES if OPS[n].differentiable])
@given(data=st.data())
def test_any_gradient_matches_the_reference(name: str, data: st.DataObject) -> None:
    call = data.draw(samples(name))
    outputs = run(name, call)
    grads = [data.draw(strided(tuple(y.shape), normal(y.dtype))) for y in outputs]
    actual = gradients(OPS[name].function, wants_gradient(call), grads)
    # Where all is one number, its error is one throw of the dice, and so is the reference's, which
    # is no yardstick then: test_gradients_that_cancel has a bound for that.
    assume(all(grad.unique().numel() != 1 for grad in actual))
    assert_gradients_match(name, call, grads, actual, arbitrary=True)


@pytest.mark.parametrize("width", [1, 2, 3, 17, 1000])
def test_gradients_that_cancel(width: int) -> None:
    """Of rows of one number: r g - r^3 x mean(g x) leaves r g eps / (x^2 + eps), next to nothing.

    What is lost is a few roundings of the terms, r g; sums of equal numbers add some.
    """
    eps = 1e-6
    for value, slope in itertools.product((0.6614, 1.7, 0.037, 311.0), (0.0617, 1.0, 3.3)):
        x = torch.full((1, width), value, requires_grad=True)
        grad = torch.full((1, width), slope)
        term = slope / (x.detach().double() ** 2 + eps).sqrt()
        exact = term * eps / (x.detach().double() ** 2 + eps)
        weight = torch.full((1, width), slope)
        for y, grad_y in (
            (OPS["rms_norm"].function(x, eps=eps), grad),
            (OPS["aux_norm_linear"].function([x], None, weight, eps=eps), torch.ones(1, 1)),
        ):
            (got,) = torch.autograd.grad(y, x, grad_y)
            roundings = (4 + width**0.5) * torch.finfo(torch.float32).eps
            assert ((got.double() - exact).abs() <= roundings * term).all()


def reshaped(t: Tensor) -> Tensor:
    return t.new_zeros((*t.shape[:-1], t.shape[-1] + 1) if t.dim() else 1)


# Each makes an argument that does not go with the others, or with any.
MUTATIONS: dict[str, Callable[[Tensor], Any]] = {
    "wider": reshaped,
    "more dimensions": lambda t: t.new_zeros((2, 3, *t.shape)),
    "empty": lambda t: t.new_zeros((*t.shape[:-1], 0)),
    "0-d": lambda t: t.new_zeros(()),
    "int32": lambda t: t.to(torch.int32),
    "complex": lambda t: t.to(torch.complex64),
    "bool": lambda t: t.bool(),
    "meta": lambda t: t.to("meta"),
    "sparse": lambda t: t.detach().float().to_sparse(),
    "list": lambda t: t.tolist(),
    "numpy": lambda t: t.double().numpy() if t.is_floating_point() else t.numpy(),
    "text": lambda t: "x",
    "number": lambda t: 1.0,
    "module": lambda t: torch.nn.Identity(),
}


def alike(changed: Any, t: Tensor) -> bool:
    """Whether a mutation left the description of a tensor as it was."""
    return isinstance(changed, Tensor) and (
        (changed.shape, changed.dtype, changed.device, changed.layout)
        == (t.shape, t.dtype, t.device, t.layout)
    )


@ops
@given(data=st.data())
def test_mismatched_arguments_raise(name: str, data: st.DataObject) -> None:
    call = data.draw(samples(name)).copied()
    tensors = call.tensors()
    at = data.draw(st.integers(0, len(tensors) - 1))
    fits = set()
    if len(tensors) == 1:
        # Nothing that it could fail to go with.
        fits = {"wider", "more dimensions", "meta"}
    elif list(CASES[name].row_leaves(call)) == [at]:
        fits = {"more dimensions"}
    mutation = data.draw(st.sampled_from([m for m in MUTATIONS if m not in fits]))
    mutated = MUTATIONS[mutation](tensors[at])
    assume(not alike(mutated, tensors[at]))
    changed = [mutated if i == at else t for i, t in enumerate(tensors)]
    with pytest.raises((TypeError, ValueError, RuntimeError)) as caught:
        run(name, call.replaced(changed))
    assert len(str(caught.value)) > 10


@ops
@given(data=st.data())
def test_mismatched_outputs_raise(name: str, data: st.DataObject) -> None:
    call = data.draw(samples(name)).copied()
    outs = list(run(name, call))
    mutation = data.draw(st.sampled_from([m for m in MUTATIONS if m != "empty"]))
    at = data.draw(st.integers(0, len(outs) - 1))
    if outs[at].dim() == 0:
        outs[at] = outs[at].new_zeros(3)
    else:
        outs[at] = MUTATIONS[mutation](outs[at])
    with pytest.raises((TypeError, ValueError, RuntimeError), match="out"):
        run(name, call, out=outs[0] if len(outs) == 1 else tuple(outs))


@ops
@given(data=st.data())
def test_random_arguments_never_crash(name: str, data: st.DataObject) -> None:
    """Tensors of unrelated shapes and dtypes: whatever comes back is a result or an error."""
    call = data.draw(samples(name)).copied()

    def unrelated(t: Tensor) -> Tensor:
        shape = data.draw(st.lists(st.integers(0, 4), max_size=3).map(tuple))
        dtype = data.draw(st.sampled_from([*DTYPES, torch.int64, torch.uint8]))
        return data.draw(strided(shape, lambda size: torch.ones(size).to(dtype)))

    changed = [unrelated(t) if data.draw(st.booleans()) else t for t in call.tensors()]
    wrong = call.replaced(changed)
    try:
        outputs = run(name, wrong)
    except (TypeError, ValueError, RuntimeError):
        return
    assert_matches(name, wrong.copied(), outputs, lambda sample, index: None, arbitrary=True)
