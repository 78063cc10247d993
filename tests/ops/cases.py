"""What the contract tests call every op with. A registered op without an entry fails a test."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import draft_inputs
import leeboard.ops
import loss_inputs
import panel_inputs
import saliency_inputs
import sparse_inputs
import ttt_inputs
from harness import Sample
from leeboard.ops._weights import to_arguments
from leeboard.reference._quantized import as_matrix

Builder = Callable[[torch.dtype], Sample]


@dataclass(frozen=True)
class BadCall:
    """A call that must raise; the message names the argument, the value given and what fits."""

    call: Callable[[], object]
    error: type[Exception]
    match: str


@dataclass(frozen=True)
class OpCases:
    """The calls of one op.

    Attributes:
        samples: Valid calls by id. Every op has "plain" (small) and "many" (enough work for several
            threads); a rowwise one also "plain-3d" (leading dimensions) and "rows" (2-D, more rows
            than any blocking).
        bad_calls: Calls that must raise, by id.
        op_arguments: A sample as the arguments of torch.ops.leeboard.<name>.
        row_leaves: Positions, among a sample's tensors, of those [..., H]; integer ones are [...].
        invariant_rows: Up to this many rows a row's result does not depend on the others.
        chooses: Whether equal rows of a weight leave the outputs to rounding: it is not called with
            arguments whose rows are one.
        constants: Samples whose gradient holds a part of the result constant, on purpose: it is not
            what differences tell.
        check_index: The rule for an output that is an index; without one it must equal the
            reference's.
    """

    samples: dict[str, Builder]
    bad_calls: dict[str, BadCall]
    op_arguments: Callable[[Sample], tuple[Any, ...]]
    row_leaves: Callable[[Sample], Sequence[int]]
    invariant_rows: int = 1 << 30
    check_index: Callable[[Sample, Tensor], None] | None = None
    chooses: bool = False
    constants: Sequence[str] = ()


def normal(dtype: torch.dtype, *shape: int, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape, dtype=torch.float64) * scale).to(dtype)


def gain(dtype: torch.dtype, size: int) -> Tensor:
    return (1.0 + 0.2 * torch.randn(size, dtype=torch.float64)).to(dtype)


SHAPES: dict[str, tuple[int, ...]] = {
    "plain": (4, 24),
    "plain-3d": (3, 4, 24),
    "rows": (70, 33),
    "many": (130, 1024),
    "1-d": (100,),
    "no-rows": (0, 17),
    "no-rows-3d": (3, 0, 17),
    "5-d": (2, 1, 3, 2, 17),
    "H1": (5, 1),
    "H3": (5, 3),
    "H17": (6, 17),
    "H100": (3, 100),
    "H4097": (2, 4097),
}
SCALES = {"huge": 1e25, "large": 1e4, "small": 1e-6, "vanishing": 1e-30}


def special(t: Tensor) -> Tensor:
    """NaN and infinities in the first rows of [N, H], N >= 5."""
    t[0, 3], t[1, 2], t[2, 0] = float("nan"), float("inf"), float("-inf")
    t[3, 1], t[3, 5] = float("inf"), float("-inf")
    return t


def scaled(dtype: torch.dtype, scale: float, *shape: int) -> Tensor:
    """Random numbers of a magnitude, within what the dtype can hold."""
    largest = torch.finfo(dtype).max / 8
    return normal(dtype, *shape, scale=min(scale, largest))


NORM_OPTIONS: dict[str, dict[str, Any]] = {
    "gemma": {"weight_offset": 1.0},
    "llama": {"rounding": "before_weight"},
    "llama-offset": {"rounding": "before_weight", "weight_offset": 1.0},
    "eps": {"eps": 0.1},
    "eps-0": {"eps": 0},
}


def norm_samples(rows: int) -> dict[str, Builder]:
    """Samples of an op that takes `rows` tensors [..., H], then a weight [H]."""

    def build(
        shape: tuple[int, ...],
        make: Callable[..., Tensor] = normal,
        weight: bool = True,
        **options: Any,
    ) -> Builder:
        def sample(dtype: torch.dtype) -> Sample:
            tensors = [make(dtype, *shape) for _ in range(rows)]
            if weight:
                tensors.append(gain(dtype, shape[-1]))
            return Sample(tuple(tensors), options)

        return sample

    samples = {name: build(shape) for name, shape in SHAPES.items()}
    for name, options in NORM_OPTIONS.items():
        samples[name] = build((6, 136), **options)
    samples["no-weight"] = build((6, 136), weight=False)
    samples["no-weight-llama"] = build((6, 136), weight=False, rounding="before_weight")
    for name, scale in SCALES.items():
        samples[name] = build(
            (6, 136), make=lambda dtype, *shape, scale=scale: scaled(dtype, scale, *shape)
        )
    samples["special"] = build((8, 40), make=lambda dtype, *shape: special(normal(dtype, *shape)))
    return samples


def norm_arguments(rows: int) -> Callable[[Sample], tuple[Any, ...]]:
    def arguments(sample: Sample) -> tuple[Any, ...]:
        tensors = sample.args[:rows]
        weight = sample.args[rows] if len(sample.args) > rows else None
        options = {"eps": 1e-6, "weight_offset": 0.0, "rounding": "after_weight"} | sample.kwargs
        return (*tensors, weight, float(options["eps"]), *list(options.values())[1:])

    return arguments


def norm_bad_calls(op: Callable[..., Any], rows: int) -> dict[str, BadCall]:
    """Wrong arguments that every norm must refuse."""
    x, weight = torch.ones(4, 8), torch.ones(8)

    def call(first: object, *others: object, **options: object) -> Callable[[], object]:
        rest = (x,) * (rows - 1)
        return lambda: op(first, *rest, *others, **options)

    def bad(error: type[Exception], match: str, *args: object, **options: object) -> BadCall:
        return BadCall(call(*args, **options), error, match)

    return {
        "x-list": bad(TypeError, r"x: expected a torch.Tensor, got list", [[1.0]]),
        "x-numpy": bad(TypeError, r"x: expected a torch.Tensor, got ndarray", np.ones((4, 8))),
        "x-none": bad(TypeError, r"x: expected a torch.Tensor, got NoneType", None),
        "x-int": bad(ValueError, r"x: dtype torch.int64 .* expected float32", x.long()),
        "x-complex": bad(ValueError, r"x: dtype torch.complex64", x.to(torch.complex64)),
        "x-bool": bad(ValueError, r"x: dtype torch.bool", x.bool()),
        "x-0d": bad(ValueError, r"x: .*0-dimensional.* expected \[\.\.\., H\]", torch.ones(())),
        "x-H0": bad(ValueError, r"x: shape \[4, 0\] .* expected at least 1", torch.ones(4, 0)),
        "x-sparse": bad(ValueError, r"x: layout torch.sparse_coo .* expected", x.to_sparse()),
        "weight-size": bad(
            ValueError, r"weight: shape \[7\] was given; expected \[8\]", x, torch.ones(7)
        ),
        "weight-2d": bad(
            ValueError, r"weight: shape \[1, 8\] was given; expected \[8\]", x, weight[None]
        ),
        "weight-0d": bad(
            ValueError, r"weight: shape \[\] was given; expected \[8\]", x, torch.ones(())
        ),
        "weight-dtype": bad(
            ValueError,
            r"weight: dtype torch.bfloat16 was given; expected torch.float32",
            x,
            weight.bfloat16(),
        ),
        "weight-int": bad(ValueError, r"weight: dtype torch.int64", x, weight.long()),
        "weight-float": bad(TypeError, r"weight: expected a torch.Tensor, got float", x, 1.0),
        "weight-device": bad(
            ValueError, r"weight: device meta was given; expected cpu", x, weight.to("meta")
        ),
        "weight-sparse": bad(ValueError, r"weight: layout torch.sparse", x, weight.to_sparse()),
        "eps-negative": bad(ValueError, r"eps: -1\.0 .* expected a number >= 0", x, weight, -1.0),
        "eps-nan": bad(ValueError, r"eps: nan .* expected a number >= 0", x, weight, float("nan")),
        "eps-text": bad(TypeError, r"eps: expected a number, got str", x, weight, "1e-6"),
        "eps-bool": bad(TypeError, r"eps: expected a number, got bool", x, weight, True),
        "eps-none": bad(TypeError, r"eps: expected a number, got NoneType", x, weight, None),
        "offset-text": bad(
            TypeError, r"weight_offset: expected a number, got str", x, weight, weight_offset="1"
        ),
        "offset-tensor": bad(
            TypeError, r"weight_offset: expected a number", x, weight, weight_offset=weight
        ),
        "rounding": bad(
            ValueError,
            r"rounding: 'never' was given; expected one of after_weight, before_weight",
            x,
            weight,
            rounding="never",
        ),
        "rounding-none": bad(ValueError, r"rounding: None was given", x, weight, rounding=None),
    }


def _add_norm_bad_calls() -> dict[str, BadCall]:
    op = leeboard.ops.add_rms_norm
    x = torch.ones(4, 8)

    def bad(error: type[Exception], match: str, residual: object, **options: object) -> BadCall:
        return BadCall(lambda: op(x, residual, **options), error, match)

    calls = norm_bad_calls(op, rows=2)
    calls |= {
        "residual-none": bad(TypeError, r"residual: expected a torch.Tensor, got NoneType", None),
        "residual-shape": bad(
            ValueError, r"residual: shape \[1, 8\] was given; expected \[4, 8\]", x[:1]
        ),
        "residual-dtype": bad(
            ValueError, r"residual: dtype torch.float16 .* expected torch.float32", x.half()
        ),
        "residual-device": bad(ValueError, r"residual: device meta .* expected cpu", x.to("meta")),
        "out-tensor": bad(TypeError, r"out: expected a pair of tensors, got Tensor", x, out=x),
        "out-number": bad(TypeError, r"out: expected a pair of tensors, got int", x, out=5),
        "out-three": bad(ValueError, r"out: 3 tensors given; expected a pair", x, out=(x, x, x)),
        "out-twice": bad(
            ValueError, r"out\[0\]: its address range overlaps that of out\[1\]", x, out=(x, x)
        ),
    }
    return calls


def aux_samples() -> dict[str, Builder]:
    def build(
        shape: tuple[int, ...],
        features: int = 12,
        states: int = 3,
        scales: bool = True,
        make: Callable[..., Tensor] = normal,
        **options: Any,
    ) -> Builder:
        def sample(dtype: torch.dtype) -> Sample:
            width = shape[-1]
            hiddens = [make(dtype, *shape) for _ in range(states)]
            gammas = [gain(dtype, width) for _ in range(states)] if scales else None
            weight = normal(dtype, features, states * width, scale=(states * width) ** -0.5)
            return Sample((hiddens, gammas, weight), options)

        return sample

    samples = {name: build(shape) for name, shape in SHAPES.items()}
    samples["one-state"] = build((3, 40), states=1)
    samples["eight-states"] = build((3, 40), states=8)
    samples["no-gammas"] = build((3, 40), scales=False)
    samples["eps"] = build((3, 40), eps=0.1)
    samples["one-feature"] = build((3, 40), features=1)
    samples["many-features"] = build((2, 257), features=515)
    samples["16-rows"] = build((16, 72), features=31)
    samples["17-rows"] = build((17, 72), features=31)
    samples["600-rows"] = build((600, 24), features=9)
    for name, scale in SCALES.items():
        samples[name] = build(
            (6, 136), make=lambda dtype, *shape, scale=scale: scaled(dtype, scale, *shape)
        )
    samples["special"] = build((8, 40), make=lambda dtype, *shape: special(normal(dtype, *shape)))
    return samples


def _aux_bad_calls() -> dict[str, BadCall]:
    op = leeboard.ops.aux_norm_linear
    h, g, w = torch.ones(4, 8), torch.ones(8), torch.ones(5, 24)

    def bad(
        error: type[Exception],
        match: str,
        hiddens: object = (h, h, h),
        gammas: object = (g, g, g),
        weight: object = w,
        **options: object,
    ) -> BadCall:
        return BadCall(lambda: op(hiddens, gammas, weight, **options), error, match)

    return {
        "hiddens-tensor": bad(
            TypeError, r"hiddens: expected a sequence of tensors, got Tensor", hiddens=h
        ),
        "hiddens-none": bad(TypeError, r"hiddens: expected a sequence of tensors", hiddens=None),
        "hiddens-empty": bad(
            ValueError, r"hiddens: 0 tensors given; expected 1 to 8", hiddens=(), gammas=None
        ),
        "hiddens-nine": bad(ValueError, r"hiddens: 9 tensors given; expected 1 to 8", (h,) * 9),
        "hiddens-item": bad(
            TypeError, r"hiddens\[1\]: expected a torch.Tensor, got int", (h, 1, h)
        ),
        "hiddens-shape": bad(
            ValueError, r"hiddens\[2\]: shape \[3, 8\] .* expected \[4, 8\]", (h, h, h[:3])
        ),
        "hiddens-dtype": bad(
            ValueError, r"hiddens\[1\]: dtype torch.float16 .* torch.float32", (h, h.half(), h)
        ),
        "hiddens-device": bad(
            ValueError, r"hiddens\[1\]: device meta .* expected cpu", (h, h.to("meta"), h)
        ),
        "hiddens-int": bad(ValueError, r"hiddens\[0\]: dtype torch.int64", (h.long(),) * 3),
        "hiddens-0d": bad(ValueError, r"hiddens\[0\]: .*0-dimensional", (torch.ones(()),) * 3),
        "hiddens-H0": bad(ValueError, r"hiddens\[0\]: shape \[4, 0\]", (torch.ones(4, 0),) * 3),
        "hiddens-sparse": bad(ValueError, r"hiddens\[0\]: layout", (h.to_sparse(), h, h)),
        "gammas-tensor": bad(TypeError, r"gammas: expected a sequence of tensors", gammas=g),
        "gammas-few": bad(ValueError, r"gammas: 2 given; expected 3", gammas=(g, g)),
        "gammas-item": bad(
            TypeError, r"gammas\[0\]: expected a torch.Tensor, got NoneType", gammas=(None, g, g)
        ),
        "gammas-shape": bad(
            ValueError, r"gammas\[2\]: shape \[7\] .* expected \[8\]", gammas=(g, g, g[:7])
        ),
        "gammas-dtype": bad(
            ValueError, r"gammas\[0\]: dtype torch.float64", gammas=(g.double(), g, g)
        ),
        "weight-none": bad(
            TypeError, r"weight: expected a torch.Tensor, got NoneType", weight=None
        ),
        "weight-width": bad(
            ValueError, r"weight: shape \[5, 23\] .* expected \[H, 24\]", weight=w[:, 1:]
        ),
        "weight-1d": bad(ValueError, r"weight: shape \[24\] .* expected \[H, 24\]", weight=w[0]),
        "weight-dtype": bad(ValueError, r"weight: dtype torch.bfloat16", weight=w.bfloat16()),
        "weight-device": bad(ValueError, r"weight: device meta", weight=w.to("meta")),
        "weight-sparse": bad(ValueError, r"weight: layout torch.sparse", weight=w.to_sparse()),
        "eps-negative": bad(ValueError, r"eps: -1 .* expected a number >= 0", eps=-1),
        "eps-text": bad(TypeError, r"eps: expected a number, got str", eps="small"),
    }


def offsets(vocabulary: int) -> Tensor:
    """A d2t table: the target's token of draft token v is v + d2t[v], increasing in v."""
    return torch.randint(0, 4, (vocabulary,)).cumsum(0)


