"""What every op promises, for every op of the registry: numbers, layouts, outputs, errors."""

from __future__ import annotations

import itertools
import re
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor

import leeboard.ops
import leeboard.reference
from cases import CASES
from harness import (
    LAYOUTS,
    Sample,
    assert_gradients_match,
    assert_matches,
    assert_same,
    gradients,
    leaves,
    relayout,
    run,
    run_reference,
    wants_gradient,
)
from leeboard import _C
from leeboard.ops.registry import OPS

NAMES = sorted(OPS)
ROWWISE = [name for name in NAMES if OPS[name].rowwise]
DIFFERENTIABLE = [name for name in NAMES if OPS[name].differentiable]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# "many" is for the thread counts.
EVERY_SAMPLE = [
    (name, sample) for name in NAMES for sample in CASES[name].samples if sample != "many"
]
# No gradient is compared where NaN or overflow decides: there the two forms of the derivative
# (autograd's steps, the closed form) may differ in kind.
EVERY_GRADIENT = [
    (name, sample)
    for name, sample in EVERY_SAMPLE
    if name in DIFFERENTIABLE and sample not in ("special", "huge", "vanishing", "eps-0")
]
EVERY_BAD_CALL = [(name, call) for name in NAMES for call in CASES[name].bad_calls]

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
ops = pytest.mark.parametrize("name", NAMES)
row_ops = pytest.mark.parametrize("name", ROWWISE)
differentiable_ops = pytest.mark.parametrize("name", DIFFERENTIABLE)
layouts = pytest.mark.parametrize("layout", LAYOUTS)


def make(name: str, sample: str, dtype: torch.dtype = torch.float32) -> Sample:
    return CASES[name].samples[sample](dtype)


def leading(name: str) -> str:
    """The small sample with the most dimensions."""
    return "plain-3d" if name in ROWWISE else "plain"


def cotangents(outputs: tuple[Tensor, ...]) -> list[Tensor]:
    return [torch.randn(y.shape).to(y.dtype) for y in outputs]


def test_every_op_has_cases() -> None:
    assert set(CASES) == set(OPS)
    for name, cases in CASES.items():
        needed = {"plain", "many"} | ({"plain-3d", "rows"} if name in ROWWISE else set())
        assert needed <= set(cases.samples), name
        assert len(cases.bad_calls) >= 10, name


def test_the_backward_of_the_norms_is_an_op_of_its_own() -> None:
    # Not in the registry: it is no public function. test_transforms.py covers it by name.
    assert hasattr(torch.ops.leeboard, "rms_norm_backward")


@dtypes
@pytest.mark.parametrize(("name", "sample"), EVERY_SAMPLE)
def test_numbers(name: str, sample: str, dtype: torch.dtype, isa: str) -> None:
    call = make(name, sample, dtype)
    before = call.copied()
    with leeboard.ops.backend("cpu"):
        assert_matches(name, call, run(name, call), CASES[name].check_index)
    assert_same(call.tensors(), before.tensors())


@dtypes
@pytest.mark.parametrize(("name", "sample"), EVERY_SAMPLE)
def test_the_reference_backend_is_the_reference(name: str, sample: str, dtype: torch.dtype) -> None:
    call = make(name, sample, dtype)
    with leeboard.ops.backend("reference"):
        assert_same(run(name, call), run_reference(name, call))


@ops
def test_triton_runs(name: str) -> None:
    pytest.importorskip("triton")
    call = make(name, leading(name))
    with leeboard.ops.backend("triton"):
        assert_matches(name, call, run(name, call), CASES[name].check_index)


@dtypes
@pytest.mark.parametrize(("name", "sample"), EVERY_GRADIENT)
def test_gradients(name: str, sample: str, dtype: torch.dtype, isa: str) -> None:
    call = make(name, sample, dtype)
    grads = cotangents(run(name, call))
    before = [g.clone() for g in grads]
    with leeboard.ops.backend("cpu"):
        actual = gradients(OPS[name].function, wants_gradient(call), grads)
    assert_same(grads, before)
    assert_gradients_match(name, call, grads, actual)


