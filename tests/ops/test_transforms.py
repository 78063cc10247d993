"""Every op under torch's own machinery: library checks, compile, export, vmap, torch.func, fakes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import leeboard.ops
from cases import CASES
from harness import (
    Sample,
    assert_gradients_match,
    assert_matches,
    assert_same,
    gradients,
    leaves,
    many,
    relayout,
    run,
    run_reference,
    wants_gradient,
    with_gradient,
)
from leeboard.ops.registry import OPS
from tolerances import assert_close_to_reference

NAMES = sorted(OPS)
ROWWISE = [name for name in NAMES if OPS[name].rowwise]
DIFFERENTIABLE = [name for name in NAMES if OPS[name].differentiable]

WITH_FLOATS = [
    name
    for name in NAMES
    if any(t.is_floating_point() for t in CASES[name].samples["plain"](torch.float32).tensors())
]

ops = pytest.mark.parametrize("name", NAMES)
row_ops = pytest.mark.parametrize("name", ROWWISE)
differentiable_ops = pytest.mark.parametrize("name", DIFFERENTIABLE)


def make(name: str, sample: str, dtype: torch.dtype = torch.float32) -> Sample:
    return CASES[name].samples[sample](dtype)


def leading(name: str) -> str:
    """The small sample with the most dimensions."""
    return "plain-3d" if name in ROWWISE else "plain"


def some(samples: Iterable[str]) -> list[tuple[str, str]]:
    """(op, sample) for the samples that an op has."""
    return [(n, sample) for n in NAMES for sample in samples if sample in CASES[n].samples]


def of_tensors(name: str, call: Sample) -> Callable[..., Any]:
    """The op as a function of the sample's tensors."""

    def function(*tensors: Tensor) -> Any:
        changed = call.replaced(tensors)
        return OPS[name].function(*changed.args, **changed.kwargs)

    return function


def reference_of_tensors(name: str, call: Sample) -> Callable[..., Any]:
    def function(*tensors: Tensor) -> Any:
        changed = call.replaced(tensors)
        return OPS[name].reference(*changed.args, **changed.kwargs)

    return function


def with_rows(name: str, call: Sample, rows: int) -> Sample:
    """The same 2-D sample with another number of rows; integers stay among those that it has."""
    leaves = CASES[name].row_leaves(call)

    def new(t: Tensor) -> Tensor:
        if t.is_floating_point():
            return torch.randn(rows, *t.shape[1:]).to(t.dtype)
        return t[torch.randint(t.shape[0], (rows,))]

    return call.replaced([new(t) if i in leaves else t for i, t in enumerate(call.tensors())])


# --- torch.library ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(("name", "sample"), some(["plain", "plain-3d", "quantised"]))
def test_opcheck(name: str, sample: str, dtype: torch.dtype) -> None:
    op = getattr(torch.ops.leeboard, name).default
    call = make(name, sample, dtype)
    arguments = CASES[name].op_arguments
    torch.library.opcheck(op, arguments(call))
    strided = call.mapped(lambda t: relayout("last-strided", t))
    torch.library.opcheck(op, arguments(strided), test_utils=("test_schema", "test_faketensor"))
    if name in DIFFERENTIABLE:
        torch.library.opcheck(op, arguments(wants_gradient(call)))


@pytest.mark.parametrize("weight", [True, False])
@pytest.mark.parametrize("residual", [True, False])
def test_opcheck_of_the_backward(weight: bool, residual: bool) -> None:
    grad, x, other = torch.randn(3, 5, 24)
    args = (
        grad,
        x,
        torch.randn(24) if weight else None,
        1e-6,
        0.0,
        "after_weight",
        other if residual else None,
    )
    torch.library.opcheck(torch.ops.leeboard.rms_norm_backward.default, args)


# --- torch.compile and torch.export ---


@pytest.fixture
def clean_dynamo() -> None:
    torch._dynamo.reset()


@pytest.mark.usefixtures("clean_dynamo")
@row_ops
def test_compiles_whole_for_any_number_of_rows(name: str) -> None:
    """One graph, forward and backward, whatever the number of rows."""
    call = make(name, "rows")
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(of_tensors(name, call), backend=counter, fullgraph=True, dynamic=True)
    counts = []
    for rows in (6, 9, 33):
        sized = with_rows(name, call, rows)
        expected = run(name, sized)
        if name in DIFFERENTIABLE:
            grads = [torch.randn_like(y) for y in expected]
            traced = wants_gradient(sized)
            outputs = many(compiled(*traced.tensors()))
            actual = torch.autograd.grad(outputs, traced.tensors(), grads)
            assert_gradients_match(name, sized, grads, actual)
        else:
            outputs = many(compiled(*sized.tensors()))
        assert_same([y.detach() for y in outputs], expected)
        counts.append(counter.frame_count)
    assert counts == counts[:1] * 3