def stored(weight: Tensor, kind: str) -> Any:
    """A float64 matrix as a weight: of a dtype's name, or quantised."""
    if kind in ("int8", "int4", "fp8"):
        return leeboard.ops.quantize_weight(weight.float(), kind)
    return weight.to(getattr(torch, kind))


def matrix(dtype: torch.dtype, rows: int, columns: int, kind: str | None) -> Any:
    """A weight [rows, columns] of a kind; None is the dtype of the activations."""
    weight = normal(torch.float64, rows, columns, scale=columns**-0.5)
    return weight.to(dtype) if kind is None else stored(weight, kind)


def head_samples(**fixed: Any) -> dict[str, Builder]:
    """Samples of a head; `fixed` holds arguments of every call, such as k."""

    def build(
        shape: tuple[int, ...],
        vocabulary: int = 151,
        table: bool = False,
        make: Callable[..., Tensor] = normal,
        kind: str | None = None,
        **options: Any,
    ) -> Builder:
        def sample(dtype: torch.dtype) -> Sample:
            x = make(dtype, *shape)
            weight = matrix(dtype, vocabulary, shape[-1], kind)
            kwargs = {"d2t": offsets(vocabulary)} if table else {}
            given = {**fixed, **options}
            if "k" in given:
                given["k"] = min(given["k"], vocabulary)
            return Sample((x, weight), {**kwargs, **given})

        return sample

    samples = {name: build(shape) for name, shape in SHAPES.items()}
    samples["plain"] = build((4, 24), table=True)
    samples["d2t"] = build((3, 5, 40), vocabulary=300, table=True)
    for vocabulary in (1, 2, 127, 128, 129, 1000):
        samples[f"V{vocabulary}"] = build((3, 40), vocabulary=vocabulary)
    for rows in (63, 64, 65, 129):
        samples[f"N{rows}"] = build((rows, 24), vocabulary=50)
    for name, scale in SCALES.items():
        samples[name] = build(
            (6, 136), make=lambda dtype, *shape, scale=scale: scaled(dtype, scale, *shape)
        )
    samples["lse"] = build((5, 40), vocabulary=300, table=True, logsumexp=True)
    samples["lse-3d"] = build((2, 3, 24), vocabulary=9, logsumexp=True)
    samples["quantised"] = build((4, 136), kind="int4", table=True, logsumexp=True)
    samples["int8"] = build((3, 77), vocabulary=133, kind="int8")
    samples["int4"] = build((5, 300), vocabulary=133, kind="int4")
    return samples


def topk_samples() -> dict[str, Builder]:
    samples = head_samples(k=5)
    for k in (1, 2, 16, 17, 64):
        samples[f"k{k}"] = head_samples(k=k, logsumexp=k % 2 == 0)["d2t"]
    return samples


def _logits(sample: Sample) -> tuple[Tensor, Tensor, Tensor]:
    """Float64 logits, a bound of float32's error in each, and the token of each entry."""
    x, weight = sample.args
    x = x.double()
    weight = as_matrix(weight, torch.float64)
    # NaN and what overflows float32 are tested by value; see test_linear_argmax.py.
    tokens = torch.arange(weight.shape[0])
    if "d2t" in sample.kwargs:
        tokens = tokens + sample.kwargs["d2t"]
    bound = x.shape[-1] * torch.finfo(torch.float32).eps / 2 * (x.abs() @ weight.abs().mT)
    return x @ weight.mT, bound, tokens


def _entries(tokens: Tensor, index: Tensor) -> Tensor:
    """The vocabulary entries that the indices of an output stand for."""
    chosen = torch.searchsorted(tokens, index.reshape(-1))
    assert torch.equal(tokens[chosen.clamp(max=tokens.numel() - 1)], index.reshape(-1))
    return chosen.view(index.shape)


