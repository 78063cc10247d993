"""What a benchmark declares, and how a declared case becomes checked calls.

A file bench/ops/bench_<op>.py holds one `Subject`: its cases, its inputs and the idiom that a user
of plain PyTorch would write. Variants, expected values, checks and limits follow from it here, for
every op alike.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch._functorch.config as functorch_config
from torch import Tensor
from torch.utils import _pytree as pytree

from leeboard.ops.registry import OPS

Direction = Literal["forward", "backward"]
Variant = Literal["leeboard", "leeboard-out", "eager", "compile", "reference"]
Call = Callable[[], Any]

# The kernels' contract allows twice the reference's own error. Peers are only held to compute the
# same thing: torch.compile adds thousands of rows one after another, which alone costs them tens of
# times the error of a pairwise sum.
BUDGET = {"leeboard": 2.0, "leeboard-out": 2.0, "reference": 2.0, "eager": 64.0, "compile": 64.0}


@dataclass(frozen=True)
class Aim:
    """What a case should reach: a time, or a share of its limit; perhaps the compiled peer's time."""

    seconds: float | None = None
    share: float | None = None
    compiled: bool = False


@dataclass(frozen=True)
class Case:
    """One shape, dtype and direction of an op, with what it must at least move and compute.

    Attributes:
        shape: Sizes by letter, in the order in which they are shown.
        read: Bytes that must be read at least once.
        written: Bytes that must be written.
        flops: Float32 operations.
        streams: (arrays read, arrays written) of the read/write mix that gives the limit.
        quick: Whether `--quick` measures it.
    """

    op: str
    shape: Mapping[str, int]
    dtype: torch.dtype
    direction: Direction
    read: int
    written: int
    flops: int
    streams: tuple[int, int]
    aim: Aim | None = None
    quick: bool = False

    @property
    def sizes(self) -> str:
        return "-".join(f"{letter}{size}" for letter, size in self.shape.items())

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def id(self) -> str:
        return f"{self.sizes}-{self.dtype_name}-{self.direction}"

    @property
    def moved(self) -> int:
        return self.read + self.written