@pytest.mark.usefixtures("clean_dynamo")
@ops
def test_compiled_by_inductor(name: str) -> None:
    call = make(name, leading(name), torch.bfloat16)
    compiled = torch.compile(of_tensors(name, call), fullgraph=True)
    if name not in DIFFERENTIABLE:
        assert_matches(name, call, many(compiled(*call.tensors())), CASES[name].check_index)
        return
    traced = wants_gradient(call)
    outputs = many(compiled(*traced.tensors()))
    assert_same([y.detach() for y in outputs], run(name, call))
    grads = [torch.randn(y.shape).to(y.dtype) for y in outputs]
    chosen, chosen_grads = with_gradient(outputs, grads)
    actual = torch.autograd.grad(chosen, leaves(traced), chosen_grads)
    assert_gradients_match(name, call, grads, actual)


@pytest.mark.usefixtures("clean_dynamo")
@ops
def test_compiled_with_out(name: str) -> None:
    call = make(name, "plain")
    expected = run(name, call)

    def function(outs: tuple[Tensor, ...], *tensors: Tensor) -> Any:
        changed = call.replaced(tensors)
        out = outs[0] if len(outs) == 1 else outs
        return OPS[name].function(*changed.args, **changed.kwargs, out=out)

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    outs = tuple(torch.empty_like(y) for y in expected)
    compiled(outs, *call.tensors())
    assert_same(outs, expected)


@pytest.mark.usefixtures("clean_dynamo")
@pytest.mark.parametrize("strict", [False, True])
@row_ops
def test_export_with_dynamic_rows(name: str, strict: bool) -> None:
    call = make(name, "rows")
    leaves = CASES[name].row_leaves(call)

    class Module(torch.nn.Module):
        def forward(self, tensors: list[Tensor]) -> Any:
            return of_tensors(name, call)(*tensors)

    shapes = [
        {0: torch.export.Dim("rows", min=2)} if i in leaves else None
        for i in range(len(call.tensors()))
    ]
    program = torch.export.export(
        Module(), (call.tensors(),), dynamic_shapes=(shapes,), strict=strict
    )
    targets = {str(node.target) for node in program.graph.nodes}
    assert f"leeboard.{name}.default" in targets
    for rows in (5, 70):
        sized = with_rows(name, call, rows)
        assert_same(many(program.module()(sized.tensors())), run(name, sized))


# --- vmap ---


def per_sample(tensors: list[Tensor], dims: list[int | None], b: int) -> list[Tensor]:
    return [t if dim is None else t.select(dim, b) for t, dim in zip(tensors, dims, strict=True)]


def stacked(
    function: Callable[..., Any], tensors: list[Tensor], dims: list[int | None], batch: int
) -> tuple[Tensor, ...]:
    results = [many(function(*per_sample(tensors, dims, b))) for b in range(batch)]
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True))


def choices(count: int) -> list[tuple[str, list[int]]]:
    """Which arguments are batched: each alone, all, all but the last."""
    alone = [(f"only-{i}", [i]) for i in range(count)]
    return [*alone, ("all", list(range(count))), ("all-but-last", list(range(count - 1)))]


@pytest.mark.parametrize("at", [0, -1])
@pytest.mark.parametrize(("name", "sample"), some(["plain", "1-d"]))
def test_vmap(name: str, sample: str, at: int) -> None:
    call = make(name, sample)
    batch = 3
    function, reference = of_tensors(name, call), reference_of_tensors(name, call)
    for choice, batched in choices(len(call.tensors())):
        if not batched:
            continue
        tensors: list[Tensor] = []
        dims: list[int | None] = []
        for i, t in enumerate(call.tensors()):
            if i not in batched:
                tensors.append(t)
                dims.append(None)
                continue
            copies = [make(name, sample).tensors()[i] for _ in range(batch)]
            # Alternating: neighbouring arguments are batched along different dimensions.
            dim = at % (t.dim() + 1) if i % 2 == 0 else 0
            tensors.append(torch.stack(copies, dim=dim))
            dims.append(dim)
        actual = many(torch.func.vmap(function, in_dims=tuple(dims))(*tensors))
        if name not in ROWWISE:
            # Each sample is a call of its own, to the bit.
            assert_same(actual, stacked(function, tensors, dims, batch))
            continue
        low = stacked(reference, tensors, dims, batch)
        double = [t.double() if t.is_floating_point() else t for t in tensors]
        exact = stacked(reference, double, dims, batch)
        for got, in_dtype, in_double in zip(actual, low, exact, strict=True):
            if got.is_floating_point():
                assert_close_to_reference(got, in_dtype, in_double, what=f"{name} {choice}")
            else:
                assert torch.equal(got, in_dtype), choice