def head_arguments(sample: Sample) -> tuple[Any, ...]:
    """A head's sample as the arguments of its registered op."""
    x, weight = sample.args
    matrices, (text,) = to_arguments([weight])
    options = sample.kwargs
    counts = [options["k"]] if "k" in options else []
    return (x, matrices, text, *counts, options.get("d2t"), options.get("logsumexp", False))


def check_argmax(sample: Sample, index: Tensor) -> None:
    """The token chosen is the best one, as far as float32 sums can tell.

    A sum of K products errs by at most K eps/2 |x| . |w| (Higham, 2002, section 3.1), so a token
    that is worse by more than twice that cannot win.
    """
    logits, bound, tokens = _logits(sample)
    chosen = _entries(tokens, index).unsqueeze(-1)
    best, at = logits.max(dim=-1, keepdim=True)
    allowed = bound.gather(-1, chosen) + bound.gather(-1, at)
    lost = best - logits.gather(-1, chosen)
    assert bool((lost <= allowed).all()), f"chosen token is worse by {lost.max().item():.3g}"


def check_topk(sample: Sample, index: Tensor) -> None:
    """The i-th token is as good as the i-th best one, as far as float32 sums can tell, and none
    comes twice.
    """
    logits, bound, tokens = _logits(sample)
    if "d2t" not in sample.kwargs or bool((sample.kwargs["d2t"].diff() >= 0).all()):
        ordered = index.sort(dim=-1).values
        assert bool((ordered.diff(dim=-1) > 0).all()), "a token comes twice"
    chosen = _entries(tokens, index)
    best, _ = logits.sort(dim=-1, descending=True)
    allowed = 2 * bound.amax(-1, keepdim=True)
    lost = (best[..., : index.shape[-1]] - logits.gather(-1, chosen)).abs()
    assert bool((lost <= allowed).all()), f"a token is off by {lost.max().item():.3g}"


def quantised_bad_calls(
    call: Callable[[Any], object], name: str, columns: int
) -> dict[str, BadCall]:
    """Quantised weights [5, columns], columns < 128, that do not hold together, or do not fit."""
    w = torch.ones(5, columns)
    q8, q4 = (leeboard.ops.quantize_weight(w, kind) for kind in ("int8", "int4"))
    wrong: dict[str, tuple[type[Exception], str, Any]] = {
        "format": (ValueError, rf"{name}.format: 'int2' .* int8", replace(q8, format="int2")),
        "data-dtype": (
            ValueError,
            rf"{name}.data: dtype torch.uint8 .* expected torch.int8",
            replace(q8, data=q8.data.to(torch.uint8)),
        ),
        "data-shape": (
            ValueError,
            rf"{name}.data: shape \[5, 63\] .* expected \[5, 64\]",
            replace(q4, data=q4.data[:, :63]),
        ),
        "data-none": (TypeError, rf"{name}.data: expected a torch.Tensor", replace(q8, data=None)),
        "data-1d": (ValueError, rf"{name}.data: shape .* 2 dim", replace(q8, data=q8.data[0])),
        "data-device": (
            ValueError,
            rf"{name}.data: device meta",
            replace(q8, data=q8.data.to("meta")),
        ),
        "scales-shape": (
            ValueError,
            rf"{name}.scales: shape \[4\] .* expected \[5\]",
            replace(q8, scales=q8.scales[:4]),
        ),
        "scales-dtype": (
            ValueError,
            rf"{name}.scales: dtype torch.float32 .* expected torch.bfloat16",
            replace(q4, scales=q4.scales.float()),
        ),
        "columns": (
            ValueError,
            rf"{name}.data: shape \[5, {columns}\] .* {columns - 1}",
            replace(q8, columns=columns - 1),
        ),
        "columns-text": (
            TypeError,
            rf"{name}.columns: expected an integer, got str",
            replace(q8, columns=str(columns)),
        ),
        "width": (
            ValueError,
            rf"{name}: shape \[5, {columns + 1}\] .* {columns}\]",
            leeboard.ops.quantize_weight(torch.ones(5, columns + 1), "int8"),
        ),
    }

    def bad(error: type[Exception], match: str, value: Any) -> BadCall:
        return BadCall(lambda: call(value), error, match)

    return {f"{name}-{problem}": bad(*each) for problem, each in wrong.items()}


def _head_bad_calls(op: Callable[..., Any], **fixed: Any) -> dict[str, BadCall]:
    x, w = torch.ones(4, 8), torch.ones(5, 8)
    table = torch.zeros(5, dtype=torch.int64)

    def bad(
        error: type[Exception],
        match: str,
        x: object = x,
        weight: object = w,
        **options: object,
    ) -> BadCall:
        return BadCall(lambda: op(x, weight, **{**fixed, **options}), error, match)

    return {
        **quantised_bad_calls(lambda weight: op(x, weight, **fixed), "weight", 8),
        "x-list": bad(TypeError, r"x: expected a torch.Tensor, got list", x=[1.0]),
        "x-int": bad(ValueError, r"x: dtype torch.int64", x=x.long()),
        "x-0d": bad(ValueError, r"x: .*0-dimensional", x=torch.ones(())),
        "x-H0": bad(ValueError, r"x: shape \[4, 0\]", x=torch.ones(4, 0), weight=w[:, :0]),
        "x-sparse": bad(ValueError, r"x: layout torch.sparse_coo", x=x.to_sparse()),
        "weight-none": bad(TypeError, r"weight: expected a torch.Tensor", weight=None),
        "weight-width": bad(
            ValueError, r"weight: shape \[5, 7\] .* expected \[V, 8\]", weight=w[:, 1:]
        ),
        "weight-1d": bad(ValueError, r"weight: shape \[8\] .* expected \[V, 8\]", weight=w[0]),
        "weight-V0": bad(ValueError, r"weight: shape \[0, 8\] .* V >= 1", weight=w[:0]),
        "weight-dtype": bad(
            ValueError, r"weight: dtype torch.float16 .* expected torch.float32", weight=w.half()
        ),
        "weight-device": bad(ValueError, r"weight: device meta", weight=w.to("meta")),
        "weight-sparse": bad(ValueError, r"weight: layout torch.sparse", weight=w.to_sparse()),
        "d2t-list": bad(TypeError, r"d2t: expected a torch.Tensor, got list", d2t=[0] * 5),
        "d2t-dtype": bad(
            ValueError, r"d2t: dtype torch.int32 .* expected torch.int64", d2t=table.int()
        ),
        "d2t-size": bad(ValueError, r"d2t: shape \[4\] .* expected \[5\]", d2t=table[:4]),
        "d2t-device": bad(ValueError, r"d2t: device meta", d2t=table.to("meta")),
        "x-grad": bad(
            RuntimeError, r"x: requires grad, .*inference-only", x=x.clone().requires_grad_()
        ),
        "weight-grad": bad(
            RuntimeError, r"weight: requires grad, .*inference-only", weight=torch.nn.Parameter(w)
        ),
        "out-tensor": bad(TypeError, r"out: expected a pair of tensors", out=table),
        "out-two": bad(
            ValueError, r"out: 2 tensors given; expected 3", out=(table, w), logsumexp=True
        ),
        "logsumexp": bad(TypeError, r"logsumexp: expected True or False, got int", logsumexp=1),
    }


def _topk_bad_calls() -> dict[str, BadCall]:
    x, w = torch.ones(4, 8), torch.ones(5, 8)

    def bad(error: type[Exception], match: str, k: object) -> BadCall:
        return BadCall(lambda: leeboard.ops.linear_topk(x, w, k), error, match)

    return {
        **_head_bad_calls(leeboard.ops.linear_topk, k=2),
        "k-0": bad(ValueError, r"k: 0 was given; expected at least 1", 0),
        "k-many": bad(ValueError, r"k: 6 was given; expected at most 5", 6),
        "k-none": bad(TypeError, r"k: expected an integer, got NoneType", None),
        "k-float": bad(TypeError, r"k: expected an integer, got float", 2.0),
    }


def _surrounded(
    make: Callable[..., tuple[Any, ...]],
    shape: tuple[int, ...],
    features: int,
    data: Callable[..., Tensor] = normal,
    norm: bool = True,
    residual: bool = True,
    norm_dtype: torch.dtype | None = None,
    **options: Any,
) -> Builder:
    """A layer on the weights that `make(dtype, columns, features)` yields."""

    def sample(dtype: torch.dtype) -> Sample:
        kwargs: dict[str, Any] = dict(options)
        if norm:
            kwargs["norm_weight"] = gain(norm_dtype or dtype, shape[-1])
        if residual:
            kwargs["residual"] = normal(dtype, *shape[:-1], features)
        return Sample((data(dtype, *shape), *make(dtype, shape[-1], features)), kwargs)

    return sample


def layer_samples(make: Callable[..., Callable[..., tuple[Any, ...]]]) -> dict[str, Builder]:
    """Samples of a layer; make(*kinds) yields its weights, make() those of the dtype of x."""
    plain = make()
    samples = {name: _surrounded(plain, shape, 24) for name, shape in SHAPES.items()}
    samples["bare"] = _surrounded(plain, (5, 40), 31, norm=False, residual=False)
    samples["norm-only"] = _surrounded(plain, (5, 40), 31, residual=False, eps=0.1)
    samples["residual-only"] = _surrounded(plain, (5, 40), 31, norm=False)
    samples["one-feature"] = _surrounded(plain, (3, 40), 1)
    samples["many-features"] = _surrounded(plain, (2, 257), 515)
    for rows in (2, 3, 16, 64, 65, 129):
        samples[f"N{rows}"] = _surrounded(plain, (rows, 72), 31)
    for name, scale in SCALES.items():
        samples[name] = _surrounded(
            plain,
            (6, 136),
            31,
            data=lambda dtype, *shape, scale=scale: scaled(dtype, scale, *shape),
        )
    samples["special"] = _surrounded(
        plain, (8, 40), 24, data=lambda dtype, *shape: special(normal(dtype, *shape))
    )
    for kind in ("int8", "int4"):
        for columns in (1, 127, 129, 400):
            samples[f"{kind}-K{columns}"] = _surrounded(make(kind), (5, columns), 31)
        samples[f"{kind}-N65"] = _surrounded(make(kind), (65, 300), 17, norm=False)
    samples["quantised"] = _surrounded(make("int4", "int8"), (4, 136), 12)
    return samples