@dataclass(frozen=True)
class Inputs:
    """Arguments of one call; tensors may sit in lists."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def map(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        args, kwargs = pytree.tree_map_only(Tensor, change, (self.args, dict(self.kwargs)))
        return Inputs(args, kwargs)

    def floats(self) -> list[Tensor]:
        leaves = pytree.tree_leaves((self.args, dict(self.kwargs)))
        return [t for t in leaves if isinstance(t, Tensor) and t.is_floating_point()]

    def nbytes(self) -> int:
        leaves = pytree.tree_leaves((self.args, dict(self.kwargs)))
        return sum(t.nbytes for t in leaves if isinstance(t, Tensor))


Check = Callable[["Prepared", Variant, Any], None]


@dataclass(frozen=True)
class Subject:
    """All that is special about one op's benchmark.

    Attributes:
        inputs: Builds the arguments of a case on a device.
        eager: The best idiom in plain PyTorch, taking the same arguments.
        check: Raises unless a result of a variant is right; by default, against the reference.
        plain: What the idiom is given instead, where the op's own arguments mean nothing to it.
    """

    op: str
    cases: Sequence[Case]
    inputs: Callable[[Case, torch.device], Inputs]
    eager: Callable[..., Any]
    check: Check | None = None
    plain: Callable[[Inputs], Inputs] | None = None


def tensors_of(result: Any) -> list[Tensor]:
    """The tensors of a result, in order."""
    return [t for t in pytree.tree_leaves(result) if isinstance(t, Tensor)]


def _double(t: Tensor) -> Tensor:
    return t.detach().double() if t.is_floating_point() else t


class Prepared:
    """A case with its inputs, ready to be called and checked."""

    def __init__(self, subject: Subject, case: Case, device: str = "cpu") -> None:
        torch.manual_seed(0)
        self.subject, self.case = subject, case
        self.spec = OPS[subject.op]
        self.inputs = subject.inputs(case, torch.device(device))
        backward = case.direction == "backward"
        for t in self.inputs.floats():
            # A weight is a parameter in every use; activations only carry gradients in training.
            t.requires_grad_(backward or isinstance(t, torch.nn.Parameter))
        # A subject's own check keeps here what is the same for every variant.
        self.kept: dict[str, Any] = {}
        self.grads_out: list[Tensor] = []
        if backward:
            shapes = self.inputs.map(lambda t: t.detach().to("meta"))
            outputs = tensors_of(self.spec.reference(*shapes.args, **shapes.kwargs))
            self.grads_out = [torch.randn_like(t, device=device) for t in outputs]

    def function(self, variant: Variant) -> Callable[..., Any]:
        """The function that a variant calls."""
        if variant in ("leeboard", "leeboard-out"):
            return self.spec.function
        if variant == "reference":
            return self.spec.reference
        if variant == "eager":
            return self.subject.eager
        torch._dynamo.reset()
        return torch.compile(self.subject.eager, fullgraph=True, dynamic=False)

    def call(self, variant: Variant) -> Call:
        """A call without arguments that runs a variant once and returns its result.

        A backward call leaves the graph of one forward in place and walks it again each time.
        """
        function = self.function(variant)
        inputs = self.inputs
        if variant in ("eager", "compile") and self.subject.plain is not None:
            inputs = self.subject.plain(inputs)
        args, kwargs = inputs.args, dict(inputs.kwargs)
        if variant == "leeboard-out":
            made = function(*args, **kwargs)
            kwargs["out"] = pytree.tree_map_only(Tensor, torch.empty_like, made)
        if self.case.direction == "forward":
            return functools.partial(function, *args, **kwargs)
        # Compiled backwards would otherwise reuse saved tensors as scratch and allow one walk only.
        with functorch_config.patch(donated_buffer=False):
            outputs = tensors_of(function(*args, **kwargs))
            run = functools.partial(
                torch.autograd.grad,
                outputs,
                self.inputs.floats(),
                self.grads_out,
                retain_graph=True,
            )
            run()
        return run

    def _reference_result(self, inputs: Inputs, grads_out: list[Tensor]) -> list[Tensor]:
        if self.case.direction == "forward":
            with torch.no_grad():
                return tensors_of(self.spec.reference(*inputs.args, **inputs.kwargs))
        with torch.enable_grad():
            fresh = inputs.map(lambda t: t.detach().requires_grad_(t.is_floating_point()))
            outputs = tensors_of(self.spec.reference(*fresh.args, **fresh.kwargs))
            return list(torch.autograd.grad(outputs, fresh.floats(), grads_out))

    @functools.cached_property
    def budget(self) -> list[tuple[Tensor, float]]:
        """(float64 result, the reference's own largest error in the case's dtype) per output."""
        exact = self._reference_result(
            self.inputs.map(_double), [g.double() for g in self.grads_out]
        )
        rounded = self._reference_result(self.inputs, self.grads_out)
        return [
            (e, float((r.double() - e).abs().max())) for e, r in zip(exact, rounded, strict=True)
        ]

    def check(self, variant: Variant, result: Any) -> None:
        """Raises AssertionError unless `result` is what the reference says, within the budget."""
        if self.subject.check is not None:
            self.subject.check(self, variant, result)
            return
        actual = tensors_of(result)
        assert len(actual) == len(self.budget), f"{len(actual)} outputs, not {len(self.budget)}"
        for index, (got, (exact, own)) in enumerate(zip(actual, self.budget, strict=True)):
            assert got.shape == exact.shape, f"output {index}: {got.shape}, not {exact.shape}"
            assert got.dtype == self.case.dtype, f"output {index}: dtype {got.dtype}"
            floor = torch.finfo(self.case.dtype).eps * float(exact.abs().max())
            error = float((got.detach().double() - exact).abs().max())
            allowed = BUDGET[variant] * max(own, floor)
            assert error <= allowed, f"output {index}: error {error:.3g}, allowed {allowed:.3g}"


def variants(case: Case) -> tuple[Variant, ...]:
    """What is measured for a case."""
    own: tuple[Variant, ...] = ("leeboard",)
    if case.direction == "forward":
        own = ("leeboard", "leeboard-out")
    return (*own, "eager", "compile")


def subjects() -> dict[str, Subject]:
    """The subject of every registered op.

    Raises:
        LookupError: If a registered op has no benchmark.
    """
    missing = [op for op in OPS if not _file(op).exists()]
    if missing:
        files = ", ".join(f"bench/ops/bench_{op}.py" for op in missing)
        raise LookupError(f"registered ops without a benchmark; expected {files}")
    found: dict[str, Subject] = {}
    for op in OPS:
        found[op] = importlib.import_module(f"bench.ops.bench_{op}").SUBJECT
        if found[op].op != op:
            raise LookupError(f"bench/ops/bench_{op}.py measures {found[op].op!r}, not {op!r}")
    return found


def _file(op: str) -> Path:
    return Path(__file__).parent / "ops" / f"bench_{op}.py"