@differentiable_ops
def test_gradients_one_by_one(name: str) -> None:
    call = make(name, leading(name))
    grads = cotangents(run(name, call))
    function = OPS[name].function
    wanted = wants_gradient(call)
    together = gradients(function, wanted, grads)
    positions = [i for i, t in enumerate(wanted.tensors()) if t.requires_grad]
    for i, expected in zip(positions, together, strict=True):
        alone = gradients(function, wants_gradient(call, which=[i]), grads)
        assert_same(alone, [expected])


@pytest.mark.parametrize(
    ("name", "sample"),
    [
        (name, sample)
        for name in DIFFERENTIABLE
        for sample in (["plain-3d", "1-d", "no-rows"] if name in ROWWISE else CASES[name].samples)
        if sample not in ("many", "special", *CASES[name].constants)
    ],
)
def test_gradcheck_in_float64(name: str, sample: str) -> None:
    call = wants_gradient(make(name, sample, torch.float64))
    tensors = call.tensors()
    kept = [i for i, y in enumerate(run(name, call)) if y.requires_grad]

    def function(*inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = run(name, call.replaced(inputs))
        # What is infinite is so on purpose, and constant.
        return tuple(outputs[i].masked_fill(outputs[i].isinf(), 0.0) for i in kept)

    assert torch.autograd.gradcheck(function, tensors, fast_mode=True)


@differentiable_ops
def test_second_derivative_is_refused(name: str) -> None:
    call = wants_gradient(make(name, "plain"))
    wanted = leaves(call)
    first = torch.autograd.grad(
        [y.sum() for y in run(name, call) if y.requires_grad],
        wanted,
        create_graph=True,
        materialize_grads=True,
    )
    with pytest.raises(RuntimeError, match=r"no gradient|does not require grad"):
        torch.autograd.grad(sum(g.square().sum() for g in first), wanted)


@dtypes
@ops
def test_same_bits_again_and_for_any_thread_count(name: str, dtype: torch.dtype) -> None:
    """How work is cut into ranges is decided outside the kernels, the same at every level."""
    call = make(name, "many", dtype)
    grads = cotangents(run(name, call))
    results = []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        with leeboard.ops.backend("cpu"):
            result = run(name, call)
            if name in DIFFERENTIABLE:
                result += gradients(OPS[name].function, wants_gradient(call), grads)
        results.append(result)
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])
    outputs = results[0][: len(grads)]
    assert_matches(name, call, outputs, CASES[name].check_index)
    if name in DIFFERENTIABLE:
        assert_gradients_match(name, call, grads, results[0][len(grads) :])


@ops
def test_several_threads_at_once(name: str) -> None:
    """Kernels give the interpreter away while they run."""
    call = make(name, "many")
    expected = run(name, call)
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: run(name, call), range(12)):
            assert_same(result, expected)


def test_other_threads_run_during_one_huge_row() -> None:
    """No thread is ever made to give the interpreter away here: the kernel itself must."""
    x = torch.ones(1, 1 << 20)
    out = torch.empty_like(x)
    ticks, stop = 0, threading.Event()

    def count() -> None:
        nonlocal ticks
        while not stop.is_set():
            ticks += 1
            time.sleep(0)

    before = sys.getswitchinterval()
    other = threading.Thread(target=count)
    other.start()
    try:
        sys.setswitchinterval(1000.0)
        began, deadline = ticks, time.monotonic() + 20
        # The entry point itself: nothing around it that might give the interpreter away. Often
        # the first call is enough; on a busy machine the other thread may wake too late.
        while ticks == began and time.monotonic() < deadline:
            assert _C.rms_norm_forward(x, None, out, 1e-6, 0.0, "after_weight", -1)
        progress = ticks - began
    finally:
        stop.set()
        sys.setswitchinterval(before)
        other.join()
    assert progress > 0