def linear_weights(kind: str | None = None, *_: str) -> Callable[..., tuple[Any, ...]]:
    return lambda dtype, columns, features: (matrix(dtype, features, columns, kind),)


def gated_weights(*kinds: str) -> Callable[..., tuple[Any, ...]]:
    """Gate, up and down of a block that is 21 wide inside; kinds repeat."""

    def weights(dtype: torch.dtype, columns: int, features: int) -> tuple[Any, ...]:
        kind = [kinds[i % len(kinds)] if kinds else None for i in range(3)]
        return (
            matrix(dtype, 21, columns, kind[0]),
            matrix(dtype, 21, columns, kind[1]),
            matrix(dtype, features, 21, kind[2]),
        )

    return weights


def layer_arguments(sample: Sample) -> tuple[Any, ...]:
    """A layer's sample as the arguments of its registered op."""
    x, *weights = sample.args
    matrices, formats = to_arguments(weights)
    options = sample.kwargs
    return (
        x,
        matrices,
        ",".join(formats),
        options.get("norm_weight"),
        options.get("eps", 1e-6),
        options.get("residual"),
    )


def layer_rows(sample: Sample) -> list[int]:
    """Positions of x and the residual."""
    rows = (sample.args[0], sample.kwargs.get("residual"))
    return [i for i, t in enumerate(sample.tensors()) if any(t is row for row in rows)]


def _surrounding_bad_calls(call: Callable[..., object]) -> dict[str, BadCall]:
    """Wrong arguments around the weights of a layer [8] -> [5]; call(x, **options)."""
    x, g, r = torch.ones(4, 8), torch.ones(8), torch.ones(4, 5)

    def bad(error: type[Exception], match: str, x: object = x, **options: object) -> BadCall:
        return BadCall(lambda: call(x, **options), error, match)

    return {
        "x-list": bad(TypeError, r"x: expected a torch.Tensor, got list", x=[1.0]),
        "x-int": bad(ValueError, r"x: dtype torch.int64", x=x.long()),
        "x-0d": bad(ValueError, r"x: .*0-dimensional", x=torch.ones(())),
        "x-sparse": bad(ValueError, r"x: layout torch.sparse_coo", x=x.to_sparse()),
        "x-grad": bad(
            RuntimeError, r"x: requires grad, .*inference-only", x=x.clone().requires_grad_()
        ),
        "norm-list": bad(TypeError, r"norm_weight: expected a torch.Tensor", norm_weight=[1.0]),
        "norm-size": bad(ValueError, r"norm_weight: shape \[7\] .* \[8\]", norm_weight=g[:7]),
        "norm-dtype": bad(ValueError, r"norm_weight: dtype torch.float16", norm_weight=g.half()),
        "norm-grad": bad(
            RuntimeError, r"norm_weight: requires grad", norm_weight=torch.nn.Parameter(g)
        ),
        "eps-negative": bad(ValueError, r"eps: -1 .* expected a number >= 0", eps=-1),
        "eps-text": bad(TypeError, r"eps: expected a number, got str", eps="small"),
        "residual-number": bad(TypeError, r"residual: expected a torch.Tensor", residual=1.0),
        "residual-shape": bad(
            ValueError, r"residual: shape \[4, 8\] .* expected \[4, 5\]", residual=x
        ),
        "residual-dtype": bad(ValueError, r"residual: dtype torch.float16", residual=r.half()),
        "residual-device": bad(ValueError, r"residual: device meta", residual=r.to("meta")),
    }


def _plain_weight_bad_calls(call: Callable[[Any], object], name: str) -> dict[str, BadCall]:
    """Plain weights that are no [5, 8] of float32."""
    w = torch.ones(5, 8)

    def bad(error: type[Exception], match: str, weight: object) -> BadCall:
        return BadCall(lambda: call(weight), error, f"{name}: {match}")

    return {
        f"{name}-none": bad(
            TypeError, r"expected a torch.Tensor or a QuantizedWeight, got N", None
        ),
        f"{name}-plain-width": bad(ValueError, r"shape \[5, 7\] .*, 8\]", w[:, 1:]),
        f"{name}-1d": bad(ValueError, r"shape \[8\] .*, 8\]", w[0]),
        f"{name}-plain-dtype": bad(ValueError, r"dtype torch.float16 .* torch.bfloat16", w.half()),
        f"{name}-plain-device": bad(ValueError, r"device meta", w.to("meta")),
        f"{name}-sparse": bad(ValueError, r"layout torch.sparse", w.to_sparse()),
    }


def _qlinear_bad_calls() -> dict[str, BadCall]:
    op, x, w = leeboard.ops.qlinear, torch.ones(4, 8), torch.ones(5, 8)
    return {
        **_surrounding_bad_calls(lambda x, **options: op(x, w, **options)),
        **_plain_weight_bad_calls(lambda weight: op(x, weight), "weight"),
        **quantised_bad_calls(lambda weight: op(x, weight), "weight", 8),
    }


def _swiglu_bad_calls() -> dict[str, BadCall]:
    op, x, w, d = leeboard.ops.swiglu_linear, torch.ones(4, 8), torch.ones(5, 8), torch.ones(5, 5)

    def bad(match: str, *weights: object) -> BadCall:
        return BadCall(lambda: op(x, *weights), ValueError, match)

    return {
        **_surrounding_bad_calls(lambda x, **options: op(x, w, w, d, **options)),
        **_plain_weight_bad_calls(lambda gate: op(x, gate, w, d), "gate"),
        **quantised_bad_calls(lambda up: op(x, w, up, d), "up", 8),
        **quantised_bad_calls(lambda down: op(x, w, w, down), "down", 5),
        "up-rows": bad(r"up: shape \[4, 8\] .* expected \[5, 8\]", w, w[:4], d),
        "down-columns": bad(r"down: shape \[5, 4\] .* expected \[N, 5\]", w, w, d[:, 1:]),
    }


def probabilities(dtype: torch.dtype, *shape: int) -> Tensor:
    """Rows that sum to one. The first number is 1/V, so that even a tensor that repeats it all
    over (the layout "expanded-all") holds distributions.
    """
    logits = 2.0 * torch.randn(shape, dtype=torch.float64)
    logits.view(-1, shape[-1])[:1] = 0.0
    return logits.softmax(dim=-1).to(dtype)


def tree_of(nodes: int) -> Tensor:
    """Parents [N] of a random tree."""
    return torch.tensor([int(torch.randint(-1, i, ())) if i else -1 for i in range(nodes)])


def greedy_samples() -> dict[str, Builder]:
    def build(sequences: int, nodes: int, vocabulary: int = 3, tree: str = "chain") -> Builder:
        def sample(dtype: torch.dtype) -> Sample:
            drafts = torch.randint(0, vocabulary, (sequences, nodes))
            target = torch.randint(0, vocabulary, (sequences, nodes + 1))
            return Sample((drafts, target), tree_argument(tree, sequences, nodes))

        return sample

    return {
        "plain": build(4, 8, vocabulary=2, tree="shared"),
        "chain": build(40, 7, vocabulary=2),
        "trees": build(20, 9, vocabulary=2, tree="own"),
        "many": build(3000, 12, vocabulary=2, tree="own"),
        "N0": build(3, 0),
        "tree-N0": build(3, 0, tree="shared"),
        "B0": build(0, 4, tree="own"),
        "B1": build(1, 60, vocabulary=2, tree="shared"),
        "V1": build(5, 6, vocabulary=1),
        "large-ids": build(5, 6, vocabulary=1 << 62),
    }


def tree_argument(kind: str, sequences: int, nodes: int) -> dict[str, Tensor]:
    if kind == "chain":
        return {}
    if kind == "shared":
        return {"parents": tree_of(nodes).long()}
    trees = [tree_of(nodes) for _ in range(sequences)]
    return {"parents": torch.stack(trees) if trees else torch.empty((0, nodes)).long()}


def sample_samples() -> dict[str, Builder]:
    def build(
        sequences: int,
        nodes: int,
        vocabulary: int,
        tree: str = "chain",
        ratio: bool = False,
        uniforms: torch.dtype = torch.float64,
    ) -> Builder:
        def sample(dtype: torch.dtype) -> Sample:
            target = probabilities(dtype, sequences, nodes + 1, vocabulary)
            args = [torch.randint(0, vocabulary, (sequences, nodes)), target]
            if ratio:
                args.append(probabilities(dtype, sequences, nodes, vocabulary))
            kwargs = tree_argument(tree, sequences, nodes)
            kwargs["uniforms"] = torch.rand(sequences, nodes + 1, dtype=uniforms)
            return Sample(tuple(args), kwargs)

        return sample

    samples = {
        "plain": build(4, 6, 8, tree="shared"),
        "ratio": build(24, 5, 8, ratio=True),
        "chain": build(24, 5, 3),
        "trees": build(12, 9, 5, tree="own"),
        "many": build(40, 4, 3000, tree="own"),
        "many-ratio": build(24, 4, 3000, ratio=True),
        "float32-uniforms": build(12, 7, 4, tree="shared", uniforms=torch.float32),
        "N0": build(3, 0, 5),
        "ratio-N0": build(3, 0, 5, ratio=True),
        "tree-N0": build(3, 0, 5, tree="shared"),
        "B0": build(0, 4, 5, tree="own"),
        "B1": build(1, 60, 5, tree="shared"),
        "V1": build(5, 6, 1, tree="shared"),
        "ratio-V1": build(5, 6, 1, ratio=True),
    }
    # The kernels cut rows in blocks of at least 64, then in 256 blocks.
    for vocabulary in (17, 64, 65, 127, 129, 1000, 16384, 16449, 40001):
        samples[f"V{vocabulary}"] = build(6, 3, vocabulary)
        samples[f"ratio-V{vocabulary}"] = build(6, 3, vocabulary, ratio=True)
    return samples