@ops
def test_vmap_over_nothing(name: str) -> None:
    """A batch of size 0, whichever arguments it is of."""
    call = make(name, "plain")
    tensors = call.tensors()
    outputs = run(name, call)
    for choice, batched in choices(len(tensors)):
        dims = tuple(0 if i in batched else None for i in range(len(tensors)))
        empty = [t.new_empty((0, *t.shape)) if i in batched else t for i, t in enumerate(tensors)]
        for got, y in zip(
            many(torch.func.vmap(of_tensors(name, call), in_dims=dims)(*empty)),
            outputs,
            strict=True,
        ):
            assert got.shape == (0, *y.shape), choice
            assert got.dtype == y.dtype, choice


@row_ops
def test_nested_vmap(name: str) -> None:
    call = make(name, "1-d")
    function = of_tensors(name, call)
    first, *others = call.tensors()
    x = torch.randn(2, 3, *first.shape)
    inner = torch.func.vmap(lambda t: function(t, *others))
    actual = many(torch.func.vmap(inner)(x))
    rows = [many(function(t, *others)) for t in x.flatten(0, 1)]
    for y, parts in zip(actual, zip(*rows, strict=True), strict=True):
        expected = torch.stack(parts).view(y.shape)
        assert torch.equal(y, expected)


@differentiable_ops
def test_vmap_of_the_backward(name: str) -> None:
    """Batched cotangents, as torch.autograd.functional.jacobian(vectorize=True) makes them."""
    call = wants_gradient(make(name, "plain"))
    outputs = [y for y in run(name, call) if y.requires_grad]
    grads = [torch.randn(2, *y.shape) for y in outputs]
    actual = torch.autograd.grad(
        outputs, leaves(call), grads, is_grads_batched=True, retain_graph=True
    )
    for b in range(2):
        expected = torch.autograd.grad(
            outputs, leaves(call), [g[b] for g in grads], retain_graph=True
        )
        for batched, single in zip(actual, expected, strict=True):
            torch.testing.assert_close(batched[b], single)


# --- torch.func and forward mode ---


def scalar(function: Callable[..., Any]) -> Callable[..., Tensor]:
    return lambda *tensors: sum(
        y.square().sum() for y in many(function(*tensors)) if y.is_floating_point()
    )


@differentiable_ops
def test_torch_func_grad_is_the_reference(name: str) -> None:
    call = make(name, "plain")
    argnums = tuple(range(len(call.tensors())))
    actual = torch.func.grad(scalar(of_tensors(name, call)), argnums)(*call.tensors())
    expected = torch.func.grad(scalar(reference_of_tensors(name, call)), argnums)(*call.tensors())
    assert_same(actual, expected)


@pytest.mark.parametrize("name", [n for n in DIFFERENTIABLE if n in ROWWISE])
def test_per_sample_gradients(name: str) -> None:
    call = make(name, "1-d")
    first, *others = call.tensors()
    x = torch.randn(3, *first.shape)

    def per_row(function: Callable[..., Any]) -> Tensor:
        gradient = torch.func.grad(scalar(function))
        return torch.func.vmap(lambda t: gradient(t, *others))(x)

    torch.testing.assert_close(
        per_row(of_tensors(name, call)), per_row(reference_of_tensors(name, call))
    )


@differentiable_ops
def test_forward_mode_is_the_reference(name: str) -> None:
    call = make(name, "plain")
    tensors = tuple(call.tensors())
    tangents = tuple(torch.randn_like(t) for t in tensors)
    value, tangent = torch.func.jvp(of_tensors(name, call), tensors, tangents)
    expected, expected_tangent = torch.func.jvp(reference_of_tensors(name, call), tensors, tangents)
    assert_same(many(value), many(expected))
    assert_same(many(tangent), many(expected_tangent))

    with torch.autograd.forward_ad.dual_level():
        duals = map(torch.autograd.forward_ad.make_dual, tensors, tangents)
        outputs = many(of_tensors(name, call)(*duals))
        dual_tangents = [torch.autograd.forward_ad.unpack_dual(y).tangent for y in outputs]
    # Constants have none.
    for dual, tangent in zip(dual_tangents, many(expected_tangent), strict=True):
        if dual is None:
            assert not tangent.any()
        else:
            assert_same([dual], [tangent])