@dtypes
@row_ops
def test_a_row_does_not_depend_on_the_others(name: str, dtype: torch.dtype, isa: str) -> None:
    call = make(name, "rows", dtype)
    row_leaves = CASES[name].row_leaves(call)
    most = CASES[name].invariant_rows

    def rows(start: int, stop: int) -> tuple[Tensor, ...]:
        cut = [t[start:stop] if i in row_leaves else t for i, t in enumerate(call.tensors())]
        with leeboard.ops.backend("cpu"):
            return run(name, call.replaced(cut))

    count = min(most, call.tensors()[row_leaves[0]].shape[0])
    together = rows(0, count)
    for start, stop in [(0, 1), (1, 2), (2, 5), (3, 11), (count - 1, count), (0, count - 1)]:
        assert_same(rows(start, stop), [y[start:stop] for y in together])


def applicable() -> list[tuple[str, str]]:
    """(op, layout) where the layout changes an argument: some need a number that has a sign, or
    three dimensions. Equal rows leave nothing to an op that chooses between them.
    """
    return [
        (name, layout)
        for name in NAMES
        for layout in LAYOUTS
        if any(relayout(layout, t) is not t for t in make(name, leading(name)).tensors())
        and not (CASES[name].chooses and layout.startswith("expanded"))
    ]


@dtypes
@pytest.mark.parametrize(("name", "layout"), applicable())
def test_layouts_of_inputs(name: str, layout: str, dtype: torch.dtype) -> None:
    call = make(name, leading(name), dtype)
    tensors = call.tensors()
    everywhere = [relayout(layout, t) for t in tensors]
    one_by_one = [
        [changed if i == j else t for j, t in enumerate(tensors)]
        for i, changed in enumerate(everywhere)
        if changed is not tensors[i]
    ]
    assert one_by_one, "the layout applies to no argument"
    for variant in [everywhere, *one_by_one]:
        changed = call.replaced(variant)
        before = changed.copied()
        actual = run(name, changed)
        assert_matches(name, before, actual, CASES[name].check_index)
        assert_same(changed.copied().tensors(), before.tensors())


@dtypes
@layouts
@differentiable_ops
def test_layouts_of_gradients(name: str, layout: str, dtype: torch.dtype) -> None:
    call = make(name, leading(name), dtype)
    function = OPS[name].function
    grads = cotangents(run(name, call))
    changed_grads = [relayout(layout, g) for g in grads]
    actual = gradients(function, wants_gradient(call), changed_grads)
    assert_gradients_match(name, call, changed_grads, actual)

    changed = call.mapped(lambda t: relayout(layout, t))
    actual = gradients(function, wants_gradient(changed), grads)
    assert_gradients_match(name, changed, grads, actual)
    for grad, t in zip(actual, leaves(wants_gradient(changed)), strict=True):
        assert grad.shape == t.shape


@pytest.mark.parametrize("layout", [n for n in LAYOUTS if not n.startswith("expanded")])
@pytest.mark.parametrize("sample", ["no-rows", "no-rows-3d"])
@row_ops
def test_layouts_without_rows(name: str, sample: str, layout: str) -> None:
    """Strides of an empty tensor mean nothing, and torch never makes it contiguous."""
    call = make(name, sample)
    changed = call.mapped(lambda t: relayout(layout, t))
    actual = run(name, changed)
    assert_same([y.as_subclass(Tensor) for y in actual], run_reference(name, call))
    outs = tuple(relayout(layout, torch.empty_like(y)) for y in actual)
    run(name, changed, out=as_out(outs))
    if name in DIFFERENTIABLE:
        grads = [relayout(layout, torch.empty_like(y)) for y in run_reference(name, call)]
        wanted = wants_gradient(changed)
        for grad, t in zip(
            gradients(OPS[name].function, wanted, grads), wanted.tensors(), strict=True
        ):
            assert torch.equal(grad.as_subclass(Tensor), torch.zeros(t.shape))


@row_ops
def test_as_many_rows_is_not_the_same_shape(name: str) -> None:
    """[3, 4, H] goes with [3, 4, H] alone, not with [12, H], on every path."""
    call = make(name, "plain-3d")
    row_leaves = CASES[name].row_leaves(call)
    tensors = call.tensors()
    for i in row_leaves[1:]:
        flat = list(tensors)
        # Integers have no last dimension H.
        flat[i] = flat[i].flatten(0, 1)
        expected = f"shape {list(flat[i].shape)} was given; expected {list(tensors[i].shape)}"
        with pytest.raises(ValueError, match=re.escape(expected)):
            run(name, call.replaced(flat))
    outs = run(name, call)
    for i, y in enumerate(outs):
        wrong = tuple(
            torch.empty_like(y).flatten(0, 1) if i == j else torch.empty_like(other)
            for j, other in enumerate(outs)
        )
        with pytest.raises(ValueError, match=r"out.*: shape \[12.*\] was given; expected \[3, 4"):
            run(name, call, out=as_out(wrong))