def _greedy_bad_calls() -> dict[str, BadCall]:
    op = leeboard.ops.verify_greedy
    drafts, target = torch.zeros(2, 3).long(), torch.zeros(2, 4).long()

    def bad(
        error: type[Exception],
        match: str,
        drafts: object = drafts,
        target: object = target,
        **options: object,
    ) -> BadCall:
        return BadCall(lambda: op(drafts, target, **options), error, match)

    return _tree_bad_calls(bad, drafts) | {
        "target-none": bad(
            TypeError, r"target_tokens: expected a torch.Tensor, got NoneType", target=None
        ),
        "target-dtype": bad(
            ValueError, r"target_tokens: dtype torch.float32 .* torch.int64", target=target.float()
        ),
        "target-shape": bad(
            ValueError,
            r"target_tokens: shape \[2, 3\] was given; expected \[2, 4\]",
            target=target[:, 1:],
        ),
        "target-batch": bad(
            ValueError, r"target_tokens: shape \[1, 4\] .* expected \[2, 4\]", target=target[:1]
        ),
        "target-device": bad(
            ValueError,
            r"target_tokens: device meta was given; expected cpu",
            target=target.to("meta"),
        ),
        "target-sparse": bad(
            ValueError, r"target_tokens: layout torch.sparse", target=target.to_sparse()
        ),
    }


def _tree_bad_calls(bad: Callable[..., BadCall], drafts: Tensor) -> dict[str, BadCall]:
    """What both verification ops refuse: drafts [2, 3], parents, out."""
    path = torch.zeros(2, 3).long()
    ends = path[:, 0].clone()
    return {
        "drafts-list": bad(
            TypeError, r"draft_tokens: expected a torch.Tensor, got list", drafts=[[0, 0, 0]]
        ),
        "drafts-dtype": bad(
            ValueError, r"draft_tokens: dtype torch.int32 .* torch.int64", drafts=drafts.int()
        ),
        "drafts-1d": bad(
            ValueError, r"draft_tokens: shape \[3\] was given; expected \[B, N\]", drafts=drafts[0]
        ),
        "drafts-sparse": bad(ValueError, r"draft_tokens: layout", drafts=drafts.to_sparse()),
        "parents-list": bad(
            TypeError, r"parents: expected a torch.Tensor, got list", parents=[-1, 0, 1]
        ),
        "parents-dtype": bad(
            ValueError, r"parents: dtype torch.int32", parents=torch.tensor([-1, 0, 1]).int()
        ),
        "parents-shape": bad(
            ValueError,
            r"parents: shape \[2\] was given; expected \[3\] or \[2, 3\]",
            parents=torch.tensor([-1, 0]),
        ),
        "parents-device": bad(
            ValueError, r"parents: device meta", parents=torch.zeros(3, device="meta").long()
        ),
        "parents-self": bad(
            ValueError,
            r"parents: 1 was given at \[1\]; expected -1 or an earlier node",
            parents=torch.tensor([-1, 1, 0]),
        ),
        "parents-later": bad(
            ValueError,
            r"parents: 2 was given at \[1, 0\]; expected -1 or an earlier node",
            parents=torch.tensor([[-1, -1, -1], [2, 0, 1]]),
        ),
        "parents-negative": bad(
            ValueError, r"parents: -2 was given at \[2\]", parents=torch.tensor([-1, 0, -2])
        ),
        "out-tensor": bad(TypeError, r"out: expected 2 tensors, got Tensor", out=ends),
        "out-no-path": bad(
            ValueError,
            r"out: 2 tensors given; expected 3",
            parents=torch.tensor([-1, 0, 1]),
            out=(ends, ends.clone()),
        ),
        "out-path": bad(
            ValueError, r"out: 3 tensors given; expected 2", out=(ends, ends.clone(), path)
        ),
    }


def _sample_bad_calls() -> dict[str, BadCall]:
    op = leeboard.ops.verify_sample
    drafts = torch.zeros(2, 3).long()
    p, u = torch.full((2, 4, 5), 0.2), torch.zeros(2, 4)

    def bad(
        error: type[Exception],
        match: str,
        drafts: object = drafts,
        target: object = p,
        draft: object = None,
        uniforms: object = u,
        **options: object,
    ) -> BadCall:
        return BadCall(
            lambda: op(drafts, target, draft, uniforms=uniforms, **options), error, match
        )

    def changed(value: float, *place: int) -> Tensor:
        probs = p.clone()
        probs[place] = value
        return probs

    calls = _tree_bad_calls(bad, drafts)
    for name, value in {
        "nan": "nan",
        "inf": "inf",
        "minus-inf": "-inf",
        "negative": "-0.5",
    }.items():
        wrong = changed(float(value), 1, 2, 3)
        match = rf"_probs: {value} was given at \[1, 2, 3\]; expected a finite number >= 0"
        calls[f"target-{name}"] = bad(ValueError, "target" + match, target=wrong)
        calls[f"draft-{name}"] = bad(ValueError, "draft" + match, draft=wrong[:, :3])
        calls[f"bfloat16-{name}"] = bad(ValueError, "target" + match, target=wrong.bfloat16())
        calls[f"float64-{name}"] = bad(ValueError, "target" + match, target=wrong.double())
        calls[f"strided-{name}"] = bad(
            ValueError, "target" + match, target=wrong.repeat_interleave(2, dim=2)[..., ::2]
        )
    return calls | {
        "sum-low": bad(
            ValueError,
            r"target_probs: row \[0, 1\] sums to 0\.8\d*; expected 1 within .*float32, V = 5",
            target=changed(0.0, 0, 1, 0),
        ),
        "sum-high": bad(
            ValueError, r"target_probs: row \[1, 3\] sums to 1\.8", target=changed(1.0, 1, 3, 4)
        ),
        "sum-logits": bad(ValueError, r"target_probs: row \[0, 0\] sums to 500", target=p * 500),
        "sum-draft": bad(
            ValueError,
            r"draft_probs: row \[1, 0\] sums to 0\.8",
            draft=changed(0.0, 1, 0, 4)[:, :3],
        ),
        "sum-half": bad(
            ValueError, r"target_probs: row .*float16", target=changed(0.25, 0, 1, 0).half()
        ),
        "token-high": bad(
            ValueError,
            r"draft_tokens: 5 was given at \[1, 2\]; expected 0 to 4",
            drafts=torch.tensor([[0, 1, 2], [3, 4, 5]]),
        ),
        "token-negative": bad(
            ValueError, r"draft_tokens: -1 was given at \[0, 0\]", drafts=drafts - 1
        ),
        "uniform-one": bad(
            ValueError, r"uniforms: 1\.0 was given at \[0, 0\]; .*\[0, 1\)", uniforms=u + 1
        ),
        "uniform-nan": bad(ValueError, r"uniforms: nan was given", uniforms=u * float("nan")),
        "uniform-negative": bad(ValueError, r"uniforms: -1\.0 was given", uniforms=u - 1),
        "uniforms-shape": bad(
            ValueError, r"uniforms: shape \[2, 3\] was given; expected \[2, 4\]", uniforms=u[:, 1:]
        ),
        "uniforms-dtype": bad(ValueError, r"uniforms: dtype torch.int64", uniforms=u.long()),
        "uniforms-half": bad(ValueError, r"uniforms: dtype torch.float16", uniforms=u.half()),
        "uniforms-list": bad(TypeError, r"uniforms: expected a torch.Tensor", uniforms=[0.5]),
        "generator-too": bad(
            ValueError, r"generator: .*together with uniforms", generator=torch.Generator()
        ),
        "target-none": bad(TypeError, r"target_probs: expected a torch.Tensor", target=None),
        "target-dtype": bad(ValueError, r"target_probs: dtype torch.int64", target=p.long()),
        "target-V0": bad(ValueError, r"target_probs: shape \[2, 4, 0\]", target=p[..., :0]),
        "target-rows": bad(
            ValueError,
            r"target_probs: shape \[2, 3, 5\] was given; expected \[2, 4, 5\]",
            target=p[:, 1:],
        ),
        "target-batch": bad(
            ValueError, r"target_probs: shape \[1, 4, 5\] .* expected \[2, 4, 5\]", target=p[:1]
        ),
        "target-2d": bad(ValueError, r"target_probs: shape \[2, 5\]", target=p[:, 0]),
        "target-device": bad(ValueError, r"target_probs: device meta", target=p.to("meta")),
        "target-sparse": bad(ValueError, r"target_probs: layout", target=p.to_sparse()),
        "draft-rows": bad(
            ValueError, r"draft_probs: shape \[2, 4, 5\] was given; expected \[2, 3, 5\]", draft=p
        ),
        "draft-dtype": bad(
            ValueError, r"draft_probs: dtype torch.float16 .* torch.float32", draft=p[:, 1:].half()
        ),
        "draft-tree": bad(
            ValueError,
            r"draft_probs: .*together with parents; expected None",
            draft=p[:, 1:],
            parents=torch.tensor([-1, 0, 1]),
        ),
        "target-grad": bad(
            RuntimeError, r"target_probs: requires grad", target=p.clone().requires_grad_()
        ),
    }