@pytest.mark.parametrize("name", WITH_FLOATS)
def test_forward_mode_refuses_out(name: str) -> None:
    call = make(name, "plain")
    expected = run(name, call)
    outs = tuple(torch.zeros_like(y) for y in expected)

    floats = tuple(t for t in call.tensors() if t.is_floating_point())

    def function(*changed: Tensor) -> Any:
        others = iter(changed)
        tensors = [next(others) if t.is_floating_point() else t for t in call.tensors()]
        return run(name, call.replaced(tensors), out=outs if len(outs) > 1 else outs[0])

    tangents = tuple(torch.randn_like(t) for t in floats)
    with pytest.raises(RuntimeError, match=r"^out: .*not differentiable, but .*is in force"):
        torch.func.jvp(function, floats, tangents)
    with torch.autograd.forward_ad.dual_level():
        duals = map(torch.autograd.forward_ad.make_dual, floats, tangents)
        with pytest.raises(RuntimeError, match=r"^out: .*not differentiable, but forward-mode AD"):
            function(*duals)
    for out in outs:
        assert not out.any()


@differentiable_ops
def test_forced_kernels_refuse_torch_func(name: str) -> None:
    call = make(name, "plain")
    with (
        leeboard.ops.backend("cpu"),
        pytest.raises(RuntimeError, match=r"backend 'cpu' is forced, but .*needs the reference"),
    ):
        torch.func.grad(scalar(of_tensors(name, call)))(*call.tensors())


# --- tracing without numbers ---


@ops
def test_fake_tensors_describe_the_outputs(name: str) -> None:
    for sample in {"plain", "plain-3d", "no-rows-3d", "1-d"} & set(CASES[name].samples):
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            call = make(name, sample, dtype)
            real = run(name, call)
            with FakeTensorMode() as mode:
                fake = run(name, call.mapped(mode.from_tensor))
            for y, described in zip(real, fake, strict=True):
                assert described.shape == y.shape
                assert described.dtype == y.dtype
                assert described.device == y.device
                assert described.stride() == y.stride()


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
@ops
def test_make_fx_sees_one_op(name: str, mode: str) -> None:
    call = make(name, leading(name))
    graph = make_fx(of_tensors(name, call), tracing_mode=mode)(*call.tensors())
    called = [str(n.target) for n in graph.graph.nodes if n.op == "call_function"]
    assert f"leeboard.{name}.default" in called
    other = make(name, leading(name))
    assert_same(many(graph(*other.tensors())), run(name, other))


@ops
def test_meta_tensors(name: str) -> None:
    call = make(name, leading(name))
    real = run(name, call)
    for y, meta in zip(real, run(name, call.mapped(lambda t: t.to("meta"))), strict=True):
        assert meta.device.type == "meta"
        assert (meta.shape, meta.dtype) == (y.shape, y.dtype)


@differentiable_ops
def test_meta_tensors_have_gradients(name: str) -> None:
    for sample in {"plain", "rows"} & set(CASES[name].samples):
        call = wants_gradient(make(name, sample).mapped(lambda t: t.to("meta")))
        grads = [torch.empty_like(y) for y in run(name, call)]
        for grad, t in zip(gradients(OPS[name].function, call, grads), leaves(call), strict=True):
            assert grad.device.type == "meta"
            assert (grad.shape, grad.dtype) == (t.shape, t.dtype)


@ops
def test_autocast_changes_nothing(name: str) -> None:
    for sample in {"plain", "rows"} & set(CASES[name].samples):
        call = make(name, sample)
        expected = run(name, call)
        exact = run_reference(name, call)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert_same(run(name, call), expected)
            with leeboard.ops.backend("reference"):
                assert_same(run(name, call), exact)


@differentiable_ops
def test_autocast_changes_no_gradient(name: str) -> None:
    call = make(name, "rows" if name in ROWWISE else "plain")
    grads = [torch.randn(y.shape).to(y.dtype) for y in run(name, call)]
    expected = gradients(OPS[name].function, wants_gradient(call), grads)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = gradients(OPS[name].function, wants_gradient(call), grads)
    assert_same(actual, expected)


# Checking a shape is no part of the trace.
@pytest.mark.filterwarnings("ignore:Converting a tensor to a Python:torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
@ops
def test_jit_trace_bakes_nothing_in(name: str) -> None:
    call = make(name, "plain")
    traced = torch.jit.trace(of_tensors(name, call), tuple(call.tensors()))
    other = make(name, "plain")
    assert_same(many(traced(*other.tensors())), run(name, other))
    assert f"leeboard::{name}" in str(traced.graph)