@ops
def test_float64_goes_to_the_reference(name: str) -> None:
    call = make(name, "plain", torch.float64)
    actual = run(name, call)
    assert_same(actual, run_reference(name, call))
    assert {y.dtype for y in actual} <= {torch.float64, torch.int64, torch.bool}


@ops
def test_results_are_contiguous(name: str) -> None:
    call = make(name, leading(name)).mapped(lambda t: relayout("transposed", t))
    for y in run(name, call):
        assert y.is_contiguous()


# --- out= ---


def as_out(outs: tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
    return outs[0] if len(outs) == 1 else outs


@dtypes
@ops
def test_out_is_written_and_returned(name: str, dtype: torch.dtype) -> None:
    for sample in {"plain", "plain-3d", "no-rows", "1-d", "rows"} & set(CASES[name].samples):
        call = make(name, sample, dtype)
        expected = run(name, call)
        outs = tuple(torch.empty_like(y) for y in expected)
        returned = run(name, call, out=as_out(outs))
        assert len(returned) == len(outs)
        for y, out in zip(returned, outs, strict=True):
            assert y is out
        assert_same(outs, expected)


@ops
@pytest.mark.parametrize("layout", [n for n in LAYOUTS if not n.startswith("expanded")])
def test_layouts_of_out(name: str, layout: str) -> None:
    call = make(name, leading(name))
    expected = run(name, call)
    outs = tuple(relayout(layout, torch.zeros_like(y)) for y in expected)
    run(name, call, out=as_out(outs))
    assert_same([out.as_subclass(Tensor).resolve_neg() for out in outs], expected)


@ops
def test_out_that_overlaps_itself_is_refused(name: str) -> None:
    call = make(name, "plain")
    outs = tuple(y[:1].clone().expand_as(y) if y.dim() else y.clone() for y in run(name, call))
    with pytest.raises((RuntimeError, ValueError), match=r"single memory location|out"):
        run(name, call, out=as_out(outs))


@ops
@pytest.mark.parametrize("problem", ["shape", "dtype", "device", "type", "none"])
def test_wrong_out(name: str, problem: str) -> None:
    call = make(name, "plain")
    outs = run(name, call)
    change = {
        "shape": lambda y: y.new_empty((*y.shape, 2)),
        "dtype": lambda y: y.to(torch.complex64),
        "device": lambda y: y.to("meta"),
        "type": lambda y: [y.tolist()],
        "none": lambda y: None if len(outs) > 1 else [y.tolist()],
    }[problem]
    expected = {
        "shape": r"shape \[.*\] was given; expected \[.*\]",
        "dtype": r"dtype torch.complex64 was given; expected torch\.",
        "device": r"device meta was given; expected cpu",
        "type": r"expected a torch.Tensor, got list",
        "none": r"expected a torch.Tensor, got",
    }[problem]
    for i in range(len(outs)):
        wrong = tuple(change(y) if i == j else torch.empty_like(y) for j, y in enumerate(outs))
        where = "out" if len(outs) == 1 else rf"out\[{i}\]"
        with pytest.raises((TypeError, ValueError), match=f"{where}: {expected}"):
            run(name, call, out=as_out(wrong))


@ops
def test_out_takes_no_gradient(name: str) -> None:
    call = make(name, "plain")
    outs = tuple(torch.empty_like(y) for y in run(name, call))
    for i, t in enumerate(call.tensors()):
        if not t.is_floating_point():
            continue
        with pytest.raises(RuntimeError, match=r"requires grad, but "):
            run(name, wants_gradient(call, which=[i]), out=as_out(outs))
        with torch.no_grad():
            run(name, wants_gradient(call, which=[i]), out=as_out(outs))
    for i, out in enumerate(outs):
        if not out.is_floating_point():
            continue
        wrong = tuple(y.clone().requires_grad_() if i == j else y for j, y in enumerate(outs))
        with pytest.raises(RuntimeError, match=r"requires grad, but "):
            run(name, call, out=as_out(wrong))


def overlapping(base: Tensor, shape: torch.Size, offset: int) -> Tensor:
    count = shape.numel()
    return base[offset : offset + count].view(shape)


@dtypes
@ops
def test_out_that_overlaps_an_input(name: str, dtype: torch.dtype) -> None:
    """Exactly the same memory or a part of it: the right result, or an error that says why."""
    call = make(name, "plain", dtype)
    expected = run(name, call)
    tensors = call.tensors()
    for (i, y), (j, t) in itertools.product(enumerate(expected), enumerate(tensors)):
        if y.dtype != t.dtype:
            continue
        for shift in (0, 1, t.shape[-1], max(1, t.numel() // 2)):
            base = t.new_empty(y.numel() + t.numel() + shift)
            moved = overlapping(base, t.shape, 0)
            moved.copy_(t)
            out = overlapping(base, y.shape, shift)
            outs = tuple(out if i == k else torch.empty_like(e) for k, e in enumerate(expected))
            shared = call.replaced([moved if j == k else other for k, other in enumerate(tensors)])
            try:
                run(name, shared, out=as_out(outs))
            except (RuntimeError, ValueError) as error:
                assert "out" in str(error)  # noqa: PT017 (both outcomes are right)
                continue
            assert_same(outs, expected)


@pytest.mark.parametrize("name", [n for n in NAMES if n in ("add_rms_norm",)])
@pytest.mark.parametrize("shift", [1, 24, 48, -1, -24])
def test_outs_that_overlap_each_other_are_refused(name: str, shift: int) -> None:
    call = make(name, "plain")
    shape = run(name, call)[0].shape
    base = torch.zeros(3 * shape.numel())
    first = overlapping(base, shape, shape.numel())
    second = overlapping(base, shape, shape.numel() + shift)
    with pytest.raises(ValueError, match=r"out\[0\]: its address range overlaps that of out\[1\]"):
        run(name, call, out=(first, second))


@ops
def test_out_counts_as_a_change(name: str) -> None:
    """Backward through a saved tensor that `out=` has overwritten raises, as after copy_."""
    for sample in {"plain", "rows"} & set(CASES[name].samples):
        call = make(name, sample)
        expected = run(name, call)
        for i, y in enumerate(expected):
            if not y.is_floating_point():
                continue
            # exp keeps its output for the backward.
            saved = torch.randn(y.shape, requires_grad=True).exp()
            outs = tuple(saved if i == j else torch.empty_like(o) for j, o in enumerate(expected))
            with torch.no_grad():
                run(name, call, out=as_out(outs))
            with pytest.raises(RuntimeError, match=r"modified by an inplace operation"):
                saved.sum().backward()


# --- bad input ---


@pytest.mark.parametrize(("name", "call"), EVERY_BAD_CALL)
@pytest.mark.parametrize("backend", [None, "reference", "cpu"])
def test_bad_calls(name: str, call: str, backend: str | None) -> None:
    bad = CASES[name].bad_calls[call]
    if backend is None:
        with pytest.raises(bad.error, match=bad.match):
            bad.call()
    else:
        with leeboard.ops.backend(backend), pytest.raises(bad.error, match=bad.match):
            bad.call()


@ops
def test_wrong_argument_names(name: str) -> None:
    call = make(name, "plain")
    with pytest.raises(TypeError, match="unexpected keyword"):
        run(name, call, epsilon=1e-6)


@pytest.mark.parametrize("name", [n for n in DIFFERENTIABLE if n in ROWWISE])
def test_eps_of_numpy(name: str) -> None:
    call = make(name, "plain")
    sample = Sample(call.args, {**call.kwargs, "eps": np.float32(1e-3)})
    plain = Sample(call.args, {**call.kwargs, "eps": float(np.float32(1e-3))})
    assert_same(run(name, sample), run(name, plain))


@row_ops
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_nested_tensors_are_refused(name: str, layout: torch.layout) -> None:
    call = make(name, "plain")
    first, *others = call.tensors()
    nested = torch.nested.nested_tensor([first, first[:1]], layout=layout)
    where = r"hiddens\[0\]" if name == "aux_norm_linear" else "x"
    with pytest.raises(ValueError, match=rf"^{where}: layout nested is not supported"):
        run(name, call.replaced([nested, *others]))


def test_registered_kernels_refuse_an_unknown_rounding() -> None:
    """Whoever calls them past the checks of the public functions."""
    x, w = torch.randn(4, 8), torch.randn(8)
    options = (w, 1e-6, 0.0, "bogus")
    with leeboard.ops.backend("cpu"):
        with pytest.raises((RuntimeError, ValueError), match="bogus"):
            torch.ops.leeboard.rms_norm(x, *options)
        with pytest.raises((RuntimeError, ValueError), match="bogus"):
            torch.ops.leeboard.add_rms_norm(x, x, *options)
        with pytest.raises((RuntimeError, ValueError), match="bogus"):
            torch.ops.leeboard.rms_norm_backward(x, x, *options, None)


# --- special values ---


@dtypes
@pytest.mark.parametrize("rounding", ["after_weight", "before_weight"])
def test_subnormals_survive(dtype: torch.dtype, rounding: str, isa: str) -> None:
    """Nothing is flushed to zero: rows of +-1 give the weight, and the sum is what was added."""
    smallest = torch.finfo(dtype).smallest_normal
    positive = torch.linspace(0, 1, 129, dtype=torch.float64)[1:-1].mul(smallest).to(dtype)
    tiny = torch.cat((positive, -positive))
    assert (tiny != 0).all()
    assert (tiny.double().abs() < smallest).all()
    signs = torch.ones(3, tiny.numel(), dtype=dtype)
    signs[1] = -1
    with leeboard.ops.backend("cpu"):
        actual = leeboard.ops.rms_norm(signs, tiny, eps=0.0, rounding=rounding)
        assert_same([actual], [signs * tiny])
        exact = leeboard.reference.rms_norm(signs, tiny, 0.0, rounding=rounding)
        assert_same([actual], [exact])
        x = tiny.expand(3, -1).contiguous()
        residual = x.flip(1) * torch.tensor([[0.0], [1.0], [-0.5]], dtype=dtype)
        _, total = leeboard.ops.add_rms_norm(x, residual, rounding=rounding)
        assert_same([total], [leeboard.reference.add_rms_norm(x, residual)[1]])
        assert torch.equal(total[0], tiny)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_weight_of_1e_39(dtype: torch.dtype, isa: str) -> None:
    x, w = torch.ones(2, 40, dtype=dtype), torch.full((40,), 1e-39, dtype=dtype)
    actual = leeboard.ops.rms_norm(x, w)
    assert actual.min() > 0
    assert_same([actual], [leeboard.reference.rms_norm(x, w)])


@dtypes
@pytest.mark.parametrize("name", [n for n in ROWWISE if "special" in CASES[n].samples])
def test_special_values_stay_in_their_rows(name: str, dtype: torch.dtype, isa: str) -> None:
    call = make(name, "special", dtype)
    row_leaves = CASES[name].row_leaves(call)
    clean = call.replaced(
        [
            t.nan_to_num(0.0, 0.0, 0.0) if i in row_leaves else t
            for i, t in enumerate(call.tensors())
        ]
    )
    with leeboard.ops.backend("cpu"):
        dirty, expected = run(name, call), run(name, clean)
    assert_same([y[4:] for y in dirty], [y[4:] for y in expected])
    if name not in DIFFERENTIABLE:
        return
    grads = cotangents(expected)
    for row in (0, 1, 2, 3):
        for g in grads:
            g[row] = 0.0
    with leeboard.ops.backend("cpu"):
        dirty_grads = gradients(OPS[name].function, wants_gradient(call), grads)
        clean_grads = gradients(OPS[name].function, wants_gradient(clean), grads)
    for i in row_leaves:
        assert_same([dirty_grads[i][4:]], [clean_grads[i][4:]])