def rotary(positions: int, width: int) -> dict[str, Tensor]:
    """The rotary table of Llama, base 10000."""
    frequencies = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = torch.outer(torch.arange(positions, dtype=torch.float64), frequencies)
    return {"cos": angles.cos().float(), "sin": angles.sin().float()}


def tree(batch: tuple[int, ...], tokens: int) -> Tensor:
    """Random visibility among new rows, each of which sees itself."""
    return (torch.rand(*batch, tokens, tokens) < 0.5) | torch.eye(tokens, dtype=torch.bool)


def attention_call(
    dtype: torch.dtype,
    heads: tuple[int, int],
    tokens: int,
    width: int,
    lengths: Sequence[int],
    room: int = 0,
    rotate: bool = True,
    **options: Any,
) -> Sample:
    """A call on a cache with `room` rows to spare."""
    batch, capacity = len(lengths), max(lengths) + tokens + room
    queries, groups = heads
    args = (
        normal(dtype, batch, queries, tokens, width),
        normal(dtype, batch, groups, tokens, width),
        normal(dtype, batch, groups, tokens, width),
        normal(dtype, batch, groups, capacity, width),
        normal(dtype, batch, groups, capacity, width),
        torch.tensor(lengths, dtype=torch.int64),
    )
    return Sample(args, (rotary(capacity + 7, width) if rotate else {}) | options)


def attention_samples() -> dict[str, Builder]:
    def build(
        heads: tuple[int, int],
        tokens: int,
        width: int,
        lengths: Sequence[int],
        mask: tuple[int, ...] | None = None,
        positions: bool = False,
        **options: Any,
    ) -> Builder:
        def sample(dtype: torch.dtype) -> Sample:
            extra: dict[str, Any] = {}
            if positions:
                extra["positions"] = torch.randint(0, 9, (len(lengths), tokens))
            if mask is not None:
                extra["mask"] = tree(mask, tokens)
            return attention_call(dtype, heads, tokens, width, lengths, **extra, **options)

        return sample

    return {
        "plain": build((4, 2), 3, 16, (5, 2), positions=True, window=4, sinks=1, room=4),
        "many": build((8, 2), 2, 64, (1300, 700, 511)),
        "one-token": build((8, 2), 1, 64, (40,), room=3),
        "empty-cache": build((4, 4), 5, 32, (0, 0)),
        "no-rotation": build((6, 2), 2, 34, (20, 9), rotate=False),
        "odd-width": build((2, 1), 2, 17, (20,), rotate=False),
        "one-channel": build((2, 1), 2, 1, (20,), rotate=False),
        "scale": build((4, 1), 1, 80, (30,), scale=0.3),
        "wide": build((3, 1), 1, 256, (70,)),
        "window": build((4, 2), 4, 48, (700, 600), window=37, sinks=4),
        "window-1": build((4, 2), 4, 16, (12,), window=1),
        "tree": build((4, 2), 6, 32, (90, 33), mask=()),
        "trees": build((4, 2), 6, 32, (90, 33), mask=(2,), window=8, sinks=2, positions=True),
        "chunks": build((4, 1), 1, 32, (511, 512, 513, 1025)),
        "prompt": build((6, 2), 70, 16, (0, 5)),
        "no-tokens": build((4, 2), 0, 16, (5, 2)),
        "no-batch": lambda dtype: attention_call(dtype, (4, 2), 3, 16, (5,)).mapped(
            lambda t: t if t.dim() == 2 else t[:0]
        ),
    }


def attention_arguments(sample: Sample) -> tuple[Any, ...]:
    names = ("cos", "sin", "positions", "mask", "scale", "window")
    options = [sample.kwargs.get(name) for name in names]
    return (*sample.args, *options, sample.kwargs.get("sinks", 0))


def _attention_bad_calls() -> dict[str, BadCall]:
    def bad(error: type[Exception], match: str, at: int | str, value: object) -> BadCall:
        def call() -> object:
            sample = attention_call(torch.float32, (4, 2), 3, 16, (5, 2), room=2)
            args, kwargs = list(sample.args), dict(sample.kwargs)
            old = args[at] if isinstance(at, int) else kwargs.get(at)
            new = value(old) if callable(value) else value
            if isinstance(at, int):
                args[at] = new
            else:
                kwargs[at] = new
            return leeboard.ops.decode_attention(*args, **kwargs)

        return BadCall(call, error, match)

    wrong = {
        "q-list": (TypeError, r"q: expected a torch.Tensor, got list", 0, [1.0]),
        "q-int": (ValueError, r"q: dtype torch.int64", 0, Tensor.long),
        "q-3d": (ValueError, r"q: shape \[4, 3, 16\] .* \[B, Hq, T, D\]", 0, lambda t: t[0]),
        "q-D0": (ValueError, r"q: shape \[2, 4, 3, 0\] .* at least 1", 0, lambda t: t[..., :0]),
        "q-heads": (ValueError, r"k: 2 heads .* divisor of the 3 heads", 0, lambda t: t[:, :3]),
        "q-sparse": (ValueError, r"q: layout torch.sparse", 0, Tensor.to_sparse),
        "k-none": (TypeError, r"k: expected a torch.Tensor", 1, None),
        "k-batch": (ValueError, r"k: shape \[1, .* expected \[2, 2, 3", 1, lambda t: t[:1]),
        "k-tokens": (ValueError, r"k: shape .* expected \[2, 2, 3", 1, lambda t: t[:, :, :2]),
        "k-dtype": (ValueError, r"k: dtype torch.float16 .* torch.float32", 1, Tensor.half),
        "k-2d": (ValueError, r"k: shape \[3, 16\] .* 4 dimensions", 1, lambda t: t[0, 0]),
        "v-heads": (ValueError, r"v: shape \[2, 1, 3, 16\] .* k", 2, lambda t: t[:, :1]),
        "v-device": (ValueError, r"v: device meta", 2, lambda t: t.to("meta")),
        "k_cache-heads": (ValueError, r"k_cache: shape \[2, 1,", 3, lambda t: t[:, :1]),
        "k_cache-width": (ValueError, r"k_cache: shape .*, 8\] .*, 16\]", 3, lambda t: t[..., :8]),
        "v_cache-rows": (ValueError, r"v_cache: shape .* of k_cache", 4, lambda t: t[:, :, :9]),
        "v_cache-dtype": (ValueError, r"v_cache: dtype torch.bfloat16", 4, Tensor.bfloat16),
        "lengths-list": (TypeError, r"lengths: expected a torch.Tensor", 5, [5, 2]),
        "lengths-int32": (ValueError, r"lengths: dtype torch.int32", 5, Tensor.int),
        "lengths-shape": (ValueError, r"lengths: shape \[1\] .* \[2\]", 5, lambda t: t[:1]),
        "lengths-negative": (
            ValueError,
            r"lengths: -1 was given for batch 1; expected at least 0",
            5,
            torch.tensor([5, -1]),
        ),
        "lengths-full": (
            ValueError,
            r"lengths: 8 was given for batch 0; expected at most 7, for 3 new rows in a cache",
            5,
            torch.tensor([8, 2]),
        ),
        "cos-width": (ValueError, r"cos: shape \[17, 7\] .* \[P, 8\]", "cos", lambda t: t[:, :7]),
        "cos-alone": (ValueError, r"sin: None was given; .* to go with cos", "sin", None),
        "sin-rows": (ValueError, r"sin: shape \[16, 8\] .* of cos", "sin", lambda t: t[:16]),
        "cos-dtype": (
            ValueError,
            r"cos: dtype torch.float64 .* torch.float32",
            "cos",
            Tensor.double,
        ),
        "cos-number": (TypeError, r"cos: expected a torch.Tensor, got int", "cos", 1),
        "positions-float": (
            ValueError,
            r"positions: dtype torch.float32",
            "positions",
            torch.zeros(2, 3),
        ),
        "positions-shape": (
            ValueError,
            r"positions: shape \[3\] .* expected \[2, 3\]",
            "positions",
            torch.zeros(3, dtype=torch.int64),
        ),
        "positions-beyond": (
            ValueError,
            r"positions: 17 was given for batch 1; expected 0 to 16",
            "positions",
            torch.tensor([[0, 1, 2], [3, 17, 4]]),
        ),
        "positions-negative": (
            ValueError,
            r"positions: -1 was given for batch 0",
            "positions",
            torch.tensor([[0, -1, 2], [3, 1, 4]]),
        ),
        "mask-float": (
            ValueError,
            r"mask: dtype torch.float32 .* torch.bool",
            "mask",
            torch.ones(3, 3),
        ),
        "mask-shape": (
            ValueError,
            r"mask: shape \[3, 4\] .* expected \[3, 3\]",
            "mask",
            torch.ones(3, 4, dtype=torch.bool),
        ),
        "mask-batch": (
            ValueError,
            r"mask: shape \[1, 3, 3\] .* expected \[2, 3, 3\]",
            "mask",
            torch.ones(1, 3, 3, dtype=torch.bool),
        ),
        "mask-diagonal": (
            ValueError,
            r"mask: false on the diagonal at row 1; expected true",
            "mask",
            torch.tensor([[1, 0, 0], [1, 0, 0], [1, 1, 1]], dtype=torch.bool),
        ),
        "scale-text": (TypeError, r"scale: expected a number, got str", "scale", "1"),
        "window-0": (ValueError, r"window: 0 was given; expected at least 1", "window", 0),
        "window-float": (TypeError, r"window: expected an integer, got float", "window", 4.0),
        "sinks-negative": (ValueError, r"sinks: -1 was given; expected at least 0", "sinks", -1),
        "sinks-none": (TypeError, r"sinks: expected an integer, got NoneType", "sinks", None),
        "q-grad": (
            RuntimeError,
            r"q: requires grad, .*inference-only",
            0,
            lambda t: t.requires_grad_(),
        ),
        "cache-grad": (
            RuntimeError,
            r"v_cache: requires grad, .*inference-only",
            4,
            lambda t: t.requires_grad_(),
        ),
    }
    return {name: bad(*each) for name, each in wrong.items()}


def draft_arguments(sample: Sample) -> tuple[Any, ...]:
    steps, topk = sample.args[-1], sample.kwargs.get("topk", 1)
    nodes = sample.kwargs.get("nodes", steps * topk)
    return importlib.import_module("leeboard.ops.draft_chain")._arguments(*sample.args, topk, nodes)


def draft_samples() -> dict[str, Builder]:
    def build(form: str | None = None, **options: Any) -> Builder:
        calls = ("batch", "steps", "lengths", "capacity", "topk", "nodes")

        def sample(dtype: torch.dtype) -> Sample:
            made = {k: v for k, v in options.items() if k not in calls}
            weights = draft_inputs.drafter(dtype, **made)
            if form is not None:
                weights = draft_inputs.quantised(weights, form)
            called = {k: v for k, v in options.items() if k in calls}
            return draft_inputs.call(weights, **called)

        return sample

    long = {"positions": 1300, "capacity": 1200, "lengths": (1100, 512, 513)}
    return {
        "plain": build(),
        "quantised": build("int8"),
        "int4": build("int4", hidden=136, inner=200),
        "many": build(hidden=256, inner=512, heads=8, width=32, vocabulary=1000, **long),
        "pre-norm": build(norm_output=False, eps=1e-5),
        "normed-residual": build(norm_before_residual=True),
        "d2t": build(draft_vocabulary=37),
        "one-step": build(steps=1),
        "one-sequence": build(batch=1),
        "no-sequence": build(batch=0),
        "window": build(window=3, sinks=2),
        "window-no-sinks": build(window=1),
        "long-window": build(window=600, sinks=4, **long),
        "odd-sizes": build(hidden=33, inner=19, heads=3, kv_heads=1, width=10, vocabulary=130),
        "one-head-each": build(heads=2, kv_heads=2, width=64),
        "tree": build(steps=3, topk=3, nodes=8),
        "tree-one-level": build(steps=1, topk=5),
        "tree-all-nodes": build(steps=3, topk=2, nodes=10, draft_vocabulary=37),
        "tree-pre-norm": build(steps=4, topk=4, norm_output=False, norm_before_residual=True),
        "tree-many-rows": build(batch=3, steps=3, topk=30, nodes=50),
        "batch-70": build(batch=70, steps=2, lengths=tuple(i % 17 for i in range(70))),
    }


def _draft_bad_calls() -> dict[str, BadCall]:
    torch.manual_seed(0)
    good = draft_inputs.call(draft_inputs.drafter(torch.float32, draft_vocabulary=37))
    weights, state, token, k, v, lengths, steps = good.args
    named = {
        "weights": weights,
        "state": state,
        "token": token,
        "k_cache": k,
        "v_cache": v,
        "lengths": lengths,
        "steps": steps,
    }

    def bad(error: type[Exception], match: str, **changes: Any) -> BadCall:
        return BadCall(lambda: leeboard.ops.draft_chain(**{**named, **changes}), error, match)

    def with_weights(**changes: Any) -> Any:
        return dataclasses.replace(weights, **changes)

    nan = state.clone()
    nan[1, 5] = float("nan")
    far = weights.d2t.clone()
    far[7] = 70
    return {
        "weights-list": bad(TypeError, r"weights: expected DrafterWeights, got list", weights=[]),
        "state-1d": bad(ValueError, r"state: shape \[24\] .* expected \[B, H\]", state=state[0]),
        "state-width": bad(
            ValueError,
            r"weights.embedding: shape \[61, 24\]|weights.*expected \[23\]",
            state=state[:, :23],
        ),
        "state-int": bad(ValueError, r"state: dtype torch.int64", state=state.long()),
        "state-nan": bad(
            ValueError, r"state: nan at sequence 1, channel 5; expected finite", state=nan
        ),
        "token-batch": bad(ValueError, r"token: shape \[2\] .* expected \[3\]", token=token[:2]),
        "token-float": bad(ValueError, r"token: dtype torch.float32", token=token.float()),
        "token-range": bad(
            ValueError,
            r"token: 61 was given for sequence 0; expected 0 to 60",
            token=token * 0 + 61,
        ),
        "token-negative": bad(
            ValueError, r"token: -1 was given for sequence 0", token=token * 0 - 1
        ),
        "lengths-overflow": bad(
            ValueError,
            r"lengths: 17 was given for sequence 2; expected 0 to 16",
            lengths=torch.tensor([1, 2, 17]),
        ),
        "lengths-negative": bad(
            ValueError, r"lengths: -1 was given for sequence 0", lengths=lengths * 0 - 1
        ),
        "table-short": bad(
            ValueError,
            r"lengths: 11 was given for sequence 2; expected at most 10, for 4 steps within the 14",
            weights=with_weights(cos=weights.cos[:14], sin=weights.sin[:14]),
        ),
        "caches-differ": bad(
            ValueError,
            r"v_cache: shape .* expected .* \(the shape of k_cache\)",
            v_cache=v[:, :, 1:],
        ),
        "cache-dtype": bad(ValueError, r"k_cache: dtype torch.float16", k_cache=k.half()),
        "cache-batch": bad(ValueError, r"k_cache: shape \[2, .* expected \[3, Hkv", k_cache=k[:2]),
        "steps-zero": bad(ValueError, r"steps: 0 was given; expected", steps=0),
        "steps-float": bad(TypeError, r"steps: expected an integer, got float", steps=2.0),
        "topk-large": bad(ValueError, r"topk: 65 was given; expected at most 64", topk=65),
        "topk-vocabulary": bad(
            ValueError,
            r"topk: 38 was given; expected at most 37, the rows of weights.head",
            topk=38,
        ),
        "nodes-many": bad(
            ValueError, r"nodes: 15 was given; expected at most 14", topk=2, nodes=15
        ),
        "d2t-outside": bad(
            ValueError,
            r"weights.d2t: draft token 7 becomes 77; expected 0 to 60",
            weights=with_weights(d2t=far),
        ),
        "d2t-size": bad(
            ValueError,
            r"weights.d2t: shape \[36\] .* expected \[37\]",
            weights=with_weights(d2t=weights.d2t[1:]),
        ),
        "o-shape": bad(
            ValueError, r"weights.o: shape .* expected", weights=with_weights(o=weights.o[:, 1:])
        ),
        "norm-dtype": bad(
            ValueError,
            r"weights.norm: dtype torch.float64",
            weights=with_weights(norm=weights.norm.double()),
        ),
        "window-zero": bad(
            ValueError, r"weights.window: 0 was given", weights=with_weights(window=0)
        ),
        "state-grad": bad(
            RuntimeError,
            r"state: requires grad, .*inference-only",
            state=state.clone().requires_grad_(),
        ),
        "out-tensor": bad(TypeError, r"out: expected a Draft, got Tensor", out=state),
        "out-few": bad(ValueError, r"out: 1 tensors given; expected 4", out=(token,)),
    }


def glue_samples() -> dict[str, Builder]:
    def build(
        shape: tuple[int, ...],
        vocabulary: int = 13,
        make: Callable[..., Tensor] = normal,
        rows_of_table: Callable[..., Tensor] = normal,
        **options: Any,
    ) -> Builder:
        def sample(dtype: torch.dtype) -> Sample:
            token = torch.randint(0, vocabulary, shape[:-1])
            table = rows_of_table(dtype, vocabulary, shape[-1])
            gains = [gain(dtype, shape[-1]) for _ in range(3)]
            return Sample((make(dtype, *shape), token, table, *gains), options)

        return sample

    samples = {name: build(shape) for name, shape in SHAPES.items()}
    samples["pre-norm"] = build((6, 136), norm_output=False)
    samples["pre-norm-3d"] = build((2, 3, 33), norm_output=False)
    samples["one-token"] = build((6, 40), vocabulary=1)
    samples["eps"] = build((6, 136), eps=0.1)
    samples["eps-0"] = build((6, 136), eps=0)
    for name, scale in SCALES.items():

        def magnitude(dtype: torch.dtype, *shape: int, scale: float = scale) -> Tensor:
            return scaled(dtype, scale, *shape)

        samples[name] = build((6, 136), make=magnitude)
        samples[f"{name}-pre-norm"] = build((6, 136), make=magnitude, norm_output=False)
        samples[f"{name}-table"] = build((6, 136), rows_of_table=magnitude)
    samples["special"] = build((8, 40), make=lambda dtype, *shape: special(normal(dtype, *shape)))
    samples["special-table"] = build(
        (8, 40), rows_of_table=lambda dtype, *shape: special(normal(dtype, *shape))
    )
    return samples


def _glue_bad_calls() -> dict[str, BadCall]:
    op = leeboard.ops.drafter_glue
    right = {
        "x": torch.ones(4, 8),
        "token": torch.tensor([0, 4, 2, 1]),
        "embedding": torch.ones(5, 8),
        "norm_weight": torch.ones(8),
        "hidden_weight": torch.ones(8),
        "input_weight": torch.ones(8),
    }

    def bad(error: type[Exception], match: str, **wrong: object) -> BadCall:
        return BadCall(lambda: op(**{**right, **wrong}), error, match)

    x, token, table, weight = (right[n] for n in ("x", "token", "embedding", "norm_weight"))
    room = torch.ones(64)
    calls = {
        "x-list": bad(TypeError, r"x: expected a torch.Tensor, got list", x=[1.0]),
        "x-int": bad(ValueError, r"x: dtype torch.int64", x=x.long()),
        "x-0d": bad(ValueError, r"x: .*0-dimensional", x=torch.ones(())),
        "x-H0": bad(ValueError, r"x: shape \[4, 0\]", x=torch.ones(4, 0)),
        "x-sparse": bad(ValueError, r"x: layout torch.sparse_coo", x=x.to_sparse()),
        "token-none": bad(TypeError, r"token: expected a torch.Tensor, got NoneType", token=None),
        "token-int": bad(TypeError, r"token: expected a torch.Tensor, got int", token=1),
        "token-int32": bad(
            ValueError, r"token: dtype torch.int32 .* torch.int64", token=token.int()
        ),
        "token-float": bad(ValueError, r"token: dtype torch.float32", token=token.float()),
        "token-shape": bad(ValueError, r"token: shape \[3\] .* expected \[4\]", token=token[:3]),
        "token-column": bad(
            ValueError, r"token: shape \[4, 1\] .* expected \[4\]", token=token[:, None]
        ),
        "token-device": bad(ValueError, r"token: device meta", token=token.to("meta")),
        "token-negative": bad(
            ValueError,
            r"token: -1 was given at \[2\]; expected 0 to 4",
            token=torch.tensor([0, 4, -1, 5]),
        ),
        "token-beyond": bad(
            ValueError,
            r"token: 5 was given at \[3\]; expected 0 to 4",
            token=torch.tensor([0, 4, 1, 5]),
        ),
        "token-far": bad(
            ValueError,
            r"token: -9223372036854775808 was given at \[0\]",
            token=torch.tensor([-(1 << 63), 0, 0, 0]),
        ),
        "embedding-none": bad(TypeError, r"embedding: expected a torch.Tensor", embedding=None),
        "embedding-width": bad(
            ValueError, r"embedding: shape \[5, 7\] .* expected \[V, 8\]", embedding=table[:, 1:]
        ),
        "embedding-1d": bad(ValueError, r"embedding: shape \[8\]", embedding=table[0]),
        "embedding-V0": bad(
            ValueError, r"embedding: shape \[0, 8\] .* V >= 1", embedding=table[:0]
        ),
        "embedding-dtype": bad(
            ValueError, r"embedding: dtype torch.float16 .* torch.float32", embedding=table.half()
        ),
        "embedding-device": bad(ValueError, r"embedding: device meta", embedding=table.to("meta")),
        "eps-negative": bad(ValueError, r"eps: -1 .* expected a number >= 0", eps=-1),
        "eps-negative-float": bad(ValueError, r"eps: -0\.5 .* expected a number >= 0", eps=-0.5),
        "eps-nan": bad(ValueError, r"eps: nan", eps=float("nan")),
        "eps-text": bad(TypeError, r"eps: expected a number, got str", eps="small"),
        "norm_output-int": bad(
            TypeError, r"norm_output: expected True or False, got int", norm_output=1
        ),
        "norm_output-none": bad(
            TypeError, r"norm_output: expected True or False, got NoneType", norm_output=None
        ),
        "out-tensor": bad(TypeError, r"out: expected a pair of tensors, got Tensor", out=x),
        "out-three": bad(ValueError, r"out: 3 tensors given; expected a pair", out=(x, x, x)),
        "out-overlap": bad(
            ValueError,
            r"out\[0\]: its address range overlaps that of out\[1\]",
            out=(room[:64].view(4, 16), room[32:].view(4, 8)),
        ),
    }
    for name in ("norm_weight", "hidden_weight", "input_weight"):
        calls |= {
            f"{name}-none": bad(TypeError, rf"{name}: expected a torch.Tensor", **{name: None}),
            f"{name}-size": bad(
                ValueError, rf"{name}: shape \[7\] .* expected \[8\]", **{name: weight[1:]}
            ),
            f"{name}-dtype": bad(
                ValueError, rf"{name}: dtype torch.bfloat16", **{name: weight.bfloat16()}
            ),
            f"{name}-grad": bad(
                RuntimeError,
                rf"{name}: requires grad, .*inference-only",
                **{name: torch.ones(8, requires_grad=True)},
            ),
        }
    return calls


CASES: dict[str, OpCases] = {
    "rms_norm": OpCases(
        samples=norm_samples(rows=1),
        bad_calls=norm_bad_calls(leeboard.ops.rms_norm, rows=1),
        op_arguments=norm_arguments(rows=1),
        row_leaves=lambda sample: (0,),
    ),
    "add_rms_norm": OpCases(
        samples=norm_samples(rows=2),
        bad_calls=_add_norm_bad_calls(),
        op_arguments=norm_arguments(rows=2),
        row_leaves=lambda sample: (0, 1),
    ),
    "aux_norm_linear": OpCases(
        samples=aux_samples(),
        bad_calls=_aux_bad_calls(),
        op_arguments=lambda sample: (
            sample.args[0],
            sample.args[1] or [],
            sample.args[2],
            sample.kwargs.get("eps", 1e-6),
        ),
        row_leaves=lambda sample: range(len(sample.args[0])),
        # More rows go through torch's matrix product.
        invariant_rows=16,
    ),
    "decode_attention": OpCases(
        samples=attention_samples(),
        bad_calls=_attention_bad_calls(),
        op_arguments=attention_arguments,
        row_leaves=lambda sample: (),
    ),
    "draft_chain": OpCases(
        samples=draft_samples(),
        bad_calls=_draft_bad_calls(),
        op_arguments=draft_arguments,
        row_leaves=lambda sample: (),
        chooses=True,
    ),
    "drafter_glue": OpCases(
        samples=glue_samples(),
        bad_calls=_glue_bad_calls(),
        op_arguments=lambda sample: (
            *sample.args,
            float(sample.kwargs.get("eps", 1e-6)),
            sample.kwargs.get("norm_output", True),
        ),
        row_leaves=lambda sample: (0, 1),
    ),
    "linear_argmax": OpCases(
        samples=head_samples(),
        bad_calls=_head_bad_calls(leeboard.ops.linear_argmax),
        op_arguments=head_arguments,
        row_leaves=lambda sample: (0,),
        check_index=check_argmax,
    ),
    "linear_topk": OpCases(
        samples=topk_samples(),
        bad_calls=_topk_bad_calls(),
        op_arguments=head_arguments,
        row_leaves=lambda sample: (0,),
        check_index=check_topk,
    ),
    "panel_ffn": OpCases(
        samples=panel_inputs.ffn_samples(),
        bad_calls={name: BadCall(*bad) for name, bad in panel_inputs.ffn_bad_calls().items()},
        op_arguments=panel_inputs.ffn_arguments,
        row_leaves=lambda sample: (),
    ),
    "panel_linear": OpCases(
        samples=panel_inputs.linear_samples(),
        bad_calls={name: BadCall(*bad) for name, bad in panel_inputs.linear_bad_calls().items()},
        op_arguments=panel_inputs.linear_arguments,
        row_leaves=lambda sample: (),
    ),
    "qlinear": OpCases(
        samples=layer_samples(linear_weights),
        bad_calls=_qlinear_bad_calls(),
        op_arguments=layer_arguments,
        row_leaves=layer_rows,
    ),
    "sparse_gqa": OpCases(
        samples=sparse_inputs.samples(),
        bad_calls={name: BadCall(*bad) for name, bad in sparse_inputs.bad_calls().items()},
        op_arguments=sparse_inputs.arguments,
        row_leaves=lambda sample: (),
    ),
    "swiglu_linear": OpCases(
        samples=layer_samples(gated_weights),
        bad_calls=_swiglu_bad_calls(),
        op_arguments=layer_arguments,
        row_leaves=layer_rows,
    ),
    "ttt_attention": OpCases(
        samples=ttt_inputs.samples(),
        bad_calls={name: BadCall(*bad) for name, bad in ttt_inputs.bad_calls().items()},
        op_arguments=ttt_inputs.arguments,
        row_leaves=lambda sample: (),
    ),
    "ttt_loss": OpCases(
        samples=loss_inputs.samples(),
        bad_calls={name: BadCall(*bad) for name, bad in loss_inputs.bad_calls().items()},
        op_arguments=loss_inputs.arguments,
        row_leaves=lambda sample: (),
        check_index=loss_inputs.check_hit,
        constants=[name for name in loss_inputs.samples() if name.startswith("lk_lambda")],
    ),
    "unit_saliency": OpCases(
        samples=saliency_inputs.samples(),
        bad_calls={name: BadCall(*bad) for name, bad in saliency_inputs.bad_calls().items()},
        op_arguments=lambda sample: (*sample.args, sample.kwargs.get("width", 1)),
        row_leaves=lambda sample: (),
    ),
    "verify_greedy": OpCases(
        samples=greedy_samples(),
        bad_calls=_greedy_bad_calls(),
        op_arguments=lambda sample: (*sample.args, sample.kwargs.get("parents")),
        row_leaves=lambda sample: (),
    ),
    "verify_sample": OpCases(
        samples=sample_samples(),
        bad_calls=_sample_bad_calls(),
        op_arguments=lambda sample: (
            *sample.args,
            *[None] * (3 - len(sample.args)),
            sample.kwargs.get("parents"),
            sample.kwargs["uniforms"],
        ),
        row_leaves=lambda sample: (),
    ),
}
